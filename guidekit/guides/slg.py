r"""Skip-layer guidance, as in Stable Diffusion 3.5 (Stability AI, 2024), and in video models as spatiotemporal skip
guidance (Hyung et al., 2024), https://arxiv.org/abs/2411.18664.

    d <- d + s (d_cond - d_skipped)

where d_skipped comes from the same network with chosen layers left out: they return their input. It is like
perturbed-attention guidance (https://arxiv.org/abs/2403.17377), but perturbs whole layers. For Stable Diffusion 3.5
medium, layers 7, 8 and 9 of 24 are skipped in the interval [0.01, 0.2) of the run, with s = 2.5 in the reference code
of its authors and s = 2.8 in diffusers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.card import Paper
from ..errors import NetworkError
from ..models.attention import Perturbation, Perturbed
from .shared.perturbing import Away


@dataclass(frozen=True)
class Skip(Perturbation):
    """The module returns its input. If it returns several tensors, each is the input of the same shape."""

    whole = True

    def module(self, given: list[Tensor], out: Any, put: Callable[[Tensor, Tensor], Tensor]) -> Any:
        outputs = [v for v in (out if type(out) in (tuple, list) else [out]) if isinstance(v, Tensor)]
        shapes = [v.shape for v in outputs]
        inputs = {v.shape: v for v in reversed(given)}  # the first argument of each shape
        if not outputs or len(set(shapes)) < len(shapes) or not inputs.keys() >= set(shapes):
            raise NetworkError(
                f"a layer that returns {[tuple(s) for s in shapes] or type(out).__name__} for inputs of shapes "
                f"{[tuple(v.shape) for v in given]} cannot be skipped: every output needs one input of its shape, and "
                "two outputs of one shape cannot be told apart"
            )
        if isinstance(out, Tensor):
            return put(out, inputs[out.shape])
        return type(out)(put(v, inputs[v.shape]) if isinstance(v, Tensor) else v for v in out)


@dataclass(frozen=True)
class SLG(Away):
    """Skip-layer guidance. One extra NFE per particle and step, in the same forward pass.

    scale    s, a number or a function of t; 0 does nothing
    layers   dotted names of the modules to skip; None: the mid_block of a U-Net, or else the middle of the longest list
             of layers of one class
    """

    card = replace(
        Away.card,
        about="extrapolates away from the network with layers skipped",
        paper=Paper(
            "hyung2024stg",
            "Hyung, Junha and others",
            "Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling",
            2024,
            "2411.18664",
        ),
        example='gk.SLG(0.4, "blocks.1")',
    )

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Skip(), self.layers)

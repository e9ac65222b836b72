r"""Skip-layer guidance, as in Stable Diffusion 3.5 (Stability AI, 2024).

    d <- d + s (d_cond - d_skipped)

with d_skipped the same network in which chosen layers are left out: they return what they were given. It is perturbed
guidance as in https://arxiv.org/abs/2403.17377 without regard to attention. Stable Diffusion 3.5 medium skips layers 7,
8 and 9 of 24 with s = 2.8 in the interval [0.01, 0.2) of the run; spatiotemporal skip guidance (Hyung et al., 2024,
https://arxiv.org/abs/2411.18664) does the same in video models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.guide import Guide, Scale
from ..engine.view import View
from ..errors import NetworkError
from ..models.attention import Layers, Perturbation, Perturbed
from ..models.base import Model
from ..models.evaluations import Cond
from .shared.contrast import away


@dataclass(frozen=True)
class Skip(Perturbation):
    """The module returns its input: of several tensors, each output the input of its shape."""

    whole = True

    def module(self, given: list[Tensor], out: Any, put: Callable[[Tensor, Tensor], Tensor]) -> Any:
        outputs = [v for v in (out if type(out) in (tuple, list) else [out]) if isinstance(v, Tensor)]
        shapes = [v.shape for v in outputs]
        inputs = {v.shape: v for v in reversed(given)}  # of equal shapes the first argument
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
class SLG(Guide):
    """Skip-layer guidance. One extra row per particle, in the same forward.

    scale    a number or a function of t
    layers   dotted names of the modules to skip; None is mid_block of a U-Net, else the middle of the longest list of
             layers of one class
    """

    scale: Scale
    layers: Layers = None

    neutral = 0.0

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Skip(), self.layers)

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == 0 else (self.perturbed,)

    def check(self, model: Model, steps: int) -> None:
        self.perturbed.check(model)

    def tilt(self, view: View) -> Tensor | float:
        return away(self.scale, view, self.perturbed) if self.needs else 0.0

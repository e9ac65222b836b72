r"""Decomposed diffusion sampling, DDS (Chung et al., 2023), https://arxiv.org/abs/2303.05754.

The clean estimate is moved by a few steps of conjugate gradients, started at d, towards

    argmin_x  gamma |y - A x|^2/2 + |x - d|^2/2,        (A^T A + 1/gamma) x = A^T y + d/gamma,

so that it stays in the Krylov space at d, which is that of the tangent where data lie in a linear space. A heuristic:
gamma is the same at all times, whatever the noise of the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.card import Paper
from ..engine.view import View
from ..errors import is_count
from .shared.inverse import Inverse


@dataclass(frozen=True)
class DDS(Inverse):
    """A few steps of conjugate gradients from the clean estimate towards the measurement. No extra NFE and no backward
    pass; any solver, and any linear operator with an adjoint.

    gamma   the weight of the measurement
    iters   steps of conjugate gradients
    """

    measurement: Any
    gamma: float = 5.0
    iters: int = 5

    card = replace(
        Inverse.card,
        about="moves the clean estimate by conjugate gradients",
        paper=Paper(
            "chung2023dds",
            "Chung, Hyungjin and Lee, Suhyeon and Ye, Jong Chul",
            "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems",
            2023,
            "2303.05754",
        ),
        example="gk.DDS(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0 or not is_count(self.iters):
            raise ValueError(
                f"DDS(gamma={self.gamma}, iters={self.iters!r}): gamma > 0 and an int of at least 1 are needed"
            )

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own = self.problem
        right = own.operator.adjoint(own.of(view.group).to(prediction)) + prediction / self.gamma
        return own.operator.solve(right, 1 / self.gamma, prediction, self.iters)

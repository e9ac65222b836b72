r"""Adaptive projected guidance (Sadat et al., 2024), https://arxiv.org/abs/2410.02416.

On clean means, with D = d_cond - d_null:

    D  <- D + beta D_before                   reverse momentum, beta < 0; D_before is this line at the step before
    D  <- D min(1, r/|D|)                     a bound on its norm
    D  =  D_par + D_orth                      parallel and orthogonal to d_cond
    d  <- d_cond + (w - 1) (D_orth + eta D_par)

The parallel component is what saturates colours. eta = 0 removes it; eta = 1 with r infinite and beta = 0 is CFG.

The defaults are the projection alone. The full method also has a radius and a momentum, which the paper chooses for
each model, the radius in the units of its latents: pass them for your model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, along, both, dot


@dataclass(frozen=True)
class APG(Contrast):
    """Projected guidance. Each particle has its own momentum, which follows it through selections.

    scale      w, a number or a function of t
    eta        the fraction of the parallel component that is kept
    radius     r, the bound on the norm of the difference; infinity: none
    momentum   beta; 0: none, the paper uses -0.75 to -0.5
    """

    eta: float = 0.0
    radius: float = math.inf
    momentum: float = 0.0

    @property
    def neutral(self) -> float | None:  # type: ignore[override]
        return None if self.momentum else 1.0

    card = replace(
        Contrast.card,
        about="guides orthogonally to the prediction, with a bound and momentum",
        paper=Paper(
            "sadat2024apg",
            "Sadat, Seyedmorteza and Hilliges, Otmar and Weber, Romann M.",
            "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
            2024,
            "2410.02416",
        ),
        example="gk.APG(2.5)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not self.radius > 0 or not -1 < self.momentum < 1:
            raise ValueError(f"APG(radius={self.radius}, momentum={self.momentum}): radius > 0, momentum in (-1, 1)")

    def tilt(self, view: View) -> Tensor:
        cond, _ = both(view)
        d = self._averaged(view, view.memo)
        if math.isfinite(self.radius):
            d = d * view.rows((self.radius / dot(d, d).sqrt()).clamp(max=1.0))
        parallel = along(view, d, cond)
        return (at(self.scale, view.t) - 1) * (d + (self.eta - 1) * parallel)

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if self.momentum == 0 or view.prediction is None:
            return 0.0, memo
        return 0.0, self._averaged(view, memo)

    def _averaged(self, view: View, before: Tree) -> Tensor:
        cond, null = both(view)
        return cond - null if before is None else cond - null + self.momentum * before

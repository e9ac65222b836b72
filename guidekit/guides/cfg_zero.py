r"""CFG-Zero* (Fan et al., 2025), https://arxiv.org/abs/2503.18886, for flows and everything that can be written as one.

On velocities v = z - x_0, with the scale of the unconditional one fitted to each sample:

    s*  = <v_cond, v_null> / |v_null|^2
    v   <- s* v_null + w (v_cond - s* v_null)
    v   <- 0                                  in the first `zero` share of the run, where a trained velocity is worst

w = 1 is the conditional model. Where v is 0 the clean mean is x_t/(alpha_t + sigma_t), so that a deterministic solver
of a flow leaves x_t where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, along, both, from_velocity, velocity


@dataclass(frozen=True)
class CFGZero(Contrast):
    """CFG with the fitted scale and zero steps. `zero` is a fraction of the run; the paper takes about 4 %."""

    zero: float = 0.0

    @property
    def neutral(self) -> float | None:  # type: ignore[override]
        return None if self.zero else 1.0

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not 0 <= self.zero < 1:
            raise ValueError(f"CFGZero(zero={self.zero}): a fraction of the run, in [0, 1)")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        if view.step.fraction < self.zero:
            return from_velocity(view, velocity(view, cond) * 0) - cond
        v_cond, v_null = velocity(view, cond), velocity(view, null)
        fitted = along(view, v_cond, v_null)
        alpha, sigma = view.model.process.scales(view.t)
        # d is affine in v, so a change of v is -sigma/(alpha + sigma) times as much in d
        return -sigma / (alpha + sigma) * (at(self.scale, view.t) - 1) * (v_cond - fitted)

r"""Magnitude-aware guidance, MAMBO-G (Zhu et al., 2025), https://arxiv.org/abs/2508.03442.

The weight falls where guidance is large against the prediction itself, as it is at the start of a run:

    r = |v_cond - v_null| / |v_null|,    w(r) = 1 + (w - 1) exp(-damping r),    d <- d_null + w(r) (d_cond - d_null)

for each sample, with r measured on velocities v = z - x_0. damping = 0 is CFG, w = 1 the conditional model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, both, dot, velocity


@dataclass(frozen=True)
class MagnitudeAware(Contrast):
    """CFG whose weight is damped by the size of its own step. The authors' code takes damping 8."""

    damping: float = 8.0

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not self.damping >= 0:
            raise ValueError(f"MagnitudeAware(damping={self.damping}): at least 0")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        v, v_null = velocity(view, cond) - velocity(view, null), velocity(view, null)
        base = dot(v_null, v_null).sqrt()
        ratio = torch.where(base > 0, dot(v, v).sqrt() / base, 0.0)
        return (at(self.scale, view.t) - 1) * view.rows((-self.damping * ratio).exp()) * (cond - null)

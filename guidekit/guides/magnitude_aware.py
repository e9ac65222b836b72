r"""Magnitude-aware guidance, MAMBO-G (Zhu et al., 2025), https://arxiv.org/abs/2508.03442.

The guidance weight decays where the guidance is large relative to the prediction itself, as at the start of a run:

    r = |v_cond - v_null| / |v_null|,    w(r) = 1 + (w - 1) exp(-damping r),    d <- d_null + w(r) (d_cond - d_null)

for each sample, with r computed from velocities v = z - x_0. damping = 0 is CFG, w = 1 the conditional model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, both, dot, velocity


@dataclass(frozen=True)
class MagnitudeAware(Contrast):
    """CFG whose weight is damped by the relative magnitude of the guidance. One extra NFE per particle and step.

    scale     w, a number or a function of t; 1 does nothing
    damping   the rate of the decay; 8 in the authors' code, 0 is CFG
    """

    damping: float = 8.0

    card = replace(
        Contrast.card,
        about="CFG with less weight where the guidance is large",
        paper=Paper(
            "zhu2025mambog",
            "Zhu, Shangwen and Peng, Qianyu and Shu, Zhilei and Hu, Yuting and Yang, Zhantao and Zhang, Han and "
            "Pu, Zhao and Zheng, Andy and Cui, Xinyu and Zhao, Jian and Feng, Ruili and Cheng, Fan",
            "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance",
            2025,
            "2508.03442",
        ),
        example="gk.MagnitudeAware(2.5)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not self.damping >= 0:
            raise ValueError(f"MagnitudeAware(damping={self.damping}): at least 0")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        v, v_null = velocity(view, cond) - velocity(view, null), velocity(view, null)
        base = dot(v_null, v_null).sqrt()
        ratio = torch.where(base > 0, dot(v, v).sqrt() / base, 0.0)
        return (at(self.scale, view.t) - 1) * view.rows((-self.damping * ratio).exp()) * (cond - null)

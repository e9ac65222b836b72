r"""Adaptive projected guidance in the second part of a run, CFG before (Tencent Hunyuan, 2025, HunyuanImage 2.1); the
projection is that of Sadat et al. (2024), https://arxiv.org/abs/2410.02416.

    d <- d_null + w_0 (d_cond - d_null)      in the first part of the run
    d <- that of gk.APG                      afterwards, whose momentum has been gathered from the start

Early steps decide the layout and need no bound; later ones take much larger weights without saturating. Without
momentum this is [gk.CFG(w_0, stop=switch), gk.APG(w, start=switch)]. AdaptiveProjectedMixGuidance of diffusers, which
counts the steps before the switch, is the same in its original formulation, on predictions that are clean means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.guide import Scale, at
from ..engine.view import View
from ..models.base import Model
from .apg import APG
from .shared.contrast import both


@dataclass(frozen=True)
class APGMix(APG):
    """CFG, then projected guidance. One extra NFE per particle and step.

    scale, eta, radius, momentum   as in APG, for the second part
    before                         w_0 of the first part, a number or a function of t
    switch                         the fraction of the run that is CFG
    """

    before: Scale = 3.5
    switch: float = 0.1

    neutral = None  # type: ignore[assignment]

    card = replace(
        APG.card,
        about="CFG, and projected guidance in the second part of the run",
        example="gk.APGMix(4.0, before=1.5)",
    )

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not 0 <= self.switch <= 1:
            raise ValueError(f"APGMix(switch={self.switch}): a fraction of the run, in [0, 1]")

    def tilt(self, view: View) -> Tensor:
        if view.step.fraction >= self.switch:
            return super().tilt(view)
        cond, null = both(view)
        return (at(self.before, view.t) - 1) * (cond - null)

r"""CFG-Zero* (Fan et al., 2025), https://arxiv.org/abs/2503.18886, for flow models and all that can be written as one.

On velocities v = z - x_0, with the scale of the unconditional velocity fitted to each sample:

    s*  = <v_cond, v_null> / |v_null|^2
    v   <- s* v_null + w (v_cond - s* v_null)
    v   <- 0                                  in the first steps of the run, where a trained velocity is least accurate

w = 1 is the conditional model, and nothing is changed. Where v = 0 the clean mean is x_t/(alpha_t + sigma_t), so that a
deterministic solver of a flow leaves x_t where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, along, both, from_velocity, velocity


@dataclass(frozen=True)
class CFGZero(Contrast):
    """CFG with an optimised scale and zero initialisation. One extra NFE per particle and step.

    scale   w, a number or a function of t; 1 does nothing
    zero    the fraction of the run in which the velocity is set to zero. The default is the paper's 4 %, which is
            always at least the first step; 0 turns it off
    """

    zero: float = 0.04

    card = replace(
        Contrast.card,
        about="CFG with an optimised scale, and a zero velocity in the first steps",
        paper=Paper(
            "fan2025cfgzero",
            "Fan, Weichen and Zheng, Amber Yijia and Yeh, Raymond A. and Liu, Ziwei",
            "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
            2025,
            "2503.18886",
        ),
        example="gk.CFGZero(2.5)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 <= self.zero < 1:
            raise ValueError(f"CFGZero(zero={self.zero}): a fraction of the run, in [0, 1)")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        if view.step.fraction < self.zero:
            return from_velocity(view, velocity(view, cond) * 0) - cond
        v_cond, v_null = velocity(view, cond), velocity(view, null)
        fitted = along(view, v_cond, v_null)
        alpha, sigma = view.model.process.scales(view.t)
        # d is affine in v: a change of v changes d by -sigma/(alpha + sigma) times as much
        return -sigma / (alpha + sigma) * (at(self.scale, view.t) - 1) * (v_cond - fitted)

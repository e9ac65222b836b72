r"""CFG++ (Chung et al., 2024), https://arxiv.org/abs/2406.08070.

The guided clean mean interpolates between the two predictions, and the step is taken with the noise of the
unconditional one:

    d_g  = d_null + lambda (d_cond - d_null),   lambda in [0, 1]
    x_s  = alpha_s d_g + sqrt(sigma_s^2 - c^2) e_null + c z,        e_null = (x_t - alpha_t d_null)/sigma_t.

The coming move is x_s = a x_t + b d + c z with a = sqrt(sigma_s^2 - c^2)/sigma_t and b = alpha_s - a alpha_t, so this
is the ordinary step with the prediction

    d = (alpha_s d_g - a alpha_t d_null)/b = d_null + w (d_cond - d_null),       w = lambda alpha_s/b,

since x_t = alpha_t d_null + sigma_t e_null. Its weight w makes up for the noise within this one step and says nothing
of x_0: it grows as steps get smaller (at lambda = 0.6 to 2.2 in 10 steps of DDIM on the cosine schedule, to 9.8 in 50).
So particles move with d, and d_g is the estimate that rewards and other guides are shown. All this holds for solvers of
one step (DDPM, DDIM, Euler). lambda = 0 is the unconditional model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.tilts import Apart
from ..engine.view import Step, View
from ..models.base import Model
from ..solvers import Move
from .shared.contrast import Contrast, both


@dataclass(frozen=True)
class CFGpp(Contrast):
    """CFG++. One extra NFE per particle and step.

    scale   lambda in [0, 1], a number or a function of t; small values such as 0.6 are usual

    Rewards and other guides see d_g of the formula as the clean estimate.
    """

    card = replace(
        Contrast.card,
        about="CFG that renoises with the unconditional prediction",
        paper=Paper(
            "chung2024cfgpp",
            "Chung, Hyungjin and Kim, Jeongsol and Park, Geon Yeong and Nam, Hyelin and Ye, Jong Chul",
            "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
            2024,
            "2406.08070",
        ),
        example="gk.CFGpp(0.8)",
    )

    neutral = None

    def active(self, step: Step) -> bool:
        up = step.move is not None and step.move.s > step.move.t
        return super().active(step) and not up

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if any(len(move.b) != 1 for move in moves if move.s <= move.t):
            raise ValueError("CFGpp is a rule for solvers of one step: DDPM(), DDIM() or Euler()")
        return moves

    def tilt(self, view: View) -> Apart:
        cond, null = both(view)
        move = view.step.move
        assert move is not None
        guided = null + at(self.scale, view.t) * (cond - null)
        alpha_t, alpha_s = (view.model.process.scales(t)[0] for t in (move.t, move.s))
        return Apart((alpha_s * guided - move.a * alpha_t * null) / move.b[0] - cond, guided - cond)

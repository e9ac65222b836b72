r"""Plug-and-play image restoration by diffusion, DiffPIR (Zhu et al., 2023), https://arxiv.org/abs/2305.08995.

The clean estimate is replaced by a proximal point, and part of the noise of x_t by new noise:

    d   <- argmin_x |y - A x|^2 + rho_t |x - d|^2,        rho_t = lambda noise^2 alpha_t^2/sigma_t^2,
    x_s =  alpha_s d + sigma_s ((1 - zeta)^1/2 (x_t - alpha_t d)/sigma_t + zeta^1/2 z).

Without noise the proximal point is d + A^+ (y - A d). The solver gives the times alone. A heuristic; lambda = 1 would
be the posterior mean if x_0 given x_t were N(d, sigma_t^2/alpha_t^2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.view import View
from ..models.base import Model
from ..solvers import Move
from .shared.inverse import Inverse


@dataclass(frozen=True)
class DiffPIR(Inverse):
    """A proximal step at the clean estimate, and moves with renewed noise. No extra NFE and no backward pass; any
    linear operator with an adjoint.

    lam    lambda, the weight of the clean estimate
    zeta   the share of the variance of x_s that is new noise, from 0 to 1
    """

    measurement: Any
    lam: float = 7.0
    zeta: float = 0.3

    moving = True
    card = replace(
        Inverse.card,
        about="a proximal step at the clean estimate, and renewed noise",
        paper=Paper(
            "zhu2023diffpir",
            "Zhu, Yuanzhi and Zhang, Kai and Liang, Jingyun and Cao, Jiezhang and Wen, Bihan and Timofte, Radu and "
            "Van Gool, Luc",
            "Denoising Diffusion Models for Plug-and-Play Image Restoration",
            2023,
            "2305.08995",
        ),
        example="gk.DiffPIR(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lam > 0 or not 0 <= self.zeta <= 1:
            raise ValueError(f"DiffPIR(lam={self.lam}, zeta={self.zeta}): lam > 0 and 0 <= zeta <= 1 are needed")

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        self.one_move_each(moves, "makes the moves itself, and takes the solver's times alone")
        return [m if m.s > m.t else self._move(model, m) for m in moves]

    def _move(self, model: Model, move: Move) -> Move:
        (a_t, s_t), (a_s, s_s) = model.process.scales(move.t), model.process.scales(move.s)
        a = (1 - self.zeta) ** 0.5 * s_s / s_t
        return Move(move.t, move.s, a, (a_s - a * a_t,), self.zeta**0.5 * s_s)

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        alpha, sigma = view.model.process.scales(view.t)
        variance = sigma**2 / (self.lam * alpha**2) if alpha > 0 else torch.inf
        return prediction + self.problem.gain(self.problem.rest(prediction, view.group), variance)

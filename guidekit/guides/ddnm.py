r"""Denoising diffusion null-space model, DDNM (Wang et al., 2022), https://arxiv.org/abs/2212.00490.

The part of the clean estimate that y = A x_0 determines is replaced, and its part in the null space of A is kept:

    d <- d + A^+ (y - A d),        so that A d = y  (noise 0).

With noise (DDNM+) the correction would carry noise/s of y into the component of the singular value s, and b times as
much into x_s = a x_t + b d + c z. So it is damped there, and the noise of the move is reduced by what y brings along:

    d <- d + V lambda V^T A^+ (y - A d),     lambda = min(1, c s/(b noise)),     c^2 z^2 -> c^2 - (b lambda noise/s)^2.

The last move has c = 0: the sample is the network's own estimate. A heuristic, apart from A x_0 = y without noise. The
paper's time travel is left to a grid of times that goes up again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..solvers import Move
from .shared.inverse import Inverse


@dataclass(frozen=True)
class DDNM(Inverse):
    """Replace what the measurement determines of the clean estimate. No extra NFE and no backward pass. Without noise
    any solver, and A x_0 = y holds exactly; with noise a stochastic one, and an operator that knows its singular
    values."""

    measurement: Any

    isotropic = True
    card = replace(
        Inverse.card,
        about="replaces the range-space part of the clean estimate",
        exact="A x_0 = y, without noise",
        paper=Paper(
            "wang2022ddnm",
            "Wang, Yinhuai and Yu, Jiwen and Zhang, Jian",
            "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
            2022,
            "2212.00490",
        ),
        example="gk.DDNM(exact)",
    )

    @property
    def moving(self) -> bool:  # type: ignore[override]
        return hasattr(self, "problem") and self.problem.noise > 0

    @property
    def stochastic(self) -> bool:
        return self.steer or self.moving

    @property
    def independent(self) -> bool:
        return not self.steer

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if self.moving and not self.problem.operator.decomposed:
            raise ValueError(
                "DDNM with noise needs the singular values of the operator, and this one does not know them: take DDS, "
                "PiGDM or DiffPIR, which need none, or noise=0"
            )

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if self.moving:
            self.one_move_each(moves, "shares the noise of a move between y and the sampler")
        return moves

    def active(self, step: Step) -> bool:
        return super().active(step) and (step.move is None or step.move.s <= step.move.t)

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own = self.problem
        change = own.operator.pinv(own.rest(prediction, view.group))
        if own.noise == 0:
            return prediction + change
        assert view.step.move is not None
        return prediction + own.operator.spectral(self._damped(view.step.move), change)

    def noise(self, population: Population, step: Step, noise: Tensor) -> tuple[Tensor, Tree]:
        own, move = self.problem, step.move
        if own.noise == 0 or move is None or move.c == 0:
            return noise, population.memos[step.place]

        def left(s: Tensor) -> Tensor:
            brought = self._damped(move)(s) * move.b[0] * own.noise / (s.clamp(min=own.operator.cut) * move.c)
            return torch.where(own.operator.known(s), (1 - brought.square()).clamp(min=0).sqrt(), 1.0)

        return own.operator.spectral(left, noise), population.memos[step.place]

    def _damped(self, move: Move):
        """lambda of a singular value."""
        return lambda s: (move.c * s / (move.b[0] * self.problem.noise)).clamp(max=1.0)

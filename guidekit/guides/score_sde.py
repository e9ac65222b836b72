r"""Projection onto the measurement, Score-SDE (Song et al., 2021, https://arxiv.org/abs/2011.13456, for masks and
colours; Song et al., 2022, https://arxiv.org/abs/2111.08005, for any linear operator).

After every move the part of the state that y = A x_0 determines is that of the forward process of y:

    x_s <- x_s + lambda A^+ (y_s - A x_s),        y_s = alpha_s y + sigma_s A z,

where z is the noise of the move, whose own part in the range of A^T the projection takes away for lambda = 1. The rest
of the state stays. A heuristic: it does not know the measurement before the network has seen the state. lambda = 1 ends
in A x_0 = y; with noise in y the authors take less. The form for masks that is exact under weights is `Keep`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.population import Population
from ..engine.view import Step
from ..measurements.measurement import Problem
from ..models.base import Model
from ..solvers import Move
from .shared.inverse import Inverse


@dataclass(frozen=True)
class ScoreSDE(Inverse):
    """Replace the measured part of the state by the noised measurement after every move. No extra NFE and no backward
    pass; any solver of one evaluation a step, and any linear operator with an adjoint.

    lam   lambda, the share that is replaced, above 0 and up to 1
    """

    measurement: Any
    lam: float = 1.0

    moving = True
    card = replace(
        Inverse.card,
        about="replaces the measured part of the state by the noised measurement",
        exact="A x_0 = y, with lam=1",
        changes="kernel",
        paper=Paper(
            "song2022medical",
            "Song, Yang and Shen, Liyue and Xing, Lei and Ermon, Stefano",
            "Solving Inverse Problems in Medical Imaging with Score-Based Generative Models",
            2022,
            "2111.08005",
        ),
        example="gk.ScoreSDE(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lam <= 1:
            raise ValueError(f"ScoreSDE(lam={self.lam}): a number above 0 and up to 1 is needed")

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        self.one_move_each(moves, "projects the state after every move")
        return moves

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        assert step.move is not None
        if step.move.s > step.move.t:
            return kernel
        alpha, sigma = model.process.scales(step.move.s)
        y = self.problem.of(population.group).to(population.x)
        return Projected(kernel, y, alpha, sigma, self.problem, self.lam)


@dataclass(frozen=True)
class Projected:
    """The kernel of a move, with the projection; weights do not correct for it."""

    inner: Any
    y: Tensor
    alpha: float
    sigma: float
    own: Problem
    lam: float
    random = True

    @property
    def history(self) -> tuple[Tensor, ...]:
        return self.inner.history

    def push(self, noise: Tensor) -> Tensor:
        A = self.own.operator
        y = self.alpha * self.y + self.sigma * A.A(noise)
        x = self.inner.push(noise)
        return x + self.lam * A.pinv(y - A.A(x))

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

r"""ReSample: hard data consistency and stochastic resampling (Song et al., 2023), https://arxiv.org/abs/2307.08123.

The clean estimate d is moved until the measurement of what it decodes to fits, and the state is drawn anew near it:

    d*   = argmin_x |y - A(decode(x))|^2,    by conjugate gradients from d, until its root mean square is the noise,
    x'_s = alpha_s d + sigma_s (x_t - alpha_t d)/sigma_t,
    x_s  = w alpha_s d* + (1 - w) x'_s + w^1/2 sigma_s z,
    w    = gamma c/(1 + gamma c),            c = sigma_t^2/alpha_t^2 - sigma_s^2/alpha_s^2.

That is the posterior of x_s for the prior N(x'_s, tau^2) and alpha_s d* seen with the variance sigma_s^2: the paper's
formula, in which tau^2 = gamma c sigma_s^2, for any schedule. The last move has w = 1, so that the sample is d* itself.
The steps between are those of DDIM. A heuristic; d* is exact where the operator is linear and `iters` suffice.

Conjugate gradients are those of Polak and Ribiere (1969), with the step that is best for the operator's derivative
along the search direction, taken by a difference. For linear operators they are those of Hestenes and Stiefel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Guide
from ..engine.view import Step, View
from ..errors import is_count
from ..measurements.measurement import Decoded, Problem, decoded, numbers
from ..models.base import Model
from ..solvers import Move
from .shared.inverse import Inverse


@dataclass(frozen=True)
class ReSample(Inverse):
    """Move the clean estimate until its measurement fits, and draw the state near it. No extra NFE; `iters` gradients
    through operator and decoder. Any differentiable operator and any decoder, with Gaussian noise or none.

    gamma   how near to the moved estimate the state is drawn
    iters   the most steps of conjugate gradients
    every   one in so many steps moves the estimate, counted from the last, which always does
    """

    measurement: Any
    gamma: float = 40.0
    iters: int = 30
    every: int = 1

    problem: ClassVar[Problem | Decoded]  # type: ignore[misc]
    moving = True
    card = replace(
        Inverse.card,
        about="moves the estimate until it fits, and draws the state near it",
        exact="A(x_0) = y, to the noise",
        paper=Paper(
            "song2023resample",
            "Song, Bowen and Kwon, Soo Min and Zhang, Zecheng and Hu, Xinyu and Qu, Qing and Shen, Liyue",
            "Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency",
            2023,
            "2307.08123",
        ),
        example="gk.ReSample(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0 or not is_count(self.iters) or not is_count(self.every):
            raise ValueError(
                f"ReSample(gamma={self.gamma}, iters={self.iters!r}, every={self.every!r}): gamma > 0, and ints of at "
                "least 1, are needed"
            )

    def bind(self, model: Model) -> Guide:
        return self.having(problem=decoded("ReSample", self.measurement, model))

    def active(self, step: Step) -> bool:
        return super().active(step) and self._turn(step.index, step.total)

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        self.one_move_each(moves, "makes the moves itself, and takes the solver's times alone")
        return [m if m.s > m.t else self._move(model, m, self._turn(i, len(moves))) for i, m in enumerate(moves)]

    def _turn(self, index: int, total: int) -> bool:
        return (total - 1 - index) % self.every == 0

    def _move(self, model: Model, move: Move, turn: bool) -> Move:
        w, (a_t, s_t), (a_s, s_s) = self._share(model, move), model.process.scales(move.t), model.process.scales(move.s)
        w = w if turn else 0.0
        return Move(move.t, move.s, (1 - w) * s_s / s_t, (a_s - (1 - w) * a_t * s_s / s_t,), w**0.5 * s_s)

    def _share(self, model: Model, move: Move) -> float:
        """w."""
        (a_t, s_t), (a_s, s_s) = model.process.scales(move.t), model.process.scales(move.s)
        if a_t == 0 or s_s == 0:
            return 1.0
        c = self.gamma * (s_t**2 / a_t**2 - s_s**2 / a_s**2)
        return c / (1 + c)

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        move, own = view.step.move, self.problem
        assert move is not None
        goal = own.noise * numbers(own.operator, own.y) ** 0.5
        fit = fitted(lambda x: own.rest(x, view.group), prediction, self.iters, goal)
        if move.s > move.t:
            return fit
        share = self._share(view.model, move) * view.model.process.scales(move.s)[0] / move.b[0]  # the rest moves by d
        return prediction + share * (fit - prediction)


def fitted(rest: Callable[[Tensor], Tensor], x: Tensor, iters: int, goal: float) -> Tensor:
    """x moved by conjugate gradients on |rest(x)|^2/2; each row until |rest(x)| is at most the goal."""
    x, p, last, size = x.detach(), torch.zeros_like(x), torch.zeros_like(x), 1.0
    for _ in range(iters):
        e, r = _descent(rest, x)
        level, square, before = _dot(e, e, x), _dot(r, r, x), _dot(last, last, x)
        going = (level > max(goal**2, torch.finfo(e.dtype).eps ** 2 * e[0].numel())) & (square > 0)
        p = r + torch.where(before > 0, (_dot(r, r - last, x) / before).clamp(min=0), 0.0) * p
        p = torch.where(_dot(r, p, x) > 0, p, r)
        new = x + size * _step(rest, x, e, r, p) * p
        again = rest(new).detach()
        better = going & (_dot(again, again, x) < level)
        x, last = torch.where(better, new, x), r
        size = torch.where(better, 1.0, size * 0.25)  # too long a step is tried again, straight down
    return x


def _descent(rest: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """e = rest(x), and -grad |e|^2/2."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        e = rest(x)
        (slope,) = torch.autograd.grad(0.5 * e.square().sum(), x)
    return e.detach(), -slope


def _step(rest: Callable[[Tensor], Tensor], x: Tensor, e: Tensor, r: Tensor, p: Tensor) -> Tensor:
    """The h with the least |e + h J p|^2, where J is the derivative of rest."""
    small = 1e-2 * (x[0].numel() / _dot(p, p, x).clamp(min=torch.finfo(p.dtype).tiny)).sqrt()
    change = rest(x + small * p).detach() - e
    square = _dot(change, change, x)
    return torch.where(square > 0, small.square() * _dot(r, p, x) / square, 0.0)


def _dot(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The product of each row, shaped to multiply x."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (x.dim() - 1))

r"""Momentum for multistep solvers: heavy ball and generalised heavy ball.

Large steps under strong guidance leave the stability region of multistep solvers, which shows as saturated spots.
Momentum makes the region larger. With y = x/alpha, w = sigma/alpha and the slope f of one step of another solver,

    HeavyBall   v' = (1 - beta) v + beta f,      y_s = y_t + (w_s - w_t) v'
    GHVB        v' = (1 - beta) v + beta e,      y_s = y_t + (w_s - w_t) sum_k c_k v^(k)

where e = (x - alpha d)/sigma is the predicted noise and v^(0) = v', v^(1), ... are the last values of v, which begins
as the first noise. beta = 1 is the solver itself, and Adams-Bashforth of order r. A heavy ball has order 1, whatever
the solver. GHVB keeps order r on steps that are even in w: c are the weights for which the average that v is (a
geometric series in the shift) and the sum over k together are Adams-Bashforth's up to order r,

    sum_k c_k (1 - D)^k = (1 + D (1 - beta)/beta) (1 + D/2 + 5 D^2/12 + 3 D^3/8),    D the backward difference.

Both end with the clean prediction of the last step, without momentum.

Reference: Wizadwongsa et al. (2024), https://arxiv.org/abs/2307.11118.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from .base import Move, Point, Solver
from .ddim import posterior
from .dpmpp import DPMpp
from .multistep import Line, gap, memories, noise, remembered
from .schedules import Schedule
from .times import Grid

_USUAL = DPMpp()
_ADAMS = (1.0, 1 / 2, 5 / 12, 3 / 8)  # the series of Adams-Bashforth in backward differences


@dataclass(frozen=True)
class HeavyBall(Solver):
    """Heavy-ball momentum over a deterministic solver with one evaluation per step; beta = 1 is that solver.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=HeavyBall(gk.solvers.DPMpp(), 0.8)).x.shape
    torch.Size([2, 1])
    """

    solver: Solver = _USUAL
    beta: float = 0.8
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        _check_beta(self)
        if self.solver.stochastic:
            raise ValueError(f"{self!r}: momentum is for deterministic solvers, like DPMpp() or DEIS()")
        if self.times == "uniform":
            object.__setattr__(self, "times", self.solver.times)

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        table = self.solver.moves(schedule, times)
        if len(table) != len(times) - 1:
            raise ValueError(f"{self!r}: momentum needs one evaluation per step, as DPMpp() and DEIS() have")
        rows = memories(schedule, table)
        return [move if s.t > t.t else self._beside(move, t, s, own, fresh) for move, t, s, own, fresh in rows]

    def _beside(self, move: Move, t: Point, s: Point, own: tuple[Line, ...], fresh: bool) -> Move:
        """A row of the solver with v before its own memory."""
        b = gap(move.b, 1)
        if fresh or s.sigma == 0:
            return move._replace(b=move.b if fresh else b, keep=(noise(t), *own))
        straight, width = s.alpha / t.alpha, s.sigma - s.alpha * t.sigma / t.alpha
        rate = self.beta / width  # f = (x' - straight x_t)/width for x' of the solver
        line = (rate * (move.a - straight), *(rate * w for w in b))
        v = (*line[:2], 1 - self.beta, *line[3:])
        a = straight + self.beta * (move.a - straight)
        return Move(t.t, s.t, a, (width * v[1], width * v[2], *(width * w for w in v[3:])), 0.0, (v, *own))


@dataclass(frozen=True)
class GHVB(Solver):
    """Generalised heavy-ball momentum of order 1 to 4: deterministic, one evaluation per step."""

    order: int = 2
    beta: float = 0.8
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        _check_beta(self)
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"GHVB(order={self.order}): there is order 1 to 4")

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t, known = past[0], sum(p.alpha > 0 for p in past)
        fresh = len(past) == 1
        x, d = noise(t)
        v = (x, d) if fresh else (self.beta * x, self.beta * d, 1 - self.beta)
        keep = (v, *(remembered(v, min(self.order - 1, len(past) - 1)) or ())[1:])
        if t.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, 0.0)._replace(keep=keep)]
        width = s.sigma - s.alpha * t.sigma / t.alpha
        newest, *older = (width * c for c in weights(min(self.order, known), self.beta))
        used = np.zeros(max(3, 2 + len(older)))
        used[: len(v)] = newest * np.array(v)
        used[2 : 2 + len(older)] += older
        return [Move(t.t, s.t, s.alpha / t.alpha + used[0], tuple(used[1:] if not fresh else used[1:2]), 0.0, keep)]


def weights(order: int, beta: float) -> list[float]:
    """c_k of the newest and the older values of v."""
    series = np.polynomial.Polynomial(_ADAMS[:order]) * np.polynomial.Polynomial([1.0, (1 - beta) / beta])
    shift = np.polynomial.Polynomial(series.coef[:order])(np.polynomial.Polynomial([1.0, -1.0]))
    return [float(c) for c in shift.coef]


def _check_beta(solver: HeavyBall | GHVB) -> None:
    if not 0 < solver.beta <= 1:
        raise ValueError(f"{type(solver).__name__}(beta={solver.beta}): beta lies in (0, 1]; 1 is without momentum")

r"""Heun's method with churn, the stochastic sampler of EDM: before each step a little noise is added.

From the level w = sigma/alpha at t the state is first noised to (1 + gamma) w, at a time t' a little above, with

    gamma = min(amount/N, sqrt(2) - 1) where low <= w <= high, 0 elsewhere,

N the number of steps, and Heun steps from t' to s. `noise` = S_noise scales the standard deviation of what is added;
values a little above 1 make up for the detail that a network smooths away. The noise is added in the row that comes
to t, so that a step costs two evaluations, as Heun's does: those rows go up in time. The first step is not churned.

Reference: Karras et al. (2022), https://arxiv.org/abs/2206.00364, algorithm 2; the defaults are those of its table 5
for ImageNet-64. EDM's levels are those of `times="karras"`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise

from . import times as grids
from .base import Move, Point, Solver, noised
from .heun import Heun
from .schedules import Schedule, scales
from .times import Grid


@dataclass(frozen=True)
class Churn(Solver):
    """EDM's stochastic sampler: Heun with noise added before each step; two evaluations per step."""

    amount: float = 40.0
    low: float = 0.05
    high: float = 50.0
    noise: float = 1.003
    _: KW_ONLY
    times: str | Grid = "karras"

    stochastic = True

    def __post_init__(self) -> None:
        if not (self.amount > 0 and 0 <= self.low < self.high and self.noise > 0):
            raise ValueError(f"{self!r}: amount and noise are positive, and 0 <= low < high")

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        table: list[Move] = []
        gamma = min(self.amount / (len(times) - 1), math.sqrt(2) - 1)
        for t, s in pairwise([Point(t, *scales(schedule, t)) for t in times]):
            if s.t > t.t:
                table.append(noised(t, s))
                continue
            if table and table[-1].s <= table[-1].t:
                t = self._above(schedule, t, gamma, max(times))
                table[-1] = self._noised(table[-1], Point(table[-1].s, *scales(schedule, table[-1].s)), t)
            table += Heun().step(t, s, None)
        return table

    def _above(self, schedule: Schedule, t: Point, gamma: float, most: float) -> Point:
        """The point at which the noise level is 1 + gamma times that at t."""
        if not self.low <= t.sigma / t.alpha <= self.high:
            return t
        up = grids.time_of(schedule, (1 + gamma) * t.sigma / t.alpha, most)
        return Point(up, *scales(schedule, up)) if up > t.t else t

    def _noised(self, move: Move, t: Point, up: Point) -> Move:
        """The row that comes to t with the noise that leads on to `up`."""
        a = up.alpha / t.alpha
        var = max(up.sigma**2 - (a * t.sigma) ** 2, 0)
        c = (a * move.c) ** 2 + self.noise**2 * var
        return move._replace(s=up.t, a=a * move.a, b=tuple(a * b for b in move.b), c=c**0.5)

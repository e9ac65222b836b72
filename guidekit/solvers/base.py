r"""Solvers as coefficient tables.

Every exponential-integrator or multistep method moves a particle by

    x_s = a x_t + sum_i b_i d_i + c z,        z ~ N(0, 1),

with d_0 the clean prediction E[x_0|x_t] and d_1, d_2... those of earlier steps. A solver is therefore a rule that turns
a time grid into rows (t, s, a, b, c), computed on the host in float64 before the loop; the loop applies them and knows
nothing else. c > 0 makes a Gaussian kernel with a log-probability, c = 0 a deterministic map. A method with two
evaluations per step is two rows.

A step up in time (a restart) is the forward process itself for every solver, x_s = (alpha_s/alpha_t) x_t + noise, and
the history of predictions is not used across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from .schedules import Schedule, scales
from .times import Grid


class Move(NamedTuple):
    """One row of the table: from t to s by x_s = a x_t + sum_i b_i d_i + c z. Token processes use t and s alone."""

    t: float
    s: float
    a: float = 1.0
    b: tuple[float, ...] = ()
    c: float = 0.0


class Point(NamedTuple):
    """A time with its alpha and sigma."""

    t: float
    alpha: float
    sigma: float


@dataclass(frozen=True)
class Solver:
    """A rule for one step. `last` is the point before t, or None if a multistep method has to start afresh."""

    _: KW_ONLY
    times: str | Grid = "uniform"

    stochastic = False
    unsteerable = ""  # why log-weights cannot correct for a proposal, where they cannot
    advice = "Take DDPM(), DDIM(eta=1.) or SDEDPMpp()"  # to a guide that needs noise and finds none

    def step(self, t: Point, s: Point, last: Point | None) -> Sequence[Move]:
        raise NotImplementedError(f"{type(self).__name__} does not say how to step")

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        """The whole table for a grid of times."""
        table: list[Move] = []
        last = None
        for t, s in pairwise([Point(t, *scales(schedule, t)) for t in times]):
            up = s.t > t.t
            table += [noised(t, s)] if up else self.step(t, s, last)
            last = None if up else t
        return table


def starting_at(table: Sequence[Move], row: int) -> list[Move]:
    """The table from this row on; a multistep solver starts afresh there, without a history."""
    first, *rest = table[row:]
    return [first._replace(b=(sum(first.b),)) if len(first.b) > 1 else first, *rest]


def fractions(table: Sequence[Move]) -> list[float]:
    """The share of the run that is done before each row, and 1 at the end. Rows that stay at their time (corrections,
    recurrences) belong to the step of the move that follows."""
    done = list(accumulate((float(move.s != move.t) for move in table), initial=0.0))
    return [d / max(done[-1], 1.0) for d in done[:-1]] + [1.0]


def noised(t: Point, s: Point) -> Move:
    """The forward process from t up to s."""
    if t.alpha == 0:
        raise ValueError(f"times go up from t={t.t} where nothing but noise is left")
    a = s.alpha / t.alpha
    return Move(t.t, s.t, a, (), max(s.sigma**2 - (a * t.sigma) ** 2, 0) ** 0.5)


def decay(t: Point, s: Point) -> float:
    """exp(-h) with h the rise of log(alpha/sigma) from t to s; finite at both ends of the grid."""
    return t.alpha * s.sigma / (s.alpha * t.sigma)

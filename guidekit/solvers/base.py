r"""Solvers as coefficient tables.

Every exponential-integrator or multistep method moves a particle by

    x_s = a x_t + sum_i b_i d_i + c z,        z ~ N(0, 1),

with d_0 the clean prediction E[x_0|x_t] and d_1, d_2... those of earlier steps. A solver is therefore a rule that turns
a time grid into rows (t, s, a, b, c), computed on the host in float64 before the loop; the loop applies them and knows
nothing else. c > 0 makes a Gaussian kernel with a log-probability, c = 0 a deterministic map. A method with two
evaluations per step is two rows.

What a method remembers besides predictions (slopes, momentum) is linear in x_t and the predictions too. A row may say
so in `keep`: d_1, d_2... of the next row are then what its lines give, each with coefficients for x_t, d_0, d_1...;
without it they are the predictions themselves.

A step up in time (a restart) is the forward process itself for every solver, x_s = (alpha_s/alpha_t) x_t + noise, and
the history of predictions is not used across it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from .schedules import Schedule, scales
from .times import Grid


class Move(NamedTuple):
    """One row of the table: from t to s by x_s = a x_t + sum_i b_i d_i + c z. Token processes use t and s alone.

    `keep` has one line for each thing that the next row finds as its d_1, d_2...: coefficients for x_t, d_0, d_1...
    None keeps the predictions d_0, d_1... of this row. b has an entry for everything kept, be it 0. `early` is the
    variance of the noise in x_t beyond sigma_t^2, where the rows before have added some that belongs to this one.
    """

    t: float
    s: float
    a: float = 1.0
    b: tuple[float, ...] = ()
    c: float = 0.0
    keep: tuple[tuple[float, ...], ...] | None = None
    early: float = 0.0


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
    spreads = False  # whether the network tells the variance of its steps
    unsteerable = ""  # why log-weights cannot correct for a proposal, where they cannot
    advice = "Take DDPM(), DDIM(eta=1.) or SDEDPMpp()"  # to a guide that needs noise and finds none

    def step(self, t: Point, s: Point, last: Point | None) -> Sequence[Move]:
        raise NotImplementedError(f"{type(self).__name__} does not say how to step")

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> Sequence[Move]:
        """The step to s from t = past[0], where past[1], past[2]... are the points before t since the last start."""
        return self.step(past[0], s, past[1] if len(past) > 1 else None)

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        """The whole table for a grid of times."""
        table: list[Move] = []
        past: tuple[Point, ...] = ()
        for t, s in pairwise([Point(t, *scales(schedule, t)) for t in times]):
            up = s.t > t.t
            table += [noised(t, s)] if up else self.rows(schedule, s, (t, *past))
            past = () if up else (t, *past)
        return table


def starting_at(table: Sequence[Move], row: int) -> list[Move]:
    """The table from this row on; a multistep solver starts afresh there, as if all that it remembers had been as it is
    at this row for long. The first row also adds the noise that rows before it would have added early."""
    first, *rest = table[row:]
    if first.early:
        first = first._replace(c=(first.c**2 + first.a**2 * first.early) ** 0.5, early=0.0)
    order = max(len(first.b), *(len(move.b) for move in rest), 1)
    if first.keep is None and order <= 2:  # a second prediction is there at the next row
        return [first._replace(b=(sum(first.b),)) if len(first.b) > 1 else first, *rest]
    still = _still(first.keep, order - 1)
    b = first.b or (0.0,)
    a, d = (sum(k * v[i] for k, v in zip(b[1:], still, strict=False)) for i in (0, 1))
    return [first._replace(a=first.a + a, b=(b[0] + d,), keep=still), *rest]


def _still(keep: tuple[tuple[float, ...], ...] | None, size: int) -> tuple[tuple[float, float], ...]:
    """What is remembered after x_t and d_0 have long been the same, in their terms: m = K (x_t, d_0, m)."""
    if keep is None:
        return ((0.0, 1.0),) * size
    K = np.zeros((len(keep), 2 + len(keep)))
    for line, given in zip(K, keep, strict=True):
        line[: len(given)] = given[: len(line)]
    found = np.linalg.solve(np.eye(len(keep)) - K[:, 2:], K[:, :2])
    return tuple((float(x), float(d)) for x, d in found)


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

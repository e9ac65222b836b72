r"""What multistep solvers share: weights that integrate a polynomial through the last points exactly.

With y = x/r and a variable u in which dy/du = f, a multistep method replaces f by the polynomial through its last
values, x_s = (r_s/r_t) x_t + r_s sum_j C_j f_j with C_j = int_t^s L_j du and L_j the polynomials of Lagrange. The
methods differ in the coordinates (f is the clean prediction d for u = alpha/sigma, the noise (x - alpha d)/sigma for
u = sigma/alpha) and in the variable in which the polynomial is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from .base import Move, Point
from .schedules import Schedule, scales

Line = tuple[float, ...]


@lru_cache(1)
def _gauss() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(64)


def lagrange(nodes: Sequence[float], v: np.ndarray) -> np.ndarray:
    """L_j(v) for every node, (nodes, len(v))."""
    found = np.ones((len(nodes), len(v)))
    for j, node in enumerate(nodes):
        for other in (n for i, n in enumerate(nodes) if i != j):
            found[j] *= (v - other) / (node - other)
    return found


def integrals(
    nodes: Sequence[float], weight: Callable[[np.ndarray], np.ndarray], low: float, high: float
) -> list[float]:
    """int_low^high weight(v) L_j(v) dv for every node, by Gauss's quadrature."""
    v, w = _gauss()
    v = low + (high - low) * (v + 1) / 2
    return ((high - low) / 2 * (lagrange(nodes, v) * (w * weight(v))).sum(1)).tolist()


def log_snr(p: Point) -> float:
    """lambda = log(alpha/sigma)."""
    return math.log(p.alpha / p.sigma)


def usable(past: Sequence[Point], order: int) -> list[Point]:
    """The newest points, up to this number, at which something of the data is left: the others have no log-SNR."""
    return [p for p in past[:order] if p.alpha > 0]


def exponential(s: Point, t: Point, nodes: Sequence[Point], tau2: float = 0.0) -> Line:
    r"""The weights of the clean predictions at these points in the step from t to s,

    (1 + tau^2) alpha_s int_0^h exp(-(1 + tau^2)(h - v)) L_j(v) dv,      v = lambda - lambda_t, h = lambda_s - lambda_t

    for the exponential integrator of the reverse SDE with noise tau; tau = 0 is the probability-flow ODE.
    """
    start, rate = log_snr(t), 1 + tau2
    h = log_snr(s) - start
    found = integrals([log_snr(p) - start for p in nodes], lambda v: np.exp(rate * (v - h)), 0.0, h)
    return tuple(rate * s.alpha * b for b in found)


def slopes(t: Point, s: Point, weights: Sequence[float], order: int) -> Move:
    r"""x_s = (alpha_s/alpha_t) x_t + alpha_s sum_j C_j e_j for the noise e = (x - alpha d)/sigma at t and before, which
    the row keeps for a method of this order."""
    first, *rest = weights
    a = s.alpha / t.alpha + s.alpha * first / t.sigma
    b = (-s.alpha * first * t.alpha / t.sigma, *(s.alpha * w for w in rest))
    return Move(t.t, s.t, a, b, 0.0, remembered(noise(t), min(order - 2, len(rest))))


def noise(t: Point) -> Line:
    """The predicted noise (x_t - alpha_t d_0)/sigma_t, as coefficients of x_t and d_0."""
    return 1 / t.sigma, -t.alpha / t.sigma


def remembered(newest: Line, older: int) -> tuple[Line, ...] | None:
    """Lines of `keep` that put one thing before so many earlier ones; nothing if a method has no memory (-1)."""
    return None if older < 0 else (newest, *((0.0,) * (2 + i) + (1.0,) for i in range(older)))


def gap(line: Line, place: int) -> Line:
    """These coefficients with room for one more thing."""
    return (*line[:place], 0.0, *line[place:])


def memories(schedule: Schedule, table: Sequence[Move]) -> Iterator[tuple[Move, Point, Point, tuple[Line, ...], bool]]:
    """Each row with its points t and s, what it keeps behind one thing more that is remembered before it, and whether
    it starts afresh; for solvers around another one of one evaluation per step."""
    order, fresh, known = max(len(move.b) for move in table), True, 0
    for move in table:
        t, s = (Point(v, *scales(schedule, v)) for v in (move.t, move.s))
        own = move.keep or remembered((0.0, 1.0), min(order - 2, known)) or ()
        yield move, t, s, tuple(gap(line, 2) for line in own), fresh
        fresh, known = s.t > t.t, 0 if s.t > t.t else len(own)


def afresh(move: Move, t: Point, order: int) -> Move:
    """A first step that keeps its noise for a method of this order."""
    return move._replace(keep=remembered(noise(t), min(order - 2, 0)))


Weights = Callable[[Point, list[Point]], Sequence[float]]


def corrected(
    move: Move, s: Point, past: Sequence[Point], order: int, predict: Weights, correct: Weights | None
) -> Move:
    """A step to s by the weights that `predict` gives the last points, from a point that is first corrected by the
    prediction made there: x_t + sum_j (weights of `correct` - weights of `predict`)_j d_j."""
    b = np.zeros(order + (correct is not None))
    _add(b, 0, predict(s, usable(past, order)))
    nodes = usable(past[1:], order)
    if nodes and correct is not None:
        _add(b, 0, move.a * np.array(correct(past[0], nodes)))
        _add(b, 1, -move.a * np.array(predict(past[0], nodes)))
    return move._replace(b=tuple(b[: min(len(past), len(b))].tolist()))


def _add(b: np.ndarray, place: int, weights: Sequence[float] | np.ndarray) -> None:
    b[place : place + len(weights)] += weights

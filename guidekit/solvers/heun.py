r"""Euler's and Heun's methods for the probability-flow ODE.

Divided by a suitable scale r(t), the path x_t = alpha x_0 + sigma z becomes straight. With r = alpha + sigma it is the
rectified flow y = (1 - w) x_0 + w z, w = sigma/r, which has no singularity at alpha = 0. If alpha is constant (VE,
EDM), r = alpha and w = sigma, the coordinates of Karras et al. Then

    dy/dw = (y - d) / w,      Euler: y_s = y + (w_s - w_t) (y - d)/w_t,
    Heun: the same, then y_s = y' + (w_s - w_t)/(2 w_s) (d_t - d'_s) with d' predicted at the Euler point.

Euler's step does not depend on r: it is DDIM(eta=0) under the name that users of flows and EDM know. Heun's
correction is a second row of the table, with a second evaluation; the last step, to w = 0, is an Euler step.

References: Karras et al. (2022), https://arxiv.org/abs/2206.00364; Lipman et al. (2023),
https://arxiv.org/abs/2210.02747.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Move, Point, Solver
from .ddim import posterior


@dataclass(frozen=True)
class Euler(Solver):
    """Euler's method: first order, one evaluation per step. The same as DDIM()."""

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [posterior(t, s, 0.0)]


@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method: second order, two evaluations per step and one in the last."""

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        predict = posterior(t, s, 0.0)
        if s.sigma == 0:
            return [predict]
        (w_t, _), (w_s, r_s) = (straight(p, t.alpha == s.alpha) for p in (t, s))
        k = r_s * (w_s - w_t) / (2 * w_s)
        return [predict, Move(s.t, s.t, 1.0, (-k, k), 0.0)]


def straight(p: Point, constant: bool) -> tuple[float, float]:
    """w and r of the straight coordinates, where alpha is constant or not."""
    r = p.alpha if constant else p.alpha + p.sigma
    return p.sigma / r, r

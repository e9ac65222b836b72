r"""Exponential Heun: a Runge-Kutta method with two evaluations whose linear part is exact.

With lambda = log(alpha/sigma) and h = lambda_s - lambda_t, DDIM's step to x_s' is followed by the line through the two
predictions in the place of the constant d_t:

    x_s = x_s' + k (d_s' - d_t),      k = alpha_s int_0^h e^(v - h) v/h dv = alpha_s (1 - (1 - e^-h)/h)

It differs from `Heun` in what it treats exactly: the linear part in lambda, in place of straight paths.

References: Hochbruck and Ostermann (2010), Acta Numerica 19; Lu et al. (2022), https://arxiv.org/abs/2206.00927, whose
DPM-Solver-2 is its relative with the second evaluation inside the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .base import Move, Point, Solver, decay
from .ddim import posterior


@dataclass(frozen=True)
class ExponentialHeun(Solver):
    """Exponential Heun: second order, two evaluations per step and one in the first from pure noise and in the last."""

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        predict = posterior(t, s, 0.0)
        if s.sigma == 0 or t.alpha == 0:
            return [predict]
        shrink = decay(t, s)
        k = s.alpha * (1 - (1 - shrink) / -math.log(shrink))
        return [predict, Move(s.t, s.t, 1.0, (k, -k), 0.0)]

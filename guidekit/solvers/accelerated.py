r"""The accelerated samplers of Li et al.: corrections of higher order to DDIM and DDPM that need no training.

AcceleratedDDIM takes back a step to see how the prediction changes: with the predicted noise e = (x - alpha d)/sigma,
w = sigma/alpha and the point u before t,

    x_u = alpha_u d_t + sigma_u e_t,      x_s = (alpha_s/alpha_t) x_t + alpha_s (C_t e_t + C_u e_u)

where e_u is predicted at x_u and C integrates the line through both from w_t to w_s. The paper's coefficients are those
of a score that is linear in w^2: in small steps the same up to the third order. Here the noise is the line, so that a
constant one is transferred exactly, as DDIM does. The table goes up and down, with two evaluations per step; the first
step and the last one, to sigma = 0, are DDIM's. The error falls with the square of the number of steps.

AcceleratedDDPM adds half of a step's noise before the network is asked and half after it. Let v = sigma_t^2 -
(alpha_t/alpha_s)^2 sigma_s^2 be the noise between s and t, q_t = v/2 and a the gain of DDPM, (alpha_t sigma_s^2) /
(alpha_s sigma_t^2). Then

    x_t^+ = x_t + sqrt(q_t) z,      x_s = a x_t^+ + (alpha_s - a alpha_t) d(x_t^+, t) + c z',
    c^2 = sigma_s^2 - a^2 (sigma_t^2 + q_t).

The paper's c^2 is (alpha_s/alpha_t)^2 v/2, which is larger by (a - alpha_s/alpha_t)^2 v/2, in the second order; with
this one exact data in d come out with the right law at every step. One row goes from x_t^+ to x_s^+, so that a step
costs one evaluation. No noise is added at the first point, before the last step and before the times go up; a run that
starts later adds it in its first step (`starting_at`). For data whose covariance given x_t is the same everywhere (a
Gaussian) the error of mean and variance falls with the square of the steps; otherwise with their number, as for DDPM,
and what the paper proves is a gain in total variation.

Reference: Li, Huang, Efimov, Wei, Chi and Chen (2024), https://arxiv.org/abs/2403.03852.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base import Move, Point, Solver, noised
from .ddim import posterior, renewed
from .multistep import integrals
from .schedules import Schedule, scales


@dataclass(frozen=True)
class AcceleratedDDIM(Solver):
    """The accelerated deterministic sampler: second order, two evaluations per step and one in the first and last."""

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        if last is None or last.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, 0.0)]
        w_t, w_s, w_u = (p.sigma / p.alpha for p in (t, s, last))
        c_t, c_u = integrals([w_t, w_u], lambda w: w**0, w_t, w_s)
        b = (-s.alpha * c_u / w_u, s.alpha * (1 - (w_t + c_t) / w_u))
        return [renewed(t, last, 0.0), Move(last.t, s.t, s.sigma / last.sigma, b)]


@dataclass(frozen=True)
class AcceleratedDDPM(Solver):
    """The accelerated stochastic sampler: DDPM with half of the noise before the prediction; one evaluation a step."""

    stochastic = True

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        points = [Point(t, *scales(schedule, t)) for t in times]
        table, extra = [], 0.0  # the variance that the state at t has besides sigma_t^2
        for t, s, after in zip(points, points[1:], [*points[2:], None], strict=False):
            if s.t > t.t:
                table.append(noised(t, s))
                continue
            more = _between(s, after) / 2
            a = t.alpha * s.sigma**2 / (s.alpha * t.sigma**2)
            c = s.sigma**2 - a**2 * (t.sigma**2 + extra) + more
            table.append(Move(t.t, s.t, a, (s.alpha - a * t.alpha,), max(c, 0.0) ** 0.5, early=extra))
            extra = more
        return table


def _between(t: Point, s: Point | None) -> float:
    """The variance of the noise between s and t, where some of it may be added early."""
    if s is None or s.t > t.t or s.sigma == 0:
        return 0.0
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2

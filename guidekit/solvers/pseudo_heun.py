r"""The pseudo-corrector of FlowTurbo: Heun's method with one evaluation per step.

In the coordinates of `solvers/heun.py`, in which paths are straight (y = x/r, w = sigma/r, slope f = (y - d)/w, which
is the velocity of a flow), Heun evaluates the slope at Euler's point y_s' and again at the corrected point y_s = y_t
+ (w_s - w_t)(f_t + f_s')/2. Here f_s' serves for both:

    y_s  = y_s' + (w_s - w_t)(f_s' - f_t)/2,      y_u' = y_s + (w_u - w_s) f_s'

A row goes from one predicted point to the next and keeps the slope. On even steps it is Adams-Bashforth's method of
second order. The last step, to sigma = 0, is the clean prediction. (FlowTurbo also trains a small network that refines
velocities; this is its part that needs none.)

Reference: Zhao et al. (2024), https://arxiv.org/abs/2409.18128.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Move, Point, Solver
from .ddim import posterior
from .heun import straight
from .schedules import Schedule


@dataclass(frozen=True)
class PseudoHeun(Solver):
    """FlowTurbo's pseudo-corrector: second order, deterministic, one evaluation per step."""

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t, constant = past[0], past[0].alpha == s.alpha
        (w_t, r_t), (w_s, r_s) = (straight(p, constant) for p in (t, s))
        slope = (1 / t.sigma, -r_t / t.sigma)
        if s.sigma == 0 or len(past) == 1:
            return [posterior(t, s, 0.0)._replace(keep=(slope,))]
        half = (w_t - straight(past[1], constant)[0]) / 2
        whole = half + w_s - w_t
        b = (r_s * whole * slope[1], -r_s * half)
        return [Move(t.t, s.t, r_s / r_t + r_s * whole * slope[0], b, 0.0, (slope,))]

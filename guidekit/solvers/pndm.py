r"""PNDM: pseudo linear multistep steps (PLMS), the Adams-Bashforth weights of equal steps in the transfer of DDIM.

    e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3)/24,      x_s = (alpha_s/alpha_t) x_t + alpha_s (w_s - w_t) e'

with the predicted noise e = (x - alpha d)/sigma, w = sigma/alpha, and fewer noises in the first steps: (23, -16, 5)/12,
(3, -1)/2. The very first step is an improved Euler step, with a second evaluation where Euler's step leads:
e' = (e_t + e_s)/2. The last step, to sigma = 0, is the clean prediction.

The weights are exact for steps that are equal in w; there the order is 4. On other grids it is 2 at most, since the
weights do not know the steps; `DEIS(space="rho")` is the same method with weights that do.

Reference: Liu et al. (2022), https://arxiv.org/abs/2202.09778. It starts with Runge-Kutta steps of four evaluations;
this start, with one evaluation more than there are steps, is that of Stable Diffusion and of diffusers
(`skip_prk_steps=True`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Move, Point, Solver
from .ddim import posterior
from .multistep import afresh, noise, slopes
from .schedules import Schedule

ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PNDM(Solver):
    """PLMS with four noises: deterministic, one evaluation per step and one more in the first."""

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t = past[0]
        if t.alpha == 0 or s.sigma == 0:
            return [afresh(posterior(t, s, 0.0), t, 4)]
        if len(past) == 1:
            return [afresh(posterior(t, s, 0.0), t, 4), _corrected(t, s)]
        width = s.sigma / s.alpha - t.sigma / t.alpha
        known = min(sum(p.alpha > 0 for p in past), 4)
        return [slopes(t, s, [width * w for w in ADAMS[known - 1]], 4)]


def _corrected(t: Point, s: Point) -> Move:
    """From Euler's point at s to that of the mean noise, (w_s - w_t)(e_s - e_t)/2 further. It keeps e_t alone."""
    half = s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha) / 2
    x, d = noise(s)
    return Move(s.t, s.t, 1 + half * x, (half * d, -half), 0.0, ((0.0, 0.0, 1.0),))

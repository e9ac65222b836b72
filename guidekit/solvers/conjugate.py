r"""Conjugate integrators: Euler's method for the probability flow in other coordinates.

With y = x/alpha, lambda = log(alpha/sigma) and the predicted noise e the flow is dy/dlambda = -exp(-lambda) e. In the
coordinates y^ = exp(k lambda) y it is

    dy^/dlambda = k y^ - exp((k - 1) lambda) e,

of which a step of length h takes k y^ as constant and integrates the second term exactly for a constant e:

    y^_s = (1 + k h) y^_t - e int_t^s exp((k - 1) v) dv.

k = 0 is DDIM, the conjugate integrator that all the others are compared with; a small k of either sign changes the
error of first order, and which one is best depends on the model. With other coordinates and other terms, `DPMv3`,
`DPMpp` and `DEIS` are conjugate integrators too, as the paper shows of most samplers. The paper takes exp(k t), with
its own time; lambda does not depend on how times are counted.

The paper's second family, splitting integrators, moves data and a momentum in turn. A model that is trained without a
momentum has nothing to split: the noise of x alone leaves one exact linear part, which DDIM already takes out.

The step from pure noise (alpha = 0) and the last one, to sigma = 0, are DDIM's.

Reference: Pandey, Rudolph and Mandt (2024), https://arxiv.org/abs/2310.07894.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .ddim import posterior
from .multistep import log_snr, noise
from .times import Grid


@dataclass(frozen=True)
class Conjugate(Solver):
    """lambda-DDIM, with k in the place of the paper's lambda: first order, deterministic, one evaluation per step."""

    k: float = 0.0
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not -2 <= self.k <= 2:
            raise ValueError(f"Conjugate(k={self.k}): k lies in [-2, 2], and 0 is DDIM")

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        if t.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, 0.0)]
        start, end = log_snr(t), log_snr(s)
        h, rate = end - start, self.k - 1
        area = math.exp(rate * end) * (-math.expm1(-rate * h) / rate if rate else h)
        x, d = (-s.alpha * math.exp(-self.k * end) * area * v for v in noise(t))
        a = s.alpha / t.alpha * math.exp(-self.k * h) * (1 + self.k * h)
        return [Move(t.t, s.t, a + x, (d,))]

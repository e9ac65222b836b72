r"""Analytic-DPM: DDPM and DDIM with the best variance of each step, which is measured on the model.

The reverse kernel given the data is

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - lambda^2) (x_t - alpha_t x_0)/sigma_t + lambda z

with the noise lambda of DDIM(eta). DDIM has the prediction d in the place of x_0, and loses the spread around it. The
Gaussian kernel with the least KL divergence from the true one has the same mean and, as one number for all entries,

    c^2 = lambda^2 + b^2 E[tr Cov(x_0|x_t)]/dim,      b = alpha_s - alpha_t sqrt(sigma_s^2 - lambda^2)/sigma_t,
    E[tr Cov(x_0|x_t)]/dim = (sigma_t/alpha_t)^2 (1 - l),      l = sigma_t^2 E|score|^2/dim

where l is the statistic that `gk.solvers.statistics` measures: 1 minus alpha_t times the mean derivative of d, which is
the same by Tweedie's formula of the second order. With an exact
prediction every state has the mean and the total variance of the forward process, in any number of steps; for a
Gaussian with independent entries of equal variance it has its distribution. A learned variance (Improved DDPM) is this
number for each entry and each x_t, said by a network.

The last step, to sigma = 0, is the clean prediction, so that samples lack the spread of x_0 around that.

Reference: Bao, Li, Zhu and Zhang (2022), https://arxiv.org/abs/2201.06503, theorem 1; bounds of theorem 2.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .ddim import posterior
from .dpm_v3 import Statistics
from .multistep import log_snr
from .times import Grid


@dataclass(frozen=True)
class AnalyticDPM(Solver):
    """DDIM(eta), by default DDPM, with the variance that is best for a model: stochastic, one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> solver = AnalyticDPM(gk.solvers.statistics(base))
    >>> gk.sample(base, 2, steps=8, solver=solver).x.shape
    torch.Size([2, 1])
    """

    statistics: Statistics
    eta: float = 1.0
    _: KW_ONLY
    times: str | Grid = "uniform"

    stochastic = True

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, Statistics):
            raise ValueError(f"AnalyticDPM(statistics={self.statistics!r}): give gk.solvers.statistics(model)")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"AnalyticDPM(eta={self.eta}): eta lies in [0, 1]; 1 is DDPM's noise, and 0 DDIM's")

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        move = posterior(t, s, self.eta)
        if s.sigma == 0:
            return [move]
        return [move._replace(c=math.sqrt(move.c**2 + move.b[0] ** 2 * self._spread(t)))]

    def _spread(self, t: Point) -> float:
        """E[tr Cov(x_0|x_t)]/dim; in nearly pure noise that of the first level that was measured."""
        first = self.statistics.log_snr[0]
        v = max(log_snr(t), first) if t.alpha > 0 else first
        return math.exp(-2 * v) * min(max(1 - float(self.statistics.at(v)[0]), 0.0), 1.0)

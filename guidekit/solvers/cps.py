r"""CPS, coefficients-preserving sampling: a stochastic step of a flow that leaves no more noise than the time says.

With the clean prediction d and the predicted noise e = (x_t - alpha_t d)/sigma_t,

    x_s = alpha_s d + sigma_s cos(pi eta/2) e + sigma_s sin(pi eta/2) z.

The noise, old and new together, has the standard deviation sigma_s, which Euler-Maruyama steps of an SDE exceed. It is
`DDIM` with another measure of noise: DDIM(eta) gives each step the share eta of what ancestral sampling adds there,
which falls with the step, and CPS renews the same share sin^2(pi eta/2) of the noise at every step. So the samples do
not come ever nearer to the distribution as steps grow, as those of DDIM do: d is a mean and no sample, and what each
step renews of it is lost. The variance tends to (1 + k)/(1 + rho + (1 - rho) k) of the right one at a level whose share
of signal is rho, with k = cos(pi eta/2); eta = 0.5 leaves 85 % of it. Published for flows (Flow-CPS); the formula holds
on every schedule.

Reference: Wang and Yu (2025), https://arxiv.org/abs/2509.05952.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .ddim import renewed
from .times import Grid


@dataclass(frozen=True)
class CPS(Solver):
    """Coefficients-preserving sampling: each step renews the share sin^2(pi eta/2) of the noise; first order."""

    eta: float = 0.5
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"CPS(eta={self.eta}): eta lies in [0, 1]; 0 is deterministic, 1 renews all noise")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [renewed(t, s, s.sigma * math.sin(math.pi * self.eta / 2))]

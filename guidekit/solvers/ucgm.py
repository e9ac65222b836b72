r"""UCGM-S: steps from extrapolated predictions of data and noise, some of the noise renewed; for any trained model.

With the clean prediction d and the predicted noise e = (x_t - alpha_t d)/sigma_t, now (0) and in the step before (1),

    D = d_0 + kappa (d_0 - d_1),      E = e_0 + kappa (e_0 - e_1)
    x_s = alpha_s D + sigma_s (sqrt(1 - rho) E + sqrt(rho) z).

kappa = 0 is DDIM (rho = 0), or CPS with sin^2(pi eta/2) = rho. The paper chooses kappa by hand, in [0, 1]. Along the
flow alpha d' + sigma e' = 0, and so alpha d'' + sigma e'' = -(alpha' d' + sigma' e'): on even steps of length h the new
state is off by (3 kappa - 1)/2 h^2 (alpha' d' + sigma' e'). So kappa = 1/3, the default, is of second order there, and
all others are of first order. The first step and the last one, to sigma = 0, do not extrapolate.

With rho > 0 the difference e_0 - e_1 has the noise of both steps, and kappa puts more noise into the state than there
should be: take small ones of both.

Reference: Sun et al. (2025), https://arxiv.org/abs/2505.07447. Its published code extrapolates from the third step on.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .ddim import posterior, renewed
from .multistep import noise
from .schedules import Schedule
from .times import Grid


@dataclass(frozen=True)
class UCGM(Solver):
    """UCGM-S with this extrapolation and this share of new noise in each step: one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=UCGM()).x.shape
    torch.Size([2, 1])
    """

    kappa: float = 1 / 3
    rho: float = 0.0
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not (0 <= self.kappa <= 1 and 0 <= self.rho <= 1):
            raise ValueError(f"{self!r}: kappa (how far is extrapolated) and rho (new noise) lie in [0, 1]")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.rho > 0

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t = past[0]
        move = renewed(t, s, s.sigma * self.rho**0.5) if s.sigma > 0 else posterior(t, s, 0.0)
        keep = ((0.0, 1.0), noise(t))  # d and e, for the next step
        if len(past) == 1 or s.sigma == 0:
            return [move._replace(keep=keep)]
        a, left = (1 + self.kappa) * move.a, move.a * t.sigma
        b = ((1 + self.kappa) * s.alpha - a * t.alpha, -self.kappa * s.alpha, -self.kappa * left)
        return [move._replace(a=a, b=b, keep=keep)]

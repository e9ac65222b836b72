r"""DDIM and DDPM: the posterior of the forward process given the clean prediction.

    x_s = alpha_s d + sqrt(sigma_s^2 - c^2) (x_t - alpha_t d) / sigma_t + c z
    c   = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)

eta = 1 is ancestral sampling (DDPM, the true reverse kernel if d were x_0), and eta = 0 is deterministic DDIM. Both
work on every schedule; on a flow, eta = 1 is the stochastic process with the flow's marginals.

References: Ho et al. (2020), https://arxiv.org/abs/2006.11239; Song et al. (2020), https://arxiv.org/abs/2010.02502.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver, decay
from .times import Grid


def posterior(t: Point, s: Point, eta: float) -> Move:
    """One step of the formula above."""
    return renewed(t, s, eta * s.sigma * max(1 - decay(t, s) ** 2, 0) ** 0.5)


def renewed(t: Point, s: Point, c: float) -> Move:
    """The same step with any noise c up to sigma_s."""
    a = max(s.sigma**2 - c**2, 0) ** 0.5 / t.sigma
    return Move(t.t, s.t, a, (s.alpha - a * t.alpha,), c)


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling: the default. For tokens it is `Ancestral`."""

    stochastic = True

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [posterior(t, s, 1.0)]


@dataclass(frozen=True)
class DDIM(Solver):
    """DDIM with noise level eta in [0, 1]; stochastic if eta > 0."""

    eta: float = 0.0
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM(eta={self.eta}): eta lies in [0, 1]; 0 is deterministic, 1 is DDPM")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.eta > 0

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [posterior(t, s, self.eta)]

r"""BDIA: DDIM's step down, and what its step up misses of the state before; reversible with any network.

With D(x_t -> u) for DDIM's step from t to the time u, up or down, and x_b the state before x_t,

    x_s = D(x_t -> s) + gamma (x_b - D(x_t -> b)),      0 < gamma <= 1

D misses the curvature of the path in both directions, so that the second term takes out what the first one misses: with
gamma = 1 and even steps the order is 2, and otherwise 1. The first step is that of DDIM. It is the step of
`guidekit.solvers.belm` with A = gamma r_b/r_s, and gk.invert(method="reversible") runs it backwards in the same way; in
steps that shrink, `BELM` is the one without an error of first order.

Reference: Zhang, Lewis and Kleijn (2023), https://arxiv.org/abs/2307.10829.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .belm import opened, two_step
from .schedules import Schedule
from .times import Grid


@dataclass(frozen=True)
class BDIA(Solver):
    """Bi-directional integration of DDIM: one evaluation per step, deterministic and reversible.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> x = base.exact_sample(3)
    >>> run = {"steps": 8, "solver": BDIA(0.9)}
    >>> again = gk.sample(base, 3, noise=gk.invert(base, x, method="reversible", **run), **run).x
    >>> bool((again - x).abs().max() < 1e-3)
    True
    """

    gamma: float = 1.0
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(
                f"BDIA(gamma={self.gamma}): gamma lies in (0, 1]; at 0 it is DDIM(), which has no way back"
            )

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [two_step(t, s, last, lambda h, k, r_s, r_b: self.gamma * r_b / r_s)]

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        return opened(self, super().moves(schedule, times), schedule)

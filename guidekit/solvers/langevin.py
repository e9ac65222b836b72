r"""Predictor-corrector sampling: steps of Langevin dynamics at the new time, after each step of another solver.

The score of x_s is (alpha_s d - x)/sigma_s^2, and a Langevin step of length 2 (snr sigma_s)^2 is

    x <- (1 - k) x + k alpha_s d + sigma_s sqrt(1 - (1 - k)^2) z,      k = 2 snr^2.

The paper's noise is sigma_s sqrt(2 k), the first term of this one: with it, even exact data in d would come out with
too much noise, by k^2. The paper sets the length from the norms of score and noise in the batch; their expected ratio
is taken here, so that a row does not depend on its batch. Each correction costs an evaluation. A corrector mixes at
fixed noise, which repairs errors of the steps before, at the price of its own error, which falls with snr^2.

Reference: Song et al. (2021), https://arxiv.org/abs/2011.13456, algorithms 2 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from .accelerated import AcceleratedDDPM
from .base import Move, Point, Solver
from .ddim import DDPM
from .schedules import Schedule, scales
from .times import Grid

_ANCESTRAL = DDPM()


@dataclass(frozen=True)
class Langevin(Solver):
    """Another solver with `count` Langevin steps after each of its steps but the last; stochastic.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=Langevin(gk.solvers.DPMpp(), snr=0.2)).cost.network_calls
    15
    """

    solver: Solver = _ANCESTRAL
    snr: float = 0.16
    count: int = 1
    _: KW_ONLY
    times: str | Grid = "uniform"

    stochastic = True

    def __post_init__(self) -> None:
        if not 0 < self.snr <= 0.5**0.5 or self.count < 1:
            raise ValueError(f"{self!r}: snr lies in (0, 0.7] and count is at least 1")
        if isinstance(self.solver, AcceleratedDDPM):
            raise ValueError(f"{self!r}: AcceleratedDDPM adds noise early, which a Langevin step would take away")
        if self.times == "uniform":
            object.__setattr__(self, "times", self.solver.times)

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        table = self.solver.moves(schedule, times)
        order, known, found = max(len(move.b) for move in table), 0, []
        for move, then in zip(table, [*table[1:], None], strict=True):
            known = min(known + 1, order - 1) if move.keep is None else len(move.keep)
            known = 0 if move.s > move.t else known
            found.append(move)
            if then is not None and then.s != then.t and move.s <= move.t:
                found += [self._corrected(Point(move.s, *scales(schedule, move.s)), known)] * self.count
        return found

    def _corrected(self, s: Point, known: int) -> Move:
        """A row at s that leaves what the solver remembers as it is, and forgets the prediction before it."""
        k = 2 * self.snr**2
        keep = tuple((0.0,) * (2 + i) + (1.0,) for i in range(known)) if known else None
        return Move(s.t, s.t, 1 - k, (k * s.alpha, *(0.0,) * known), s.sigma * (1 - (1 - k) ** 2) ** 0.5, keep)

r"""SA-Solver: stochastic Adams methods for the reverse SDE with noise tau, as predictor and corrector.

    x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sum_j b_j d_j + sigma_s sqrt(1 - e^(-2 tau^2 h)) z
    b_j = (1 + tau^2) alpha_s int_0^h exp(-(1 + tau^2)(h - v)) L_j(v) dv,      h = lambda_s - lambda_t

tau = 0 is the probability flow (Adams-Bashforth, and Adams-Moulton as UniC has it) and tau = 1 the reverse SDE. With
a corrector the prediction at the predicted point is used before the next step, together with the noise that was
drawn, for no further evaluation; see `solvers/unipc.py`. The published code changes the weights of two predictions a
little, so that they are those of SDE-DPM-Solver++(2M); here the integrals are exact. The last step is the clean
prediction.

Reference: Xue et al. (2023), https://arxiv.org/abs/2309.05019.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import partial

from .base import Move, Point, Solver, decay
from .ddim import posterior
from .multistep import corrected, exponential
from .schedules import Schedule
from .times import Grid


@dataclass(frozen=True)
class SASolver(Solver):
    """Stochastic Adams of order 1 to 4 with this much noise: one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=SASolver(0.6)).x.shape
    torch.Size([2, 1])
    """

    tau: float = 1.0
    order: int = 2
    corrector: bool = True
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.tau < math.inf:
            raise ValueError(f"SASolver(tau={self.tau}): tau is at least 0; 0 is deterministic, 1 the reverse SDE")
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"SASolver(order={self.order}): there is order 1 to 4")

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.tau > 0

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t = past[0]
        if t.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, float(self.stochastic))]
        shrink = decay(t, s) ** self.tau**2
        move = Move(t.t, s.t, s.sigma / t.sigma * shrink, (), s.sigma * max(1 - shrink**2, 0) ** 0.5)
        predict, correct = (partial(f, tau2=self.tau**2) for f in (_predict, _correct))
        return [corrected(move, s, past, self.order, predict, correct if self.corrector else None)]


def _predict(s: Point, nodes: list[Point], tau2: float) -> tuple[float, ...]:
    return exponential(s, nodes[0], nodes, tau2)


def _correct(s: Point, nodes: list[Point], tau2: float) -> tuple[float, ...]:
    return exponential(s, nodes[0], [s, *nodes], tau2)

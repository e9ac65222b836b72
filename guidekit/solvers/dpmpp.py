r"""DPM-Solver++ and its stochastic form, for the clean prediction: first order, second (2M), and without noise third.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t and h' that of the step before,

    DPM-Solver++      x_s = (sigma_s/sigma_t) x_t + alpha_s (1 - e^-h) D
    SDE-DPM-Solver++  x_s = (sigma_s/sigma_t) e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z
    D = d_0                                  order 1
    D = d_0 + h/(2 h') (d_0 - d_1)           order 2, from the second step on

Order 3 puts a parabola in lambda through the last three predictions in the place of d and integrates it exactly
(`solvers/multistep.py`). The published code of 3M, and diffusers, take half of the term of the second derivative, with
which the error falls with the square of the steps only.

The first and the last step have order 1: in the first there is no d_1, and in the last h is infinite. At order 1 the
two are DDIM(eta=0) and DDPM. Second-order convergence is reached on grids that are even in lambda (times="log_snr"); on
evenly spaced times, the last steps, in which lambda diverges, reduce the order to about 1.75.

References: Lu et al. (2022), https://arxiv.org/abs/2211.01095, equations 13 and 18 of its appendix on the SDE.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver, decay
from .ddim import posterior
from .multistep import exponential, usable
from .schedules import Schedule
from .times import Grid


def _two_step(move: Move, ratio: float, gain: float) -> Move:
    """Replace d_0 by d_0 + ratio (d_0 - d_1) in the term with coefficient `gain`."""
    (b,) = move.b
    return move._replace(b=(b + gain * ratio, -gain * ratio))


def _ratio(t: Point, s: Point, last: Point | None) -> float:
    """h/(2 h'), or 0 for a first-order step."""
    if last is None or s.sigma == 0 or last.alpha == 0:
        return 0.0
    return math.log(decay(t, s)) / (2 * math.log(decay(last, t)))


@dataclass(frozen=True)
class DPMpp(Solver):
    """DPM-Solver++(1), (2M) or (3M), deterministic: the usual choice for few steps without rewards."""

    order: int = 2
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        _check_order(self, 3)

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t, move, nodes = past[0], posterior(past[0], s, 0.0), usable(past, self.order)
        if len(nodes) == 3 and s.sigma > 0:
            return [move._replace(b=exponential(s, t, nodes))]
        ratio = _ratio(t, s, past[1] if len(nodes) > 1 else None)
        return [_two_step(move, ratio, s.alpha * (1 - decay(t, s))) if ratio else move]


@dataclass(frozen=True)
class SDEDPMpp(Solver):
    """SDE-DPM-Solver++(1) or (2M): stochastic, for few steps with rewards and resampling."""

    order: int = 1
    _: KW_ONLY
    times: str | Grid = "uniform"

    stochastic = True

    def __post_init__(self) -> None:
        _check_order(self, 2)

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        move, ratio = posterior(t, s, 1.0), _ratio(t, s, last if self.order == 2 else None)
        return [_two_step(move, ratio, s.alpha * (1 - decay(t, s) ** 2)) if ratio else move]


def _check_order(solver: DPMpp | SDEDPMpp, most: int) -> None:
    if solver.order not in range(1, most + 1):
        known = "there is order 1, order 2 and order 3" if most == 3 else "there is order 1 and order 2"
        raise ValueError(f"{type(solver).__name__}(order={solver.order}): {known}")

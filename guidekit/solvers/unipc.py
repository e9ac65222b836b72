r"""UniPC: a predictor and a corrector that costs no evaluation, since it takes the prediction at the predicted point.

Both integrate a polynomial in lambda = log(alpha/sigma) through clean predictions (`solvers/multistep.py`): the
predictor from t to s through the last `order` points, the corrector through these and d(x_s') at the predicted point
x_s'. The prediction is not made anew at the corrected point. Both have the same first term (sigma_s/sigma_t) x_t, so
that

    corrected x_s = x_s' + sum_j (corrector's weight - predictor's weight)_j d_j,

and correcting x_t and predicting x_s is one row of the table, from x_t' to x_s'. Order p gives order p + 1, as a
corrector does. B(h) of the paper drops out but in two places, where two weights are taken for simplicity as half of
B(h) = 1 - e^-h: the predictor of order 2, which is then DPM-Solver++(2M), and the corrector of order 1 ("bh2").

The step from pure noise (alpha = 0) is corrected by that rule too, for B(h) is 1 there. The last step, to sigma = 0, is
the clean prediction.

Reference: Zhao et al. (2023), https://arxiv.org/abs/2302.04867.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver, decay
from .ddim import posterior
from .multistep import corrected, exponential, log_snr
from .schedules import Schedule
from .times import Grid


@dataclass(frozen=True)
class UniPC(Solver):
    """UniPC of order 1 to 4: deterministic, one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=UniPC()).x.shape
    torch.Size([2, 1])
    """

    order: int = 2
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"UniPC(order={self.order}): there is order 1 to 4")

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        move = posterior(past[0], s, 0.0)
        if past[0].alpha == 0 or s.sigma == 0:
            return [move]
        row = corrected(move, s, past, self.order, predictor, corrector)
        if len(past) == 2 and past[1].alpha == 0:  # h is infinite, and half of B(h) one half
            half = row.a * past[0].alpha / 2
            row = row._replace(b=(row.b[0] + half, row.b[1] - half))
        return [row]


def predictor(s: Point, nodes: list[Point]) -> tuple[float, ...]:
    """The weights of the predictions at these points, newest first, in the step from the newest one to s."""
    if len(nodes) != 2:
        return exponential(s, nodes[0], nodes)
    gain = s.alpha * (1 - decay(nodes[0], s))
    ratio = (log_snr(s) - log_snr(nodes[0])) / (2 * (log_snr(nodes[0]) - log_snr(nodes[1])))
    return gain * (1 + ratio), -gain * ratio


def corrector(s: Point, nodes: list[Point]) -> tuple[float, ...]:
    """The weights of the prediction at s and of those at these points in the step from the newest of them to s."""
    if len(nodes) > 1:
        return exponential(s, nodes[0], [s, *nodes])
    half = s.alpha * (1 - decay(nodes[0], s)) / 2
    return half, half

r"""DPM-Solver-v3: the exponential integrator whose linear part is measured on the model itself.

With y = x/alpha and lambda = log(alpha/sigma), split the probability flow by any function l(lambda),

    dy/dlambda = -l y - f,      f = (1 - l) y - d,

where l = 0 is the noise prediction (f = (sigma/alpha) e) and l = 1 the clean prediction (f = -d). Let further f grow
by itself at the rate s(lambda), f = exp(int s) g. Then

    y_s = exp(-int l) [y_t - int_t^s exp(int_t^v (l + s)) g(v) dv],

with g the polynomial in lambda through its last `order` values, which the solver remembers. With the corrector a state
is moved by the polynomial that also goes through f at the state itself, before the next step and without a further
evaluation, as in `solvers/unipc.py`; it gives order p the order p + 1. The model's own statistics make g as constant as
can be:

    l = E[tr d(sigma e)/dx]/dim = 1 - alpha E[tr dd/dx]/dim,      s = E[<f, f'>]/E[<f, f>]

(the l with the smallest Jacobian of f, and the regression of its derivative f' along the flow on f). `statistics`
measures both along the flow from n noises, with a random probe for the trace and differences for f'. A Gaussian with
independent entries of equal variance has constant g, and one step of order 1 is exact.

In the paper l and s are vectors, one entry for each entry of x, and f' also has a constant part b. Rows of a table are
numbers: here l and s are means over entries, and b is 0. (l, s) = (1, 0) is DPM-Solver++ or UniPC, and (0, -1) is DEIS
in log(sigma/alpha). The step from pure noise (alpha = 0) and the last one, to sigma = 0, are DDIM's.

Reference: Zheng et al. (2023), https://arxiv.org/abs/2310.13268.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import random
from .base import Move, Point, Solver
from .ddim import posterior
from .fitting import Options, check, started
from .multistep import integrals, log_snr, remembered, usable
from .schedules import Schedule, scales
from .times import Grid
from .unipc import UniPC

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PROBE = 0.03  # the length of a probe of the Jacobian, in units of the noise


@dataclass(frozen=True, repr=False)
class Statistics:
    """l and s of a model at rising values of log(alpha/sigma): smooth curves in between, constant beyond the ends."""

    log_snr: tuple[float, ...]
    l: tuple[float, ...]
    s: tuple[float, ...]

    def __repr__(self) -> str:
        """Their number and means, which tell them apart in a record."""
        return f"Statistics(levels={len(self.l)}, l={float(np.mean(self.l)):.9f}, s={float(np.mean(self.s)):.9f})"

    @cached_property
    def _curves(self) -> tuple[Any, Any]:
        from scipy.interpolate import CubicSpline

        found = CubicSpline(self.log_snr, np.stack([self.l, self.s], 1))
        return found, found.antiderivative()

    def at(self, v: np.ndarray | float) -> np.ndarray:
        """(l, s) in the last axis."""
        return self._curves[0](np.clip(v, self.log_snr[0], self.log_snr[-1]))

    def area(self, v: np.ndarray | float) -> np.ndarray:
        """int (l, s) from the first value to v."""
        inside = np.clip(v, self.log_snr[0], self.log_snr[-1])
        return self._curves[1](inside) + (np.asarray(v) - inside)[..., None] * self.at(inside)


@dataclass(frozen=True)
class DPMv3(Solver):
    """DPM-Solver-v3 of order 1 to 3 with the statistics of a model: deterministic, one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> solver = DPMv3(gk.solvers.statistics(base))
    >>> gk.sample(base, 2, steps=8, solver=solver).x.shape
    torch.Size([2, 1])
    """

    statistics: Statistics
    order: int = 2
    corrector: bool = True
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, Statistics):
            raise ValueError(f"DPMv3(statistics={self.statistics!r}): give gk.solvers.statistics(model)")
        if self.order not in (1, 2, 3):
            raise ValueError(f"DPMv3(order={self.order}): there is order 1 to 3")

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t, nodes = past[0], usable(past, self.order)
        f = (0.0, 0.0) if t.alpha == 0 else ((1 - self.statistics.at(log_snr(t))[0]) / t.alpha, -1.0)
        keep = remembered(f, min(self.order - 2 + self.corrector, len(past) - 1))
        if t.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, 0.0)._replace(keep=keep)]
        shrink = s.alpha / t.alpha * math.exp(self._area(t, s)[0])
        w = np.zeros(self.order + self.corrector)  # of f at t and before
        w[: len(nodes)] = self._weights(s, t, nodes)
        if self.corrector and (older := usable(past[1:], self.order)):
            w[: 1 + len(older)] += shrink * np.array(self._weights(t, older[0], [t, *older]))
            w[1 : 1 + len(older)] -= shrink * np.array(self._weights(t, older[0], older))
        first, *rest = w[: min(len(w), len(past))].tolist()
        return [Move(t.t, s.t, shrink + first * f[0], (first * f[1], *rest), 0.0, keep)]

    def _area(self, p: Point, q: Point) -> np.ndarray:
        """int (l, s) from q to p."""
        return self.statistics.area(log_snr(p)) - self.statistics.area(log_snr(q))

    def _weights(self, s: Point, t: Point, nodes: list[Point]) -> list[float]:
        """The weights in x_s of f at these points, in the step from t."""
        start, own = log_snr(t), self.statistics.area(log_snr(t))

        def grown(v: np.ndarray) -> np.ndarray:
            return np.exp((self.statistics.area(v + start) - own).sum(-1))

        found = integrals([log_snr(p) - start for p in nodes], grown, 0.0, log_snr(s) - start)
        scale = -s.alpha * math.exp(self._area(t, s)[0])
        return [scale * c * math.exp(self._area(t, p)[1]) for c, p in zip(found, nodes, strict=True)]


def statistics(
    model: Any,
    *,
    points: int = 64,
    **options: Unpack[Options],
) -> Statistics:
    """The statistics of a model for `DPMv3`, at so many levels of noise, from n noises (64, and more where samples are
    small). It costs 2 n evaluations a level, and twice as many with guidance, which is the scale of classifier-free
    guidance in the runs that they are for. cond is one condition, or a list, each of which gets the same share.

    >>> import guidekit as gk
    >>> found = statistics(gk.analytic.GaussianMixture([1.0], [1.0], [1.0]))
    >>> all(abs(l - 1 / (1 + math.exp(2 * v))) < 1e-3 for v, l in zip(found.log_snr, found.l))  # unit variance
    True
    """
    check("statistics", model, points=points)
    if points < 8:
        raise ValueError(f"statistics(points={points}): an int of at least 8 is needed")
    process = model.process
    with started("statistics", model, points, "log_snr", 2 * points, **options) as (times, x, keys, predict, *_):
        probe = random.normal(random.fold(keys, "probe"), tuple(x.shape[1:]), x.dtype).sign()
        found, history = [], ()
        for move in UniPC(3).moves(process.schedule, times):
            alpha, sigma = scales(process.schedule, move.t)
            history = (predict(x, move.t), *history[:3])
            if alpha > 0:
                v = _PROBE * sigma * probe
                slope = ((predict(x + v, move.t) - history[0]) * v).sum() / v.square().sum()
                found.append(_level(x, history[0], alpha, sigma, float(slope)))
            x = process.kernel(x, history, move).push(None)
    lam, l, f = zip(*found, strict=True)
    return Statistics(lam, l, _growth(torch.stack(f), lam))


def _level(x: Tensor, d: Tensor, alpha: float, sigma: float, slope: float) -> tuple[float, float, Tensor]:
    """lambda, l and f at one level of noise, where d has this mean derivative."""
    l = 1 - alpha * slope
    return math.log(alpha / sigma), l, ((1 - l) / alpha * x - d).flatten().double()


def _growth(f: Tensor, lam: tuple[float, ...]) -> tuple[float, ...]:
    """s: the regression of f' on f at every level."""
    rate = torch.gradient(f, spacing=(torch.tensor(lam, dtype=f.dtype, device=f.device),), dim=0, edge_order=2)[0]
    return tuple((((f * rate).sum(1)) / f.square().sum(1)).tolist())

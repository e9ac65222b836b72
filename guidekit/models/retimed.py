r"""Networks that are told another time than the solver's, against exposure bias: states that a run makes itself are not
quite of the noise level at which they stand, and a network answers better for the level that they have.

    d = d(x_t, t'; alpha_t, sigma_t): the network at (x_t, t'), and its output read as noise, velocity... at t

**Clock**: t' is a function of t, as a table. This is the Timestep Aligner (Xia et al., 2023),
https://arxiv.org/abs/2310.09469, and `gk.search.align` fits it to a model and a solver.

**TimeShift**: t' is found for each row (Li et al., 2023), https://arxiv.org/abs/2305.15583. Over the numbers of a state

    Var(x_t') = alpha_t'^2 v + sigma_t'^2,

with v the variance over the numbers of one sample of the data. Of the times within a window around t the one is taken
whose right side is nearest to the variance of the row. The paper has v = 0 and so stops at a time `stop`, below which
the data show. It needs large states, and data of another variance than noise: with v = 1 and a variance-preserving
process all times are the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..process import Gaussian
from .base import Encoded, Mixed, Model
from .gaussian import GaussianModel


@dataclass(frozen=True)
class Clock:
    """What the network is told, by lines between given times, which rise.

    >>> Clock((0.0, 0.5, 1.0), (0.0, 0.6, 1.0))(0.25)
    0.3
    """

    times: tuple[float, ...]
    told: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.times) == len(self.told) > 0 and all(0 <= t <= 1 for t in (*self.times, *self.told))
        if not fits or list(self.times) != sorted(set(self.times)):
            raise ValueError(f"{self!r}: rising times in [0, 1], and for each the time that the network is told")

    def __call__(self, t: float) -> float:
        after = bisect_left(self.times, t)
        if after in (0, len(self.times)):
            return self.told[min(after, len(self.times) - 1)]
        (s, u), (a, b) = self.times[after - 1 : after + 1], self.told[after - 1 : after + 1]
        return a + (b - a) * (t - s) / (u - s)


@dataclass(frozen=True)
class TimeShift:
    """The time that fits to the variance of each row.

    window    width, in t, of the times among which it is sought
    variance  v, over the numbers of one sample of the data; 0 where only noise counts
    stop      the time at and below which the network is told t
    count     of times in the window
    """

    window: float = 0.1
    variance: float = 0.0
    stop: float = 0.3
    count: int = 21

    def __post_init__(self) -> None:
        if not (0 < self.window <= 1 and self.variance >= 0 and 0 <= self.stop < 1 and self.count > 1):
            raise ValueError(f"{self!r}: window in (0, 1], variance at least 0, stop in [0, 1), and count at least 2")

    def rows(self, process: Gaussian, x: Tensor, t: float) -> list[float]:
        """The time of each row."""
        if t <= self.stop:
            return [t] * len(x)
        low, high = max(t - self.window / 2, 0.0), min(t + self.window / 2, process.t_max)
        times = [low + (high - low) * i / (self.count - 1) for i in range(self.count)]
        expected = torch.tensor([a * a * self.variance + s * s for a, s in map(process.scales, times)])
        own = x.detach().flatten(1).double().var(1).cpu()
        return [times[i] for i in (own[:, None] - expected).abs().argmin(1).tolist()]


class Retimed(Model):
    """A Gaussian model whose network is told the times of a clock.

    >>> import guidekit as gk
    >>> base = gk.GaussianModel(lambda x, t, cond: t[:, None] * x, (2,), predicts="clean")
    >>> late = Retimed(base, Clock((0.0, 1.0), (0.0, 0.5)))
    >>> late(torch.ones(1, 2), 0.4, None)
    tensor([[0.2000, 0.2000]])
    """

    process: Gaussian

    def __init__(self, base: GaussianModel, clock: Clock | TimeShift):
        if type(base) is not GaussianModel:
            raise TypeError(f"Retimed(base={base!r}): a gk.GaussianModel is needed")
        if not isinstance(clock, (Clock, TimeShift)):
            raise TypeError(f"Retimed(clock={clock!r}): gk.Clock(times, told) or gk.TimeShift(window) is needed")
        super().__init__(
            base.net, base.process, base.shape, base._decode, base._encode, base.null, base.dtype, base.device,
            base._read,
        )  # fmt: skip
        self.base, self.clock = base, clock

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self.mixed(x, Mixed(((t, len(x)),)), cond)

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        spans = [(self._told(x[rows], t), rows.stop - rows.start) for t, rows in times.parts()]
        told = Mixed(tuple(span for many, rows in spans for span in _spans(many, rows)))
        return self.base.read_out(x, times, self.base._forward(x, told, cond, self.shape))

    def _told(self, x: Tensor, t: float) -> Sequence[float]:
        """One time for all rows, or one for each."""
        clock = self.clock
        return clock.rows(self.process, x, t) if isinstance(clock, TimeShift) else [clock(t)]


def _spans(times: Sequence[float], rows: int) -> list[tuple[float, int]]:
    return [(times[0], rows)] if len(times) == 1 else [(t, 1) for t in times]

r"""Reflected diffusion (Lou and Ermon, 2023), https://arxiv.org/abs/2304.04740: noise that never leaves an interval.

Each number of a sample lies in [low, high], with L = high - low, and Brownian motion is reflected at both ends. So with
fold(x) the map that reflects x into the interval, and a process of exploding variance,

    x_t = fold(x_0 + sigma_t z),      uniform for sigma_t >> L,

and the reverse is the usual one with the score of this law, reflected too: a row of a solver's table is folded,

    x_s = fold(a x_t + sum_i b_i d_i + c z),      d = x_t + sigma_t^2 score.

d is what takes the place of the clean mean in the coordinates of the tables. The folded normal has a log-probability,
the sum over mirror images; from c = 2 L on it is uniform to 1e-8. Samples need no thresholding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solvers import Move
from ..solvers.schedules import Schedule
from .gaussian import Gaussian, Normal


def fold(x: Tensor, low: float, high: float) -> Tensor:
    """The point of [low, high] at which the reflections of x end.

    >>> fold(torch.tensor([0.3, 1.2, -0.4, 2.1]), 0.0, 1.0)
    tensor([0.3000, 0.8000, 0.4000, 0.1000])
    """
    y = (x - low).remainder(2 * (high - low))
    return low + torch.minimum(y, 2 * (high - low) - y)


@dataclass(frozen=True)
class Folded(Normal):
    """The kernel of one row, folded into an interval."""

    low: float
    high: float

    def push(self, noise: Tensor | None) -> Tensor:
        return fold(super().push(noise), self.low, self.high)

    def log_prob(self, x: Tensor) -> Tensor:
        """log of the sum over all mirror images, one float64 per row."""
        if not self.random:
            return super().log_prob(x)
        length, c = self.high - self.low, self.move.c
        if c >= 2 * length:
            return torch.full((len(x),), -math.log(length) * x[0].numel(), dtype=torch.float64, device=x.device)
        mean, x = fold(self.mean, self.low, self.high).double(), x.double()
        total, count = torch.full_like(x, -torch.inf), 1 + math.ceil(3.5 * c / length)
        for k in range(-count, count + 1):
            for image in (x, 2 * self.low - x):
                total = torch.logaddexp(total, -0.5 * ((image + 2 * k * length - mean) / c) ** 2)
        return (total - math.log(c) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


@dataclass(frozen=True)
class Reflected(Gaussian):
    """Gaussian diffusion of exploding variance, reflected at low and high."""

    low: float = -1.0
    high: float = 1.0

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return fold(super().prior(noise, t), self.low, self.high)

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        return fold(super().noised(clean, noise, t), self.low, self.high)

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Folded:
        return Folded(x, predictions, move, self.low, self.high)


def check_reflected(schedule: Schedule, low: float, high: float) -> None:
    """The schedule has exploding variance, which is large beside the interval in the end."""
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low={low}, high={high}: an interval is needed, such as -1 and 1")
    alpha, sigma = schedule(torch.tensor([0.5, 1.0], dtype=torch.float64))
    if not bool((alpha == 1).all()) or float(sigma[-1]) < high - low:
        raise ValueError(
            f"schedule={schedule!r}: reflection needs exploding variance, alpha = 1, and sigma of at least "
            f"{high - low:g} at t = 1, where states are uniform: VE(sigma_max=...) or EDM(sigma_max=...)"
        )

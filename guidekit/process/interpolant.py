r"""Stochastic interpolants between two data sets (Albergo et al., 2023), https://arxiv.org/abs/2303.08797.

With x_0 from the data that are to be made (t = 0), x_1 from those that runs begin with (t = 1), and noise between,

    x_t = (1 - t) x_0 + t x_1 + gamma_t z,      gamma_t = strength sqrt(t (1 - t)).

A prediction is two fields, the means of x_0 and of z given x_t, (rows, 2, *shape): x_1 follows from them. With these a
move is

    x_s = (1 - s) E[x_0] + s E[x_1] + sqrt(gamma_s^2 - c^2) E[z] + c z,      0 <= c <= gamma_s,

in which c = 0 is Euler's step along the flow of the velocity, up to second order, and any other c one of the stochastic
equation dX = (b + epsilon score) dt + sqrt(2 epsilon) dW with the same law at every t, as c^2 = 2 epsilon (t - s) is
small. epsilon = 0 is deterministic. At the ends of time gamma = 0, and there c = 0. All moves are of first order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..solvers import DDIM, DDPM, Move, Solver, times
from ..solvers.schedules import Flow
from .gaussian import Gaussian, Normal


@dataclass(frozen=True)
class Interpolant:
    """The law of an interpolant, with so much noise in the middle and in moves."""

    strength: float
    epsilon: float
    t_max = 1.0

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        if not isinstance(solver, DDPM | DDIM | None):
            raise ValueError(f"solver={solver!r}: an interpolant has moves of its own; give DDIM(), DDPM() or None")
        own = DDPM() if solver is None else solver
        grid = times.make(steps, own.times, Flow(), self.t_max)
        if grid[0] != 1 or any(s >= t for t, s in pairwise(grid)):
            raise ValueError("an interpolant is followed from t = 1 down to 0, by times that fall")
        return [Move(t, s, c=self._noise(t, s) if own.stochastic else 0.0) for t, s in pairwise(grid)]

    def _noise(self, t: float, s: float) -> float:
        """The deviation of the noise of a move: that of the stochastic equation where it is small, at most gamma_s."""
        gamma = self.gamma(s)
        return gamma * math.sqrt(-math.expm1(-2 * self.epsilon * (t - s) / gamma**2)) if gamma else 0.0

    def gamma(self, t: float) -> float:
        return self.strength * math.sqrt(t * (1 - t))

    def scales(self, t: float) -> tuple[float, float]:
        return 1 - t, self.gamma(t)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    noise, late_noise = Gaussian.noise, Gaussian.late_noise

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return torch.full_like(noise, torch.nan)  # `StartFrom` says where it begins

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        if t != 1:
            raise ValueError(f"an interpolant begins with samples of its other end, at t=1 and not at {t:.3g}")
        return clean

    def begins(self, clean: Tensor, level: float) -> float:
        return level

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return prediction[:, 0]

    def decided(self, x: Tensor) -> None:
        return None

    def apart(self, move: Move) -> bool:
        return False

    def told(self, x: Tensor) -> Tensor:
        return torch.stack([x, torch.zeros_like(x)], 1)

    def draws(self, move: Move) -> bool:
        return move.c > 0

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Normal:
        clean, z = predictions[0].unbind(1)
        other = (x - (1 - move.t) * clean - self.gamma(move.t) * z) / move.t
        mean = (1 - move.s) * clean + move.s * other + math.sqrt(max(self.gamma(move.s) ** 2 - move.c**2, 0)) * z
        return Normal(mean, (), move._replace(a=1.0, b=()))

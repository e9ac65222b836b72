r"""Gaussian diffusion x_t = alpha(t) x_0 + sigma(t) z: variance preserving, variance exploding, EDM and flow.

A prediction is the clean mean d = E[x_0 | x_t]; noise, velocity, score and flow are affine in it, so a tilt that is
linear in one is linear in all. The reverse kernel is N(a x_t + sum_i b_i d_i, c^2) with the solver's coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import random
from ..solvers import DDPM, Move, Solver, times
from ..solvers.schedules import Schedule, scales


@dataclass(frozen=True)
class Normal:
    """The kernel N(a x_t + sum_i b_i d_i, c^2) of one row of a solver's table; c = 0 is a point mass."""

    x: Tensor
    predictions: tuple[Tensor, ...]
    move: Move

    @property
    def random(self) -> bool:
        return self.move.c > 0

    @property
    def history(self) -> tuple[Tensor, ...]:
        """What the next move finds behind its own prediction."""
        found = (self.x, *self.predictions)
        return self.predictions if self.move.keep is None else tuple(_weighted(k, found) for k in self.move.keep)

    @property
    def mean(self) -> Tensor:
        return self._add(self.x * self.move.a)

    def push(self, noise: Tensor | None) -> Tensor:
        """a x_t + sum_i b_i d_i + c z; overwrites the noise, whose memory becomes x_s."""
        if noise is None:
            return self.mean
        return self._add(noise.mul_(self.move.c).add_(self.x, alpha=self.move.a))

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, c^2), one float64 per row."""
        if not self.random:
            raise ValueError("a deterministic move has no log-probability; take a stochastic solver, e.g. DDPM()")
        z = (x - self.mean).div_(self.move.c).reshape(len(x), -1)
        constant = z.shape[1] * (math.log(self.move.c) + 0.5 * math.log(2 * math.pi))
        return -0.5 * z.square().sum(1, dtype=torch.float64) - constant

    def correction(self, p: Normal, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)

    def _add(self, x: Tensor) -> Tensor:
        """x + sum_i b_i d_i, in place."""
        for d, b in zip(self.predictions, self.move.b, strict=False):
            x.add_(d, alpha=b)
        return x


def _weighted(weights: tuple[float, ...], tensors: tuple[Tensor, ...]) -> Tensor:
    """sum_i w_i v_i; a single tensor of weight 1 is not copied."""
    used = [(w, v) for w, v in zip(weights, tensors, strict=False) if w]
    if len(used) == 1 and used[0][0] == 1:
        return used[0][1]
    total = torch.zeros_like(tensors[0])
    for w, v in used:
        total.add_(v, alpha=w)
    return total


@dataclass(frozen=True)
class Gaussian:
    """Gaussian diffusion with this schedule; runs start at t_max."""

    schedule: Schedule
    t_max: float = field(default=1.0, compare=False)

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        solver = DDPM() if solver is None else solver
        return solver.moves(self.schedule, times.make(steps, solver.times, self.schedule, self.t_max))

    def scales(self, t: float) -> tuple[float, float]:
        """alpha and sigma."""
        return scales(self.schedule, t)

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return random.normal(keys, shape, dtype)

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.noise(keys, shape, dtype)

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return noise * scales(self.schedule, t)[1]

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return prediction

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        alpha, sigma = self.scales(t)
        return alpha * clean + sigma * noise

    def begins(self, clean: Tensor, level: float) -> float:
        return level

    def decided(self, x: Tensor) -> None:
        return None

    def apart(self, move: Move) -> bool:
        return False

    def told(self, x: Tensor) -> Tensor:
        return x

    def draws(self, move: Move) -> bool:
        return move.c > 0

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Normal:
        return Normal(x, predictions, move)

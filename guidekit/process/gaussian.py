r"""Gaussian diffusion x_t = alpha(t) x_0 + sigma(t) z: variance preserving, variance exploding, EDM and flow.

A prediction is the clean mean d = E[x_0 | x_t]; noise, velocity, score and flow are affine in it, so a tilt that is
linear in one is linear in all. The reverse kernel is N(a x_t + sum_i b_i d_i, c^2) with the solver's coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random, times
from ..schedules import Schedule, scales
from ..solvers import DDPM, Move, Solver


@dataclass(frozen=True)
class Normal:
    """The kernel N(mean, std^2); std = 0 is a point mass, without a log-probability."""

    mean: Tensor
    std: float

    @property
    def random(self) -> bool:
        return self.std > 0

    def push(self, noise: Tensor | None) -> Tensor:
        return self.mean if noise is None else torch.add(self.mean, noise, alpha=self.std)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2), one float64 per row."""
        if self.std == 0:
            raise ValueError("a deterministic move has no log-probability; take a stochastic solver, e.g. DDPM()")
        z = ((x - self.mean) / self.std).flatten(1)
        constant = z.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))
        return -0.5 * z.square().sum(1, dtype=torch.float64) - constant


@dataclass(frozen=True)
class Gaussian:
    """The process of a schedule; runs start at t_max."""

    schedule: Schedule
    t_max: float = 1.0

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

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return noise * scales(self.schedule, t)[1]

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return prediction

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Normal:
        mean = x * move.a
        for d, b in zip(predictions, move.b, strict=False):
            mean.add_(d, alpha=b)
        return Normal(mean, move.c)

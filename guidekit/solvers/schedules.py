r"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) z, with t = 1 noise and t = 0 data.

A schedule is a callable t -> (alpha, sigma). At t = 0 it returns exactly (1, 0), whatever its smallest noise level, so
that samples are free of noise. One class of process, `guidekit.process.Gaussian`, serves all schedules.

| schedule | alpha(t) | sigma(t) | kind |
|---|---|---|---|
| Cosine | cos(pi t / 2) | sin(pi t / 2) | VP (Nichol and Dhariwal, 2021, no offset) |
| Linear | exp(-(beta_max - beta_min) t^2/4 - beta_min t/2) | sqrt(1 - alpha^2) | VP (Song et al., 2021) |
| Flow | 1 - t | t | rectified flow (Liu et al., 2022; Lipman et al., 2023) |
| VE | 1 | sigma_min (sigma_max/sigma_min)^t | variance exploding (Song et al., 2021) |
| EDM | 1 | (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho | Karras et al., 2022 |

Networks receive t in [0, 1]. Wrap a network that was trained on sigma or on step numbers, for example as
`lambda x, t, c: net(x, gk.schedules.EDM()(t)[1], c)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """Any callable from times to (alpha, sigma) whose signal-to-noise ratio decreases in t."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Cosine:
    """Variance preserving, alpha = cos(pi t/2): the default."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        return ((1 - t) * (math.pi / 2)).sin(), (t * (math.pi / 2)).sin()  # exact at both ends


@dataclass(frozen=True)
class Linear:
    """Variance preserving, with beta rising linearly in t, as in DDPM and its SDE."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        log_alpha = -(self.beta_max - self.beta_min) * t**2 / 4 - self.beta_min * t / 2
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@dataclass(frozen=True)
class Flow:
    """Rectified flow, alpha = 1 - t and sigma = t."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        return 1 - t, t


@dataclass(frozen=True)
class VE:
    """Variance exploding: alpha = 1, and sigma rises geometrically from sigma_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return torch.ones_like(sigma), torch.where(t > 0, sigma, 0)


@dataclass(frozen=True)
class EDM:
    """The noise levels of EDM: alpha = 1, and sigma^(1/rho) is linear in t."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        sigma = (low + t * (high - low)) ** self.rho
        return torch.ones_like(sigma), torch.where(t > 0, sigma, 0)


def scales(schedule: Schedule, t: float) -> tuple[float, float]:
    """alpha and sigma at one time as Python numbers, computed in float64 on the host."""
    return _known(schedule, t) if isinstance(schedule, (Cosine, Linear, Flow, VE, EDM)) else _scales(schedule, t)


def _scales(schedule: Schedule, t: float) -> tuple[float, float]:
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


_known = lru_cache(maxsize=8192)(_scales)  # for the schedules of this module, which are immutable

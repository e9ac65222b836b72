r"""Noising laws that drift towards another sample y, a degraded one that is restored, while they add noise:

    x_t = alpha(t) x_0 + b(t) y + sigma(t) z.

In u_t = x_t - b(t) y that is Gaussian diffusion with alpha and sigma, so everything that serves it serves these laws;
`gk.DriftingModel` makes the change of coordinates. A law is a schedule, t -> (alpha, sigma), with a method b(t):

| law | alpha | b | sigma |
|---|---|---|---|
| Residual | 1 - t | t | strength t |
| MeanReverting | exp(-theta(t)) | 1 - alpha | strength sqrt(1 - alpha^2) |
| Resfusion | 2 c - 1 | 1 - c | sqrt(1 - c^2), with c = 1 - t/2 |
| OUVE | exp(-gamma t) | 1 - alpha | that of the stationary drift with geometric noise |

Residual     RDDM (Liu et al., 2024), https://arxiv.org/abs/2308.13712: the residual y - x_0 and noise come in evenly.
             With strength 0 there would be no noise; y is reached, with noise, at t = 1
MeanReverting    IR-SDE (Luo et al., 2023), https://arxiv.org/abs/2301.11699: dx = theta' (y - x) dt + g dw with
             theta(t) = rate t^2 and g^2 = 2 strength^2 theta', which is stationary around y. The solvers of MR sampling
             (Li et al., 2025) are `DPMpp` and `SDEDPMpp` in u
Resfusion    (Shi et al., 2024), https://arxiv.org/abs/2311.14900: in variance-preserving noise with alpha' = c, the
             residual is added by 1 - c; at c = 1/2 nothing is left of x_0, and runs begin from y/2 and noise
OUVE         SGMSE (Richter et al., 2023), https://arxiv.org/abs/2208.05830: dx = gamma (y - x) dt + g dw with g(t) =
             sigma_min k^t sqrt(2 log k), k = sigma_max/sigma_min, so that with l = log k

             sigma^2 = sigma_min^2 (k^(2t) - exp(-2 gamma t)) l/(gamma + l)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Drift(Protocol):
    """A schedule with a drift: the share of y at t is b(t), which is 0 at t = 0."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]: ...
    def b(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Residual:
    """Residual diffusion: x_t = x_0 + t (y - x_0) + strength t z."""

    strength: float = 1.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t)
        return 1 - t, self.strength * t

    def b(self, t: Tensor) -> Tensor:
        return torch.as_tensor(t)


@dataclass(frozen=True)
class MeanReverting:
    """The mean-reverting SDE, with theta(t) = rate t^2."""

    strength: float = 1.0
    rate: float = 6.0

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        theta = self.rate * torch.as_tensor(t) ** 2
        return theta.neg().exp(), self.strength * (-torch.expm1(-2 * theta)).sqrt()

    def b(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * torch.as_tensor(t) ** 2)


@dataclass(frozen=True)
class Resfusion:
    """Residuals in variance-preserving noise, until nothing is left of x_0."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        c = 1 - torch.as_tensor(t) / 2
        return 2 * c - 1, (1 - c**2).sqrt()

    def b(self, t: Tensor) -> Tensor:
        return torch.as_tensor(t) / 2


@dataclass(frozen=True)
class OUVE:
    """The Ornstein-Uhlenbeck SDE towards y with exploding variance."""

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rise = torch.as_tensor(t), math.log(self.sigma_max / self.sigma_min)
        grown = (2 * rise * t).expm1() - (-2 * self.gamma * t).expm1()
        return (-self.gamma * t).exp(), self.sigma_min * (grown * rise / (self.gamma + rise)).sqrt()

    def b(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.gamma * torch.as_tensor(t))

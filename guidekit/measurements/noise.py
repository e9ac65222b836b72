r"""Likelihoods of measurements: the density of y given the noiseless measurement u = A(x), entry by entry.

    Gaussian    y = u + noise z                          log N(y; u, noise^2)
    Poisson     gain y ~ Poisson(gain u)                 gain y log(gain u) - gain u - log (gain y)!
    Correlated  y = u + L z, L L^T the covariance          log N(y; u, L L^T), as that of L^-1 y, entry by entry
    Quantised   y = step round((u + noise z)/step)       log [Phi((y + step/2 - u)/noise) - Phi((y - step/2 - u)/noise)]

They are normalised: a posterior's log Z is the log of the evidence p(y) itself, a density for Gaussian noise and a
probability for the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import random


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussian noise of this standard deviation; 0 is a measurement without noise, which has no density."""

    std: float

    def __post_init__(self) -> None:
        if not (self.std >= 0 and math.isfinite(self.std)):
            raise ValueError(f"noise={self.std}: the standard deviation of the noise is a number of at least 0")

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        return -0.5 * ((y - u) / self.std).square() - math.log(self.std * math.sqrt(2 * math.pi))

    def draw(self, u: Tensor, key: Tensor) -> Tensor:
        return u + self.std * random.normal(key, u.shape[1:], u.dtype)


@dataclass(frozen=True, eq=False)
class Correlated:
    """Gaussian noise with this covariance (m, m) of the m numbers that are measured, flattened."""

    covariance: Tensor
    root: Tensor = field(init=False, repr=False)  # L, lower triangular

    def __post_init__(self) -> None:
        C = torch.as_tensor(self.covariance).double()
        if C.dim() != 2 or C.shape[0] != C.shape[1] or not torch.allclose(C, C.mT):
            raise ValueError(f"Correlated(covariance of shape {tuple(C.shape)}): a symmetric matrix (m, m) is needed")
        root, failed = torch.linalg.cholesky_ex(C)
        if failed:
            raise ValueError("Correlated(covariance): it has an eigenvalue that is not positive, and so no density")
        object.__setattr__(self, "root", root)

    def white(self, v: Tensor) -> Tensor:
        """L^-1 v of every row, (rows, m)."""
        return torch.linalg.solve_triangular(self.root.to(v), v.flatten(1).mT, upper=False).mT

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        scales = self.root.to(u).diagonal()
        return -0.5 * self.white(y - u).square() - (scales * math.sqrt(2 * math.pi)).log()

    def draw(self, u: Tensor, key: Tensor) -> Tensor:
        z = random.normal(key, u.shape[1:], u.dtype)
        return u + (z.flatten(1) @ self.root.to(u).mT).view_as(u)


@dataclass(frozen=True)
class Poisson:
    """Counts of photons: gain times y is a whole number, and a larger gain means less noise. Where u is not positive,
    it counts as `least`."""

    gain: float = 1.0
    least: float = 1e-6

    def __post_init__(self) -> None:
        if not self.gain > 0:
            raise ValueError(
                f"Poisson(gain={self.gain}): photons for each unit of the measurement, above 0, are needed"
            )

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        count, mean = self.gain * y, self.gain * u.clamp(min=self.least)
        return count * mean.log() - mean - torch.lgamma(count + 1)

    def draw(self, u: Tensor, key: Tensor) -> Tensor:
        """Counts by inversion: the smallest k for which P(count <= k) is at least a uniform number."""
        mean = self.gain * u.clamp(min=self.least).double()
        p = random.uniform(key, u.shape[1:])
        counts = torch.arange(int(mean.max() + 10 * mean.max().sqrt() + 10), dtype=torch.float64, device=u.device)
        below = torch.special.gammaincc(counts + 1, mean[..., None])  # P(count <= k)
        return ((below < p[..., None]).sum(-1) / self.gain).to(u)


@dataclass(frozen=True)
class Quantised:
    """Gaussian noise of standard deviation `noise`, then rounding to multiples of `step`."""

    step: float
    noise: float

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.noise > 0):
            raise ValueError(
                f"Quantised(step={self.step}, noise={self.noise}): both are above 0; without noise before it, rounding "
                "has no gradient"
            )

    def log_prob(self, y: Tensor, u: Tensor) -> Tensor:
        away = (y - u).abs()  # the interval is taken on the left of 0, where differences of Phi are exact
        upper, lower = ((away * -1 + side * self.step / 2) / self.noise for side in (1, -1))
        below = torch.special.log_ndtr(upper)
        return below + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - below))

    def draw(self, u: Tensor, key: Tensor) -> Tensor:
        noisy = u + self.noise * random.normal(key, u.shape[1:], u.dtype)
        return (noisy / self.step).round() * self.step


Noise = Gaussian | Correlated | Poisson | Quantised

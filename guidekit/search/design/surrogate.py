r"""The surrogate: an exact Gaussian process of the rewards seen so far, that screens many proposals for each call.

    y ~ GP(c, s^2 (k + g)),    K = k + g I,    alpha = K^-1 (y - c),
    mean(x) = c + k(x) . alpha,      var(x) = s^2 (1 - k(x) K^-1 k(x)),

with c the mean and s^2 the variance of the rewards it learns from, and g a small noise. A batch is chosen one after
the other: the next one has the highest mean + kappa sd, where sd is that given all chosen before, since a variance does
not depend on the value that will be found (GP-BUCB, Desautels et al., 2014, https://jmlr.org/papers/v15/desautels14a.html).
So a batch holds no two proposals that would teach the same.

Gaussian processes with this kernel are surveyed for molecules by Griffiths et al. (2023), GAUCHE,
https://arxiv.org/abs/2212.04450.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import is_count
from .kernels import Features
from .memory import Memory

NEWEST, FEW = 50, 20  # calls by which a surrogate is judged, and how many of them are too few


@dataclass(frozen=True, eq=False)
class Posterior:
    """A Gaussian process given samples and their rewards."""

    features: Features
    rewards: Tensor
    mean: float
    scale: float
    noise: float
    factor: Tensor  # Cholesky factor of K, float64
    solved: Tensor  # alpha

    @staticmethod
    def of(features: Features, rewards: Tensor, noise: float, kernel: Tensor | None = None) -> Posterior:
        """Given rewards (rows,) of samples with these features; kernel is that of all pairs, if it is known."""
        k = features.kernel(features) if kernel is None else kernel
        y = rewards.double().cpu()
        mean, scale = float(y.mean()), float(y.std(correction=0)) or 1.0
        factor = torch.linalg.cholesky(k + noise * torch.eye(len(k), dtype=torch.float64))
        solved = torch.cholesky_solve((y - mean)[:, None] / scale, factor)[:, 0]
        return Posterior(features, y, mean, scale, noise, factor, solved)

    def at(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean (rows,), and covariance (rows, rows), of the reward without noise."""
        k = features.kernel(self.features)
        half = torch.linalg.solve_triangular(self.factor, k.T, upper=False)
        own = features.kernel(features)
        return self.mean + self.scale * (k @ self.solved), self.scale**2 * (own - half.T @ half)

    def left_out(self) -> Tensor:
        """What the process says of each sample that it learnt from, given all others (rows,):
        y_i - alpha_i / (K^-1)_ii."""
        return self.rewards - self.scale * self.solved / torch.cholesky_inverse(self.factor).diagonal()


def chosen(mean: Tensor, covariance: Tensor, count: int, kappa: float, noise: float) -> list[int]:
    """The batch: each has the highest mean + kappa sd given those before; noise is a variance."""
    covariance, taken = covariance.clone(), list[int]()
    score = mean.clone()
    for _ in range(min(count, len(mean))):
        sd = covariance.diagonal().clamp(min=0).sqrt()
        best = int((score + kappa * sd).argmax())
        taken.append(best)
        score[best] = -torch.inf
        column = covariance[:, best] / (covariance[best, best].clamp(min=0) + noise).sqrt()
        covariance -= torch.outer(column, column)
    return taken


def rank_correlation(predicted: Tensor, found: Tensor) -> float:
    """Spearman's, of the pairs that are known; NaN where there are fewer than three, or one of the two is constant."""
    known = predicted.isfinite() & found.isfinite()
    a, b = predicted[known], found[known]
    if len(a) < 3 or len(a.unique()) < 2 or len(b.unique()) < 2:
        return float("nan")
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, those of equal values being their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place]


@dataclass(frozen=True)
class Surrogate:
    """How a surrogate learns and chooses.

    kappa      weight of the standard deviation in mean + kappa sd. Of candidates with a kernel k to one sample that is
               y standard deviations above the mean, the largest k y + kappa (1 - k^2)^(1/2) is at
               k = y / (y^2 + kappa^2)^(1/2): with 0.3 the next sample is a lookalike of the best (0.99 where y is 2)
    noise      variance of the noise g, as a share of the variance of the rewards
    points     most samples that it learns from: half of them the best, half the newest
    evidence   it chooses where its rank correlation with the newest rewards, before it has learnt from these, is above
               this; otherwise the choice is random. Before there are any, each sample is predicted from all others
    features   a function of samples that returns whole numbers (rows, D), which are counts, or real numbers; None is
               the usual for what the samples are (see `gk.search.design.domain`)
    """

    kappa: float = 1.0
    noise: float = 0.01
    points: int = 1800
    evidence: float = 0.1
    features: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise ValueError(f"Surrogate(kappa={self.kappa!r}): a weight of at least 0 is needed")
        if not 0 < self.noise < math.inf:
            raise ValueError(f"Surrogate(noise={self.noise!r}): a number above 0 is needed")
        if not is_count(self.points, 2):
            raise ValueError(f"Surrogate(points={self.points!r}): at least 2 samples to learn from")
        if not -1 <= self.evidence <= 1:
            raise ValueError(f"Surrogate(evidence={self.evidence!r}): a rank correlation from -1 to 1")

    def fitted(self, memory: Memory) -> Posterior | None:
        """The process of what is known, or None where fewer than three rewards are."""
        rows = memory.best()
        if len(rows) > self.points:
            best = rows[: self.points // 2]
            rows = [*best, *sorted(set(rows) - set(best))[-(self.points - len(best)) :]]
        if len(rows) < 3 or memory.features is None:
            return None
        return Posterior.of(memory.features.take(rows), memory.values[rows], self.noise)

    def correlation(self, memory: Memory, posterior: Posterior | None) -> float:
        """Rank correlation of the newest predictions with what was found; NaN where there is none."""
        predicted, values = memory.predicted, memory.values
        rows = (predicted.isfinite() & values.isfinite()).nonzero()[-NEWEST:, 0]
        if len(rows) >= FEW or posterior is None:
            return rank_correlation(predicted[rows], values[rows])
        return rank_correlation(posterior.left_out(), posterior.rewards)

    def trusted(self, correlation: float) -> bool:
        return correlation > self.evidence

r"""Combinations of rewards: means that leave out unknown scores, hard filters, Pareto ranks.

If some endpoints of a sample are NaN, the others count alone, with renormalised weights; a sample is NaN if all of its
endpoints are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Reward, as_reward
from .transforms import ZScore

_TINY = 1e-8  # the smallest factor in a geometric mean


class Weighted(Reward):
    """A weighted mean of rewards, arithmetic, or geometric with factors of at least 1e-8; a sum if `total`."""

    def __init__(self, kind: str, rewards: Sequence[Any], weights: Sequence[float] | None, total: bool = False):
        self.rewards = [as_reward(r) for r in rewards]
        self.weights = [1.0] * len(self.rewards) if weights is None else [float(w) for w in weights]
        if not self.rewards or len(self.weights) != len(self.rewards):
            raise ValueError(f"{kind}: {len(self.weights)} weights for {len(self.rewards)} rewards; one for each")
        if not (min(self.weights) >= 0 and 0 < sum(self.weights) < math.inf):
            raise ValueError(f"{kind}(weights={self.weights}): numbers of at least 0, one of them above it")
        gradients = [r.differentiable for r in self.rewards]
        self.differentiable = False if False in gradients else None if None in gradients else True
        self.kind, self.total = kind, sum(self.weights) if total else 1.0
        self.name = f"{kind}({', '.join(r.name for r in self.rewards)})"

    def inside(self) -> tuple[Reward, ...]:
        return tuple(self.rewards)

    def score(self, samples: Any) -> Tensor:
        every = [r(samples) for r in self.rewards]
        dtype, device = torch.promote_types(torch.float32, every[0].dtype), every[0].device
        scores = torch.stack([v.to(device, dtype) for v in every])
        weights = torch.tensor(self.weights, dtype=dtype, device=device)[:, None] * ~scores.isnan()
        known = scores.where(~scores.isnan(), 1.0)
        if self.kind == "geometric_mean":
            mean = ((weights * known.clamp(min=_TINY).log()).sum(0) / weights.sum(0)).exp()
        else:
            mean = (weights * known).sum(0) / weights.sum(0)
        return self.total * mean  # 0/0 = NaN where nothing is known


def weighted_sum(rewards: Sequence[Any], weights: Sequence[float] | None = None) -> Reward:
    """sum_i w_i r_i; if endpoints are unknown, the sum over the others times sum w / (sum of their w).

    >>> weighted_sum([len, len], [2.0, 1.0]).name
    'weighted_sum(len, len)'
    """
    return Weighted("weighted_sum", rewards, weights, total=True)


def arithmetic_mean(rewards: Sequence[Any], weights: Sequence[float] | None = None) -> Reward:
    """sum_i w_i r_i / sum_i w_i over the known endpoints."""
    return Weighted("arithmetic_mean", rewards, weights)


def geometric_mean(rewards: Sequence[Any], weights: Sequence[float] | None = None) -> Reward:
    """prod_i r_i^(w_i/sum w) over the known endpoints, of rewards in [0, 1] (or positive); 0 counts as 1e-8."""
    return Weighted("geometric_mean", rewards, weights)


class Filtered(Reward):
    """A reward of the samples that pass filters; see `filtered`."""

    def __init__(self, reward: Any, filters: Sequence[Callable[[Any], Any]], otherwise: float):
        self.reward, self.filters, self.otherwise = as_reward(reward), [as_reward(f) for f in filters], float(otherwise)
        self.name = self.reward.name
        self.higher_is_better = self.reward.higher_is_better
        if not self.filters:
            raise ValueError("filtered(reward): at least one filter is needed")

    def inside(self) -> tuple[Reward, ...]:
        return (self.reward, *self.filters)

    def score(self, samples: Any) -> Tensor:
        marks = torch.stack([f(samples).double().cpu() for f in self.filters])
        unknown, passed = marks.isnan().any(0), (marks > 0).all(0)
        out = torch.full((len(samples),), self.otherwise, dtype=torch.float64)
        places = passed.nonzero()[:, 0].tolist()
        if places:
            part = samples[places] if isinstance(samples, Tensor) else [samples[i] for i in places]
            out[places] = self.reward(part).double().cpu()
        return torch.where(unknown & ~passed, torch.nan, out)


def filtered(reward: Any, *filters: Any, otherwise: float = 0.0) -> Reward:
    """The reward of samples for which every filter is positive, and `otherwise` for the rest.

    Samples that fail are not sent to the reward. If a filter itself is NaN, so is the score. A filter is a reward, like
    `Alerts().transformed(LeftStep(0))`.

    >>> short = lambda texts: [len(s) < 4 for s in texts]
    >>> filtered(lambda texts: [len(s) for s in texts], short)(["CC", "CCCCC"])
    tensor([2., 0.], dtype=torch.float64)
    """
    return Filtered(reward, filters, otherwise)


def standardised(reward: Any, reference: Any) -> Reward:
    """(r - mean)/std, with the mean and standard deviation of the known scores of a reference set.

    Rewards in different units can then be added."""
    own = as_reward(reward)
    known = own(reference).double()
    known = known[known.isfinite()]
    if len(known) < 2:
        raise ValueError(f"standardised({own.name}): {len(known)} samples of the reference have scores; two are needed")
    return own.transformed(ZScore(float(known.mean()), float(known.std())), f"standardised({own.name})")


def pareto_rank(scores: Tensor) -> Tensor:
    """The Pareto front of each row of scores (n, objectives), where higher is better.

    Front 0 holds the rows that no other dominates, front 1 those that only front 0 dominates, and so on. A row
    dominates another if it is nowhere worse and somewhere better. Rows with NaN have rank -1.

    >>> pareto_rank(torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 1.0], [0.0, 0.0]])).tolist()
    [0, 0, 1, 2]
    """
    if scores.dim() != 2:
        raise ValueError(f"pareto_rank(scores of shape {tuple(scores.shape)}): (samples, objectives) is needed")
    known = ~scores.isnan().any(1)
    better = (scores[:, None] >= scores[None]).all(-1) & (scores[:, None] > scores[None]).any(-1)
    rank, front = torch.full((len(scores),), -1), 0
    left = known.clone()
    while left.any():
        now = left & ~(better & left[:, None]).any(0)
        rank[now] = front
        left, front = left & ~now, front + 1
    return rank


class ParetoRank(Reward):
    """Minus the Pareto front of each sample, among the samples of the call and of a reference.

    The score depends on the other samples of the call, so a guide must pass it whole populations (no batch_size). With
    a reference and one sample at a time it depends on the sample alone.
    """

    def __init__(self, rewards: Sequence[Any], reference: Tensor | None = None):
        self.rewards, self.reference = [as_reward(r) for r in rewards], reference
        self.name = f"pareto_rank({', '.join(r.name for r in self.rewards)})"

    def inside(self) -> tuple[Reward, ...]:
        return tuple(self.rewards)

    def score(self, samples: Any) -> Tensor:
        scores = torch.stack([r(samples).double().cpu() for r in self.rewards], 1)
        every = scores if self.reference is None else torch.cat([scores, self.reference.to(scores)])
        rank = pareto_rank(every)[: len(scores)]
        return torch.where(rank < 0, torch.nan, -rank.double())

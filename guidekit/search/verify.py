r"""Verifiers: one reward, or several that rank the candidates jointly.

With several rewards r_v, a candidate's worth is the mean of its ranks,

    R(x) = 1/V sum_v F_v(r_v(x)),

with F_v the fraction of the first round's candidates (of the same condition) that it beats, interpolated linearly
between them and extrapolated linearly outside, in units of their standard deviation. So scales do not matter, all
rounds are ranked in the same way, and candidates better than all of the first round are still told apart. Ma et al.
(2025), https://arxiv.org/abs/2501.09732, average ranks as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards import as_reward

from ..engine.cost import Cost
from ..engine.scoring import Scorer
from ..engine.world import Alone
from ..errors import RewardError
from ..models.networks import lent, networks_in


@dataclass
class Verifier:
    """Scores samples (rows, V), and combines the V scores of a candidate into one number. Each distinct string or row
    of tokens is scored only once."""

    rewards: list[Any]
    reference: dict[int, list[np.ndarray]] = field(default_factory=dict)  # of each condition and reward, sorted
    scorer: Scorer | None = None
    world: Alone = field(default_factory=Alone)  # the processes that share the samples of a call

    @staticmethod
    def of(reward: Any, world: Alone | None = None) -> Verifier:
        rewards = list(reward) if isinstance(reward, (list, tuple)) else [reward]
        if not rewards:
            raise ValueError("reward=[]: a search needs a reward, or a list of them that rank together")
        for r in rewards:
            as_reward(r)
        return Verifier(rewards, world=world or Alone())

    def score(self, samples: Any, group: Tensor, cost: Cost) -> Tensor:
        """float64 (rows, V); group is the condition of every sample."""
        scorer = self._scorer(group.device)
        scorer.cost = cost
        scorer.begin()
        with lent(networks_in(*self.rewards)):
            scores = torch.stack([_robust(scorer, r, samples, group) for r in self.rewards], -1)
        scorer.settle()
        return scores.detach()

    def learn(self, samples: Any, group: Tensor, scores: Tensor) -> None:
        """Take over known scores (rows, V) of these samples from the folder of a search."""
        for v, reward in enumerate(self.rewards):
            self._scorer(group.device).learn(reward, samples, scores[:, v], group)

    def _scorer(self, device: torch.device) -> Scorer:
        if self.scorer is None:
            self.scorer = Scorer(Cost(), device, waits=True, stepwise=True, world=self.world)
        return self.scorer

    def worth(self, scores: Tensor, group: Tensor) -> Tensor:
        """One number for each candidate: scores (cells, k, V) -> (cells, k), -inf where a score is missing."""
        if len(self.rewards) == 1:
            return scores[..., 0].nan_to_num(-torch.inf)
        new = set(group.tolist()) - set(self.reference)
        self.reference |= {g: [_sorted(scores[group == g, :, v]) for v in range(len(self.rewards))] for g in new}
        rows = [
            np.mean([_rank(s[..., v].cpu().numpy(), ref) for v, ref in enumerate(self.reference[g])], 0)
            for s, g in zip(scores, group.tolist(), strict=True)
        ]
        return torch.as_tensor(np.stack(rows), device=scores.device).nan_to_num(-torch.inf, neginf=-torch.inf)


def _robust(scorer: Scorer, reward: Any, samples: Any, group: Tensor) -> Tensor:
    """The scores. If the reward raises on the batch, score samples one by one, and return NaN where it raises again."""
    try:
        return scorer(reward, samples, group)
    except RewardError:
        if len(group) == 1:
            raise
        parts = [_one(scorer, reward, samples[i : i + 1], group[i : i + 1]) for i in range(len(group))]
        if all(part is None for part in parts):
            raise
        lost = torch.full((1,), torch.nan, dtype=torch.float64, device=group.device)
        failed = [i for i, part in enumerate(parts) if part is None]
        scorer.cost.unscored += len(failed)
        scorer.cost.reward_calls += len(failed)
        for i in failed:
            scorer.learn(reward, samples[i : i + 1], lost, group[i : i + 1])
        return torch.cat([lost if part is None else part for part in parts])


def _one(scorer: Scorer, reward: Any, sample: Any, group: Tensor) -> Tensor | None:
    try:
        return scorer(reward, sample, group)
    except RewardError:
        return None


def _sorted(scores: Tensor) -> np.ndarray:
    return np.sort(scores[scores.isfinite()].cpu().numpy())


def _rank(scores: np.ndarray, reference: Sequence[float] | np.ndarray) -> np.ndarray:
    """The fraction of the reference that lies below each score, interpolated and extrapolated."""
    if len(reference) < 2 or np.std(reference) == 0:
        return np.where(np.isnan(scores), np.nan, 0.0)
    inside = np.interp(scores, reference, np.linspace(0, 1, len(reference)))
    return inside + (scores - np.clip(scores, reference[0], reference[-1])) / np.std(reference)

"""A reward for each condition of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Reward, as_reward


class ByGroup(Reward):
    """One reward per condition, for example one for each prompt:

        gk.sample(model, 16, cond=prompts, guides=[gk.FKSteering(ByGroup([ClipScore(p, ...) for p in prompts]), 0.1)])

    In a run, samples of condition i are scored by reward i, in micro-batches too. Called directly, it expects groups of
    equal size one after the other, as in results.

    >>> ByGroup([lambda s: [1.0] * len(s), lambda s: [2.0] * len(s)])(["a", "b", "c", "d"]).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, rewards: Sequence[Any]):
        self.rewards = [as_reward(r) for r in rewards]
        if not self.rewards:
            raise ValueError("ByGroup([]): a reward for each condition is needed")
        gradients = [r.differentiable for r in self.rewards]
        self.differentiable = False if False in gradients else None if None in gradients else True
        self.higher_is_better = self.rewards[0].higher_is_better
        self.name = f"by group: {', '.join(r.name for r in self.rewards)}"

    def score(self, samples: Any) -> Tensor:
        size, rest = divmod(len(samples), len(self.rewards))
        if rest:
            raise ValueError(f"{len(samples)} samples are not {len(self.rewards)} groups of one size")
        return torch.cat([r(samples[i * size : (i + 1) * size]) for i, r in enumerate(self.rewards)])

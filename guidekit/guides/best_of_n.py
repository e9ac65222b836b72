r"""Best-of-N: N independent chains for every sample that is returned, of which the one of highest reward lives.

The law of a sample is N p(x) F(r(x))^(N-1) for rewards without ties, F being their distribution function under the
model: a greedy law with E of the largest of N, at KL(law | p) = log N - (N - 1)/N. It is no tilted law, and samples
weigh alike (but for the weights that other guides gave them, which the winner keeps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.view import Step, View
from ..models.base import Model
from .shared.twist import check_reward


@dataclass(frozen=True)
class BestOfN(Guide):
    """Every returned row is the best of n independent ones. n rows a sample and step, n reward calls a sample.

    Samples that could not be scored are never chosen; a row whose n chains all failed weighs nothing.
    """

    reward: Any
    n: int

    sees_prediction = False

    def __post_init__(self) -> None:
        check_reward(self)
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ValueError(f"BestOfN(n={self.n!r}): at least one chain is needed")

    @property
    def stochastic(self) -> bool:
        return False  # chains that start apart need no noise on the way

    def check(self, model: Model, steps: int) -> None:
        if self.steer:
            raise ValueError("BestOfN(steer=True): it has no tilt that the weights could correct for")

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        return n * self.n, 1

    def log_weight(self, view: View, memo: Any) -> tuple[Any, Any]:
        return 0.0, view.score(self.reward) if view.step.last else None

    def select(self, population: Population, step: Step) -> Population:
        if not step.last or len(population) == population.groups * step.n:
            return population
        scores = population.by_group(population.memos[step.place]).nan_to_num(-torch.inf)
        best, chain = scores.unflatten(1, (-1, step.n)).max(1)  # chain c of sample i is row c n + i
        index = chain * step.n + torch.arange(step.n, device=chain.device)
        log_w = population.by_group(population.log_w).gather(1, index)
        return population.select(index, torch.where(best.isfinite(), log_w, -torch.inf))

r"""Best-of-N: for every sample that is returned, N independent chains are run and the one with the highest reward is
kept.

For rewards without ties, a sample has the density N p(x) F(r(x))^(N-1), where F is the distribution function of the
reward under the model; its divergence from the model is KL = log N - (N - 1)/N (Beirami et al., 2024,
https://arxiv.org/abs/2401.01879). This is not a tilted distribution. All samples have equal weights, apart from those
that other guides gave them, which the winner keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.view import Step, View
from ..errors import is_count
from .shared.twist import check_reward


@dataclass(frozen=True)
class BestOfN(Guide):
    """Every returned sample is the best of n independent ones. n NFE per sample and step, n reward calls per sample.

    Samples that could not be scored are never chosen; if all n chains of a sample fail, it has weight zero.
    """

    reward: Any
    n: int

    sees_prediction = False

    card = Card(
        "keeps the best of n independent chains",
        section="Steering with rewards",
        rows="n - 1",
        exact="N p F^(N-1)",
        changes="selection",
        paper=Paper(
            "beirami2024bestofn",
            "Beirami, Ahmad and others",
            "Theoretical Guarantees on the Best-of-n Alignment Policy",
            2024,
            "2401.01879",
        ),
        example="gk.BestOfN(reward, 4)",
    )

    def __post_init__(self) -> None:
        check_reward(self)
        if not is_count(self.n):
            raise ValueError(f"BestOfN(n={self.n!r}): at least one chain is needed")

    @property
    def stochastic(self) -> bool:
        return False  # the chains start from different noise and need none on the way

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

r"""Beam search (as in Li et al., 2025, https://arxiv.org/abs/2503.02039): every particle branches, and the best
children of the whole group survive.

    children    x_s ~ p(x_s | x_t), `branch` of each particle
    score       V(x_s), by default r(E[x_0 | x_s]), and r(x_0) at the end
    survivors   the `width` children with the highest scores in the group, whoever their parents are

SVDD keeps one child of each parent, so that the n samples stay distinct; in a beam all survivors may descend from one
parent. The method is greedy: all samples have equal weights (apart from those that other guides gave them), and they do
not follow a tilted distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..values import Value
from .fk_steering import check_every, in_turn
from .shared.twist import check_reward, value_of

Count = int | Callable[[float], int]  # a number, or a function of the fraction of the run
PAPER = Paper(
    "li2025dsearch",
    "Li, Xiner and Uehara, Masatoshi and Su, Xingyu and Scalia, Gabriele and Biancalani, Tommaso and Regev, Aviv and "
    "Levine, Sergey and Ji, Shuiwang",
    "Dynamic Search for Inference-Time Alignment in Diffusion Models",
    2025,
    "2503.02039",
)


@dataclass(frozen=True)
class BeamSearch(Guide):
    """The n best of a beam of `width` particles with `branch` children each, best first.

    If n > width, n particles are kept on the way: the `width` best ones, n/width copies of each. NFE: max(n, width)
    branch in each step that branches.

    width, branch   numbers, or functions of the fraction of the run
    value           the look-ahead, or the name of one: "tweedie" (the default), "rollout", "flow", "parent"
    every           branch and select at every so many steps, or at the steps in this list, and at the last
    """

    reward: Any
    width: Count
    branch: Count
    value: Value | str | None = None
    _: KW_ONLY
    every: int | Sequence[int] = 1

    alpha = 0.0  # for look-aheads with a temperature: their mean

    card = Card(
        "keeps the best children of the whole group",
        section="Steering with rewards",
        rows="branch - 1",
        changes="selection",
        paper=PAPER,
        example="gk.BeamSearch(reward, 64, 2)",
    )

    def __post_init__(self) -> None:
        check_reward(self, positive=False)
        check_every(self)
        for name in ("width", "branch"):
            for fraction in (0.0, 1.0):
                self._count(name, fraction)

    @property
    def sees_prediction(self) -> bool:  # type: ignore[override]
        return getattr(self.value, "sees_prediction", True)

    def due(self, step: Step) -> bool:
        """Whether the particles are scored and selected at this step."""
        return step.last or in_turn(self.every, step.index)

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        branches = step.index + 1 == step.total or in_turn(self.every, step.index + 1)
        return max(n, self._count("width", step.fraction)), self._count("branch", step.fraction) if branches else 1

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        return 0.0, value_of(self, view) if self.due(view.step) else memo

    def select(self, population: Population, step: Step) -> Population:
        size = len(population) // population.groups
        if not self.due(step) and size == step.n:
            return population
        scores = population.memos[step.place]
        scores = torch.zeros_like(population.log_w) if scores is None else scores
        return keep_best(population, scores, self._count("width", step.fraction), step)

    def _count(self, name: str, fraction: float) -> int:
        """The width or the branching factor at a fraction of the run."""
        count = getattr(self, name)
        count = count(fraction) if callable(count) else count
        if not is_count(count):
            raise ValueError(
                f"{type(self).__name__}({name}={count!r}): a count, at least 1, or a function that gives one"
            )
        return count


def keep_best(population: Population, scores: torch.Tensor, width: int, step: Step) -> Population:
    """The `width` rows with the highest scores in each group, best first, repeated until step.n places are filled.

    Among equal scores, the first children of all parents come before the second ones.
    """
    k = population.branch
    scores = population.siblings(scores.nan_to_num(-torch.inf)).mT.flatten(1)  # child by child
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    best = min(step.n if step.last else width, order.shape[1])
    order = order[:, torch.arange(step.n, device=order.device) % best]
    parents = scores.shape[1] // k
    index = order % parents * k + order // parents
    log_w = population.by_group(population.log_w).gather(1, index)
    lost = (scores.gather(1, order) == -torch.inf) & step.last
    return population.select(index, torch.where(lost, -torch.inf, log_w))

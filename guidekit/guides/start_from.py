r"""Starting from given samples, noised part of the way (SDEdit, Meng et al., 2021, https://arxiv.org/abs/2108.01073).

    x_t ~ q(x_t | x_0),     t the first time of the run

Gaussian: x_t = alpha_t x_0 + sigma_t z. Tokens: each is noised with probability t. It is what refinement, evolution and
editing begin with; give the run times that start below 1, like steps=[.5, .4, .3, .2, .1, 0.].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model


@dataclass(frozen=True, eq=False)
class StartFrom(Guide):
    """Begin at these samples, in the coordinates of x: (n*groups, *shape), or one for all rows. No cost.

    Where more rows live at the start than there are samples (best-of-N, beams), they take turns. `result.memos[place]`
    says from which of the samples each row descends.
    """

    x: Tensor

    sees_prediction = False

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, StartFrom):
            return "a run starts once; give one of them all samples"
        return None

    def check(self, model: Model, steps: int) -> None:
        given, shape = tuple(self.x.shape), model.shape
        if given != shape and (given[1:] != shape or not len(self.x)):
            raise ValueError(f"StartFrom(x of shape {given}): samples have shape {shape}, one or one for each row")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        if self.x.shape == model.shape or len(self.x) == 1 or len(self.x) % of:  # one for all, or refused by `begin`
            return self
        return self.having(x=self.x.unflatten(0, (of, -1))[list(groups)].flatten(0, 1))

    def begin(self, model: Model, population: Population, noise: Tensor, step: Step) -> Tensor:
        own = self.x.to(population.x).view(-1, *model.shape)
        row = self._row(len(own), population.group, population.slot, step)
        return model.process.noised(own[row], noise, step.t)

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        count = 1 if self.x.shape == view.model.shape else len(self.x)
        return 0.0, self._row(count, view.group, view.slot, view.step) if memo is None else memo

    def _row(self, count: int, group: Tensor, slot: Tensor, step: Step) -> Tensor:
        """The sample, of so many, from which the row of this address starts."""
        groups = len(step.keys)
        if count == 1:
            return slot * 0
        if count % groups or step.n % (count // groups):
            raise ValueError(
                f"StartFrom has {count} samples for {groups} conditions of {step.n} rows; give one for each row, or "
                "one for all"
            )
        return group * (count // groups) + slot % (count // groups)

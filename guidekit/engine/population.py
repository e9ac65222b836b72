"""The particles of a run, with everything that belongs to each of them.

Rows are (group, slot): groups are the user's conditions, each a population of its own, and all of one size. Every
tensor of a Population has the row axis first, and `take` selects rows of all of them at once: predictions, solver
history, guides' memos, weights and lineage follow their particle, because there is no other way to select.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from . import tree
from .shown import rendered
from .tree import Tree


@dataclass(frozen=True)
class Population:
    """Weighted particles; immutable.

    x             states (rows, *shape)
    log_w         unnormalised log-weights, float64 (rows,)
    group, slot   the row's group, and its place within it: the address of its noise
    parent        row in the population before the last move, from which this one descends
    root          row at the start of the run from which it descends
    predictions   that define the target, newest first: as many as the solver uses
    proposals     those that particles move with, where a guide steers; else ()
    memos         one tree per guide
    rewards       the last known reward of the clean estimate, float64, NaN where unknown
    groups        number of groups
    branch        children of each parent that are together in this population, side by side
    shown         the prediction that guides and rewards saw, where it is not that of the target (a tilt is `Apart`);
                  else ()
    times         at which a network that reads the time is asked of each row, float64, where the solver has each row at
                  one of its own (`Order.asked_at`); None is that of the step
    spread        what the network says of the variance of the next step (`Model.predicted`), if it does
    """

    x: Tensor
    log_w: Tensor
    group: Tensor
    slot: Tensor
    parent: Tensor
    root: Tensor
    predictions: tuple[Tensor, ...]
    proposals: tuple[Tensor, ...]
    memos: tuple[Tree, ...]
    rewards: Tensor
    groups: int = 1
    branch: int = 1
    shown: tuple[Tensor, ...] = ()
    spread: Tensor | None = None
    times: Tensor | None = None

    def __len__(self) -> int:
        return self.x.shape[0]

    def take(self, index: Tensor | slice) -> Population:
        """The particles of these rows, with all that belongs to them."""
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return replace(self, **{k: tree.take(v, index) for k, v in self._state().items()})

    def select(self, index: Tensor, log_w: Tensor) -> Population:
        """Survivors: index (groups, n) holds places within each group, log_w (groups, n) their new weights."""
        size = len(self) // self.groups
        rows = (index + torch.arange(self.groups, device=index.device)[:, None] * size).flatten()
        slot = torch.arange(index.shape[1], device=index.device).repeat(self.groups)
        return replace(self.take(rows), log_w=log_w.flatten(), slot=slot, branch=1)

    def weighed(self, place: int, increment: Tensor, memo: Tree) -> Population:
        """The same particles with their log-weights moved on and one guide's memo replaced."""
        memos = (*self.memos[:place], memo, *self.memos[place + 1 :])
        return replace(self, log_w=self.log_w + increment, memos=memos)

    def siblings(self, v: Tensor) -> Tensor:
        """A per-row tensor as (groups, parents, children of each)."""
        return v.view(self.groups, -1, self.branch)

    def choose(self, child: Tensor, log_w: Tensor | None = None) -> Population:
        """One child of each parent, (groups, parents), with its own weight or these."""
        index = torch.arange(child.shape[1], device=child.device) * self.branch + child
        return self.select(index, self.by_group(self.log_w).gather(1, index) if log_w is None else log_w)

    def by_group(self, v: Tensor) -> Tensor:
        """A per-row tensor as (groups, rows of a group, ...)."""
        return v.view(self.groups, -1, *v.shape[1:])

    @property
    def seen(self) -> Tensor:
        """The prediction whose clean estimate guides and rewards saw in the last look."""
        return (self.shown or self.predictions)[0]

    @property
    def ess(self) -> Tensor:
        """Effective sample size of each group, 1 / sum of squared normalised weights."""
        return effective_size(self.by_group(self.log_w))

    @property
    def log_z(self) -> Tensor:
        """log of the mean weight of each group."""
        return log_mean_exp(self.by_group(self.log_w))

    def _repr_html_(self) -> str:
        return rendered("population_html", self)

    @staticmethod
    def cat(parts: list[Population]) -> Population:
        """Join micro-batches."""
        if len(parts) == 1:
            return parts[0]
        states = [p._state() for p in parts]
        return replace(parts[0], **{k: tree.cat([s[k] for s in states]) for k in states[0]})

    def _state(self) -> dict[str, Tree]:
        """All per-row fields."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("groups", "branch")}


def effective_size(log_w: Tensor) -> Tensor:
    """1 / sum W^2 along the last axis; 0 where all weights are zero."""
    return log_w.softmax(-1).square().sum(-1).reciprocal().nan_to_num(0.0)


def entropy(log_w: Tensor) -> Tensor:
    """-sum W log W along the last axis, in nats."""
    return -torch.special.xlogy(w := log_w.softmax(-1), w).sum(-1)


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean of exp(log_w) along the last axis."""
    return log_w.logsumexp(-1) - math.log(log_w.shape[-1])

r"""Populations side by side that meet every few steps.

The n particles of a group live on islands of n/count particles each. In most steps selections go over the particles of
one island, whose survivors carry the mean weight of their island, and every few steps over all. A selection that keeps
the total weight of an island keeps that of the group, so that exp(log Z) is unbiased however seldom islands meet: it is
an alpha-SMC whose matrices are block-diagonal in between (Whiteley, Lee and Heine, 2016, On the role of interaction in
sequential Monte Carlo algorithms, https://arxiv.org/abs/1309.2918). What guides weigh by, like a temperature that they
choose for the population, is that of all islands together.

Over several processes no particle leaves its own while islands are apart, where each island is on one process. Fewer
particles compete with each other, so log Z varies more; islands keep more lineages alive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import random
from ..errors import is_count
from .guide import Guide
from .population import Population
from .view import Step


@dataclass(frozen=True)
class Islands:
    """Selections within each of `count` islands; over all particles at every so many steps, and at the last one."""

    count: int
    every: int = 10

    def __post_init__(self) -> None:
        for name in ("count", "every"):
            if not is_count(getattr(self, name)):
                raise ValueError(f"Islands({name}={getattr(self, name)!r}): an int of at least 1 is needed")

    def select(self, guide: Guide, population: Population, step: Step) -> Population:
        """The guide's selection, of all particles or of those of each island."""
        if self.count == 1 or step.last or step.index % self.every == 0:
            return guide.select(population, step)
        apart = replace(step, n=step.n // self.count, parents=step.parents // self.count, keys=self._keys(step.keys))
        chosen = guide.select(replace(population, groups=population.groups * self.count), apart)
        place = torch.arange(len(chosen) // population.groups, device=chosen.slot.device).repeat(population.groups)
        own = place if chosen.branch == 1 else chosen.slot
        return replace(chosen, groups=population.groups, slot=own)

    def _keys(self, keys: Tensor) -> Tensor:
        """One key for each island of each group."""
        own = random.fold(keys, "island")[:, None]
        return random.fold(own, torch.arange(self.count, device=keys.device)).flatten()

"""What proposals may read and use: the model, the memory, and how to sample from the one given the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...engine.checks import bound
from ...engine.cost import Cost
from ...engine.result import Result
from ...engine.sample import sample
from ...engine.world import Alone
from ...guides import Guide
from ...models import Model
from ...solvers import Solver
from .domain import Domain
from .memory import Memory

STEPS = 50  # of a run of the model, where nothing else is said


@dataclass
class Study:
    """One design loop as its proposals see it."""

    model: Model
    memory: Memory
    guides: tuple[Guide, ...] = ()
    cond: Any = None
    solver: Solver | None = None
    steps: int | None = None
    batch_size: int | None = None
    reward: Any = None
    cost: Cost = field(default_factory=Cost)
    left: float = math.inf  # calls of the budget, before what proposals ask of the reward by themselves
    short: bool = False  # whether a proposal of this round had to do with fewer
    world: Alone = field(default_factory=Alone)  # the processes that share the runs of the model

    def allowed(self, calls: int) -> int:
        """How many of these calls a proposal may make by itself, so that one is left for what it proposes."""
        most = max(self.left - self.cost.reward_calls - 1, 0)
        self.short |= calls > most
        return int(min(calls, most))

    @property
    def domain(self) -> Domain:
        return self.memory.domain

    @property
    def chain(self) -> int:
        """Steps of a whole run: as many as a row of tokens has places, at most 50, if nothing else is said."""
        if self.steps is not None:
            return self.steps
        places = self.model.shape[0] if hasattr(self.model, "vocab_size") else STEPS
        return min(places, STEPS)

    def admitted(self, x: Tensor) -> Tensor:
        """States of the same samples from which a run under the user's guides can start, of those that have one."""
        for guide in bound(self.guides, self.model):
            x, fine = guide.admits(self.model, x)
            x = x[fine]
        return x

    def draw(self, n: int, key: Tensor, guides: Sequence[Guide] = (), times: Sequence[float] | None = None) -> Result:
        """A run of the model under the user's guides, after these; what it costs is counted."""
        found = sample(
            self.model,
            n,
            steps=self.chain if times is None else times,
            guides=[*guides, *self.guides],
            cond=self.cond,
            solver=self.solver,
            seed=int(key),
            batch_size=self.batch_size,
            world=self.world.over(n),
        )
        for name, value in vars(found.cost).items():
            if name != "seconds":
                setattr(self.cost, name, getattr(self.cost, name) + value)
        return found

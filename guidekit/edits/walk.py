"""A run at states that are given and not drawn: what an inversion asks of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.run import Run
from ..models.base import Model
from ..solvers import Move, Solver


@dataclass(frozen=True)
class Walk:
    """The guided predictions of a run, wherever one asks for them."""

    run: Run
    keys: Tensor  # of each row

    @classmethod
    def of(
        cls, model: Model, x: Tensor, cond: Any, guides: Iterable[Guide], solver: Solver | None, steps: Any, seed: int,
        batch_size: int | None,
    ) -> Walk:  # fmt: skip
        groups = len(cond) if isinstance(cond, list) else 1
        if len(x) % groups:
            raise ValueError(f"{len(x)} samples for {groups} conditions: as many for each of them are needed")
        run = Run(
            model, len(x) // groups, steps=steps, guides=guides, cond=cond, solver=solver, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip
        for guide in run.guides:
            if guide.steer or any(map(guide.has, ("plan", "begin", "noise", "weigh", "select"))):
                raise ValueError(
                    f"{type(guide).__name__} weighs, selects or starts particles of its own: an inversion follows one "
                    "sample, with guides that bend the prediction, like gk.CFG"
                )
        if any(move.s >= move.t for move in run.moves):
            raise ValueError("an inversion needs moves that go down in time, each with one evaluation")
        rows = torch.arange(len(x), device=x.device)
        return cls(run, random.fold(random.fold(random.key(seed, x.device), "invert"), rows))

    def check_no_memory(self) -> None:
        """No guide remembers what was before: on the way up there is nothing that it could remember."""
        for guide in self.run.guides:
            if guide.has("log_weight"):
                raise ValueError(
                    f"{type(guide).__name__} may remember earlier predictions, which a step up does not know: invert a "
                    "chain, method='chain', or leave it out"
                )

    @property
    def moves(self) -> list[Move]:
        return self.run.moves

    def noise(self, index: int, use: str = "chain") -> Tensor:
        """Fresh noise of every row for a move."""
        model = self.run.model
        shape = model.process.noise_shape(model.shape)
        return model.process.noise(random.fold(random.fold(self.keys, use), index), shape, model.dtype)

    def seen(self, pop: Population, x: Tensor, index: int) -> Population:
        """The particles in states x, with the predictions there."""
        run, pop = self.run, replace(pop, x=x)
        size = run.batch_size and max(1, run.batch_size // run.acts[index].rows(run.model))
        parts = torch.arange(len(x), device=x.device).split(size or len(x))
        return Population.cat([run.look(pop.take(rows), index) for rows in parts])

    def prediction(self, x: Tensor, index: int) -> Tensor:
        """The guided clean mean at states x."""
        return self.seen(self.run.born(), x, index).predictions[0]

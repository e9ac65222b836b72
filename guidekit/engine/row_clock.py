"""The times at which networks are asked of each row, where the solver has each row at one of its own.

They follow from the noise of the start and of the moves, as states do. So they depend on no batch, a run that is
resumed or whose noise is given has the same ones, and copies of a particle inherit its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..models.base import Model
from ..solvers import Move
from ..solvers.token_solver import Order, chosen
from .population import Population


@dataclass(frozen=True)
class RowClock:
    """Sets `Population.times`; `mask` is the id of the mask. The start, and a move up, use the Gumbel numbers of the
    first letter, which nothing else reads there; a move down those of the mask."""

    solver: Order
    mask: int

    def started(self, pop: Population, noise: Any, t: float) -> Population:
        """Particles whose noise has just ended at t."""
        return replace(pop, times=self.solver.asked_at(t, noise[..., 0], None, self._masked(pop)))

    def moved(self, before: Population, pop: Population, noise: Any, move: Move) -> Population:
        """Particles after a move."""
        if move.s > move.t:
            return self.started(pop, noise, move.s)
        assert before.times is not None
        of = before.times, noise[..., self.mask], self._masked(before), self._masked(pop)
        return replace(pop, times=self.solver.asked_at(*of))

    def _masked(self, pop: Population) -> Tensor:
        return pop.x == self.mask


def row_clock(moves: Sequence[Move], models: Sequence[Model]) -> RowClock | None:
    """That of a run with these moves; None where one time serves all rows, or no network reads it."""
    solver, timed = chosen(moves), [model for model in models if model.timed]
    if not (timed and isinstance(solver, Order) and solver.clocked):
        return None
    for model in timed:
        if type(model).mixed is Model.mixed:
            raise ValueError(
                f"{solver!r} asks the network of each row at a time of its own, and {type(model).__name__} evaluates "
                "its network at one time in each forward: take Ancestral(), or say timed = False of a network that "
                "does not read t"
            )
    return RowClock(solver, models[0].process.V)  # type: ignore[attr-defined]

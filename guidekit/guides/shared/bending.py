r"""Shared by guides of tokens that reweight the next state, and not the clean one.

The kernel of a move of tokens is a product over positions, q_i(x_s^i = v | x_t). Where a guide `bends`, it reweights
this kernel itself,

    q_i(v) <- bent(q_i)(v), normalised,

by what it has found at (x_t, t). The bent kernel is part of the target, as a tilt of the prediction is; with steer=True
it is a proposal, and the log-weights take log p/q of the move. Predictions stay those of the other guides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from ...engine.guide import Guide
from ...engine.population import Population
from ...engine.tree import Tree
from ...engine.view import Step, View
from ...models.base import Model
from ...process import Categorical
from ...solvers import Move
from ...solvers.token_solver import Order, chosen
from .constrained import Within

Bend = Callable[[Tensor], Tensor]  # log-probabilities of a kernel (rows, length, states) -> those of the bent one


class Bending(Guide):
    """Base of guides that bend kernels in the runs of models for which `reweights` says so."""

    bends = False  # in this run; set by `bind`

    def reweights(self, model: Model) -> bool:
        """Whether it reweights the kernel in runs of this model, and does not tilt predictions there."""
        raise NotImplementedError(f"{type(self).__name__} does not say where it bends kernels")

    def ratios_of(self, view: View, move: Move) -> Tensor:
        """What `bent` needs to know of (x_t, t), with the rows first."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it looks at")

    def bent(self, log_q: Tensor, found: Tensor, x: Tensor) -> Tensor:
        """The bent kernel, from that of the other guides: normalised log-probabilities. By default q exp(found)."""
        return (log_q + found).log_softmax(-1)

    @property
    def tilts(self) -> bool:
        return True

    def bind(self, model: Model) -> Guide:
        return self.having(bends=self.reweights(model))

    def clashes(self, other: Guide, after: bool) -> str | None:
        if self.bends and isinstance(other, Within):
            return (
                f"{type(self).__name__} reweights moves, and {type(other).__name__} draws them within a constraint; "
                "tilt predictions instead (gk.CFG, gk.FKSteering), or leave one of them out"
            )
        return super().clashes(other, after)

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        solver = chosen(moves)
        if self.bends and isinstance(solver, Order):
            raise ValueError(
                f"{self!r} reweights when a position is revealed, which {solver!r} decides itself: leave solver=None"
            )
        return moves

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        move = view.step.move
        if not self.bends or move is None or move.s > move.t:
            return 0.0, None
        return 0.0, self.ratios_of(view, move)

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        found = population.memos[step.place]
        if found is None:
            return kernel
        table = kernel.table
        plain, bends = (table.plain, table.bends) if isinstance(table, Bent) else (table.log_probs, ())
        bend = partial(self.bent, found=found, x=population.x)
        return Bent(bend(table.log_probs), table.mask, plain=plain, bends=(*bends, (bend, self.steer)))


@dataclass(frozen=True, eq=False)
class Bent(Categorical):
    """A bent kernel: `plain` are the log-probabilities before, and `bends` what was done to them, in turn, each with
    whether it is a proposal only."""

    _: KW_ONLY
    plain: Tensor
    bends: tuple[tuple[Bend, bool], ...]

    def correction(self, p: Categorical, x: Tensor) -> Tensor:
        own = [bend for bend, steer in self.bends if not steer]
        if p.log_probs is self.plain and len(own) == len(self.bends):
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        target = reduce(lambda log_q, bend: bend(log_q), own, p.log_probs)
        return Categorical(target).log_prob(x) - self.log_prob(x)

"""Shared by posterior samplers that take a linear measurement with Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from ...engine.card import Card
from ...engine.guide import Guide
from ...engine.view import View
from ...measurements.measurement import Problem, listed, problem
from ...models.analytic import ExactReverse
from ...models.base import Model
from ...process import Gaussian
from ...solvers import Move
from .twist import ascent


class Inverse(Guide):
    """Base: a dataclass whose first field is the measurement. In a run it has the problem in coordinates of states."""

    measurement: Any
    problem: ClassVar[Problem]
    moving = False  # whether it makes moves that are not those of a kernel p, so that no weights take p/q

    card = Card(
        section="Inverse problems",
        processes=(Gaussian,),
        refusal="solves for real numbers, and tokens are none: use FKSteering or SVDD with them",
        changes="target",
    )

    def __post_init__(self) -> None:
        listed(self.measurement)

    def bind(self, model: Model) -> Guide:
        return self.having(problem=problem(type(self).__name__, self.measurement, model))

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        return super().regrouped(model, groups, of).bind(model)

    def check(self, model: Model, steps: int) -> None:
        if isinstance(model.process, ExactReverse):
            raise ValueError(
                f"{type(self).__name__} changes predictions or moves, and the exact reverse process has its own moves: "
                "take the mixture itself, without exact()"
            )
        if self.moving and self.steer:
            raise ValueError(
                f"{type(self).__name__}(steer=True): it makes moves of its own, for which no weights correct"
            )

    def clashes(self, other: Guide, after: bool) -> str | None:
        name = type(self).__name__
        if self.moving and other.steer:
            return (
                f"{name} makes moves of its own, and no weights could correct for what steers beside it: leave one away"
            )
        if self.moving and getattr(other, "moving", False):
            return "each makes moves of its own: leave one away"
        if self.moving and other.has("propose"):
            return f"each makes moves of its own, and {name} those of the whole state: leave one away"
        return None

    def rest(self, view: View) -> Tensor:
        """y - A d, as a constant."""
        return self.problem.rest(view.clean.detach(), view.group)

    def one_move_each(self, moves: Sequence[Move], why: str) -> None:
        """Raise unless every step is one evaluation without a memory."""
        if any(len(m.b) > 1 or m.s == m.t or type(m) is not Move for m in moves):
            raise ValueError(
                f"{type(self).__name__} {why}: a solver with a memory or two evaluations a step does not fit, nor "
                "does a "
                "guide before it in one list that repeats or shifts steps. Take DDPM(), DDIM(eta), Euler() or "
                "SDEDPMpp(order=1)"
            )


def pushed(view: View, u: Tensor) -> Tensor:
    """(sigma_t^2/alpha_t) (dd/dx_t)^T u: how far the factor exp(u.d) of p_t moves the clean mean."""
    return ascent(view, (u * view.clean).flatten(1).sum(1))

"""The hooks of a guide. One published method is one subclass in one file; every hook is optional.

A guide reads a `View` and returns tensors; it keeps nothing in itself (it is frozen). What it must remember of a
particle it returns as a memo, which then follows that particle through every selection.

The window `start`, `stop` is the engine's business: `moves`, `plan` and `begin` belong to the whole run, and every
other hook is called only at the steps at which the guide is active. At the last step, where the samples are, every
guide may weigh and select, whatever its window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewards import ByGroup

from ..models.base import Encoded, Model
from ..models.evaluations import Cond
from ..solvers import Move
from .population import Population
from .tree import Tree
from .view import Step, View

if TYPE_CHECKING:
    from typing_extensions import Self

Scale = float | Callable[[float], float]


@dataclass(frozen=True)
class Guide:
    """Base of all guides.

    steer         the tilt bends the proposal only, and the weights correct for it; otherwise it changes the target
    start, stop   the guide acts while start <= fraction of the run < stop
    """

    _: KW_ONLY
    steer: bool = False
    start: float = 0.0
    stop: float = 1.0

    # Where its tilt takes a gradient: False, nowhere; True, from x_t on (the graph is kept); "clean", at the clean
    # estimate. A tilt with a gradient comes after the others, and sees in view.prediction what they have made.
    grad = False
    sees_prediction = True  # False: log_weight reads x_t alone, so only the survivors need the network

    @property
    def needs(self) -> tuple[Cond, ...]:
        """The network evaluations that it reads, besides Cond()."""
        return ()

    @property
    def twist(self) -> Hashable:
        """What its log-weights stand for; of guides with equal twists, unless None, the first one's count."""
        return None

    def check(self, model: Model, steps: int) -> None:
        """Raise ValueError if it cannot work with this model, before the first network call."""

    def further(self, step: Step) -> int:
        """Network rows that it evaluates by itself for a particle at this step, at most, besides `needs`: searches keep
        to their budget by it."""
        return 0

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        """This guide in a run whose g-th condition is number groups[g] of the `of` conditions that it was made for, as
        searches have them: what it holds for each condition follows. Of itself that is a `rewards.ByGroup`."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, ByGroup) and len(v.rewards) == of}
        return self.having(**{k: _regrouped(v, tuple(groups)) for k, v in own.items()})

    def having(self, **fields: Any) -> Self:
        """The same guide with other values of these fields."""
        other = copy.copy(self) if fields else self
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other

    def clashes(self, other: Guide, after: bool) -> str | None:
        """Why it cannot stand in one list with this other guide (which comes after it, or before), and what to do
        instead; None where it can."""
        return None

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        """The table of the run, given the solver's."""
        return moves

    def plan(self, n: int, index: int, total: int) -> tuple[int, int]:
        """(particles, children): rows of each group that are to live at this of `total` steps, where n would without
        the guide, and children that each of them has in the move from here, where the guide acts when they arrive.
        Particles are not asked for at the last step: n samples are left there."""
        return n, 1

    def begin(self, model: Model, population: Population, noise: Tensor, step: Step) -> Tensor:
        """The states from which the run starts, given its noise and the states that the prior makes of it."""
        return population.x

    def condition(self, view: View, cond: Encoded) -> Encoded:
        """The encoded condition of the rows that the network is to see at this look."""
        return cond

    def noise(self, population: Population, step: Step, noise: Tensor) -> tuple[Tensor, Tree]:
        """The noise of the move that starts here, given the one drawn for it, and the new memo."""
        return noise, population.memos[step.place]

    def tilt(self, view: View) -> Tensor | float:
        """What to add to the prediction: to the clean mean, or to the log-probabilities of tokens."""
        return 0.0

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        """What cannot be added. Runs after all tilts, in the order of the list."""
        return prediction

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        """The increment of the log-weights, and the new memo."""
        return 0.0, memo

    def weigh(self, population: Population, step: Step) -> Population:
        """What the weights need the whole population for, before any selection; see `Population.weighed`."""
        return population

    def select(self, population: Population, step: Step) -> Population:
        """Which particles live; step.n are to be left in each group."""
        return population

    def traced(self, population: Population, step: Step) -> dict[str, Tensor]:
        """Numbers of every particle that lives, float64 (rows,): the trace has their means, always the same columns."""
        return {}

    # what the engine asks ------------------------------------------------------------------------------------

    def active(self, step: Step) -> bool:
        """Whether it acts at this step; with stop=1 also at the last, where there is nothing to tilt."""
        return self.start <= step.fraction < self.stop or (step.last and self.stop == 1)

    def has(self, hook: str) -> bool:
        """Whether the class overrides a hook."""
        return getattr(type(self), hook) is not getattr(Guide, hook)

    @property
    def judge(self) -> Any:
        """The reward that it goes by, or None."""
        return getattr(self, "reward", None)

    @property
    def tilts(self) -> bool:
        return self.has("tilt") or self.has("finish")

    @property
    def stochastic(self) -> bool:
        """Whether it needs moves with noise: copies of a particle must part again, and p/q must exist."""
        return self.steer or any(map(self.has, ("plan", "select", "noise")))


@lru_cache(maxsize=64)
def _regrouped(reward: ByGroup, groups: tuple[int, ...]) -> ByGroup:
    """The rewards of these groups; the same object for all guides that hold one reward, so that it is asked once."""
    return ByGroup([reward.rewards[g] for g in groups])


def at(scale: Scale, t: float) -> float:
    """The value of a number or of a function of t."""
    return float(scale(t)) if callable(scale) else float(scale)

"""The hooks of a guide. One published method is one subclass of `Guide`, in one file; every hook is optional.

A guide reads a `View` of the particles and returns tensors. It is frozen and keeps no state of its own: whatever it has
to remember about a particle it returns as a memo, and the memo follows that particle through every selection.

The window is the engine's business. A guide is not asked outside `start <= step.fraction < stop`, or where its scale is
neutral, with these exceptions:

* `bind`, `beside`, `admits`, `check`, `clashes`, `moves`, `begin` and the number of particles in `plan` concern the run
  as a whole and are always asked. The number of children in `plan` counts where the move leads into the window.
* At the last step, where the particles are samples, `log_weight`, `weigh` and `select` of every guide are called.
* `traced` is called at every step, so that all rows of the trace have the same columns.

`tilt` and `finish` are never called at t = 0, where there is no prediction left to change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rewards import ByGroup

from ..models.base import Encoded, Model
from ..models.evaluations import Cond
from ..solvers import Move
from .brief import settings
from .card import Card
from .population import Population
from .tree import Tree
from .view import Step, View

if TYPE_CHECKING:
    from typing_extensions import Self

Scale = float | Callable[[float], float]
Begun = Tensor | tuple[Tensor, Tensor, Tree]  # states, or states with their log-weights and memos


@dataclass(frozen=True)
class Guide:
    """Base of all guides.

    steer         the tilt bends the proposal only, and importance weights correct for it; by default it changes the
                  target distribution
    start, stop   the window, in fractions of the run: the guide acts while start <= fraction < stop
    """

    _: KW_ONLY
    steer: bool = False
    start: float = 0.0
    stop: float = 1.0

    # What the class says of itself: the processes that it serves, its paper, its row of the catalogue.
    card: ClassVar[Card] = Card()
    # Where the tilt takes a gradient: False, nowhere; True, with respect to x_t through the network (the graph is
    # kept); "clean", with respect to the clean estimate. Tilts with gradients are computed after all others, and find
    # in view.prediction what those have made.
    grad = False
    # The value of its field `scale` at which it does nothing. Where the scale has it, the guide is not asked and costs
    # nothing.
    neutral = None
    # Where the solver is deterministic and it needs a stochastic one: what else to do than to take another solver.
    advice = ""
    # True: its formula takes the noise of a move to have one variance, which some networks tell for each number.
    isotropic = False
    # False: log_weight reads x_t alone. Children are then selected before the network is called, for survivors only.
    sees_prediction = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__  # or the dataclass would make one that writes tensors out

    def __repr__(self) -> str:
        """Its settings, where they differ from the defaults."""
        return settings(self)

    @property
    def needs(self) -> tuple[Cond, ...]:
        """The network evaluations that it reads besides Cond(), the prediction at the user's condition."""
        return ()

    @property
    def twist(self) -> Hashable:
        """What its log-weights stand for, such as (reward, alpha). Of several guides with equal twists only the first
        one's log-weights count; None is equal to nothing."""
        return None

    def bind(self, model: Model) -> Guide:
        """The guide as it is in runs of this model, for what it can only know then, like the states of samples that it
        was given. Asked once when a run is made, before everything else; bound again it is the same."""
        return self

    def beside(self, guides: Sequence[Guide], model: Model) -> Guide:
        """The guide as it is in one list with these guides, itself among them. Asked once, when all are bound."""
        return self

    def admits(self, model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        """States of the same samples from which a run with this guide can start, and which rows have such a state, bool
        (rows,): where a model can write a sample in several ways, a constraint may want one of them."""
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device)

    def check(self, model: Model, steps: int) -> None:
        """Raise ValueError if the guide cannot work with this model. Called before the first network call."""

    def further(self, step: Step) -> int:
        """The most network rows per particle that it evaluates itself at this step, besides `needs`. Searches keep to
        their budget by it."""
        return 0

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        """The same guide for a run whose g-th condition is number groups[g] of the `of` conditions it was made for, as
        searches make them: whatever it holds per condition is selected accordingly. By default that is every field
        with a `rewards.ByGroup`."""
        own = {k: v for k, v in vars(self).items() if isinstance(v, ByGroup) and len(v.rewards) == of}
        return self.having(**{k: _regrouped(v, tuple(groups)) for k, v in own.items()})

    def having(self, **fields: Any) -> Self:
        """A copy of the guide with other values of these fields."""
        other = copy.copy(self) if fields else self
        for name, value in fields.items():
            object.__setattr__(other, name, value)
        return other

    def clashes(self, other: Guide, after: bool) -> str | None:
        """Why it cannot be used in one list with another guide, which comes after it or before it, and what to do
        instead; None if it can."""
        return None

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        """The moves of the run, given those of the solver."""
        return moves

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        """(particles, children): how many particles of each group are to live at this step, where it would be n without
        this guide, and how many children each of them has in the move that starts there. The last step is not asked: it
        always has n particles. Of the step, index, total, t, moves and fraction are known."""
        return n, 1

    def begin(self, view: View, noise: Tensor) -> Begun:
        """The states x from which the run starts; `view.x` holds what the prior makes of `noise`, and no network has
        been asked yet. Or (x, log_w, memo): log-weights by which those states are corrected, float64 (rows,), and the
        memo that `log_weight` finds at the start."""
        return view.x

    def condition(self, view: View, cond: Encoded) -> Encoded:
        """The encoded condition of every row, as the network is to see it at this step."""
        return cond

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        """The kernel q by which particles make the move that starts at this step, given the one without this guide. The
        weights take `q.correction(p, x)`, where p is the kernel of the target."""
        return kernel

    def noise(self, population: Population, step: Step, noise: Tensor) -> tuple[Tensor, Tree]:
        """The noise of the move that starts at this step, given the noise drawn for it, and the new memo."""
        return noise, population.memos[step.place]

    def tilt(self, view: View) -> Tensor | float:
        """What to add to the prediction: to the clean mean, or to the log-probabilities of tokens."""
        return 0.0

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        """Changes of the prediction that are not additive. Called after all tilts, in the order of the list."""
        return prediction

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        """The increment of the log-weights, float64 (rows,), and the new memo."""
        return 0.0, memo

    def weigh(self, population: Population, step: Step) -> Population:
        """Weights that depend on the whole population, computed before any selection; see `Population.weighed`."""
        return population

    def select(self, population: Population, step: Step) -> Population:
        """The particles that survive, `step.n` of them in each group."""
        return population

    def paste(self, samples: Any, group: Tensor) -> Any:
        """Decoded samples, of rows of these groups, with what this guide puts into them. Guides do so in the order of
        the list; rewards, and `Result.samples`, see what comes out."""
        return samples

    def traced(self, population: Population, step: Step) -> dict[str, Tensor]:
        """Diagnostics of the surviving particles, float64 (rows,) by name, always the same names. Their means become
        columns of the trace."""
        return {}

    # what the engine asks ------------------------------------------------------------------------------------

    def active(self, step: Step) -> bool:
        """Whether this step lies in the window, and the scale is not neutral. The last step, where nothing is tilted,
        belongs to the window if stop=1."""
        if step.last:
            return self.stop == 1
        return self.start <= step.fraction < self.stop and not self._idle(step.t)

    def _idle(self, t: float) -> bool:
        """Whether its scale is the neutral one."""
        return self.neutral is not None and at(self.scale, t) == self.neutral  # type: ignore[attr-defined]

    def has(self, hook: str) -> bool:
        """Whether the class overrides a hook."""
        return getattr(type(self), hook) is not getattr(Guide, hook)

    @property
    def judge(self) -> Any:
        """The reward that the guide optimises, or None. The first one in the list also fills `Result.rewards`."""
        return getattr(self, "reward", None)

    @property
    def tilts(self) -> bool:
        """Whether it changes predictions."""
        return self.has("tilt") or self.has("finish")

    @property
    def stochastic(self) -> bool:
        """Whether it needs a stochastic solver: copies of a particle have to part again, and p/q has to exist."""
        return self.steer or any(map(self.has, ("plan", "select", "noise")))

    @property
    def independent(self) -> bool:
        """Whether each particle lives on its own, without weights, branches or selections; searches need that."""
        return not (self.stochastic or self.has("plan") or self.has("weigh"))


@lru_cache(maxsize=64)
def _regrouped(reward: ByGroup, groups: tuple[int, ...]) -> ByGroup:
    """The rewards of these groups; the same object for all guides that hold one reward, so that it is asked once."""
    return ByGroup([reward.rewards[g] for g in groups])


def at(scale: Scale, t: float) -> float:
    """The value of a number or of a function of t."""
    return float(scale(t)) if callable(scale) else float(scale)


def numbers(values: Sequence[float], device: torch.device) -> Tensor:
    """A few numbers in float64, each written by the device itself: it is waited for where they are copied to it."""
    return torch.stack([torch.full((), v, dtype=torch.float64, device=device) for v in values])

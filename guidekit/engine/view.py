"""What a guide may read: a point of the time grid (`Step`) and the particles at it (`View`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Encoded, Mixed, Model
from ..models.evaluations import Cond, evaluate, rows_of
from ..solvers import Move, fractions
from . import tree
from .scoring import Scorer, same
from .tree import Tree


@dataclass(frozen=True)
class Step:
    """A point of the time grid.

    index, total   the number of moves made so far, from 0 (noise) to `total` (samples)
    t              the time
    n, parents     particles of each group that are to live here, and that lived at the step before
    keys           one random key per group
    came, move     the moves that led here (None at index 0) and that lead on (None at the last step)
    fraction       the fraction of the run that is done, in [0, 1]; corrector moves and recurrences do not advance it
    name, place    of the guide that reads this: the address of its random numbers, and the index of its memos
    """

    index: int
    total: int
    t: float
    n: int
    parents: int
    keys: Tensor
    came: Move | None = None
    move: Move | None = None
    fraction: float = 0.0
    name: str = ""
    place: int = -1

    @property
    def last(self) -> bool:
        """Whether the particles here are the final samples."""
        return self.index == self.total

    @property
    def key(self) -> Tensor:
        """One key per group, for random numbers of this guide at this step."""
        return random.fold(random.fold(self.keys, self.name), self.index)

    def own(self, name: str, place: int = -1) -> Step:
        """The same step as one guide sees it; its memos are `population.memos[step.place]`."""
        return replace(self, name=name, place=place)


def grid(moves: Sequence[Move], keys: Tensor) -> list[Step]:
    """The points of a run with these moves, without their numbers of particles, which are not known yet."""
    ends = pairwise((None, *moves, None))
    return [
        Step(i, len(moves), 0.0 if go is None else go.t, 0, 0, keys, came, go, fraction)
        for i, ((came, go), fraction) in enumerate(zip(ends, fractions(moves), strict=True))
    ]


@dataclass(frozen=True)
class View:
    """Particles at (x_t, t) while they are looked at: the network has been evaluated, and guides tilt and weigh.

    x            states (rows, *shape); they carry gradients if a guide asks for them
    evals        what the network returned, {Cond(): ..., Null(): ..., ...}; empty at t = 0
    prediction   the prediction that defines the target, with the tilts applied so far; None at t = 0
    shown        the one that guides and rewards see in its place, where a tilt is `Apart`; else None
    cond         the encoded condition of each row
    group, slot  the row's group and its place within it: the address of its random numbers
    times        at which the network was asked of each row, where the solver has each row at one of its own; else None
    memo         what the guide that reads this remembers of each particle
    before       the prediction by which each row came here, its parent's; None at the start
    paste        (samples, group) -> samples: what guides put into decoded samples; None where they put nothing
    """

    model: Model
    step: Step
    x: Tensor
    cond: Encoded
    group: Tensor
    slot: Tensor
    evals: dict[Cond, Tensor]
    prediction: Tensor | None
    scorer: Scorer
    limit: int | None = None
    paste: Callable[[Any, Tensor], Any] | None = None
    memo: Tree = None
    shown: Tensor | None = None
    before: Tensor | None = None
    times: Tensor | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    _kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def t(self) -> float:
        return self.step.t

    @property
    def told(self) -> float | Tensor:
        """What networks that read the time are told: t, or the time of each row, (rows,)."""
        return self.t if self.times is None else self.times

    @property
    def clean(self) -> Tensor:
        """The estimate of x_0: that of the prediction for t > 0, x itself at t = 0."""
        prediction = self.prediction if self.shown is None else self.shown
        if prediction is not None:
            return self.model.process.clean(prediction, self.x)
        if self.t > 0:
            raise ValueError("the clean estimate was asked for by a guide that says sees_prediction = False")
        return self.x

    @property
    def samples(self) -> Any:
        """The clean estimate, decoded; once for all guides."""
        if "samples" not in self._cache:
            self._cache["samples"] = self.decode(self.clean)
        return self._cache["samples"]

    def decode(self, x: Tensor, group: Tensor | None = None) -> Any:
        """Samples of other states, of rows of these groups (None: as many as here), with what guides put into them."""
        samples = self.model.decode(x)
        return samples if self.paste is None else self.paste(samples, self.group if group is None else group)

    def score(self, reward: Any) -> Tensor:
        """The reward of each row's clean estimate, float64 (rows,), NaN where it could not be scored. Guides that ask
        for the same reward share one call."""
        key = "reward", same(reward)
        if key not in self._cache:
            self._cache[key] = self.scorer(reward, self.samples, self.group)
        return self._cache[key]

    def tell(self, reward: Any, scores: Tensor) -> None:
        """Set what `score(reward)` returns to the guides that ask later in this look."""
        self._cache["reward", same(reward)] = scores

    def scored(self, reward: Any) -> Tensor | None:
        """The scores of this reward if a guide has asked for them in this look, else None."""
        return self._cache.get(("reward", same(reward)))

    def evaluate(self, x: Tensor, t: float, needs: tuple[Cond, ...] = (Cond(),)) -> dict[Cond, Tensor]:
        """Further network evaluations of these rows, at other states or another time; where that is t, at the times of
        the rows, if they have their own. They are counted as network rows."""
        at = t if self.times is None or t != self.t else Mixed.of(self.times)
        return evaluate(self.model, needs, x, at, self.cond, self.scorer.cost.network, self.limit)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result of make(), which is called once in this look: for what depends on x_t and not on the
        prediction."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def key(self) -> Tensor:
        """One key per row, for the guide's own random numbers. Keys differ between guides, steps and rows."""
        return random.fold(self.step.key[self.group], random.address(self.slot, self.step.parents))

    def own(self, name: str, memo: Tree) -> View:
        """The same view as one guide sees it: its prediction is the one that is shown."""
        prediction = self.prediction if self.shown is None else self.shown
        return replace(self, step=self.step.own(name), memo=memo, prediction=prediction, shown=None)

    def take(self, index: Tensor) -> View:
        """The view of the rows of an index, which may repeat rows. Nothing is decoded or scored yet."""
        parts = {
            k: tree.take(getattr(self, k), index)
            for k in ("x", "group", "slot", "prediction", "shown", "memo", "before", "times")
        }
        evals = {k: v[index] for k, v in self.evals.items()}
        return replace(self, **parts, evals=evals, cond=rows_of(self.cond, index), _cache={}, _kept={})

    def with_prediction(self, prediction: Tensor | None, shown: Tensor | None = None) -> View:
        """The same rows with another prediction, or another one shown. Nothing is decoded or scored yet."""
        if prediction is self.prediction and shown is self.shown:
            return self
        return replace(self, prediction=prediction, shown=shown, _cache={})

    def zeros(self) -> Tensor:
        """0 for each row, float64."""
        return torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)

    def rows(self, v: Tensor) -> Tensor:
        """One number per row, v (rows,), shaped to multiply the prediction."""
        like = self.x if self.prediction is None else self.prediction
        return v.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)

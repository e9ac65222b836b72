"""What a guide may read: where the run stands (`Step`), and the particles there (`View`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Encoded, Model
from ..models.evaluations import Cond, evaluate, rows_of
from ..solvers import Move
from . import tree
from .scoring import Scorer, same
from .tree import Tree


@dataclass(frozen=True)
class Step:
    """A point of the time grid. `index` runs from 0 (noise) to `total` (samples); `n` rows of a group are to live here,
    and `parents` did before.

    came, move   the rows of the solver's table that led here (None at index 0) and that lead on (None at the last)
    """

    index: int
    total: int
    t: float
    n: int
    parents: int
    keys: Tensor
    came: Move | None = None
    move: Move | None = None
    name: str = ""
    place: int = -1

    @property
    def last(self) -> bool:
        """Whether the particles are final samples."""
        return self.index == self.total

    @property
    def fraction(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.index / self.total

    @property
    def key(self) -> Tensor:
        """One key per group, for random numbers that belong to this step and this guide alone."""
        return random.fold(random.fold(self.keys, self.name), self.index)

    def own(self, name: str, place: int = -1) -> Step:
        """The same step in the hands of one guide, whose memos are population.memos[step.place]."""
        return replace(self, name=name, place=place)


@dataclass(frozen=True)
class View:
    """Rows of a population at (x_t, t), in the middle of a look.

    x            states; with gradients where a guide asks for them
    evals        what the network returned: {Cond(): ..., Null(): ..., ...}; empty at t = 0
    prediction   the one that defines the target as far as it is known: with the tilts applied so far; None at t = 0
    shown        the one that guides and rewards are shown in its stead, where a tilt is `Apart`; else None
    cond         the encoded condition of the rows
    group, slot  the row's address
    memo         what the guide that reads this remembers of each particle
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
    memo: Tree = None
    shown: Tensor | None = None
    _cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    _kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def t(self) -> float:
        return self.step.t

    @property
    def clean(self) -> Tensor:
        """The estimate of x_0: the prediction's for t > 0, x itself at t = 0."""
        prediction = self.prediction if self.shown is None else self.shown
        if prediction is not None:
            return self.model.process.clean(prediction, self.x)
        if self.t > 0:
            raise ValueError("the clean estimate was asked for by a guide that says sees_prediction = False")
        return self.x

    @property
    def samples(self) -> Any:
        """The clean estimate, decoded (once)."""
        if "samples" not in self._cache:
            self._cache["samples"] = self.model.decode(self.clean)
        return self._cache["samples"]

    def score(self, reward: Any) -> Tensor:
        """The reward of every row's clean estimate, float64, NaN where it could not be scored (asked once)."""
        key = "reward", same(reward)
        if key not in self._cache:
            self._cache[key] = self.scorer(reward, self.samples, self.group)
        return self._cache[key]

    def tell(self, reward: Any, scores: Tensor) -> None:
        """What score(reward) answers to the guides that ask after this one at this look."""
        self._cache["reward", same(reward)] = scores

    def scored(self, reward: Any) -> Tensor | None:
        """The reward if a guide has asked for it here."""
        return self._cache.get(("reward", same(reward)))

    def evaluate(self, x: Tensor, t: float, needs: tuple[Cond, ...] = (Cond(),)) -> dict[Cond, Tensor]:
        """Further evaluations of the network, at other states of these rows or another time; they are counted."""
        return evaluate(self.model, needs, x, t, self.cond, self.scorer.cost.network, self.limit)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """make(), for what depends on x_t and not on the prediction: made at the first call in this look."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @property
    def key(self) -> Tensor:
        """One key per row, for the guide's own random numbers; different for every guide, step and row."""
        return random.fold(self.step.key[self.group], random.address(self.slot, self.step.parents))

    def own(self, name: str, memo: Tree) -> View:
        """The same view in the hands of one guide, whose prediction is the one that is shown."""
        prediction = self.prediction if self.shown is None else self.shown
        return replace(self, step=self.step.own(name), memo=memo, prediction=prediction, shown=None)

    def take(self, index: Tensor) -> View:
        """The view of some rows, each perhaps several times; nothing decoded yet."""
        parts = {k: tree.take(getattr(self, k), index) for k in ("x", "group", "slot", "prediction", "shown", "memo")}
        evals = {k: v[index] for k, v in self.evals.items()}
        return replace(self, **parts, evals=evals, cond=rows_of(self.cond, index), _cache={}, _kept={})

    def with_prediction(self, prediction: Tensor | None, shown: Tensor | None = None) -> View:
        """The same rows with another prediction, or another one shown, and nothing decoded yet."""
        if prediction is self.prediction and shown is self.shown:
            return self
        return replace(self, prediction=prediction, shown=shown, _cache={})

    def zeros(self) -> Tensor:
        """0 for each row, float64."""
        return torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)

    def rows(self, v: Tensor) -> Tensor:
        """A number for each row, shaped to multiply the prediction."""
        like = self.x if self.prediction is None else self.prediction
        return v.view(-1, *[1] * (like.dim() - 1)).to(like.dtype)

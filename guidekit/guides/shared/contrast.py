"""Shared by the relatives of classifier-free guidance: two evaluations, and the coordinates that the papers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...engine.card import Card
from ...engine.guide import Guide, Scale, at
from ...engine.view import View
from ...models.base import Model
from ...models.evaluations import Cond, Null, evaluation, listed
from ...process import Gaussian


@dataclass(frozen=True)
class Contrast(Guide):
    """A guide that reads the conditional and the unconditional prediction. One extra NFE per particle and step."""

    scale: Scale

    neutral = 1.0

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == self.neutral else (Null(),)

    card = Card(
        section="Classifier-free guidance and its relatives",
        processes=(Gaussian,),
        refusal="is geometry of a clean mean, and tokens have none: use CFG with them",
        rows="1",
        changes="target",
    )


def both(view: View) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional clean mean."""
    return view.evals[Cond()], view.evals[Null()]


def velocity(view: View, clean: Tensor) -> Tensor:
    """The velocity z - x_0 of a clean mean, z being the noise that it leaves in x_t."""
    alpha, sigma = view.model.process.scales(view.t)
    return (view.x - (alpha + sigma) * clean) / sigma


def from_velocity(view: View, v: Tensor) -> Tensor:
    """The clean mean that belongs to a velocity."""
    alpha, sigma = view.model.process.scales(view.t)
    return (view.x - sigma * v) / (alpha + sigma)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row of a and b, float64 (rows,)."""
    return (a.double() * b.double()).flatten(1).sum(1)


def along(view: View, v: Tensor, direction: Tensor) -> Tensor:
    """The projection of v on a direction, row by row; 0 where the direction is 0."""
    square = dot(direction, direction)
    return view.rows(dot(v, direction) / square.where(square > 0, 1.0)) * direction


@dataclass(frozen=True)
class Negative(Contrast):
    """A guide with `negatives`, conditions to keep away from, and their `weights`, one for all or one for each."""

    negatives: Any
    weights: Scale | Sequence[Scale] = 1.0

    neutral = None

    card = replace(Contrast.card, rows="1, and 1 for each negative condition")

    def __post_init__(self) -> None:
        count = len(listed(self.negatives))
        if not count or (isinstance(self.weights, Sequence) and len(self.weights) != count):
            raise ValueError(
                f"{type(self).__name__}(weights={self.weights!r}): {count} negative conditions are given; one or more "
                "are needed, with one weight for all or one for each"
            )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return (Null(), *(evaluation(e) for e in listed(self.negatives)))

    def check(self, model: Model, steps: int) -> None:
        for need in self.needs:
            need.check(model)

    def weighted(self, t: float) -> list[tuple[Cond, float]]:
        """The negative evaluations with their weights."""
        needs = self.needs[1:]
        weights = self.weights if isinstance(self.weights, Sequence) else [self.weights] * len(needs)
        return [(need, at(w, t)) for need, w in zip(needs, weights, strict=True)]

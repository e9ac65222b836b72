"""Shared by guides that push away from a perturbed forward pass of a network, d <- d + s (d_cond - d_perturbed)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ... import random
from ...engine.card import Card
from ...engine.guide import Guide, Scale, at
from ...engine.view import Step, View
from ...models.attention import Layers, Perturbed
from ...models.base import Model
from ...models.evaluations import Cond


@dataclass(frozen=True)
class Away(Guide):
    """A guide with one perturbed evaluation, in the forward pass of the step. One extra NFE per particle and step."""

    scale: Scale
    layers: Layers = None

    neutral = 0.0

    card = Card(section="Perturbed networks", rows="1", changes="target", picture="trained")

    @property
    def perturbed(self) -> Perturbed:
        """The evaluation to push away from."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it pushes away from")

    @property
    def idle(self) -> bool:
        """Whether nothing is perturbed with these settings."""
        return self.scale == 0

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.idle else (self.perturbed,)

    def check(self, model: Model, steps: int) -> None:
        self.perturbed.check(model)

    def tilt(self, view: View) -> Tensor | float:
        return 0.0 if self.idle else away(self.scale, view, view.evals[self.perturbed])


@dataclass(frozen=True)
class Drawn(Away):
    """A guide whose perturbation is drawn anew at every step, the same for all rows: a function of `seed` and the time.
    One extra NFE per particle and step, in a forward pass of its own."""

    def drawn(self, model: Model, key: int, t: float) -> Perturbed:
        """The perturbed evaluation of the step at time t, given the key of its random numbers."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it draws")

    @property
    def needs(self) -> tuple[Cond, ...]:
        return ()

    def check(self, model: Model, steps: int) -> None:
        self.drawn(model, self.key(1.0), 1.0).check(model)

    def further(self, step: Step) -> int:
        return 0 if self.idle or at(self.scale, step.t) == 0 else 1

    def tilt(self, view: View) -> Tensor | float:
        if self.idle:
            return 0.0
        need = self.drawn(view.model, self.key(view.t), view.t)
        return away(self.scale, view, view.evaluate(view.x, view.t, (need,))[need])

    def key(self, t: float) -> int:
        """The key of the random numbers of the step at time t."""
        return int(random.fold(random.key(self.seed), f"{type(self).__name__} {t!r}"))  # type: ignore[attr-defined]


def away(scale: Scale, view: View, other: Tensor) -> Tensor:
    """scale (d_cond - d_other)."""
    return at(scale, view.t) * (view.evals[Cond()] - other)

"""What relatives of classifier-free guidance share: two evaluations, and the coordinates in which papers write them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...engine.guide import Guide, Scale, at
from ...engine.view import View
from ...models.base import Model
from ...models.evaluations import Cond, Null
from ...process import Gaussian


@dataclass(frozen=True)
class Contrast(Guide):
    """A guide that reads the model with and without its condition. One extra row per particle."""

    scale: Scale

    neutral = 1.0

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == self.neutral else (Null(),)

    def check(self, model: Model, steps: int) -> None:
        if not isinstance(model.process, Gaussian):
            raise ValueError(
                f"{type(self).__name__} is geometry of a clean mean, and tokens have none: use CFG with them"
            )


def both(view: View) -> tuple[Tensor, Tensor]:
    """The clean means at the condition and without it."""
    return view.evals[Cond()], view.evals[Null()]


def velocity(view: View, clean: Tensor) -> Tensor:
    """z - x_0, with z the noise that this clean mean leaves in x_t."""
    alpha, sigma = view.model.process.scales(view.t)
    return (view.x - (alpha + sigma) * clean) / sigma


def from_velocity(view: View, v: Tensor) -> Tensor:
    """The clean mean of a velocity."""
    alpha, sigma = view.model.process.scales(view.t)
    return (view.x - sigma * v) / (alpha + sigma)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each row, float64."""
    return (a.double() * b.double()).flatten(1).sum(1)


def along(view: View, v: Tensor, direction: Tensor) -> Tensor:
    """The component of v along a direction, row by row; 0 where the direction is 0."""
    square = dot(direction, direction)
    return view.rows(dot(v, direction) / square.where(square > 0, 1.0)) * direction


def away(scale: Scale, view: View, need: Cond) -> Tensor:
    """scale (d_cond - d_perturbed)."""
    return at(scale, view.t) * (view.evals[Cond()] - view.evals[need])

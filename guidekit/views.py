r"""Transforms of samples, each with its inverse, for `gk.Views`: linear, orthogonal, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import random
from .models.base import Model


@dataclass(frozen=True)
class Flip:
    """Reversed along some axes; the last one is left to right, -2 upside down."""

    axes: tuple[int, ...] = (-1,)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(self.axes)

    inverse = __call__


@dataclass(frozen=True)
class Rotate:
    """Turned by `turns` quarter turns in the plane of two axes; an odd number of them needs a square."""

    turns: int = 1
    axes: tuple[int, int] = (-2, -1)

    def __call__(self, x: Tensor) -> Tensor:
        return x.rot90(self.turns, self.axes)

    def inverse(self, x: Tensor) -> Tensor:
        return x.rot90(-self.turns, self.axes)


@dataclass(frozen=True)
class Negate:
    """Colours inverted, where 0 is grey."""

    def __call__(self, x: Tensor) -> Tensor:
        return -x

    inverse = __call__


@dataclass(frozen=True)
class Permute:
    """Pixels shuffled: pixel i of the view is pixel order[i], counted over the last `axes` axes.

    >>> Permute((2, 0, 1), axes=1)(torch.tensor([[10, 11, 12]]))
    tensor([[12, 10, 11]])
    """

    order: Sequence[int]
    axes: int = 2

    def __call__(self, x: Tensor) -> Tensor:
        return self._taken(x, torch.as_tensor(self.order, device=x.device))

    def inverse(self, x: Tensor) -> Tensor:
        return self._taken(x, torch.as_tensor(self.order, device=x.device).argsort())

    def _taken(self, x: Tensor, order: Tensor) -> Tensor:
        return x.flatten(-self.axes)[..., order].view_as(x)


@dataclass(frozen=True)
class Patches:
    """A jigsaw of grid x grid square pieces, shuffled by a seed; the grid must divide height and width."""

    grid: int = 4
    seed: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        return self._shuffled(x, self._order(x))

    def inverse(self, x: Tensor) -> Tensor:
        return self._shuffled(x, self._order(x).argsort())

    def _order(self, x: Tensor) -> Tensor:
        return random.uniform(random.key(self.seed), (self.grid**2,)).argsort().to(x.device)

    def _shuffled(self, x: Tensor, order: Tensor) -> Tensor:
        g = self.grid
        pieces = x.unflatten(-1, (g, -1)).unflatten(-3, (g, -1)).transpose(-3, -2)  # row, column, height, width of each
        pieces = pieces.flatten(-4, -3)[..., order, :, :].unflatten(-3, (g, g))
        return pieces.transpose(-3, -2).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class Matrix:
    """m x of the flattened state, m being an orthogonal matrix."""

    m: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.m.to(x).mT).view_as(x)

    def inverse(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.m.to(x)).view_as(x)


def check_orthogonal(view: Callable, inverse: Callable, model: Model, name: str) -> None:
    """Raise if a transform of random states is not linear and orthogonal, row by row, with this inverse."""
    x = random.normal(random.key([1, 2], model.device), model.shape, model.dtype)
    tolerance = 1e-9 if model.dtype == torch.float64 else 1e-4

    def differ(a: Tensor, b: Tensor) -> bool:
        return a.shape != b.shape or bool((a - b).abs().max() > tolerance * (1 + b.abs().max()))

    def refuse(why: str) -> ValueError:
        return ValueError(
            f"{name} {why}; a linear orthogonal map of rows {tuple(x.shape)} is needed, or the network would see other "
            "noise than it was trained on: a flip, a rotation, a permutation, a sign, or Matrix(m) with m.T m = 1"
        )

    with torch.no_grad():
        try:
            y = view(x)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise refuse(f"fails ({error})") from error
        if y.shape != x.shape:
            raise refuse(f"gives shape {tuple(y.shape)}")
        if differ(view(x[:1]), y[:1]):
            raise refuse("gives a row something else in another batch")
        if differ(view(x[:1] + x[1:]), y[:1] + y[1:]):
            raise refuse("is not linear")
        if differ(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1)):
            raise refuse(f"changes the norm of x from {float(x[0].norm()):.4g} to {float(y[0].norm()):.4g}")
        if differ(inverse(y), x):
            raise refuse("is not undone by its inverse")

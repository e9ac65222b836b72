r"""Visual anagrams (Geng et al., 2023), https://arxiv.org/abs/2311.17919: several views of one sample.

A sample shows one thing as it is, and another when it is rotated, flipped or shuffled. Every view v_i of x_t is
denoised at its own condition, and the predictions are transformed back and averaged:

    eps  =  sum_i a_i v_i^-1( eps(v_i(x_t), c_i) ),       sum_i a_i = 1, equal weights in the paper.

Views are linear and orthogonal: then v(x_t) = alpha v(x_0) + sigma v(z) with v(z) ~ N(0, 1), so that the network sees
inputs like those of its training. Since v^-1 is linear and eps = (x_t - alpha d)/sigma, averaging the clean means d is
the same rule. If the views form a group and their conditions are equal, the distribution of the samples is invariant
under the group.

Classifier-free guidance happens inside each view, d(v x_t) = n + scale (d_i - n) with both at v(x_t), as in the paper.
Use `scale` for it, and not gk.CFG, which would guide only the first view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import Step, View
from ..models.base import Model
from ..models.evaluations import Cond, Null, evaluation, joined, listed, rows_of
from ..process import Gaussian


@dataclass(frozen=True, eq=False)
class Views(Guide):
    """Samples that also make sense in other views. x itself, at the run's condition, is the first view. One extra NFE
    for each further view, and one more for every view with a scale; those of the further views in a forward pass of
    their own.

    views        `gk.views.Flip()`, Rotate, Permute, Patches, Negate or Matrix; any callable x -> x with a method
                 `inverse`; or a pair of functions (view, inverse): one or a list. They act on rows (rows, *shape)
    conditions   of the further views, each as in gk.Compose: None is the null condition, Cond() that of the run. None
                 instead of a list: all have the condition of the run
    weights      a_i, x itself first, with sum 1. None: equal ones
    scale        of classifier-free guidance in each view, a number or a function of t; 1: none
    """

    views: Any
    conditions: Any = None
    weights: Sequence[float] | None = None
    scale: Scale = 1.0

    card = Card(
        "makes one sample consistent with several views of it",
        section="Composition",
        processes=(Gaussian,),
        refusal="averages clean means, and tokens have none: use it with a Gaussian process",
        rows="1 for each view",
        changes="target",
        paper=Paper(
            "geng2023anagrams",
            "Geng, Daniel and Park, Inbum and Owens, Andrew",
            "Visual Anagrams: Generating Multi-View Optical Illusions with Diffusion Models",
            2023,
            "2311.17919",
        ),
        example="gk.Views(gk.views.Negate())",
    )

    def __post_init__(self) -> None:
        count, a = len(self._pairs), self.weights
        if not count or (self.conditions is not None and len(listed(self.conditions)) != count):
            raise ValueError(f"Views(conditions={self.conditions!r}): one is needed for each of the {count} views")
        if a is not None and (len(a) != count + 1 or abs(sum(a) - 1) > 1e-6):
            raise ValueError(f"Views(weights={a!r}): {count + 1} numbers that sum to 1 are needed, x itself first")

    @property
    def _pairs(self) -> list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]:
        pair = isinstance(self.views, tuple) and len(self.views) == 2 and not hasattr(self.views[0], "inverse")
        views = [self.views] if pair else listed(self.views)
        return [v if isinstance(v, tuple) else (v, v.inverse) for v in views]

    @property
    def _needs(self) -> list[Cond]:
        count = len(self._pairs)
        return [Cond()] * count if self.conditions is None else [evaluation(c) for c in listed(self.conditions)]

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == 1 else (Null(),)

    def check(self, model: Model, steps: int) -> None:
        for need in self._needs:
            if need.model(model) is not model:
                raise ValueError(f"Views(conditions=...): {need!r} is of another model; views are of one")
            need.check(model)
        for i, (view, inverse) in enumerate(self._pairs):
            check_orthogonal(view, inverse, model, f"views[{i}] = {view!r}")

    def further(self, step: Step) -> int:
        used = len(self._pairs) if self.weights is None else sum(a != 0 for a in self.weights[1:])
        return used * (1 + len(self.needs))

    def tilt(self, view: View) -> Tensor:
        count = len(self._pairs) + 1
        weights = [1 / count] * count if self.weights is None else self.weights
        scale, null, own = at(self.scale, view.t), Null() in self.needs, view.evals[Cond()]
        tilt = (weights[0] - 1) * own
        if null:
            tilt = tilt + weights[0] * (scale - 1) * (own - view.evals[Null()])
        branches = [(pair, a, need) for pair, a, need in zip(self._pairs, weights[1:], self._needs, strict=True) if a]
        if not branches:
            return tilt
        every = [(pair[0], n) for pair, _, need in branches for n in ((need, Null()) if null else (need,))]
        out = _evaluate(view, [v(view.x) for v, _ in every], [n for _, n in every])
        for i, (pair, a, _) in enumerate(branches):
            d = out[2 * i + 1] + scale * (out[2 * i] - out[2 * i + 1]) if null else out[i]
            tilt = tilt + a * pair[1](d)
        return tilt


def _evaluate(view: View, states: list[Tensor], needs: list[Cond]) -> tuple[Tensor, ...]:
    """The network at several states of the same rows, each at its own condition, in one forward pass (more if a limit
    on the rows requires it)."""
    x, cond = torch.cat(states), joined([need.cond(view.model, view.cond) for need in needs])
    parts = torch.arange(len(x), device=x.device).split(view.limit or len(x))
    out = [replace(view, cond=rows_of(cond, part)).evaluate(x[part], view.t)[Cond()] for part in parts]
    return torch.cat(out).split(len(view.x))


# transforms ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Flip:
    """Reversed along some axes: -1 mirrors left and right, -2 top and bottom."""

    axes: tuple[int, ...] = (-1,)

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(self.axes)

    inverse = __call__


@dataclass(frozen=True)
class Rotate:
    """Rotated by `turns` quarter turns in the plane of two axes; an odd number of turns needs square samples."""

    turns: int = 1
    axes: tuple[int, int] = (-2, -1)

    def __call__(self, x: Tensor) -> Tensor:
        return x.rot90(self.turns, self.axes)

    def inverse(self, x: Tensor) -> Tensor:
        return x.rot90(-self.turns, self.axes)


@dataclass(frozen=True)
class Negate:
    """Colours inverted, for samples in which 0 is grey."""

    def __call__(self, x: Tensor) -> Tensor:
        return -x

    inverse = __call__


@dataclass(frozen=True)
class Permute:
    """Pixels permuted: pixel i of the view is pixel order[i], counted over the last `axes` axes.

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
    """A jigsaw of grid x grid pieces, shuffled by a seed; the grid must divide height and width."""

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
    """The flattened state multiplied by an orthogonal matrix m."""

    m: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.m.to(x).mT).view_as(x)

    def inverse(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.m.to(x)).view_as(x)


def check_orthogonal(view: Callable, inverse: Callable, model: Model, name: str) -> None:
    """Raise unless a view is linear and orthogonal, row by row, and has this inverse; tried on random states."""
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

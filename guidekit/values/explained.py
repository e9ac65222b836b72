r"""How much of a reward's variance a value explains at each time, and how much can be explained at all.

Of rollouts x_t ... x_0 of a model with rewards r = r(x_0), a value V explains at time t

    1 - Var(r - V(x_t)) / Var(r),       at most Var(E[r | x_t]) / Var(r) = corr(r, r'),

with r' the reward of a second completion of the same x_t, drawn with noise of its own: given x_t the two are
independent, so that their covariance is the variance of E[r | x_t]. What is explained is the mean over r and r'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewards import as_reward

from ..engine.guide import Guide
from ..engine.tree import Tree
from ..engine.view import View
from ..errors import is_count
from ..models import Model
from .learned import Look, seen


class Explained(NamedTuple):
    """Of the states at time t: the share of the reward's variance that each value explains, the share that can be
    explained, and the standard error of the latter."""

    t: float
    explained: tuple[float, ...]
    possible: float
    noise: float


@dataclass(frozen=True)
class _Asked(Guide):
    """Keeps the states at some steps, and what values say of them."""

    steps: tuple[int, ...]
    values: tuple[Look, ...]

    @property
    def sees_prediction(self) -> bool:  # type: ignore[override]
        return any(getattr(value, "sees_prediction", True) for value in self.values)

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        found, states = memo or (
            view.zeros()[:, None, None].repeat(1, len(self.steps), len(self.values)),
            view.x.new_zeros(len(view.x), len(self.steps), *view.x.shape[1:]),
        )
        if view.step.index in self.steps:
            place = torch.arange(len(self.steps), device=view.x.device) == self.steps.index(view.step.index)
            said = seen(self.values, view)
            if said is not None:
                found = torch.where(place[:, None], said.detach()[:, None], found)
            states = torch.where(place[(..., *[None] * (view.x.dim() - 1))], view.x.detach()[:, None], states)
        return 0.0, (found, states)


@dataclass(frozen=True, eq=False)
class _From(Guide):
    """Begins a run at these states, those of one group after the other."""

    x: Tensor

    def begin(self, view: View, noise: Tensor) -> Tensor:
        return self.x[view.group * view.step.n + view.slot]


def explained(
    model: Model,
    reward: Any,
    *values: Look,
    n: int = 256,
    times: Sequence[float] = (0.9, 0.75, 0.5, 0.25, 0.1),
    steps: int = 50,
    cond: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> tuple[Explained, ...]:
    """What values explain of the reward to come, at the times of the grid nearest to these, over n new rollouts.

    Without values it says what there is to be explained: where that is little, no look-ahead helps, however good.
    Completions cost a run from each of the times.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    >>> value = gk.values.Tweedie(lambda x: x[:, 0])
    >>> rows = explained(base, lambda x: x[:, 0], value, n=200, times=[0.5], steps=10)
    >>> abs(rows[0].explained[0] - 0.5) < 0.2, abs(rows[0].possible - 0.5) < 0.2
    (True, True)
    """
    from ..engine.run import Run
    from ..engine.sample import sample

    if not is_count(n, 3):
        raise ValueError(f"explained(n={n!r}): an int of at least 3 rollouts is needed")
    if not times or not all(isinstance(t, (int, float)) and 0 < t <= 1 for t in times):
        raise ValueError(f"explained(times={times!r}): numbers in (0, 1] are needed, like [0.75, 0.5, 0.25]")
    as_reward(reward)
    grid = [move.t for move in Run(model, n, steps=steps, cond=cond, batch_size=batch_size).moves] + [0.0]
    asked = tuple(sorted({min(range(len(grid) - 1), key=lambda i: abs(grid[i] - t)) for t in times}))
    options: dict[str, Any] = {"cond": cond, "batch_size": batch_size, "reward": reward}
    first = sample(model, n, steps=steps, guides=[_Asked(asked, values)], seed=seed, **options)
    found, states = first.memos[0]
    rows = []
    for i, index in enumerate(asked):
        again = sample(
            model, n, steps=grid[index:], guides=[_From(states[:, i].contiguous())], seed=seed + 1 + i, **options
        )
        rows.append(_row(grid[index], found[:, i], first.rewards, again.rewards))
    return tuple(rows)


def _row(t: float, values: Tensor, first: Tensor | None, second: Tensor | None) -> Explained:
    """What is explained where both rewards and all values (n, values) are known."""
    assert first is not None and second is not None
    known = first.isfinite() & second.isfinite() & values.isfinite().all(1)
    both = torch.stack([first[known], second[known]])
    own = (both - both.mean()).square().mean()
    possible = float((both - both.mean()).prod(0).mean() / own)
    left = [both - v - (both - v).mean() for v in values[known].unbind(1)]
    shares = tuple(float(1 - error.square().mean() / own) for error in left)
    return Explained(t, shares, possible, (1 - possible**2) / max(int(known.sum()) - 1, 1) ** 0.5)

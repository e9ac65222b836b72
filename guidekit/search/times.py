r"""AutoDiffusion: the times of a run by evolution, under any metric of its samples.

A candidate is a set of steps - 1 points of a fine grid between the first time and 0. Candidates are sampled from the
same noise and judged by the metric. The first ones are the solver's own times and random sets. Each further one is with
equal chance

    a mutation    of one of the best `keep`: each of its points is exchanged with probability 1/4 for one it lacks
    a crossover   steps - 1 points that are drawn from the union of two of them

`gk.solvers.fit` needs a Gaussian model and looks at the path of each sample, with far fewer network calls. This serves
any process, solver, guide and metric: a Frechet distance to images that one has, or the negative mean of a reward.

Reference: Li et al. (2023), https://arxiv.org/abs/2309.10438, whose search also leaves out layers of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.guide import Guide
from ..engine.sample import sample
from ..models.base import Model
from ..solvers import DDPM, Solver
from .random_search import at_least

_EXCHANGED = 0.25


@dataclass(frozen=True)
class Times:
    """`times` is for `steps=` of a run; `metric` is the value there, and `own` that at the solver's own times."""

    times: tuple[float, ...]
    metric: float
    own: float


def times(
    model: Model,
    steps: int,
    metric: Callable[[Any], Any],
    *,
    solver: Solver | None = None,
    n: int = 64,
    points: int = 32,
    candidates: int = 100,
    keep: int = 10,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Times:
    """The times of so many steps whose samples have the least metric, of some candidates.

    metric       samples (as `Result.samples`) -> one number, less is better; of n samples, of each condition
    points       steps of the fine grid from which times are taken
    candidates   sets of times that are sampled; it costs about candidates * n * steps network rows
    keep         the best so far, from which the next ones are made
    solver, guides, cond, seed, batch_size   as in gk.sample; progress shows a bar

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> found = times(base, 4, lambda x: (x.var() - 2.14).abs(), solver=gk.solvers.DDIM(), n=200, candidates=20)
    >>> found.metric <= found.own
    True
    >>> gk.sample(base, 2, steps=found.times, solver=gk.solvers.DDIM()).x.shape
    torch.Size([2, 1])
    """
    from tqdm.auto import tqdm

    for name, value, least in (("steps", steps, 2), ("n", n, 1), ("candidates", candidates, 1), ("keep", keep, 2)):
        at_least(value, least, name, "times are sought for runs of several steps, by samples of several candidates")
    at_least(points, steps, "points", "the fine grid has at least as many steps as the run")
    solver, guides = DDPM() if solver is None else solver, tuple(guides)
    own = _grid(model, solver, steps)
    grid = sorted({*own, *(t for t in _grid(model, solver, points) if all(abs(t - s) > 1e-4 for s in own))})[::-1]
    if len(own) != steps + 1:
        raise ValueError(
            f"times(steps={steps}): {solver!r} makes {len(own) - 1} steps of it, so its times are no choice"
        )

    def judged(chosen: tuple[int, ...]) -> float:
        at = [grid[i] for i in (0, *chosen, len(grid) - 1)]
        run = sample(model, n, steps=at, solver=solver, guides=guides, cond=cond, seed=seed, batch_size=batch_size)
        value = float(metric(run.samples))
        if not math.isfinite(value):
            raise ValueError(
                f"times(metric=...): the metric of {len(run.x)} samples is {value}, and a number is needed"
            )
        return value

    choice = np.random.default_rng(seed)
    inner, first = np.arange(1, len(grid) - 1), tuple(grid.index(t) for t in own[1:-1])
    most = min(candidates, math.comb(len(inner), steps - 1))
    found = {first: judged(first)}
    with tqdm(total=most, initial=1, unit="candidate", dynamic_ncols=True, disable=not progress) as bar:
        while len(found) < most:
            best = sorted(found, key=lambda c: found[c])[:keep]
            child = _child(choice, best, inner, steps - 1) if len(found) >= keep else _drawn(choice, inner, steps - 1)
            if child in found:  # made again: anything else
                child = _drawn(choice, inner, steps - 1)
            if child not in found:
                found[child] = judged(child)
                bar.update()
    least = min(found, key=lambda c: found[c])
    return Times(tuple(grid[i] for i in (0, *least, len(grid) - 1)), found[least], found[first])


def _grid(model: Model, solver: Solver, steps: int) -> list[float]:
    """The times of a run, from noise to 0."""
    return [*sorted({move.t for move in model.process.moves(steps, solver)}, reverse=True), 0.0]


def _drawn(choice: np.random.Generator, points: np.ndarray, count: int) -> tuple[int, ...]:
    return tuple(sorted(choice.choice(points, count, replace=False).tolist()))


def _child(choice: np.random.Generator, best: list[tuple[int, ...]], points: np.ndarray, count: int) -> tuple[int, ...]:
    """A mutation of one of the best, or a crossover of two."""
    one, other = (best[i] for i in choice.choice(len(best), 2, replace=False))
    if choice.random() < 0.5:
        return _drawn(choice, np.union1d(one, other), count)
    kept = [i for i in one if choice.random() >= _EXCHANGED]
    new = choice.choice(np.setdiff1d(points, one), min(count - len(kept), len(points) - count), replace=False)
    rest = [i for i in one if i not in kept][: count - len(kept) - len(new)]  # where the grid has too few others
    return tuple(sorted([*kept, *rest, *new.tolist()]))

"""The fit of `gk.solvers.LSD` to a model: how uncertain its prediction is by the number of masks, and at which time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..engine.population import Population
from ..engine.run import Run
from ..errors import is_count
from ..models.base import Model
from ..models.evaluations import Cond
from ..solvers import FirstHitting
from ..solvers.lsd import LSD


def lsd(
    model: Model, n: int = 64, *, times: int = 0, cond: Any = None, seed: int = 0, batch_size: int | None = None
) -> LSD:
    """The solver `LSD` for a masked model, from n samples (of each condition) that are revealed one position at a time.

    The samples cost n rows of the network for each position, once; the fit serves every number of steps.

    times   LSD+: for each number of masks also the time at which a network that reads t is best asked, of so many even
            ones from 1/times to 1. Costs so many times n rows for each position. 0: times are drawn

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> solver = lsd(table, 200)
    >>> len(solver.entropies), solver.loss(1) > solver.loss(2)
    (2, True)
    """
    _check(model, times)
    run = Run(model, n, steps=model.shape[0], solver=FirstHitting(), cond=cond, seed=seed, batch_size=batch_size)
    with run.borrowed():
        entropies, path = _path(run)
        if not times:
            return LSD(entropies)
        grid = [(i + 1) / times for i in range(times)]
        best = [min(zip(_crossed(run, index, path, grid), grid, strict=True)) for index in range(len(entropies))]
    crossed, asked = zip(*reversed(best), strict=True)
    return LSD(entropies, asked, crossed)


def _check(model: Model, times: int) -> None:
    if getattr(model.process, "lengths", ()):
        raise ValueError("lsd: this model draws lengths, and rows have different numbers of masks: take FirstHitting()")
    if times and not is_count(times):
        raise ValueError(f"lsd(times={times!r}): how many times are tried, an int of at least 1, or 0")
    if times and not model.timed:
        raise ValueError(f"lsd(times={times}): this network does not read t, so that no time is better: leave times=0")


def _path(run: Run) -> tuple[tuple[float, ...], list[Population]]:
    """The mean entropies at a mask, for 1 mask and more, and the particles at each time, the last of them samples."""
    pop, entropies, path = run.start(), [], []
    for index in range(len(run.moves)):
        entropies.append(float(_entropy(pop.predictions[0])[_masked(run, pop)].mean()))
        path.append(replace(pop, predictions=()))  # which would be much to keep
        pop = run.advance(pop, index)
    return tuple(reversed(entropies)), [*path, pop]


def _crossed(run: Run, index: int, path: Sequence[Population], grid: Sequence[float]) -> list[float]:
    """The mean of -log p_i(x_0^i | x_t, t) over all masks i of these particles, with the network asked at t, for each t
    of the grid."""
    pop, rows = path[index], torch.arange(len(path[index]), device=path[index].x.device)
    some = rows.split(run.batch_size or len(rows))
    parts = [(replace(run.view(pop.take(r), index, seen=False), times=None), path[-1].x[r]) for r in some]
    count = int(_masked(run, pop).sum())
    return [sum(_surprise(view, x_0, t) for view, x_0 in parts) / count for t in grid]


def _surprise(view: Any, x_0: Tensor, t: float) -> float:
    log_p = view.evaluate(view.x, t)[Cond()].double().log_softmax(-1).gather(-1, x_0[..., None])[..., 0]
    return float(-log_p[view.x != x_0].sum())


def _masked(run: Run, pop: Population) -> Tensor:
    return pop.x == run.model.process.V  # type: ignore[attr-defined]


def _entropy(prediction: Tensor) -> Tensor:
    return torch.special.entr(prediction.double().softmax(-1)).sum(-1)

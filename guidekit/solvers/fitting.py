"""What all fits to a model share: noises and their conditions, the guided prediction, and the probability flow.

`gk.solvers.fit`, `compensated`, `searched` and `statistics` follow the same noises of a model, with the same options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from .. import random
from ..errors import is_count
from . import times as grids
from .times import Grid
from .unipc import UniPC

INSIDE = 12  # steps of the reference in one step of a table, where nothing is said
LAST = 12  # parts of the last step of the reference, at least: of six, the longest leave an error of their own

Predict = Callable[[Tensor, float], Tensor]


class Options(TypedDict, total=False):
    """What all fits are told of the runs that they are for: see `gk.solvers.fit`."""

    cond: Any
    guidance: float
    n: int | None
    seed: int
    batch_size: int
    progress: bool
    world: Any


class Start(NamedTuple):
    """The times, n states at the first one, the keys of their noises, (x, t) -> the guided prediction of them, and the
    processes that share its rows."""

    grid: list[float]
    x: Tensor
    keys: Tensor
    predict: Predict
    bar: Any
    world: Any


def noises(model: Any, n: int | None) -> int:
    """How many noises: 64 if nothing is said, and more where samples are small, 8192 numbers in all, up to 1024."""
    return max(64, min(1024, 8192 // max(1, math.prod(model.shape)))) if n is None else n


def check(function: str, model: Any, **counts: int) -> None:
    """Gaussian models and positive counts, before the first network call."""
    if not hasattr(getattr(model, "process", None), "schedule"):
        raise ValueError(f"{function}(model={model!r}): tables are for Gaussian processes")
    for name, value in counts.items():
        if not is_count(value):
            raise ValueError(f"{function}({name}={value!r}): an int of at least 1 is needed")


def rows(calls: int, n: int, guidance: float) -> int:
    """Network rows of so many evaluations of n states."""
    return n * calls * (1 if guidance == 1 else 2)


@contextmanager
def started(
    function: str,
    model: Any,
    steps: int | Sequence[float],
    times: str | Grid,
    calls: int,
    *,
    about: Any = None,
    cond: Any = None,
    guidance: float = 1.0,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
    world: Any = None,
) -> Iterator[Start]:
    """A context with noises of the model at the first of these times, its networks in evaluation mode, no gradients,
    and a bar for so many evaluations. Several processes have to agree on all of this, and on `about`."""
    from tqdm.auto import tqdm

    from ..engine.describe import describe, weights  # the engine knows solvers
    from ..engine.world import world_of

    n = noises(model, n)
    check(function, model, n=n)
    process = model.process
    grid = grids.make(steps, times, process.schedule, process.t_max)
    ranks = world_of(world, model.device).over(n)
    if ranks.size > 1:
        same = {"grid": grid, "guidance": guidance, "n": n, "seed": seed, "cond": repr(cond), "about": about}
        ranks.agree(same | {"function": function, "model": describe(model), "weights": weights(model.modules())})
    shown = {"unit": "row", "desc": "fit", "dynamic_ncols": True, "disable": not (progress and ranks.rank == 0)}
    with torch.no_grad(), _lent(model), tqdm(total=rows(calls, n, guidance), **shown) as bar:
        keys = random.fold(random.fold(random.key(seed, model.device), "fit"), torch.arange(n, device=model.device))
        x = process.prior(process.noise(keys, process.noise_shape(model.shape), model.dtype), grid[0])
        yield Start(grid, x, keys, _predictor(model, cond, n, guidance, batch_size, bar, ranks), bar, ranks)


def flow(process: Any, predict: Predict, x: Tensor, grid: Sequence[float], inside: int = INSIDE) -> Tensor:
    """The probability flow at the times of the grid, (times, n, size) in float64, by UniPC of order 3, with each step
    of the grid divided evenly into `inside`, and the last one, to data, ever more finely into `LAST` at least."""
    times, kept = [grid[0]], [0]
    for t, s in pairwise(grid):
        parts, power = (inside, 1) if s > 0 else (max(inside, LAST), 3)
        times += [t + (s - t) * (1 - (1 - i / parts) ** power) for i in range(1, parts + 1)]
        kept.append(len(times) - 1)
    found, history = [x.double()], (predict(x, times[0]),)
    for i, move in enumerate(UniPC(3).moves(process.schedule, times)):
        x = process.kernel(x, history, move).push(None)
        history = (predict(x, move.s), *history[:3]) if move.s > 0 else ()
        found += [x.double()] if i + 1 in kept else []
    return torch.stack(found).flatten(2)


def distance(x: Tensor, wanted: Tensor) -> float:
    """The mean squared distance of states to those of a flow."""
    return float((x.flatten(1).double() - wanted).square().mean())


def _predictor(model: Any, cond: Any, n: int, guidance: float, batch_size: int, bar: Any, world: Any) -> Predict:
    """(x, t) -> the guided prediction of n rows, which the processes share."""
    conds = cond if isinstance(cond, list) else [cond]
    group = torch.arange(n, device=model.device) * len(conds) // n
    encoded = _taken(model.encode_all(conds), group)

    def predict(x: Tensor, t: float) -> Tensor:
        parts = []
        with world.together():
            for rows in torch.arange(n, device=x.device)[world.share(n)].split(batch_size):
                own = _taken(encoded, rows)
                d = model(x[rows], t, own)
                if guidance != 1:
                    d = d + model.guided(x[rows], t, d, model(x[rows], t, model.nulled(own)), guidance)
                parts.append(d)
        bar.update(n * (1 if guidance == 1 else 2))
        return world.rows(torch.cat(parts))

    return predict


def _taken(encoded: Any, rows: Tensor) -> Any:
    """These rows of encoded conditions: a tensor, a dict of tensors, or None."""
    if isinstance(encoded, dict):
        return {k: v[rows] for k, v in encoded.items()}
    return None if encoded is None else encoded[rows]


@contextmanager
def _lent(model: Any) -> Iterator[None]:
    """A context with the model's networks in evaluation mode."""
    modules = [m for net in model.modules() for m in net.modules()]
    modes = [m.training for m in modules]
    with model.lent():
        try:
            for m in modules:
                m.training = False
            yield
        finally:
            for m, mode in zip(modules, modes, strict=True):
                m.training = mode

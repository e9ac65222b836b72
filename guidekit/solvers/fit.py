r"""Fit a solver's times and coefficients to a model: `gk.solvers.fit(model, solver, steps)`.

The reference is the probability flow in many steps: n noises are followed on a fine grid of times, by UniPC of order 3
with `inside` steps between two of them. On that grid, which has the solver's own times among its points,

    what="times"          the best path of K steps of the solver is sought by dynamic programming (Optimal Stepsize):
                          v_k(j) = the candidate from v_{k-1}(i), over i before j, with the smallest mean
                          |x - reference(j)|^2; each v_{k-1}(i) has its own network evaluation and its own memory, so
                          that errors made before are in it
    what="coefficients"   x_s = a x_t + sum_m b_m d_m by least squares on the reference at s (IIA), along the solver's
                          own times
    what="both"           the coefficients along the better of these two paths, whose times are then moved one by one,
                          by two points and by one, where that helps at the end
    what="kl"             not the path of a sample but the distribution counts: the times with the least bound of the KL
                          divergence, and the solver's rows between them, which may be stochastic (Align Your Steps; see
                          `guidekit.solvers.align_your_steps`)

Least squares knows the states that the fitted table itself has reached, so that a row also repairs what the rows
before it have done wrong, and the last row, to data, is fitted too. Its unknowns are the `order` + 1 numbers of a
row, with n times the size of a sample as many equations; a small ridge holds them near DDIM's. Dynamic programming is
greedy: a worse state at one point could have led to a better end. If it ends behind the solver's own times, those are
taken.

**Cost**: `network_rows` says how many rows it is at most; guidance doubles them. With the defaults and 8 steps these
are n 136 for coefficients, n 168 for the KL divergence and about n 500 for both. Nothing is differentiated, and what is
fitted has so few numbers that 64 images do. It serves this model, this number of steps and this strength of guidance.

References: Pei et al. (2025), Optimal Stepsize, https://arxiv.org/abs/2503.21774; Zhang et al. (2024), IIA,
https://arxiv.org/abs/2412.09298, which regresses on a fine grid of the same solver.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from . import times as grids
from .align_your_steps import aligned
from .base import Move, Point, Solver
from .ddim import posterior
from .fitting import LAST, Options, Predict, check, flow, noises, rows, started
from .replay import replayed
from .schedules import scales
from .table import Table

WHAT = ("times", "coefficients", "both", "kl")
STRIDES = (2, 1)  # by how many points of the grid a time is moved
_RIDGE = 1e-6
_MEMORY = 4  # earlier predictions that a solver may look at


class _State(NamedTuple):
    """Where a path has come to: points of the grid, rows, x, the predictions (the newest first), mean squared error."""

    path: tuple[int, ...]
    rows: tuple[Move, ...]
    x: Tensor
    history: tuple[Tensor, ...]
    error: float


class _Option(NamedTuple):
    """A row that leads a path on, and the mean squared error where it leads to."""

    state: _State
    row: Move
    error: float


@dataclass(frozen=True)
class _Fit:
    """The model at its conditions with a grid of times, and the probability flow there, (times, n, size) in float64."""

    predict: Predict
    process: Any
    solver: Solver
    order: int
    grid: tuple[float, ...]
    reference: Tensor

    def start(self, x: Tensor) -> _State:
        return self._seen(_State((0,), (), x, (), 0.0))

    def options(self, state: _State, ends: Sequence[int], fitted: bool) -> list[_Option]:
        """The rows from where a path stands to these points, with their errors: no network is called."""
        history = state.history[: self.order] if fitted else state.history
        terms = torch.stack([v.flatten().double() for v in (state.x, *history)])
        targets = self.reference[list(ends)].flatten(1)
        gram, rhs = terms @ terms.T, targets @ terms.T
        rows = [self._row(state.path, j, fitted) for j in ends]
        c = torch.zeros_like(rhs)
        for line, row in zip(c, rows, strict=True):
            line[: 1 + len(row.b)] = torch.tensor([row.a, *row.b])
        if fitted:
            ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=c.dtype, device=c.device)
            c = c + torch.linalg.solve(gram + ridge, (rhs - c @ gram).T).T
            rows = [row._replace(a=a, b=tuple(b)) for row, (a, *b) in zip(rows, c.tolist(), strict=True)]
        square = targets.square().sum(1) - 2 * (c * rhs).sum(1) + ((c @ gram) * c).sum(1)
        errors = (square / terms.shape[1]).clamp(min=0).tolist()
        return [_Option(state, row, error) for row, error in zip(rows, errors, strict=True)]

    def taken(self, option: _Option, j: int) -> _State:
        """The state to which a row leads, with the prediction there."""
        state, row, error = option
        kernel = self.process.kernel(state.x, state.history, row)
        x = kernel.push(None)
        history = state.history[:_MEMORY] if row.keep is None else kernel.history
        return self._seen(_State((*state.path, j), (*state.rows, row), x, history, error))

    def walked(self, states: Sequence[_State], path: Sequence[int], fitted: bool) -> list[_State]:
        """The states along a path, of which the first ones are known."""
        found = list(states)
        for j in path[len(found) :]:
            found.append(self.taken(self.options(found[-1], [j], fitted)[0], j))
        return found

    def climbed(self, states: list[_State]) -> list[_State]:
        """The states along a path with fitted rows, after points of it have been moved where that helps at the end."""
        for stride, m in product(STRIDES, range(1, len(states) - 1)):
            for j in (states[m].path[-1] - stride, states[m].path[-1] + stride):
                path = [*states[-1].path[:m], j, *states[-1].path[m + 1 :]]
                if path[m - 1] < j < path[m + 1]:
                    tried = self.walked(states[:m], path, True)
                    states = min(states, tried, key=lambda s: s[-1].error)
        return states

    def found(self, own: Sequence[int], start: _State, what: str) -> _State:
        """The end of the path that is fitted; `own` is the solver's."""
        paths = [own] if what == "coefficients" else [own, self.best(start, len(own) - 1)]
        walks = [self.walked([start], path, what != "times") for path in paths]
        states = min(walks, key=lambda states: states[-1].error)
        return (self.climbed(states) if what == "both" else states)[-1]

    def best(self, start: _State, steps: int) -> tuple[int, ...]:
        """The path of so many steps of the solver that dynamic programming finds."""
        last, known = len(self.grid) - 1, {0: start}
        for k in range(1, steps + 1):
            ends = [last] if k == steps else list(range(k, last - (steps - k) + 1))
            found: dict[int, _Option] = {}
            for i, state in known.items():
                behind = [j for j in ends if j > i]
                for j, option in zip(behind, self.options(state, behind, False) if behind else [], strict=True):
                    if j not in found or option.error < found[j].error:
                        found[j] = option
            if k == steps:
                break
            known = {j: self.taken(option, j) for j, option in found.items()}
        return (*found[last].state.path, last)

    def _row(self, path: tuple[int, ...], j: int, fitted: bool) -> Move:
        """The solver's row from the end of a path to point j, or DDIM's where it is to be fitted."""
        times = [self.grid[i] for i in (*path, j)]
        if not fitted:
            return self.solver.moves(self.process.schedule, times)[-1]
        t, s = (Point(v, *scales(self.process.schedule, v)) for v in times[-2:])
        return posterior(t, s, 0.0)

    def _seen(self, state: _State) -> _State:
        t = self.grid[state.path[-1]]
        return state._replace(history=(self.predict(state.x, t), *state.history)) if t > 0 else state


def network_rows(steps: int, what: str, n: int, points: int, inside: int, guidance: float = 1.0) -> int:
    """For how many rows the network is evaluated, at most, in a fit on a grid of so many steps, which are those of the
    table where only coefficients are fitted."""
    calls = inside * (points - 1) + max(inside, LAST) + 1
    if what in ("coefficients", "kl"):
        calls += steps - 1 if what == "coefficients" else points - 1
    else:
        calls += (steps - 1) * (points - steps + 1) + 2 * (steps - 1)
    if what == "both":
        calls += len(STRIDES) * steps * (steps - 1)
    return rows(calls, n, guidance)


def fit(
    model: Any,
    solver: Solver,
    steps: int,
    what: str = "both",
    *,
    cond: Any = None,
    guidance: float = 1.0,
    n: int | None = None,
    points: int = 32,
    inside: int = 4,
    order: int = 4,
    low: float = 0.03,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    world: Any = None,
) -> Table:
    """A table of so many steps that comes nearest to this model's probability flow.

    solver      with one evaluation per step, and deterministic but for "kl": its rows where only times are fitted, its
                grid otherwise
    what        "times", "coefficients", "both" or "kl"
    cond        one condition, or a list, each of which gets the same share of the noises
    guidance    the scale of classifier-free guidance in the runs that the table is for; 1 is none
    n           noises; by default 64, and more where samples are small: 8192 numbers in all, up to 1024 noises
    points      of the fine grid, and levels at which "kl" measures; inside, steps of the reference between two of them
    order       predictions in a fitted row
    low         of "kl": the noise sigma/alpha, in units of the data, down to which the divergence counts
    progress    shows a bar, of as many network rows as the fit takes
    checkpoint  a file in which all predictions are kept until the fit is done (`n` states for each network call): the
                same call goes on from there, to the same table
    world       as in `gk.sample`: several processes share the rows of every network call, each makes the same table of
                them, and the first writes the checkpoint

    The module says how it is done, and `network_rows` how many network rows it takes.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> fitted = fit(base, gk.solvers.DPMpp(), steps=6)
    >>> fitted.about["error"] < 0.02
    True
    """
    n = noises(model, n)
    _check(model, solver, steps, what, {"n": n, "points": points, "inside": inside, "order": order})
    _check_divergence(what, low, guidance)
    process = model.process
    own = grids.make(steps, solver.times, process.schedule, process.t_max)
    grid = _grid(process, solver, own, what, points)
    inside = max(1, round(inside * points / (len(grid) - 1)))
    calls = network_rows(steps, what, 1, len(grid) - 1, inside)
    about = {"what": what, "solver": repr(solver), "guidance": guidance}
    options: Options = {
        "cond": cond, "guidance": guidance, "n": n, "seed": seed, "batch_size": batch_size, "progress": progress,
        "world": world,
    }  # fmt: skip
    whole = {"steps": steps, "n": n, "inside": inside, "order": order, "low": low, "seed": seed, "cond": repr(cond)}
    with (
        started("fit", model, grid, "uniform", calls, about=about | whole, **options) as (
            _,
            x,
            keys,
            asked,
            bar,
            ranks,
        ),
        replayed(asked, checkpoint, about | whole | {"grid": grid}, bar, ranks) as predict,
    ):
        reference = flow(process, predict, x, grid, inside)
        if what == "kl":
            losses = _losses(process, predict, reference[-1].to(x).view(x.shape), keys, grid)
            return _aligned(process, solver, steps, grid, losses, low, about)
        found = _Fit(predict, process, solver, order, grid, reference)
        end = found.found([grid.index(t) for t in own], found.start(x), what)
    levels = tuple(scales(process.schedule, grid[i]) for i in end.path)
    return Table(end.rows, levels, about | {"error": end.error**0.5})


def _grid(process: Any, solver: Solver, own: Sequence[float], what: str, points: int) -> tuple[float, ...]:
    """The times of the reference: the solver's own, and with them a fine grid where times are sought."""
    if what in ("coefficients", "kl"):
        return tuple(own if what == "coefficients" else grids.log_snr(process.schedule, points, process.t_max))
    fine = grids.make(points, solver.times, process.schedule, process.t_max)
    return tuple(sorted({*own, *(t for t in fine if all(abs(t - s) > 1e-4 for s in own))}, reverse=True))


def _aligned(
    process: Any, solver: Solver, steps: int, grid: Sequence[float], losses: Sequence[float], low: float, about: dict
) -> Table:
    """The solver's rows between the times of the least divergence."""
    levels = [scales(process.schedule, t) for t in grid[:-1]]
    found = aligned([s / a if a else math.inf for a, s in levels], losses, steps, low)
    times = [grid[0], *(grids.time_of(process.schedule, r, process.t_max) for r in found[1:]), 0.0]
    rows = tuple(solver.moves(process.schedule, times))
    return Table(rows, tuple(scales(process.schedule, t) for t in times), about | {"low": low})


def _losses(process: Any, predict: Predict, x: Tensor, keys: Tensor, grid: Sequence[float]) -> list[float]:
    """E|x_0 - d|^2 at the times of the grid but the last, with one noise for all times of a sample."""
    noise = process.noise(random.fold(keys, "kl"), tuple(x.shape[1:]), x.dtype)
    found = []
    for t in grid[:-1]:
        d = predict(process.noised(x, noise, t), t)
        found.append(float((d - x).double().flatten(1).square().sum(1).mean()))
    return found


def _check(model: Any, solver: Solver, steps: int, what: str, counts: dict[str, int]) -> None:
    check("fit", model, steps=steps, **counts)
    if what not in WHAT:
        raise ValueError(f"fit(what={what!r}): there is {', '.join(map(repr, WHAT))}")
    if not isinstance(solver, Solver) or (solver.stochastic and what != "kl"):
        raise ValueError(
            f"fit(solver={solver!r}): a deterministic solver is needed, like gk.solvers.DPMpp(); for a stochastic one "
            'what="kl" finds times'
        )
    if what != "coefficients" and counts["points"] < steps:
        raise ValueError(f"fit(points={counts['points']}, steps={steps}): the fine grid has fewer steps than the table")
    if what in ("times", "kl") and len(solver.moves(model.process.schedule, [model.process.t_max, 0.5, 0.2, 0.0])) != 3:
        raise ValueError(f"fit(solver={solver!r}): times are fitted for solvers with one evaluation per step")


def _check_divergence(what: str, low: float, guidance: float) -> None:
    if what == "kl" and guidance != 1:
        raise ValueError(
            f"fit(what='kl', guidance={guidance}): under guidance a prediction is no denoiser, whose loss the bound of "
            "the divergence needs: fit with guidance=1; its times serve guided runs too"
        )
    if not 0 < low < math.inf:
        raise ValueError(f"fit(low={low!r}): a level of noise above 0 is needed, at which the divergence is finite")

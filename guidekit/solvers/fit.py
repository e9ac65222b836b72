r"""Fit a solver's times and coefficients to a model: `gk.solvers.fit(model, solver, steps)`.

The reference is the probability flow in many steps: n noises are followed on a fine grid of times, by UniPC of order 3
with `inside` steps between two of them. Then the best path of K steps over the points of that grid is sought by dynamic
programming (Optimal Stepsize): with v_k(j) the best state at point j that k steps lead to,

    v_k(j) = the candidate from v_{k-1}(i), over i before j, with the smallest mean |x - reference(j)|^2,

where each v_{k-1}(i) has its own network evaluation and its own memory, so that errors made before are in it. A
candidate is made by a row, which is

    what="times"          the solver's own row from i to j
    what="coefficients"   x_s = a x_t + sum_m b_m d_m by least squares on the reference at s (IIA), along the solver's
                          own times: there is one path
    what="both"           that least squares for all pairs of points

Least squares knows the states that the fitted table itself has reached, so that a row also repairs what the rows before
it have done wrong, and the last row, to data, is fitted too. Its unknowns are the `order` + 1 numbers of a row, with
n times the size of a sample as many equations; a small ridge holds them near the solver's own row, or near DDIM's.

**Cost**: inside x points calls of the network on n rows for the reference, steps more for coefficients, and 1 +
(steps - 1)(points - steps + 1) more for times or both; guidance doubles the rows. Nothing is differentiated, and what
is fitted has so few numbers that 64 noises do. It serves this model, this number of steps and this strength of
guidance. The path is a greedy optimum: a worse state at one point could have led to a better end.

References: Pei et al. (2025), Optimal Stepsize, https://arxiv.org/abs/2503.21774; Zhang et al. (2024), IIA,
https://arxiv.org/abs/2412.09298, which regresses on a fine grid of the same solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from ..errors import is_count
from . import times as grids
from .base import Move, Point, Solver
from .ddim import posterior
from .schedules import scales
from .table import Table
from .unipc import UniPC

WHAT = ("times", "coefficients", "both")
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

    predict: Callable[[Tensor, float], Tensor]
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

    def along(self, x: Tensor, path: Sequence[int]) -> _State:
        """The end of a given path, with fitted rows."""
        state = self.start(x)
        for j in path[1:]:
            state = self.taken(self.options(state, [j], True)[0], j)
        return state

    def best(self, x: Tensor, steps: int, fitted: bool) -> _State:
        """The end of the best path of so many steps."""
        last, known = len(self.grid) - 1, {0: self.start(x)}
        for k in range(1, steps + 1):
            ends = [last] if k == steps else list(range(k, last - (steps - k) + 1))
            found: dict[int, _Option] = {}
            for i, state in known.items():
                behind = [j for j in ends if j > i]
                for j, option in zip(behind, self.options(state, behind, fitted) if behind else [], strict=True):
                    if j not in found or option.error < found[j].error:
                        found[j] = option
            known = {j: self.taken(option, j) for j, option in found.items()}
        return known[last]

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


def network_rows(steps: int, what: str, n: int, points: int, inside: int, guidance: float) -> int:
    """How many rows the network is evaluated for in a fit."""
    if what == "coefficients":
        calls = inside * points + steps
    else:
        calls = inside * points + 1 + (steps - 1) * (points - steps + 1)
    return n * calls * (1 if guidance == 1 else 2)


def fit(
    model: Any,
    solver: Solver,
    steps: int,
    what: str = "both",
    *,
    cond: Any = None,
    guidance: float = 1.0,
    n: int = 64,
    points: int = 32,
    inside: int = 4,
    order: int = 4,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = False,
) -> Table:
    """A table of so many steps that comes nearest to this model's probability flow.

    solver      deterministic, with one evaluation per step: its rows where only times are fitted, its grid otherwise
    what        "times", "coefficients" or "both"
    cond        one condition, or a list, each of which gets the same share of the noises
    guidance    the scale of classifier-free guidance in the runs that the table is for; 1 is none
    n           noises; points, of the fine grid; inside, steps of the reference between two of them
    order       predictions in a fitted row
    progress    shows a bar, of as many network rows as the fit takes

    The module's page has the method and its cost: 26,000 network rows with these defaults and 8 steps, and 8,700 for
    coefficients alone.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> fitted = fit(base, gk.solvers.DPMpp(), steps=6, n=32)
    >>> fitted.about["error"] < 0.02
    True
    """
    _check(model, solver, steps, what, {"n": n, "points": points, "inside": inside, "order": order})
    process = model.process
    fine = tuple(grids.make(points, solver.times, process.schedule, process.t_max))
    own = tuple(grids.make(steps, solver.times, process.schedule, process.t_max))
    total = network_rows(steps, what, n, points, inside, guidance)
    with torch.no_grad(), _lent(model), _bar(total, progress) as bar:
        predict = _predictor(model, cond, n, guidance, batch_size, bar)
        keys = random.fold(random.fold(random.key(seed, model.device), "fit"), torch.arange(n, device=model.device))
        noise = process.noise(keys, process.noise_shape(model.shape), model.dtype)
        x, grid = process.prior(noise, fine[0]), own if what == "coefficients" else fine
        reference = _reference(process, predict, x, grid, inside * points)
        found = _Fit(predict, process, solver, order, grid, reference)
        end = found.along(x, range(steps + 1)) if what == "coefficients" else found.best(x, steps, what == "both")
    about = {"what": what, "solver": repr(solver), "guidance": guidance, "error": end.error**0.5}
    return Table(end.rows, tuple(scales(process.schedule, grid[i]) for i in end.path), about)


def _reference(process: Any, predict: Callable, x: Tensor, grid: Sequence[float], steps: int) -> Tensor:
    """The probability flow at the times of the grid, in about so many steps: UniPC of order 3, each step of the grid
    divided evenly, (times, n, size) in float64. The last step, to data, is divided in halves."""
    inside = max(1, round(steps / (len(grid) - 1)))
    times = [grid[0]]
    for t, s in pairwise(grid):
        shares = [i / inside for i in range(1, inside + 1)] if s > 0 else [1 - 0.5**i for i in range(1, inside)] + [1]
        times += [t + (s - t) * share for share in shares]
    found, history = [x.double()], (predict(x, times[0]),)
    for i, move in enumerate(UniPC(3).moves(process.schedule, times)):
        x = process.kernel(x, history, move).push(None)
        history = (predict(x, move.s), *history[:3]) if move.s > 0 else ()
        found += [x.double()] if (i + 1) % inside == 0 else []
    return torch.stack(found).flatten(2)


def _predictor(model: Any, cond: Any, n: int, guidance: float, batch_size: int, bar: Any) -> Callable:
    """(x, t) -> the guided prediction of n rows."""
    conds = cond if isinstance(cond, list) else [cond]
    group = torch.arange(n, device=model.device) * len(conds) // n
    encoded = _taken(model.encode_all(conds), group)

    def predict(x: Tensor, t: float) -> Tensor:
        parts = []
        for rows in torch.arange(n, device=x.device).split(batch_size):
            own = _taken(encoded, rows)
            d = model(x[rows], t, own)
            if guidance != 1:
                d = d + model.guided(x[rows], t, d, model(x[rows], t, model.nulled(own)), guidance)
            parts.append(d)
            bar.update(len(rows) * (1 if guidance == 1 else 2))
        return torch.cat(parts)

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


def _bar(total: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="row", desc="fit", dynamic_ncols=True, disable=not shown)


def _check(model: Any, solver: Solver, steps: int, what: str, counts: dict[str, int]) -> None:
    if not hasattr(getattr(model, "process", None), "schedule"):
        raise ValueError(f"fit(model={model!r}): tables are for Gaussian processes")
    if what not in WHAT:
        raise ValueError(f"fit(what={what!r}): there is {', '.join(map(repr, WHAT))}")
    for name, value in {"steps": steps, **counts}.items():
        if not is_count(value):
            raise ValueError(f"fit({name}={value!r}): an int of at least 1 is needed")
    if not isinstance(solver, Solver) or solver.stochastic:
        raise ValueError(f"fit(solver={solver!r}): a deterministic solver is needed, like gk.solvers.DPMpp()")
    if what != "coefficients" and counts["points"] < steps:
        raise ValueError(f"fit(points={counts['points']}, steps={steps}): the fine grid has fewer steps than the table")
    if what == "times" and len(solver.moves(model.process.schedule, [model.process.t_max, 0.5, 0.2, 0.0])) != 3:
        raise ValueError(f"fit(solver={solver!r}): times are fitted for solvers with one evaluation per step")

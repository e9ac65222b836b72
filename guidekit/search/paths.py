r"""Search over paths (Ma et al., 2025, https://arxiv.org/abs/2501.09732): branch while sampling, look ahead, select.

    level 0:  width * branch candidates per sample;      level l:  the best `width`, each with `branch` continuations.

The candidates of a level run to the next branching point and `ahead` moves further, where they are ranked by the reward
of their clean estimate (at the end, of the sample itself); the survivors return to the branching point. The first
continuation keeps its parent's noise, the others draw new noise. So width 1 without branching is plain sampling, and a
schedule like width=(16, 8, 4, 2), branch=1 is successive halving of 16 candidates.

A deterministic solver draws no noise along the way. The path is then first noised again by `back` steps of the forward
process, as in the paper (its Delta_f), and denoised (its Delta_b, which is back + the steps to the next point + ahead).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.population import Population
from ..engine.run import Run
from ..models.base import Model
from .budget import Budget
from .core import Found, Options, Search, _times
from .random_search import at_least

if TYPE_CHECKING:
    from typing_extensions import Unpack


def paths(
    model: Model,
    n: int,
    reward: Any,
    *,
    levels: int = 4,
    width: int | Sequence[int] = 2,
    branch: int | Sequence[int] = 4,
    ahead: int = 0,
    back: int | None = None,
    **options: Unpack[Options],
) -> Found:
    """Search over the paths of each of n samples. With steps=result.times and its noise, gk.sample reproduces them.

    levels   number of branching points, including the start, spread evenly over the moves
    width    candidates that survive a level, or one number per level
    branch   continuations of each candidate, or one number per level
    ahead    moves beyond the next branching point before candidates are scored
    back     steps of renoising at each branching point; None is 0 for a stochastic sampler, otherwise half a level

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = gk.search.paths(base, 3, lambda x: x[:, 0], steps=12)
    >>> bool((gk.sample(base, 3, steps=found.times, noise=found.noise).x == found.x).all())
    True
    """
    at_least(levels, 1, "levels", "branching points")
    at_least(ahead, 0, "ahead", "moves beyond the next level")
    plan = _schedule(width, levels, "width"), _schedule(branch, levels, "branch")
    budget = options.get("budget") or Budget(rounds=levels)
    if budget.rounds not in (None, levels) or budget.seconds is not None or budget.target is not None:
        raise ValueError(f"{budget}: a path ends at its last level; give rows, calls or other levels")
    points, given = _points(model, n, levels, back, options)
    setting = {"levels": levels, "width": plan[0], "branch": plan[1], "ahead": ahead, "back": back}
    search = Search(model, n, reward, given, "search.paths", setting)
    search.open(replace(budget, rounds=levels))
    ends = [min(p + ahead, len(search.run.moves)) for p in (*points[1:], len(search.run.moves))]
    with search.bar:
        _Levels(search, points, ends, *plan).go()
    search.ended = "a path ends at its last level"
    _check_spent(search, budget)
    return search.finish()


def _check_spent(search: Search, budget: Budget) -> None:
    """Warn if less than half of a budget could be used."""
    cost, last = search.cost, search.space.cells * search.per_row
    spent = {"rows": cost.network_rows + last, "calls": cost.reward_calls}
    left = {k: f"{v} of {k}={most}" for k, v in spent.items() if (most := getattr(budget, k)) is not None}
    if left and all(2 * v <= getattr(budget, k) for k, v in spent.items() if k in left):
        warnings.warn(
            f"search.paths has taken {' and '.join(left.values())}: a path ends at its last level. A larger width, "
            "branch or number of levels uses more",
            stacklevel=3,
        )


@dataclass
class _Levels:
    search: Search
    points: list[int]  # number of moves before each branching point
    ends: list[int]  # number of moves before its candidates are scored
    width: list[int]
    branch: list[int]

    def go(self) -> None:
        """Run all levels. A resumed search samples them again and uses the known scores."""
        z, parents, kept, space = None, None, None, self.search.space
        self.search.fits(*self._cost(), space.cells * self.search.per_row)
        for level, end in enumerate(self.ends):
            k = self.width[level] * self.branch[level]
            z = space.draw(range(k)) if z is None else self._children(z, level)
            kept, x = self._run(z, level, kept, parents)
            last = end == len(self.search.run.moves)
            scores, samples = self.search.known(), None
            if scores is None:
                scores, samples = self.search.scored(x, k)
            worth = self.search.told(z, scores, space.by_cell(x), samples, final=last)
            if level + 1 < len(self.points):
                parents = worth.sort(dim=1, descending=True, stable=True).indices[:, : self.width[level + 1]]
                z = z.gather(1, parents.view(*parents.shape, *[1] * len(space.shape)).expand(-1, -1, *space.shape))

    def _cost(self) -> tuple[int, int]:
        """An upper bound of the network rows and reward calls of all levels."""
        search, sizes = self.search, [w * b for w, b in zip(self.width, self.branch, strict=True)]
        rows = sum(k * self._rows(level) for level, k in enumerate(sizes))
        return search.space.cells * rows, search.space.cells * sum(sizes) * len(search.verifier.rewards)

    def _rows(self, level: int) -> int:
        """Network rows of one candidate on this level."""
        first, end = self.points[level], self.ends[level]
        return sum(self.search.looks[first + (first > 0) : end + 1])

    def _children(self, z: Tensor, level: int) -> Tensor:
        """Continuations of the survivors (cells, width, ...), the first with its parent's noise."""
        branch, drawn = self.branch[level], sum(w * b for w, b in zip(self.width[:level], self.branch, strict=False))
        z = z.repeat_interleave(branch, 1)
        new = self.search.space.draw(range(drawn, drawn + z.shape[1]))
        new[:, ::branch] = z[:, ::branch]
        return torch.cat([z[:, :, : self.points[level] + 1], new[:, :, self.points[level] + 1 :]], 2)

    def _run(self, z: Tensor, level: int, kept: Population | None, parents: Tensor | None) -> tuple[Any, Tensor]:
        """Run on until candidates are scored: the population at the next branching point, and the clean estimates."""
        space, run = self.search.space, self.search.runs(z.shape[1], self.search.space.rows(z))
        following = (*self.points, len(run.moves))[level + 1]
        with run.borrowed():
            pop = run.start() if kept is None or parents is None else self._branched(run, kept, parents, level)
            for index in range(self.points[level], self.ends[level]):
                pop = run.advance(pop, index)
                kept = run.world.whole(pop) if index + 1 == following else kept
            run.settle()
            done = self.ends[level] == len(run.moves)
            x = run.world.rows(pop.x if done else space.process.clean(pop.seen, pop.x))
            self.search.spent(run, len(x) * self._rows(level), self.search.cost)
            return kept, x

    def _branched(self, run: Run, kept: Population, parents: Tensor, level: int) -> Population:
        """The survivors at the branching point, copied once per continuation, at their new addresses; those of this
        process."""
        space, mine = self.search.space, run.share(0)
        born = run.born(mine)
        rows = space.by_cell(torch.arange(len(kept), device=kept.x.device)).gather(1, parents)
        rows = rows.repeat_interleave(self.branch[level], 1).unflatten(0, (space.groups, space.n)).transpose(1, 2)
        new = {name: getattr(born, name) for name in ("group", "slot", "parent", "root", "groups")}
        return replace(kept.take(rows.flatten()[mine]), **new)


def _points(model: Model, n: int, levels: int, back: int | None, options: Options) -> tuple[list[int], Options]:
    """Moves before each branching point, and the options with the times of the paths."""
    given: dict[str, Any] = {k: v for k, v in options.items() if k in ("steps", "solver", "guides", "cond", "seed")}
    run = Run(model, n, **given)
    grid = _times(run)
    draws = all(map(model.process.draws, run.moves[:-1]))
    steps = len(grid) - 1
    if levels > steps:
        raise ValueError(f"levels={levels}: there are {steps} steps to branch at")
    back = (0 if draws else max(1, steps // levels // 2)) if back is None else back
    at_least(back, 0 if draws else 1, "back", "steps up at each branching point of this solver")
    places = [steps * level // levels for level in range(levels)]
    if back == 0:
        return places, {**options, "over": "chain"}
    times = grid[: places[1] + 1] if levels > 1 else grid
    for place, end in zip(places[1:], (*places[2:], steps), strict=True):
        times = [*times, *grid[max(place - back, 0) : end + 1]]
    moves = model.moves(times, options.get("solver"))
    ups = [i for i, move in enumerate(moves) if move.s > move.t]
    return [0, *ups], {**options, "steps": times, "over": "chain"}


def _schedule(value: int | Sequence[int], levels: int, name: str) -> list[int]:
    """One number for each level."""
    listed = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(listed) != levels:
        raise ValueError(f"{name}={value!r}: one number, or one for each of the {levels} levels")
    for v in listed:
        at_least(v, 1, name, "for each level")
    return listed

"""gk.sample: one loop for every model, guide and solver.

A guided sampler is a proposal, a twist and a selection. The loop below moves a population through the solver's table;
what happens in a step is in `guidekit.engine.run`, and what a method does in its file in `guidekit.guides`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import random
from ..errors import CollapseWarning
from ..models.base import Model
from ..solvers import Solver
from .checkpoint import Checkpoint
from .elsewhere import translated
from .guide import Guide
from .islands import Islands
from .population import Population
from .progress import Bar
from .result import Result
from .run import Run
from .strength import Auto, settled, unset
from .unique import distinct
from .view import Step

Callback = Callable[[Population, Step], Any]


@translated
def sample(
    model: Model,
    n: int,
    *,
    steps: int | Sequence[float] = 50,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    reward: Any = None,
    solver: Solver | None = None,
    noise: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    progress: bool = False,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    holdout: Any = None,
    islands: Islands | None = None,
    world: Any = None,
    unique: bool = False,
    compile: bool | str | Callable = False,
) -> Result:
    """Draw n samples from a base model for every condition, steered by the guides.

    model        a base model
    n            samples per condition
    steps        number of steps, or the times themselves (in [0, 1], the last 0; they may go up again). A run always
                 starts from sigma times noise, so a first time below 1 leaves out the share of the data there
    guides       any guides, in one list
    cond         None, one condition, or a list of conditions: groups of n particles, each a population of its own
    reward       scores the final samples for the record; guides bring their own
    solver       of a Gaussian process; None is DDPM(), ancestral sampling, with guides and without
    noise        the starting noise (groups*n, *shape), or that of the whole chain (moves + 1, groups*n, *shape); of
                 solvers.BELM() also both parts of the starting noise (2, groups*n, *shape), as gk.invert finds them
    seed         an int, so that every group has the same noise and equals a run of its own; or one int per group
    batch_size   most rows in one forward of the network; memory grows with the population's own state only
    progress     show a bar
    callbacks    functions (population, step), called after every step. With any, rows of tokens are evaluated where
                 nothing but a callback can read the prediction, too
    checkpoint   a file: written as the run goes on; the same call then continues it, to the same bytes
    holdout      a second reward that takes no part and scores the final samples, to see whether the first was gamed;
                 see `Result.holdout` and `Result.summary`
    islands      gk.Islands(count, every): selections within each of so many parts of a population, and over all of it
                 every few steps only; log Z is unbiased as before
    world        one population over several processes: "auto" for all ranks of an initialised torch.distributed, or a
                 process group. Every rank makes this call with the same arguments and gets the whole result; None is
                 this process
    unique       samples that differ: copies are merged with their weights, and the run is made again with other noise
                 until there are n of them; see `guidekit.engine.unique`

    compile      have torch.compile make the networks of the models fast: True, or a backend, its name or a function. It
                 takes a while, once for the whole grid, and changes rounding; see `guidekit.models.compiled`

    Where a guide has `alpha="auto"`, or a budget, pilot runs find it first; `Result.strength` says it.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=0.5)
    >>> result = gk.sample(base, 64, steps=20, guides=[steering])
    >>> bool((result.weights * result.x[:, 0]).sum() > 2)
    True
    """
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks={callbacks!r}: a list of functions (population, step) is needed")
    whole: dict[str, Any] = {
        "steps": steps, "cond": cond, "reward": reward, "solver": solver, "noise": noise, "seed": seed,
        "batch_size": batch_size, "holdout": holdout, "islands": islands, "world": world, "compile": compile,
    }  # fmt: skip
    run = Run(model, n, guides=guides, **whole)
    if unique and noise is not None:
        raise ValueError("unique=True makes further runs from other noise, and noise= is given: leave one of them out")

    further = _Further(model, whole, run.keys, progress, checkpoint)
    found, strength = run.guides, None
    if unset(found):
        found, strength = settled(found, further.pilot)
        run = Run(model, n, guides=found, **whole)
    result = _result(run, progress, callbacks, checkpoint)
    if unique:
        result = distinct(result, lambda number: further.run("unique", number, n, guides=found), run.keys)
    if strength is None:
        return result
    return replace(result, cost=result.cost + strength.cost, config=result.config | {"strength": strength.described()})


@dataclass(frozen=True)
class _Further:
    """Runs like the first, which had these keys, from other noise: pilots, and runs for samples in place of copies."""

    model: Model
    given: dict[str, Any]
    keys: Tensor
    progress: bool
    checkpoint: str | Path | None

    def run(self, what: str, number: int, n: int, **changed: Any) -> Result:
        seeds = [int(key) for key in random.fold(random.fold(self.keys, what), number)]
        run = Run(self.model, n, **self.given | {"noise": None, "seed": seeds} | changed)
        return _result(run, self.progress, (), f"{self.checkpoint}.{what}{number}" if self.checkpoint else None)

    def pilot(self, guides: Sequence[Guide], reward: Any, auto: Auto, stage: int) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            return self.run("pilot", stage, auto.n, guides=guides, reward=reward, holdout=auto.until, islands=None)


def _result(
    run: Run, progress: bool, callbacks: Sequence[Callback] = (), checkpoint: str | Path | None = None
) -> Result:
    """The result of one run."""
    run.watched = bool(callbacks)
    with run.borrowed(), Bar(run, progress) as bar:
        return run.result(_loop(run, bar, callbacks, Checkpoint(checkpoint, run) if checkpoint else None))


def _show(run: Run, pop: Population, done: int, callbacks: Sequence[Callback]) -> None:
    """Call them with the whole population."""
    seen = run.world.whole(pop)
    with run.world.together():
        for callback in callbacks:
            callback(seen, run.step(done))


def _loop(run: Run, bar: Bar, callbacks: Sequence[Callback], file: Checkpoint | None) -> Population:
    """branch -> move -> look -> select, for every move of the table."""
    pop, done = file.load() if file else (None, 0)
    pop = run.start() if pop is None else pop
    try:
        for index in range(done, len(run.moves)):
            pop, done = run.advance(pop, index), index + 1
            if callbacks:
                _show(run, pop, done, callbacks)
            bar.update(done)
            if file:
                file.save(pop, done, force=done == len(run.moves))
    except BaseException:
        if file and done and run.world.size == 1:  # other ranks may be elsewhere
            file.save(pop, done, force=True)
        raise
    return pop

"""gk.sample: one loop for every model, guide and solver.

A guided sampler is a proposal, a twist and a selection. The loop below moves a population through the solver's table;
what happens in a step is in `guidekit.run`, and what a method does in its file in `guidekit.guides`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint, describe_run
from .errors import CollapseWarning, RewardError
from .guides.base import Guide
from .models.base import Model
from .population import Population, effective_size
from .progress import Bar
from .result import Result, Trace
from .run import Run
from .solvers import Solver
from .view import Step

Callback = Callable[[Population, Step], Any]


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
) -> Result:
    """Draw n samples from a base model for every condition, steered by the guides.

    model        a base model
    n            samples per condition
    steps        number of steps, or the times themselves (in [0, 1], the last 0; they may go up again)
    guides       any guides, in one list
    cond         None, one condition, or a list of conditions: groups of n particles, each a population of its own
    reward       scores the final samples for the record; guides bring their own
    solver       of a Gaussian process; None is DDPM(), ancestral sampling, with guides and without
    noise        the starting noise (groups*n, *shape), or that of the whole chain (moves + 1, groups*n, *shape)
    seed         an int, so that every group has the same noise and equals a run of its own; or one int per group
    batch_size   most rows in one forward of the network; memory grows with the population's own state only
    progress     show a bar
    callbacks    functions (population, step), called after every step
    checkpoint   a file: written as the run goes on; the same call then continues it, to the same bytes

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=0.5)
    >>> result = gk.sample(base, 64, steps=20, guides=[steering])
    >>> bool((result.weights * result.x[:, 0]).sum() > 2)
    True
    """
    run = Run(
        model,
        n,
        steps=steps,
        guides=guides,
        cond=cond,
        reward=reward,
        solver=solver,
        noise=noise,
        seed=seed,
        batch_size=batch_size,
    )
    with torch.no_grad(), run.borrowed(), Bar(run, progress) as bar:
        return finish(run, _loop(run, bar, callbacks, Checkpoint(checkpoint, run) if checkpoint else None))


def _loop(run: Run, bar: Bar, callbacks: Sequence[Callback], file: Checkpoint | None) -> Population:
    """branch -> move -> look -> select, for every move of the table."""
    pop, done = file.load() if file else (None, 0)
    pop = run.start() if pop is None else pop
    try:
        for index in range(done, len(run.moves)):
            pop, done = run.advance(pop, index), index + 1
            for callback in callbacks:
                callback(pop, run.step(done))
            bar.update(pop, done)
            if file:
                file.save(pop, done, force=done == len(run.moves))
    except BaseException:
        if file and done:
            file.save(pop, done, force=True)
        raise
    return pop


def finish(run: Run, pop: Population) -> Result:
    """The result of a run from its last population."""
    run.settle()
    samples = decoded(run, pop.x)
    rewards = pop.rewards if run.judge is not None else None
    if run.reward is not None and run.reward is not run.judge:
        rewards = run.score(run.reward, samples)
        run.settle()
    run.cost.seconds = run.seconds
    result = Result(
        x=pop.x,
        samples=samples,
        rewards=rewards,
        group=pop.group,
        log_weights=pop.log_w,
        ancestors=_ancestors(run),
        trace=trace(run),
        cost=run.cost,
        row=torch.arange(len(pop), device=pop.x.device),
        noise=run.start_noise(pop.root),
        config=describe_run(run),
    )
    _check(run, result)
    return result


def decoded(run: Run, x: Tensor) -> Any:
    """Decode in micro-batches."""
    parts = [run.model.decode(part) for part in x.split(run.batch_size or len(x))]
    if isinstance(parts[0], Tensor):
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    return [sample for part in parts for sample in part]


def trace(run: Run) -> Trace:
    """The records of a run as plain rows. Only here the device is waited for."""
    rows: list[dict[str, Any]] = []
    roots = _roots(run)
    for _, some in groupby(zip(run.records, roots, strict=True), key=lambda r: (len(r[0].log_w), len(r[1]))):
        records, origins = zip(*some, strict=True)
        log_w, parent, rewards, origin = (
            torch.stack(v).view(len(records), run.groups, -1)
            for v in ([r.log_w for r in records], [r.parent for r in records], [r.rewards for r in records], origins)
        )
        best = rewards.nan_to_num(-torch.inf).amax(-1)
        columns = {
            "ess": effective_size(log_w),
            "resampled": (parent != torch.arange(parent[0].numel(), device=parent.device).view_as(parent[0])).any(-1),
            "distinct": 1 + origin.sort(-1).values.diff().ne(0).sum(-1),
            "mean_reward": rewards.nanmean(-1),
            "max_reward": torch.where(rewards.isnan().all(-1), torch.nan, best),
        }
        values = zip(*(v.tolist() for v in columns.values()), strict=True)
        rows += [
            {"t": record.t, "seconds": record.seconds} | dict(zip(columns, row, strict=True))
            for record, row in zip(records, values, strict=True)
        ]
    return Trace(rows)


def _roots(run: Run) -> list[Tensor]:
    """For every step, the row of the start from which each particle descends."""
    roots = [run.records[0].parent]
    for record in run.records[1:]:
        roots.append(roots[-1][record.parent])
    return roots


def _ancestors(run: Run) -> Tensor:
    """(steps, rows), with -1 where a step has fewer rows than the widest."""
    parents = [record.parent for record in run.records]
    return torch.nn.utils.rnn.pad_sequence(parents, batch_first=True, padding_value=-1)


def _check(run: Run, result: Result) -> None:
    """Errors and warnings about the samples as a whole."""
    for group in range(run.groups):
        mine = result.group == group
        if result.rewards is not None and result.rewards[mine].isnan().all():
            name = getattr(run.reward if run.reward is not None else run.judge, "name", "reward")
            raise RewardError(f"reward {name!r} scored none of the {run.n} samples of group {group}")
        if (result.log_weights[mine] == -torch.inf).all():
            raise RewardError(f"all {run.n} particles of group {group} have weight zero")
    lost = 0 if result.rewards is None else int(result.rewards.isnan().sum())
    if lost:
        warnings.warn(f"{lost} of {len(result)} samples could not be scored; their reward is NaN", stacklevel=4)
    if run.n > 4:
        ess = result.trace["ess"].amin(-1)
        low, step = ess.min(0)
        if low < max(1.5, 0.01 * run.n):
            warnings.warn(
                f"the effective sample size fell to {low:.1f} of {run.n} at step {int(step) + 1} of {len(ess)}: few "
                "particles carry the result. Take more particles, a larger alpha, or weigh earlier and in more steps",
                CollapseWarning,
                stacklevel=4,
            )

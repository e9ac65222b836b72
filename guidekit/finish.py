"""From the last population of a run to its result: decoding, the trace, and what the user must be told."""

from __future__ import annotations

import warnings
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rewards import as_reward

from .describe import describe_run
from .errors import CollapseWarning, RewardError
from .population import Population, effective_size, entropy
from .result import Result, Trace
from .rewarding import Cost, Scorer

if TYPE_CHECKING:
    from .run import Run


def finish(run: Run, pop: Population) -> Result:
    """The result of a run from its last population."""
    run.settle()
    samples = decoded(run, pop.x)
    rewards = pop.rewards if run.judge is not None else None
    if run.reward is not None and run.reward is not run.judge:
        rewards = run.score(run.reward, samples, pop.group)
        run.settle()
    holdout = None if run.holdout is None else Scorer(Cost(), pop.x.device)(run.holdout, samples, pop.group)
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
        holdout=holdout,
        memos=pop.memos,
        config=describe_run(run),
    )
    _check(run, result)
    return result


def decoded(run: Run, x: Tensor) -> Any:
    """Decode in micro-batches."""
    parts = [run.model.decode(part) for part in (x.split(run.batch_size) if run.batch_size else [x])]
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [s for part in parts for s in part]


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
            "entropy": entropy(log_w),
            "resampled": (parent != torch.arange(parent[0].numel(), device=parent.device).view_as(parent[0])).any(-1),
            "distinct": 1 + origin.sort(-1).values.diff().ne(0).sum(-1),
            "mean_reward": rewards.nanmean(-1),
            "max_reward": torch.where(rewards.isnan().all(-1), torch.nan, best),
            **{k: torch.stack([r.more[k] for r in records]) for k in records[0].more},
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
    judge = run.judge if run.reward is None else run.reward
    for group in range(run.groups):
        mine = result.group == group
        if result.rewards is not None and result.rewards[mine].isnan().all():
            name = "?" if judge is None else as_reward(judge).name
            raise RewardError(f"reward {name!r} scored none of the {run.n} samples of group {group}")
        if (result.log_weights[mine] == -torch.inf).all():
            raise RewardError(f"all {run.n} particles of group {group} have weight zero")
    lost = 0 if result.rewards is None else int(result.rewards.isnan().sum())
    if lost:
        warnings.warn(f"{lost} of {len(result)} samples could not be scored; their reward is NaN", stacklevel=5)
    if run.n > 4:
        ess = result.trace["ess"].amin(-1)
        low, step = ess.min(0)
        if low < max(1.5, 0.01 * run.n):
            warnings.warn(
                f"the effective sample size fell to {low:.1f} of {run.n} at step {int(step) + 1} of {len(ess)}: few "
                f"particles carry the result (at the end {int(result.trace['distinct'][-1].amin())} starting ones have "
                "descendants). Take more particles, a larger alpha, or temper: weigh earlier and in more steps",
                CollapseWarning,
                stacklevel=5,
            )

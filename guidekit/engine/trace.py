"""What every step leaves behind, and the trace and lineage that are made of it at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NetworkError
from ..solvers import Move
from .population import effective_size, entropy
from .result import Trace
from .variance import errors
from .view import View


class Record(NamedTuple):
    """What a step leaves behind, on the device: log-weights before the selection, survivors after it."""

    t: float
    seconds: float
    log_w: Tensor
    left: Tensor  # log-weights of the survivors
    parent: Tensor
    rewards: Tensor
    more: dict[str, Tensor]  # what guides want to have traced, (groups,)


class Fault(NamedTuple):
    """The sums of a look's predictions, perhaps still on the device, in which NaN and infinity show."""

    index: int
    total: Tensor
    group: Tensor
    slot: Tensor
    size: int

    def raise_if_any(self, moves: Sequence[Move], view: View | None = None) -> None:
        bad = ~self.total.isfinite()
        if not bad.any():
            return
        rows = (self.group * self.size + self.slot)[bad].tolist()
        ours = view is not None and all(bool(e[bad].isfinite().all()) for e in view.evals.values())
        who = "the tilts of the guides made" if ours else "the network returned"
        raise NetworkError(
            f"{who} NaN or infinity at step {self.index} of {len(moves)} (t = {moves[self.index].t:.4g}) in "
            f"{len(rows)} rows: {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
        )


def trace(records: Sequence[Record], groups: int, start: int) -> Trace:
    """The records as plain rows, of a run that began with `start` particles in each group. Only here the device is
    waited for."""
    rows: list[dict[str, Any]] = []
    steps = zip(records, _roots(records), errors(records, groups, start), strict=True)
    for _, some in groupby(steps, key=lambda step: (len(step[0].log_w), len(step[1]))):
        these, roots, error = zip(*some, strict=True)
        rows += _rows(these, roots, error, groups)
    return Trace(rows)


def _rows(
    records: Sequence[Record], roots: Sequence[Tensor], error: Sequence[Tensor], groups: int
) -> list[dict[str, Any]]:
    """Rows of records of one size."""
    log_w, parent, rewards, origin = (
        torch.stack(v).view(len(records), groups, -1)
        for v in ([r.log_w for r in records], [r.parent for r in records], [r.rewards for r in records], list(roots))
    )
    best = rewards.nan_to_num(-torch.inf).amax(-1)
    columns = {
        "ess": effective_size(log_w),
        "entropy": entropy(log_w),
        "resampled": (parent != torch.arange(parent[0].numel(), device=parent.device).view_as(parent[0])).any(-1),
        "distinct": 1 + origin.sort(-1).values.diff().ne(0).sum(-1),
        "mean_reward": rewards.nanmean(-1),
        "max_reward": torch.where(rewards.isnan().all(-1), torch.nan, best),
        "log_z_error": torch.stack(list(error)),
        **{k: torch.stack([r.more[k] for r in records]) for k in records[0].more},
    }
    values = zip(*(v.tolist() for v in columns.values()), strict=True)
    return [
        {"t": record.t, "seconds": record.seconds} | dict(zip(columns, row, strict=True))
        for record, row in zip(records, values, strict=True)
    ]


def _roots(records: Sequence[Record]) -> list[Tensor]:
    """For every step, the row of the start from which each particle descends."""
    roots = [records[0].parent]
    for record in records[1:]:
        roots.append(roots[-1][record.parent])
    return roots


def ancestors(records: Sequence[Record]) -> Tensor:
    """(steps, rows), with -1 where a step has fewer rows than the widest."""
    parents = [record.parent for record in records]
    return torch.nn.utils.rnn.pad_sequence(parents, batch_first=True, padding_value=-1)

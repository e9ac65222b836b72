r"""Several runs as one population.

Runs r = 1..R with n_r particles per group and unnormalised weights w give R unbiased estimates Z_r of the same Z. The
particles of all, with the weights that they have, estimate

    Z = sum_r n_r Z_r / N,     N = sum_r n_r,     and E[f] = sum_r n_r Z_r E_r[f] / (N Z),

so each run counts by its estimate of Z, and the mean of all weights is unbiased again. The squared standard error of
log Z is sum_r (n_r Z_r / (N Z))^2 e_r^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import tree
from .cost import Cost
from .describe import difference
from .population import effective_size
from .result import Result, Trace, picked


def join(results: Sequence[Result]) -> Result:
    """One result with the samples of several runs of the same model, conditions and guides, whose seeds differ.

    Its weights and log Z are right: see the formula in `guidekit.engine.join`. `trace` has one row, that of the end.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=0.5)
    >>> parts = [gk.sample(base, n, steps=10, guides=[steering], seed=n) for n in (8, 24)]
    >>> whole = gk.join(parts)
    >>> len(whole), torch.allclose(whole.log_z.exp(), sum(len(p) / 32 * p.log_z.exp() for p in parts))
    (32, True)
    """
    results = list(results)
    _check(results)
    order = torch.cat([result.group for result in results]).argsort(stable=True)  # group by group, run by run
    starts = np.cumsum([0, *(_width(result) for result in results)])
    rows = {k: _rows(results, k, order) for k in ("x", "group", "log_weights", "rewards", "holdout")}
    row = torch.cat([r.row + int(s) for r, s in zip(results, starts, strict=False)])[order]
    noise = None if _chains(results) else _rows(results, "noise", order)
    samples = picked(_all([result.samples for result in results]), order)
    memos = tree.take(tree.cat([result.memos for result in results]), order)
    log_w = rows["log_weights"].view(results[0].groups, -1)
    return Result(
        **rows,
        samples=samples,
        row=row,
        noise=noise,
        ancestors=_ancestors(results, starts),
        trace=Trace([_end(results, log_w)]),
        cost=sum((r.cost for r in results), Cost()),
        memos=memos,
        config=results[0].config | {"n": log_w.shape[1], "seed": [result.config.get("seed") for result in results]},
    )


def _check(results: list[Result]) -> None:
    if not results or not all(isinstance(result, Result) and len(result) for result in results):
        raise ValueError(f"join takes a list of results that have samples, and was given {results!r}")
    own = [{k: v for k, v in r.config.items() if k not in ("n", "seed", "noise")} for r in results]
    for i, config in enumerate(own[1:], 1):
        if (other := difference(own[0], config)) is not None:
            place, here, there = other
            raise ValueError(
                f"runs 0 and {i} are not of one kind: {place} is {here!r} and {there!r}. Only runs of the same model, "
                "steps, conditions, guides and reward estimate the same Z"
            )
    seen: dict[str, int] = {}
    for i, result in enumerate(results):
        same = seen.setdefault(repr((result.config.get("seed"), result.config.get("noise"))), i)
        if same != i:
            raise ValueError(
                f"runs {same} and {i} have the same seed, so they hold the same samples: give each its own"
            )


def _rows(results: list[Result], name: str, order: Tensor) -> Any:
    """A field of all rows, or None where a run has none."""
    found = [getattr(result, name) for result in results]
    return None if any(v is None for v in found) else torch.cat(found)[order]


def _chains(results: list[Result]) -> bool:
    """Whether some noise is that of whole chains, (moves + 1, rows, ...)."""
    return any(r.noise is not None and len(r.noise) != len(r) for r in results)


def _all(samples: list[Any]) -> Any:
    if isinstance(samples[0], Tensor):
        return torch.cat(samples)
    return np.concatenate(samples) if isinstance(samples[0], np.ndarray) else [s for part in samples for s in part]


def _width(result: Result) -> int:
    """How many rows the run has at the most."""
    return max(result.ancestors.shape[1], len(result))


def _ancestors(results: list[Result], starts: np.ndarray) -> Tensor:
    """Those of all runs, whose rows stand side by side."""
    parts = []
    for result, start in zip(results, starts.tolist(), strict=False):
        parts.append(torch.where(result.ancestors < 0, -1, result.ancestors + start))
        parts[-1] = torch.nn.functional.pad(parts[-1], (0, _width(result) - parts[-1].shape[1]), value=-1)
    return torch.cat(parts, 1)


def _end(results: list[Result], log_w: Tensor) -> dict[str, Any]:
    """The row of the trace at the end."""
    last = [result.trace[-1] for result in results]
    n = torch.tensor([len(result) // result.groups for result in results], dtype=torch.float64)[:, None]
    best = torch.tensor([row["max_reward"] for row in last], dtype=torch.float64).nan_to_num(-torch.inf).amax(0)
    mean = torch.tensor([row["mean_reward"] for row in last], dtype=torch.float64)
    return {
        "t": last[0]["t"],
        "seconds": max(row["seconds"] for row in last),
        "ess": effective_size(log_w).tolist(),
        "distinct": torch.tensor([row["distinct"] for row in last]).sum(0).tolist(),
        "mean_reward": ((n * mean).sum(0) / n.sum()).tolist(),
        "max_reward": torch.where(best.isinf(), torch.nan, best).tolist(),
        "log_z_error": pooled_error(results).tolist(),
    }


def pooled_error(results: Sequence[Result]) -> Tensor:
    """The standard error of log Z of all runs together, (groups,)."""
    size = torch.tensor([len(result) // result.groups for result in results], dtype=torch.float64)[:, None]
    share = (torch.stack([result.log_z.cpu() for result in results]) + size.log()).softmax(0)
    error = torch.stack([result.log_z_error.cpu() for result in results])
    return (share * error).square().sum(0).sqrt()

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

_OWN = ("n", "seed", "noise", "islands", "joined", "unique", "strength")  # in what runs of one kind may differ


def join(results: Sequence[Result]) -> Result:
    """One result with the samples of several runs of the same model, conditions and guides, whose seeds differ; their
    sizes and islands may.

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
    made = [each for result in results for each in _made(result)]
    return Result(
        **rows,
        samples=samples,
        row=row,
        noise=noise,
        ancestors=_ancestors(results, starts),
        trace=Trace([_end(results, log_w)]),
        cost=sum((r.cost for r in results), Cost()),
        memos=memos,
        config={k: v for k, v in results[0].config.items() if k != "unique"}
        | {"n": log_w.shape[1], "seed": [r.config.get("seed") for r in results], "joined": made},
    )


def _check(results: list[Result]) -> None:
    if not results or not all(isinstance(result, Result) and len(result) for result in results):
        raise ValueError(f"join takes a list of results that have samples, and was given {results!r}")
    names = dict.fromkeys(k for r in results for k in r.config if k not in _OWN)
    own = [{k: r.config.get(k) for k in names} for r in results]
    for i, config in enumerate(own[1:], 1):
        if (other := difference(own[0], config)) is not None:
            place, (here, there) = other[0], (f"{v!r:.80}" for v in other[1:])
            raise ValueError(
                f"runs 0 and {i} are not of one kind: {place} is {here} and {there}. Only runs of the same model, "
                "steps, conditions, guides and reward estimate the same Z"
            )
    seen: dict[str, int] = {}
    for i, result in enumerate(results):
        for name in [name for made in _made(result) for name in _streams(made, result.groups)]:
            same = seen.setdefault(name, i)
            if same != i:
                raise ValueError(
                    f"runs {same} and {i} have the same seed, so they hold the same samples: give each its own"
                )


def _made(result: Result) -> list[dict[str, Any]]:
    """The seed and the noise of a run, or of all that were joined into it."""
    return result.config.get("joined") or [{k: result.config.get(k) for k in ("seed", "noise")}]


def _streams(made: dict[str, Any], groups: int) -> list[str]:
    """What tells the random numbers of every group from those of the same group in another run."""
    seed = made["seed"]
    each = seed if isinstance(seed, (list, tuple)) else [seed] * groups
    return [repr((group, own, made["noise"])) for group, own in enumerate(each)]


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
        "resampled": [False] * results[0].groups,
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

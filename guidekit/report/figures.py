"""The figures of a report: from results to charts, and the numbers that summarise a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..engine.result import Result
from . import designed, pedigree, table
from .charts import GROUPS, Series, histogram, lines, scatter
from .compared import sets
from .reading import Output
from .recorder import survivors
from .rounds import best_so_far, rounds
from .samples import DRAWN
from .svg import number


def mean(result: Result, what: str = "rewards") -> float:
    """The weighted mean of the known rewards, over all groups."""
    return table.mean(result, getattr(result, what))


def greatest(values: Tensor) -> float:
    """The largest finite value, or NaN if there is none."""
    known = values[values.isfinite()]
    return float(known.max()) if len(known) else math.nan


def ancestors(result: Result) -> int:
    """Number of starting particles with descendants among the samples, in all groups together."""
    return len(result.lineage()[0].unique())


def over_time(out: Output, names: Sequence[str]) -> list[str]:
    """For a search or a design, the best reward against cost; for a run, reward, effective sample size and ancestors
    by step."""
    result = out.result
    if designed.rounds(result):
        return designed.progress(result, out.screened)
    if rounds(result):
        return best_so_far(result, names, sets(out)[:-1]) + _estimates(result, names)
    return _estimates(result, names) + _population(result, names) if len(result.trace) else []


def _estimates(result: Result, names: Sequence[str]) -> list[str]:
    if not len(result.trace) or not bool(result.trace["mean_reward"].isfinite().any()):
        return []
    groups = min(result.groups, len(GROUPS))
    return [lines(_rewards(result, names, groups), "Reward of the clean estimates over the run", "reward")]


def _population(result: Result, names: Sequence[str]) -> list[str]:
    """Charts of effective sample size and of starting particles with descendants."""
    groups, size = min(result.groups, len(GROUPS)), len(result) // result.groups
    ess, distinct = (_columns(result, key, names, groups) for key in ("ess", "distinct"))
    moments = [i + 1 for i, row in enumerate(result.trace) if any(row["resampled"])]
    marks = moments if result.groups == 1 and len(moments) < len(result.trace) else []
    title = f"Effective sample size over the run, of {size}"
    if result.groups == 1:
        both = [
            replace(ess[0], name="effective size"),
            replace(distinct[0], name="starting particles", colour=3, dashed=True),
        ]
        return [lines(both, title, "samples", zero=True, marks=marks)]
    left = "Starting particles that still have descendants"
    return [
        lines(ess, title, "effective sample size", zero=True),
        lines(distinct, left, "starting particles with descendants", zero=True),
    ]


def _columns(result: Result, key: str, names: Sequence[str], groups: int) -> list[Series]:
    values = result.trace[key].double()
    return [Series(names[g], values[:, g].tolist(), GROUPS[g]) for g in range(groups)]


def _rewards(result: Result, names: Sequence[str], groups: int) -> list[Series]:
    means = _columns(result, "mean_reward", names, groups)
    if result.groups > 1:
        return means
    best = result.trace["max_reward"].double()[:, 0].tolist()
    return [replace(means[0], name="mean"), Series("best", best, 0, dashed=True)]


def distributions(out: Output) -> list[str]:
    """Rewards compared with those of unguided samples, and the reward against the held-out one."""
    rewarded = [(s, r) for s, r in _sets(out) if r.rewards is not None and bool(r.rewards.isfinite().any())]
    if out.result.rewards is None or not rewarded:
        return []
    series = [
        Series(name, (r.rewards if r.rewards is not None else r.x).tolist(), colour, weights=r.weights.tolist())
        for (name, colour), r in rewarded
    ]
    charts = [histogram(series, "Distribution of rewards, under the weights", "reward")]
    lower = ", less is better" if out.summary.get("better", {}).get("holdout mean") == "lower" else ""
    judged = [(s, r) for s, r in rewarded if r.holdout is not None and bool(r.holdout.isfinite().any())]
    if judged:
        charts.append(scatter([_points(*s, r) for s, r in judged[::-1]], "Guiding and held-out reward of each sample",
                              "guiding reward", "held-out reward" + lower))  # fmt: skip
    return charts


def _sets(out: Output) -> list[tuple[tuple[str, int], Result]]:
    *others, (name, result) = sets(out)
    colours = {"unguided": 1}
    return [((name, 0), result), *(((n, colours.get(n, 2)), r) for n, r in others)]


def _points(name: str, colour: int, result: Result, most: int = 1000) -> Series:
    assert result.rewards is not None and result.holdout is not None
    x, y, w = (v[:most].tolist() for v in (result.rewards, result.holdout, result.weights))
    return Series(name, y, colour, x=x, weights=w, labels=[f"{name}, row {i}" for i in range(len(x))])


def plane(out: Output) -> str | None:
    """The samples as points, if they are pairs of numbers."""
    if out.result.x.shape[1:] != (2,) or not out.result.x.is_floating_point():
        return None
    series = [
        Series(name, r.x[:1000, 1].tolist(), colour, x=r.x[:1000, 0].tolist(), weights=r.weights[:1000].tolist(),
               labels=[f"{name}, row {i}" for i in range(min(1000, len(r)))])
        for (name, colour), r in _sets(out)
        if r.x.shape[1:] == (2,)
    ]  # fmt: skip
    return scatter(series[::-1], "The samples", "x, first", "x, second")


def lineage(out: Output, domain: str) -> dict[str, Any]:
    """The picture of the lineage, and the clean estimates of the ancestors; empty for a search and for a run without
    steps."""
    result = out.result
    if not len(result.ancestors) or rounds(result):
        return {}
    rows = survivors(result)
    found = out.lineage
    steps = found.steps if found else []
    rewards = [math.nan] * len(result) if result.rewards is None else result.rewards.tolist()
    scores = [rewards[r] if math.isfinite(rewards[r]) else -math.inf for r in rows]
    nodes = [[f"m{i}n{k}" for i, k in enumerate(found.rows[r])] if found else [] for r in rows]
    names = [f"row {r}, reward {number(rewards[r])}" for r in rows]
    paths = result.lineage()[:, rows].T.tolist()
    return {
        "picture": pedigree.draw(paths, scores, names, steps, nodes),
        "options": [names[i] for i in pedigree.order(paths, scores)],
        "moments": _moments(out, domain),
        "ancestors": ancestors(result),
        "left_out": len(result) - len(rows),
        "count": len(rows),
    }


def _moments(out: Output, domain: str) -> list[dict[str, Any]]:
    """The step, time and clean estimates of every moment."""
    if out.lineage is None:
        return []
    drawn = DRAWN.get(domain, lambda text: None)
    return [
        {
            "step": step,
            "t": t,
            "nodes": [{**node, "picture": drawn(node["text"]) if "text" in node else None} for node in nodes],
        }
        for step, t, nodes in zip(out.lineage.steps, out.lineage.t, out.lineage.nodes, strict=True)
    ]

"""The table of a run: the rewards that it reached, the diversity of its samples, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.result import Result

COST = ("network rows", "reward calls", "seconds")
OF_DOMAIN = {
    "molecules": ("validity", "uniqueness", "diversity"),
    "dna": ("uniqueness", "diversity"),
    "images": ("diversity",),
    "other": ("uniqueness", "diversity"),
}

# which direction of a column is better; for columns of single rewards, the rewards say it
BETTER = {
    **dict.fromkeys(("mean", "top 10%", "holdout mean", "validity", "uniqueness", "diversity"), "higher"),
    **dict.fromkeys(COST, "lower"),
}


def columns(domain: str, reward: bool, parts: Sequence[str], holdout: bool) -> list[str]:
    """The columns of a run."""
    found = ["mean", "top 10%"] if reward else []
    found += parts if len(parts) > 1 or not reward else []
    return [*found, *(["holdout mean"] if holdout else []), "ESS", *OF_DOMAIN[domain], *COST]


def row(name: str, result: Result, domain: str, parts: dict[str, Tensor]) -> dict[str, Any]:
    """One line of the table: all numbers of this result; None where one is undefined.

    mean, holdout mean and the parts are weighted means; ESS is the effective sample size behind them (the smallest of
    all conditions; None if all weights are equal). Everything else ignores the weights: top 10% is the mean reward of
    the best tenth of the samples, at least one.
    """
    found: dict[str, Any] = {"name": name}
    if result.rewards is not None:
        found |= {"mean": mean(result, result.rewards), "top 10%": top(result.rewards)}
    found |= {part: mean(result, scores) for part, scores in parts.items()}
    if result.holdout is not None:
        found["holdout mean"] = mean(result, result.holdout)
    size = len(result) // max(result.groups, 1)
    if bool((result.ess < size * (1 - 1e-9)).any()):
        found["ESS"] = float(result.ess.min())
    found |= metrics(result.samples, domain)
    cost = result.cost
    found |= dict(zip(COST, (cost.network_rows, cost.reward_calls, round(cost.seconds, 3)), strict=True))
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


def mean(result: Result, scores: Tensor) -> float:
    """The weighted mean of the known scores."""
    scores, known = scores.double().cpu(), scores.isfinite().cpu()
    weights = result.weights.cpu()[known]
    return float((weights * scores[known]).sum() / weights.sum()) if known.any() else math.nan


def top(scores: Tensor) -> float:
    """The mean of the best tenth of all samples; samples without a score count as the worst."""
    known = scores[scores.isfinite()]
    return float(known.topk(min(math.ceil(len(scores) / 10), len(known))).values.mean()) if len(known) else math.nan


def metrics(samples: Any, domain: str) -> dict[str, float]:
    """validity, uniqueness and diversity, as far as they are defined for the domain."""
    if domain == "molecules":
        from rewards.molecules import metrics as of

        values = of.validity(samples), of.uniqueness(samples), of.internal_diversity(samples)
        return dict(zip(OF_DOMAIN[domain], values, strict=True))
    if domain == "dna":
        from rewards import dna

        return {"uniqueness": dna.uniqueness(samples), "diversity": dna.edit_distance_diversity(samples)}
    if isinstance(samples, list):
        return {"uniqueness": len({str(s) for s in samples}) / len(samples)} if samples else {}
    return {"diversity": distance(torch.as_tensor(samples))}


def distance(x: Tensor) -> float:
    """Root mean square difference of two samples, per entry: sqrt(2 n/(n - 1) mean of the variances).

    >>> round(distance(torch.tensor([[0.0], [1.0]])), 6)
    1.0
    """
    return float((2 * x.flatten(1).double().var(0).mean()).sqrt()) if len(x) > 1 else math.nan


def constant(sets: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """The rewards with one and the same value for all samples that they could score, of which there are at least two.

    sets   the scores of each set of samples, by the name of the reward

    >>> constant([{"a": torch.ones(2), "b": torch.zeros(2)}, {"a": torch.ones(3), "b": torch.ones(3)}])
    {'a': 1.0}
    """
    found = {}
    for name in dict.fromkeys(name for scores in sets for name in scores):
        values = torch.cat([scores[name].flatten() for scores in sets if name in scores])
        known = values[values.isfinite()]
        if len(known) > 1 and bool((known == known[0]).all()):
            found[name] = float(known[0])
    return found


def equal_cost(steered: Result, plain: Result) -> int:
    """The N for which best-of-N comes closest to the network rows of the steered run."""
    return max(1, round(steered.cost.network_rows / max(plain.cost.network_rows, 1)))


def text(rows: Sequence[dict[str, Any]], names: Sequence[str], width: int = 100) -> str:
    """The table as text: a line for each row, or a column for each row if the lines would be too long."""
    kept = [c for c in names if any(r.get(c) is not None for r in rows)]
    cells = [["", *kept], *([str(r["name"]), *(shown(r.get(c)) for c in kept)] for r in rows)]
    across = _aligned(cells)
    return across if len(across.split("\n")[0]) <= width else _aligned([list(c) for c in zip(*cells, strict=True)])


def _aligned(cells: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join(line.rstrip() if i else line for i, line in enumerate(lines))


def shown(value: Any) -> str:
    """A number, rounded for display."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) and 0.01 <= abs(value) < 1000 else f"{value:.3g}"

"""The progress of a search: the best reward so far against the cost so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..engine.result import Result
from .charts import GROUPS, Series, curves
from .table import mean

_COLOURS = {"unguided": 1}  # grey; other sets are orange
_COSTS = {"reward_calls": "reward calls", "network_rows": "network rows"}


def rounds(result: Result) -> list[dict[str, Any]]:
    """The rounds of the search that produced this result; none if it is not a search, or one without rewards."""
    search = result.config.get("search")
    found = search.get("rounds") if isinstance(search, dict) else None
    return found if found and all("best_reward" in row for row in found) else []


def best_so_far(result: Result, names: Sequence[str], compared: Sequence[tuple[str, Result]]) -> list[str]:
    """The best reward so far against reward calls and against network rows, with points for the mean and cost of the
    sets with which the search is compared. Several conditions have a line each, and no such points."""
    found, drawn = rounds(result), []
    for key, label in _COSTS.items():
        costs = [float(row[key]) for row in found]
        if costs and max(costs) > 0:
            series = _single(found, costs) if result.groups == 1 else _groups(found, costs, names)
            points = _points(compared, key) if result.groups == 1 else []
            drawn.append(curves(series, f"Best reward so far against {label}", label, "best reward so far", points))
    return drawn


def _single(found: list[dict[str, Any]], costs: list[float]) -> list[Series]:
    """The mean of all samples, the best of them, and the candidates of each round."""
    kinds = (("mean of samples", "best_reward", 0), ("best sample", "max_reward", 0), ("candidates", "mean_reward", 3))
    return [
        Series(name, _column(found, key, 0), colour, x=costs, dashed=key != "best_reward", labels=_labels(found, name))
        for name, key, colour in kinds
    ]


def _groups(found: list[dict[str, Any]], costs: list[float], names: Sequence[str]) -> list[Series]:
    return [
        Series(name, _column(found, "best_reward", g), colour, x=costs, labels=_labels(found, name))
        for g, (name, colour) in enumerate(zip(names, GROUPS, strict=False))
    ]


def _column(found: list[dict[str, Any]], key: str, group: int) -> list[float]:
    return [math.nan if row[key][group] is None else float(row[key][group]) for row in found]


def _labels(found: list[dict[str, Any]], name: str) -> list[str]:
    return [f"{name}, round {i + 1} of {len(found)}" for i in range(len(found))]


def _points(compared: Sequence[tuple[str, Result]], key: str) -> list[Series]:
    """The mean reward of each set at its cost."""
    known = [(name, r.cost, mean(r, r.rewards)) for name, r in compared if r.rewards is not None]
    return [
        Series(name, [value], _COLOURS.get(name, 2), x=[float(getattr(cost, key))], labels=[f"mean of {name}"])
        for name, cost, value in known
    ]

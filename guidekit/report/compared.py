"""The table at the top of a page: the run, the samples it is compared with, and the best value of each column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.result import Result
from . import designed, table
from .reading import Output
from .rounds import rounds
from .svg import number

_COLUMNS = ("mean", "top 10%", "holdout mean", *table.COST)


@dataclass(frozen=True)
class Column:
    """A column of the comparison.

    better    "higher" or "lower", or None if neither is better
    best      indices of the rows with the best value
    constant  whether the reward of this column has one value for all samples
    """

    name: str
    better: str | None
    best: tuple[int, ...]
    constant: bool


def own(result: Result) -> str:
    """The name of the run in comparisons."""
    if rounds(result):
        return "search"
    if designed.rounds(result):
        return "designs"
    return "samples" if result.config.get("guides") == [] else "steered"


def sets(out: Output) -> list[tuple[str, Result]]:
    """All sets of samples by name, the run itself last."""
    n = out.summary.get("best_of") or "N"
    every = [("unguided", out.base), (f"best of {n}", out.best), ("screening", out.screened)]
    every += [(own(out.result), out.result)]
    return [(name, result) for name, result in every if result is not None]


def rows(out: Output) -> list[dict[str, Any]]:
    """The rows of summary.json, or rows computed from the results."""
    if not (given := out.summary.get("rows")):
        return [{"name": name, **_measured(result)} for name, result in sets(out)]
    n, searched = out.summary.get("best_of"), bool(rounds(out.result))
    names = ({"best of N": f"best of {n}"} if n else {}) | ({"steered": "search"} if searched else {})
    return [row | {"name": names.get(row["name"], row["name"])} for row in given]


def columns(out: Output, rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns that have a value."""
    summary = out.summary
    names = summary.get("columns") or [c for c in _COLUMNS if any(row.get(c) is not None for row in rows)]
    better = {c: way for c, way in (table.BETTER | summary.get("better", {})).items() if way in ("higher", "lower")}
    constant = summary.get("constant", [])
    return [Column(c, better.get(c), tuple(best(rows, c, better.get(c))), c in constant) for c in names]


def best(rows: Sequence[Mapping[str, Any]], column: str, better: str | None) -> list[int]:
    """Indices of the rows whose value is best or displayed as equal to the best; none if all are displayed as equal.

    >>> best([{"SA": 3.0}, {"SA": 2.0}, {"SA": None}], "SA", "lower")
    [1]
    """
    known = {i: row[column] for i, row in enumerate(rows) if _is_number(row.get(column))}
    if better is None or not known:
        return []
    top = number((max if better == "higher" else min)(known.values()))
    alike = [i for i, v in known.items() if number(v) == top]
    return alike if len(alike) < len(known) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _measured(result: Result) -> dict[str, float | None]:
    """A row computed without summary.json. Means are weighted."""
    found = table.row("", result, "other", {})
    return {column: found.get(column) for column in _COLUMNS}

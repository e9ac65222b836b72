"""The progress of a design loop: the best rewards against calls, and which proposals the calls went to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..engine.result import Result
from .charts import GROUPS, Series, curves
from .svg import number


def rounds(result: Result) -> list[dict[str, Any]]:
    """The rounds of the design loop that produced this result; none if it is of another kind."""
    return list(result.trace) if "design" in result.config else []


def progress(result: Result, screened: Result | None) -> list[str]:
    """The best reward and the mean of the best ten against calls, beside screening; and the share of each proposal in
    the calls so far."""
    found = rounds(result)
    best = [_against(found, "top10", "best ten, mean", 0), _against(found, "best", "best", 0, dashed=True)]
    if screened is not None:
        best.append(_against(rounds(screened), "top10", "screening, best ten", 1))
    shares = _shares(found)
    charts = [curves(best, "The best rewards so far against calls", "calls", "reward")]
    return charts + ([curves(shares, "Share of each proposal in the calls so far", "calls", "share")] if shares else [])


def tiles(result: Result, screened: Result | None) -> list[tuple[str, str, str]]:
    """Name, value and remark of each figure at the top."""
    last = rounds(result)[-1]
    other = rounds(screened)[-1] if screened is not None else None
    named = (("best reward", "best"), ("mean of the best ten", "top10"))
    found = [(name, number(last[k]), f"{number(other[k])} by screening" if other else "") for name, k in named]
    unscored = f"{result.cost.unscored:,} without a score" if result.cost.unscored else "one for each sample"
    return [*found, ("reward calls", number(last["calls"]), unscored), ("rounds", number(len(result.trace) - 1), "")]


def _against(found: Sequence[dict[str, Any]], key: str, name: str, colour: int, dashed: bool = False) -> Series:
    labels = [f"{name}, round {i} of {len(found) - 1}" for i in range(len(found))]
    return Series(name, [row[key] for row in found], colour, x=_calls(found), dashed=dashed, labels=labels)


def _calls(found: Sequence[dict[str, Any]]) -> list[float]:
    return [float(row["calls"]) for row in found]


def _shares(found: Sequence[dict[str, Any]]) -> list[Series]:
    """The share of each proposal in all calls of the rounds up to each, without the population."""
    ends = _calls(found)
    sizes = [b - a for a, b in pairwise(ends)]
    sources = list(dict.fromkeys(name for row in found[1:] for name, share in row["shares"].items() if share > 0))
    drawn = []
    for name, colour in zip(sources, GROUPS, strict=False):
        won, all_, values = 0.0, 0.0, []
        for row, size in zip(found[1:], sizes, strict=True):
            won, all_ = won + size * row["shares"].get(name, 0.0), all_ + size
            values.append(won / all_ if all_ else float("nan"))
        drawn.append(Series(name, values, colour, x=ends[1:]))
    return drawn

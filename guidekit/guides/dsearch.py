r"""Dynamic search, DSearch (Li et al., 2025), https://arxiv.org/abs/2503.02039: a beam whose width and branching
change.

    width(f)    from the first to the last number, along a schedule in the fraction f of the run: the worst particles
                are dropped as the estimates become more accurate
    branch(f)   what the width leaves of the cost: round(cost / width(f)) children each, with cost = width(0) branch
    depth       steps of the look-ahead: at depth 0, V is r of the clean estimate, otherwise r of a sample that the
                model draws in so many steps (the mean over k of them)
    every       the steps at which the tree is expanded; the paper expands more often at low noise

    schedules   linear f, quadratic f^2, exponential (e^3f - 1)/(e^3 - 1), sigmoid of 6 f - 3, scaled to [0, 1]

It is greedy, like `BeamSearch`, which is the case of a constant width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.card import Card, carded
from ..values import Rollout, Value
from .beam_search import PAPER, BeamSearch

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda f: f,
    "quadratic": lambda f: f**2,
    "exponential": lambda f: math.expm1(3 * f) / math.expm1(3),
    "sigmoid": lambda f: (math.tanh(3 * f - 1.5) / math.tanh(1.5) + 1) / 2,
}


@carded(
    Card(
        "beam search whose width shrinks while its branching grows",
        section="Steering with rewards",
        rows="branch - 1",
        changes="selection",
        paper=PAPER,
        example="gk.DSearch(reward, (128, 32), 2)",
    )
)
def DSearch(
    reward: Any,
    width: tuple[int, int],
    branch: int = 1,
    schedule: str | Callable[[float], float] = "linear",
    depth: int = 0,
    *,
    k: int = 1,
    every: int | Sequence[int] = 1,
    value: Value | str | None = None,
    start: float = 0.0,
    stop: float = 1.0,
) -> BeamSearch:
    """A beam that narrows from width[0] to width[1] while its particles have more and more children, so that every step
    costs the same.

    >>> beam = DSearch(len, width=(16, 4), branch=2)
    >>> [(beam.width(f), beam.branch(f)) for f in (0.0, 0.5, 0.9)]
    [(16, 2), (10, 3), (5, 6)]
    """
    if not isinstance(width, (tuple, list)) or len(width) != 2 or min(width) < 1:
        raise ValueError(f"DSearch(width={width!r}): two counts, the first and the last, like (16, 4)")
    if not callable(schedule) and schedule not in SCHEDULES:
        raise ValueError(f"DSearch(schedule={schedule!r}): there is {', '.join(SCHEDULES)}, or a function of f")
    if depth < 0 or (depth and value is not None):
        raise ValueError(f"DSearch(depth={depth}): at least 0 steps of look-ahead, and no value= beside them")
    way = schedule if callable(schedule) else SCHEDULES[schedule]
    cost = width[0] * branch

    def wide(fraction: float) -> int:
        return max(1, round(width[0] + (width[1] - width[0]) * way(fraction)))

    def bushy(fraction: float) -> int:
        return max(1, round(cost / wide(fraction)))

    if depth:
        value = Rollout(reward, steps=depth + 1, k=k)
    return BeamSearch(reward, wide, bushy, value, every=every, start=start, stop=stop)

r"""Dynamic search (Li et al., 2025), https://arxiv.org/abs/2503.02039: a beam whose width and branching change.

    width(f)    from the first to the last number along a schedule in the fraction f of the run: the worst particles are
                dropped while the estimates sharpen
    branch(f)   what the width leaves of the cost: round(cost / width(f)) children each, cost = width(0) branch
    depth       steps of the look-ahead: V is r of the clean estimate at depth 0, else of a sample that the model draws
                in so many steps (their mean over k of them)
    every       the steps at which the tree is expanded; the paper expands more often at low noise

    schedules   linear f, quadratic f^2, exponential (e^3f - 1)/(e^3 - 1), sigmoid of 6 f - 3, scaled to [0, 1]

Greedy, like `BeamSearch`, which it is with a constant width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..values import Rollout, Value
from .beam_search import BeamSearch

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda f: f,
    "quadratic": lambda f: f**2,
    "exponential": lambda f: math.expm1(3 * f) / math.expm1(3),
    "sigmoid": lambda f: (math.tanh(3 * f - 1.5) / math.tanh(1.5) + 1) / 2,
}


def DSearch(
    reward: Any,
    width: tuple[int, int],
    branch: int = 1,
    schedule: str | Callable[[float], float] = "linear",
    depth: int = 0,
    *,
    k: int = 1,
    every: int | Sequence[int] = 1,
    value: Value | None = None,
    start: float = 0.0,
    stop: float = 1.0,
) -> BeamSearch:
    """A beam that narrows from width[0] to width[1] while its particles have ever more children, at equal cost a step.

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

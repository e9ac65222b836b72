"""The guides under the common laws. A new guide is tested by adding it here.

make      the guide at a usual strength, for a problem
idle      the same guide at settings at which it must do nothing at all; None where there are none
processes the problems (tests/problems.py) that it says it serves
target    "base": it moves or weighs without changing p; "tilted": weighted particles follow p exp(r/alpha)/Z;
          "own": another law, which its own test file checks
rows      network rows of a run, from the particles N and the steps M
calls     reward calls of a run
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import guidekit as gk

from ..problems import PROBLEMS, Problem

ALL = tuple(PROBLEMS)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Problem], gk.Guide]
    idle: Callable[[Problem], gk.Guide] | None
    target: str
    processes: tuple[str, ...] = ALL
    rows: Callable[[int, int], int] = lambda n, m: n * m
    calls: Callable[[int, int], int] = lambda n, m: 0


def constant(x):
    """A reward that says nothing."""
    return x.flatten(1)[:, 0] * 0.0 + 0.25


def _fk(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.FKSteering(p.reward, p.alpha, **options)


def _idle_fk(**options) -> Callable[[Problem], gk.Guide]:
    return lambda p: gk.FKSteering(p.reward, float("inf"), **options)


CASES = [
    Case("CFG", lambda p: gk.CFG(2.5), lambda p: gk.CFG(1.0), "own", rows=lambda n, m: 2 * n * m),
    Case(
        "CFG interval",
        lambda p: gk.CFG(lambda t: 1 + t, start=0.3, stop=0.8),  # 6 steps: fractions 1/3, 1/2, 2/3
        lambda p: gk.CFG(7.5, start=0.5, stop=0.5),
        "own",
        rows=lambda n, m: n * (m + 3),
    ),
    Case(
        "CFG steer", lambda p: gk.CFG(1.5, steer=True), lambda p: gk.CFG(1.0, steer=True), "base",
        rows=lambda n, m: 2 * n * m,
    ),
    Case("Resample", lambda p: gk.Resample(), lambda p: gk.Resample(ess=0.0), "base"),
    Case("FK adaptive", _fk(), _idle_fk(), "tilted", calls=lambda n, m: n * m),
    Case("FK never", _fk(ess=0.0), _idle_fk(ess=0.0), "tilted", calls=lambda n, m: n * m),
    Case("FK always", _fk(ess=1.0), _idle_fk(ess=1.0), "tilted", calls=lambda n, m: n * m),
    Case("FK every 4", _fk(every=4, ess=1.0), _idle_fk(every=4), "tilted", calls=lambda n, m: 2 * n),
    Case("FK constant", _fk(ess=0.9), lambda p: gk.FKSteering(constant, 0.1), "tilted", calls=lambda n, m: n * m),
    *(
        Case(f"FK {name}", _fk(ess=0.9, resampler=name), _idle_fk(resampler=name), "tilted", calls=lambda n, m: n * m)
        for name in ("multinomial", "stratified", "residual", "ssp")
    ),
]  # fmt: skip

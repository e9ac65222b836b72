"""Budgets: when a search ends."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..engine.cost import Cost


@dataclass(frozen=True)
class Budget:
    """Limits of a search, which ends before the round that might exceed one, or when every sample reaches the target.

    rounds    number of rounds
    rows      network evaluations (rows), including the final run of the winners
    calls     reward calls, for samples not scored before. If nothing else limits the search, it also ends after 10
              rounds without a new text or row of tokens
    seconds   of this search, including those before an interruption; checked between rounds
    target    a reward that every sample should reach

    `Found.ended` says why the search ended. A round may need fewer calls than it has candidates, because equal samples
    are scored once.
    """

    rounds: int | None = None
    rows: int | None = None
    calls: int | None = None
    seconds: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        for name, value in given.items():
            whole = name in ("rounds", "rows", "calls")
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or (name != "target" and value <= 0):
                raise ValueError(f"Budget({name}={value!r}): a positive {'int' if whole else 'number'} is needed")

    @property
    def by_calls_alone(self) -> bool:
        """Whether a search that finds no new samples could run for ever."""
        return self.rounds is None and self.rows is None and self.seconds is None

    def allows(self, done: int, cost: Cost, rows: int, calls: int) -> bool:
        """Whether a round with this many rows and calls still fits."""
        return self.short(done, cost, rows, calls) is None

    def short(self, done: int, cost: Cost, rows: int, calls: int) -> str | None:
        """Why no further round with at most this many rows and calls fits, or None if it does."""
        if self.rounds is not None and done + 1 > self.rounds:
            return f"rounds={self.rounds} are done"
        if self.seconds is not None and cost.seconds >= self.seconds:
            return f"seconds={self.seconds:g} have passed"
        for name, spent, more in (("rows", cost.network_rows, rows), ("calls", cost.reward_calls, calls)):
            most = getattr(self, name)
            if most is not None and spent + more > most:
                last = ", the run of the winners included" if name == "rows" else ""
                return f"of {name}={most} {spent} are spent, and another round may take {more}{last}"
        return None

    def left(self, done: int, cost: Cost) -> dict[str, str]:
        """What is left of each limit, for the progress bar."""
        spent = {"rounds": done, "rows": cost.network_rows, "calls": cost.reward_calls, "seconds": cost.seconds}
        return {f"{k} left": f"{most - v:.6g}" for k, v in spent.items() if (most := getattr(self, k)) is not None}

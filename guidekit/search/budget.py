"""When a search ends."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..engine.scoring import Cost


@dataclass(frozen=True)
class Budget:
    """The search ends before the round that would pass a limit, or when every sample has reached the target.

    rounds    of ask and tell
    rows      network rows, the last run of the winners included
    calls     reward calls
    seconds   of this search, all its sittings together; looked at between rounds
    target    a reward
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

    def allows(self, done: int, cost: Cost, rows: int, calls: int) -> bool:
        """Whether a round of so many rows and calls still fits."""
        limits = (
            (self.rounds, done + 1),
            (self.rows, cost.network_rows + rows),
            (self.calls, cost.reward_calls + calls),
        )
        return all(most is None or would <= most for most, would in limits) and (
            self.seconds is None or cost.seconds < self.seconds
        )

    def left(self, done: int, cost: Cost) -> dict[str, str]:
        """What is left of each limit, for the bar."""
        spent = {"rounds": done, "rows": cost.network_rows, "calls": cost.reward_calls, "seconds": cost.seconds}
        return {f"{k} left": f"{most - v:.6g}" for k, v in spent.items() if (most := getattr(self, k)) is not None}

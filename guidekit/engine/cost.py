"""What a run has spent."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass
class Cost:
    """What a run has spent. `reward_calls` counts samples that a reward was sent and had to compute: equal strings and
    rows of tokens once, and none that a `rewards.Cached` knew. `unscored` counts scores that came back as NaN or
    infinite."""

    network_rows: int = 0
    network_calls: int = 0
    reward_calls: int = 0
    unscored: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def network(self, rows: int) -> None:
        """One forward of so many rows."""
        self.network_rows += rows
        self.network_calls += 1

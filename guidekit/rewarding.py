"""Scoring within a run: each distinct sample once, everything counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward


@dataclass
class Cost:
    """What a run has spent. `unscored` counts scores that came back as NaN or infinite."""

    network_rows: int = 0
    network_calls: int = 0
    reward_calls: int = 0
    unscored: int = 0
    seconds: float = 0.0

    def network(self, rows: int) -> None:
        """One forward of so many rows."""
        self.network_rows += rows
        self.network_calls += 1


class Scorer:
    """Calls rewards on decoded samples; equal strings are scored once a step."""

    def __init__(self, cost: Cost, device: torch.device):
        self.cost, self.device = cost, device
        self._unscored: list[Tensor] = []
        self._known: dict[int, tuple[Any, dict[str, float]]] = {}

    def __call__(self, reward: Any, samples: Any) -> Tensor:
        """Scores, float64 (rows,), with NaN for whatever is not a finite number."""
        if isinstance(samples, (list, tuple)) and all(isinstance(s, str) for s in samples):
            scores = self._strings(reward, samples)
        else:
            scores = as_reward(reward)(samples).to(self.device, torch.float64)
            self.cost.reward_calls += len(scores)
        unknown = ~scores.detach().isfinite()
        self._unscored.append(unknown.sum())
        return torch.where(unknown, torch.nan, scores)

    def _strings(self, reward: Any, samples: Sequence[str]) -> Tensor:
        """Scores of strings, the new ones alone being sent to the reward."""
        _, known = self._known.setdefault(id(reward), (reward, {}))
        new = [s for s in dict.fromkeys(samples) if s not in known]
        if new:
            known |= dict(zip(new, as_reward(reward)(new).tolist(), strict=True))
            self.cost.reward_calls += len(new)
        return torch.tensor([known[s] for s in samples], dtype=torch.float64, device=self.device)

    def forget(self) -> None:
        """The step is over: what was known of its strings is let go."""
        self._known.clear()

    def settle(self) -> None:
        """Add up what was left on the device, so that the loop need not wait for it."""
        self.cost.unscored += int(sum(int(v) for v in self._unscored))
        self._unscored.clear()

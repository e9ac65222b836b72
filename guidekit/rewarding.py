"""Scoring within a run: each distinct sample once, everything counted."""

from __future__ import annotations

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
    """Calls rewards on decoded samples; equal strings are scored once a call."""

    def __init__(self, cost: Cost, device: torch.device):
        self.cost, self.device = cost, device
        self._unscored: list[Tensor] = []

    def __call__(self, reward: Any, samples: Any) -> Tensor:
        """Scores, float64 (rows,), with NaN for whatever is not a finite number."""
        if isinstance(samples, (list, tuple)) and all(isinstance(s, str) for s in samples):
            place = {s: i for i, s in enumerate(dict.fromkeys(samples))}
            scores = as_reward(reward)(list(place)).to(self.device, torch.float64)
            self.cost.reward_calls += len(place)
            scores = scores[torch.tensor([place[s] for s in samples], device=self.device)]
        else:
            scores = as_reward(reward)(samples).to(self.device, torch.float64)
            self.cost.reward_calls += len(scores)
        unknown = ~scores.detach().isfinite()
        self._unscored.append(unknown.sum())
        return torch.where(unknown, torch.nan, scores)

    def settle(self) -> None:
        """Add up what was left on the device, so that the loop need not wait for it."""
        self.cost.unscored += int(sum(int(v) for v in self._unscored))
        self._unscored.clear()

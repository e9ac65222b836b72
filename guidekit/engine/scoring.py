"""Scoring within a run: each distinct sample once, everything counted."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import ByGroup, Reward, as_reward

from ..errors import RewardError

_MOST = 1 << 18  # scores that are remembered between steps, of each reward


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
    """Calls rewards on decoded samples; equal strings, and equal rows of whole numbers, are scored once in a run."""

    def __init__(self, cost: Cost, device: torch.device):
        self.cost, self.device = cost, device
        self._unscored: list[Tensor] = []
        self._rewards: dict[Hashable, Reward] = {}  # by what the user gave: wrapped once
        self._known: dict[Hashable, dict[Hashable, float]] = {}
        self._failed: list[tuple[Hashable, Hashable]] = []  # of this step: reward and sample

    def __call__(self, reward: Any, samples: Any, group: Tensor | None = None) -> Tensor:
        """Scores, float64 (rows,), with NaN for whatever is not a finite number; group is that of every sample."""
        if isinstance(reward, ByGroup) and group is not None:
            return self._by_group(reward, samples, group)
        names = _names(samples)
        if names is not None:
            scores = self._distinct(reward, samples, names)
        else:
            scores = self._reward(reward)(samples).to(self.device, torch.float64)
            self.cost.reward_calls += len(scores)
        unknown = ~scores.detach().isfinite()
        self._unscored.append(unknown.sum())
        return torch.where(unknown, torch.nan, scores)

    def _by_group(self, reward: ByGroup, samples: Any, group: Tensor) -> Tensor:
        """Every group's samples by its own reward."""
        parts, order = [], []
        for g in group.unique().tolist():
            if g >= len(reward.rewards):
                raise RewardError(f"{reward.name!r} has {len(reward.rewards)} rewards, and group {g} has none")
            rows = (group == g).nonzero()[:, 0]
            part = samples[rows] if isinstance(samples, Tensor) else [samples[i] for i in rows.tolist()]
            parts.append(self(reward.rewards[g], part))
            order.append(rows)
        return torch.cat(parts)[torch.cat(order).argsort()]

    def _distinct(self, reward: Any, samples: Any, names: Sequence[Hashable]) -> Tensor:
        """Scores of samples that have names, those with new names alone being sent to the reward."""
        key = same(reward)
        known = self._known.setdefault(key, {})
        new = {name: i for i, name in reversed(list(enumerate(names))) if name not in known}
        if new:
            places = sorted(new.values())
            part = samples[places] if isinstance(samples, Tensor) else [samples[i] for i in places]
            found = dict(zip([names[i] for i in places], self._reward(reward)(part).tolist(), strict=True))
            self._failed += [(key, name) for name, score in found.items() if not math.isfinite(score)]
            known |= found
            self.cost.reward_calls += len(new)
        return torch.tensor([known[name] for name in names], dtype=torch.float64, device=self.device)

    def forget(self) -> None:
        """The step is over: those without a score may be tried again, and of very many the oldest are let go."""
        for key, name in self._failed:
            self._known[key].pop(name, None)
        self._failed.clear()
        for key, known in self._known.items():
            if len(known) > _MOST:
                self._known[key] = dict(list(known.items())[-_MOST:])

    def _reward(self, reward: Any) -> Reward:
        """The reward, of a plain function made once."""
        key = same(reward)
        if key not in self._rewards:
            self._rewards[key] = as_reward(reward)
        return self._rewards[key]

    def settle(self) -> None:
        """Add up what was left on the device, so that the loop need not wait for it."""
        self.cost.unscored += int(sum(int(v) for v in self._unscored))
        self._unscored.clear()


def same(reward: Any) -> Hashable:
    """What equal rewards have in common: the reward itself (bound methods are equal where object and method are), or
    its identity where it cannot be hashed."""
    try:
        hash(reward)
    except TypeError:
        return _Identity(reward)
    return reward


@dataclass(frozen=True, eq=False)
class _Identity:
    """An object that cannot be hashed, and is equal to itself alone."""

    of: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.of is other.of

    def __hash__(self) -> int:
        return id(self.of)


def _names(samples: Any) -> Sequence[Hashable] | None:
    """What tells samples apart: strings themselves, tokens by their bytes (on the host); of numbers nothing does."""
    if isinstance(samples, (list, tuple)):
        return samples if all(isinstance(s, str) for s in samples) else None
    if not isinstance(samples, Tensor) or samples.is_floating_point() or samples.device.type != "cpu":
        return None
    rows = samples.flatten(1).contiguous().numpy() if samples.dim() > 1 else samples[:, None].numpy()
    return [row.tobytes() for row in rows]

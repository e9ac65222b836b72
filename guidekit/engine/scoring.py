"""Scoring within a run: each distinct sample once, everything counted."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import ByGroup, Reward, as_reward
from rewards.base import Listener, listening
from rewards.cached import caches

from ..errors import RewardError
from .cost import Cost
from .world import Alone

_MOST = 1 << 18  # scores that are remembered between steps, of each reward


class Scorer:
    """Calls rewards on decoded samples; equal strings, and equal rows of whole numbers, are scored once in a run.

    waits      for a device whose rows of whole numbers are to be told apart; otherwise those on the host alone are
    stepwise   rewards are asked several times before `forget` ends a step: a plain function that raises on every sample
               of a call is an error only if by then it has answered nothing at all. Otherwise it is one at once
    world      the processes that share the samples of a call, which all make it with all of them
    """

    def __init__(
        self,
        cost: Cost,
        device: torch.device,
        *,
        waits: bool = False,
        stepwise: bool = False,
        world: Alone | None = None,
    ):
        self.cost, self.device, self.waits, self.stepwise = cost, device, waits, stepwise
        self.world = world or Alone()
        self._unscored: list[Tensor] = []
        self._rewards: dict[Hashable, Reward] = {}  # by what the user gave: wrapped once
        self._known: dict[Hashable, dict[Hashable, float]] = {}
        self._failed: list[tuple[Hashable, Hashable]] = []  # of this step: reward and sample
        self._heard: dict[Hashable, Listener] = {}

    def __call__(self, reward: Any, samples: Any, group: Tensor | None = None) -> Tensor:
        """Scores, float64 (rows,), with NaN for whatever is not a finite number; group is that of every sample."""
        listener = self._heard.setdefault(same(reward), Listener())
        with listening(listener):
            scores = self._scored(reward, samples, group)
        if listener.error is not None and self.world.size == 1 and bool(scores.isfinite().any()):
            listener.answered = True
        if not self.stepwise:
            self._listen()
        unknown = ~scores.detach().isfinite()
        self._unscored.append(unknown.sum())
        return torch.where(unknown, torch.nan, scores)

    def learn(self, reward: Any, samples: Any, scores: Tensor, group: Tensor) -> None:
        """What is known already of samples that can be told apart: they are not asked for again."""
        if isinstance(reward, ByGroup):
            for rows, own in _by_group(reward, group):
                self.learn(own, _taken(samples, rows.tolist()), scores[rows], group[rows])
            return
        names = _names(samples, self.waits)
        if names is not None:
            known = self._known.setdefault(same(reward), {})
            known |= {name: score for name, score in zip(names, scores.tolist(), strict=True) if name not in known}

    def begin(self) -> None:
        """A round of its own begins: what rewards have answered before does not excuse that they fail in it."""
        for listener in self._heard.values():
            listener.answered = False

    def forget(self) -> None:
        """The step is over, and what plain functions have raised in it is an error or a warning now."""
        self.let_go()
        self._listen()

    def let_go(self) -> None:
        """Of the step that is over, those without a score may be tried again; of very many the oldest are let go."""
        for key, name in self._failed:
            self._known[key].pop(name, None)
        self._failed.clear()
        for key, known in self._known.items():
            if len(known) > _MOST:
                self._known[key] = dict(list(known.items())[-_MOST:])

    def settle(self) -> None:
        """The run is over: as `forget`, and what was left on the device is added up."""
        self.add_up()
        self._listen()

    def add_up(self) -> None:
        """Add up what was left on the device, so that the loop need not wait for it."""
        self.cost.unscored += int(sum(int(v) for v in self._unscored))
        self._unscored.clear()

    @property
    def listeners(self) -> list[Listener]:
        """What has been heard of each reward, in the order in which they were first asked."""
        return list(self._heard.values())

    def listen(self) -> None:
        """Raise or warn of what plain functions have raised on all samples of a call."""
        for listener in self.listeners:
            listener.settle()

    def _listen(self) -> None:
        with self.world.together(self):
            pass

    def _scored(self, reward: Any, samples: Any, group: Tensor | None) -> Tensor:
        if isinstance(reward, ByGroup) and group is not None:
            rows, rewards = zip(*_by_group(reward, group), strict=True)
            parts = [self._scored(r, _taken(samples, i.tolist()), None) for i, r in zip(rows, rewards, strict=True)]
            return torch.cat(parts)[torch.cat(rows).argsort()]
        names = _names(samples, self.waits)
        return self._asked(reward, samples) if names is None else self._distinct(reward, samples, names)

    def _distinct(self, reward: Any, samples: Any, names: Sequence[Hashable]) -> Tensor:
        """Scores of samples that have names, those with new names alone being sent to the reward."""
        key = same(reward)
        known = self._known.setdefault(key, {})
        new = {name: i for i, name in reversed(list(enumerate(names))) if name not in known}
        if new:
            places = sorted(new.values())
            scores = self._asked(reward, _taken(samples, places))
            found = dict(zip([names[i] for i in places], scores.tolist(), strict=True))
            self._failed += [(key, name) for name, score in found.items() if not math.isfinite(score)]
            known |= found
        return torch.tensor([known[name] for name in names], dtype=torch.float64, device=self.device)

    def _asked(self, reward: Any, samples: Any) -> Tensor:
        """The reward's scores of all of these; those that it found in its caches are not counted."""
        world = self.world.over(len(samples))
        with world.together():
            scores, count = self._called(self._reward(reward), samples[world.share(len(samples))])
        self.cost.reward_calls += world.cost(Cost(reward_calls=count)).reward_calls
        return world.rows(scores)

    def _called(self, reward: Reward, samples: Any) -> tuple[Tensor, int]:
        """The reward's scores of these, and how many were not in its caches."""
        kept = caches(reward)
        before = [cache.calls for cache in kept or ()]
        scores = reward(samples).to(self.device, torch.float64)
        if kept is None:
            return scores, len(scores)
        return scores, min(len(scores), max(c.calls - calls for c, calls in zip(kept, before, strict=True)))

    def _reward(self, reward: Any) -> Reward:
        """The reward, of a plain function made once."""
        key = same(reward)
        if key not in self._rewards:
            self._rewards[key] = as_reward(reward)
        return self._rewards[key]


def _by_group(reward: ByGroup, group: Tensor) -> list[tuple[Tensor, Reward]]:
    """The rows of every group, and its reward."""
    groups: list[int] = group.unique().tolist()
    if groups and groups[-1] >= len(reward.rewards):
        raise RewardError(f"{reward.name!r} has {len(reward.rewards)} rewards, and group {groups[-1]} has none")
    return [((group == g).nonzero()[:, 0], reward.rewards[g]) for g in groups]


def _taken(samples: Any, places: list[int]) -> Any:
    return samples[places] if isinstance(samples, Tensor) else [samples[i] for i in places]


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


def _names(samples: Any, waits: bool) -> Sequence[Hashable] | None:
    """What tells samples apart: strings themselves, tokens by their bytes (on the host); of numbers nothing does."""
    if isinstance(samples, (list, tuple)):
        return samples if all(isinstance(s, str) for s in samples) else None
    if not isinstance(samples, Tensor) or samples.is_floating_point() or samples.is_complex():
        return None
    if not waits and samples.device.type != "cpu":
        return None
    rows = samples.long() if samples.dim() == 2 else samples.flatten(1) if samples.dim() > 1 else samples[:, None]
    return [row.tobytes() for row in rows.cpu().contiguous().numpy()]

"""A reward: samples in, one float each out, in order, NaN where a sample could not be scored.

Plain functions are rewards too; `as_reward` wraps them. Whatever the user's code returns is checked once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor


class RewardError(RuntimeError):
    """A reward raised, returned the wrong length or type, or scored nothing at all."""


class Reward:
    """Base of all rewards: a subclass says how to `score`.

    name             what tables and errors call it
    differentiable   whether gradients flow from the scores to the samples; None where nobody has said
    """

    name: str = "reward"
    differentiable: bool | None = False

    def score(self, samples: Any) -> Any:
        """One number for each sample, in order; NaN where it cannot be scored."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to score")

    def __call__(self, samples: Any) -> Tensor:
        """The scores as a float tensor of shape (len(samples),)."""
        watched = isinstance(samples, Tensor) and not samples.is_inference()
        version = samples._version if watched else 0
        try:
            scores = self.score(samples)
        except Exception as error:
            raise RewardError(f"reward {self.name!r} raised {type(error).__name__}: {error}") from error
        if watched and samples._version != version:
            raise RewardError(f"reward {self.name!r} works on its samples in place; it must leave them as they are")
        return _checked(scores, len(samples), self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


class Function(Reward):
    """A plain function of samples as a reward."""

    def __init__(self, function: Callable[[Any], Any], name: str | None = None, differentiable: bool | None = None):
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self.differentiable = differentiable

    def score(self, samples: Any) -> Any:
        return self.function(samples)


def as_reward(reward: Reward | Callable[[Any], Any]) -> Reward:
    """The reward itself, or a function wrapped as one.

    >>> as_reward(lambda samples: [len(s) for s in samples])(["CC", "CCO"])
    tensor([2., 3.], dtype=torch.float64)
    """
    if isinstance(reward, Reward):
        return reward
    if not callable(reward):
        raise TypeError(f"a reward is a Reward or a function of samples, not {type(reward).__name__}")
    return Function(reward)


def _checked(scores: Any, count: int, name: str) -> Tensor:
    """The scores as a float tensor, or an error that says what came instead."""
    if not isinstance(scores, Tensor):
        try:
            if isinstance(scores, (Mapping, Set, str)):
                raise TypeError("it has no order of samples")
            scores = torch.as_tensor(scores if isinstance(scores, Sequence) else list(scores), dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(
                f"reward {name!r} returned {type(scores).__name__} for {count} samples; "
                "it must return a tensor, array or list with one number for each"
            ) from error
    if tuple(scores.shape) != (count,) or scores.is_complex():
        raise RewardError(
            f"reward {name!r} returned shape {tuple(scores.shape)} and {scores.dtype} for {count} samples; "
            f"it must return one real number for each, shape ({count},)"
        )
    return scores if scores.is_floating_point() else scores.double()

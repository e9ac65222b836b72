"""Image rewards applied to videos."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import Reward, as_reward


class Frames(Reward):
    """A reward of images for videos (rows, frames, C, H, W): the mean or minimum over every `every`-th frame.

    reward    a reward of single images that does not depend on the row or its group
    pool      "mean" or "min"; a video is NaN if one of its frames is

    >>> import torch
    >>> from rewards.images import Brightness
    >>> video = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1).expand(2, 5, 3, 8, 8)
    >>> Frames(Brightness(), every=2, pool="min")(video), Frames(Brightness())(video)
    (tensor([0., 0.]), tensor([0.5000, 0.5000]))
    """

    def __init__(self, reward: Any, every: int = 1, pool: str = "mean"):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"Frames(every={every!r}): a whole number of at least 1 is needed; 1 takes all frames")
        if pool not in ("mean", "min"):
            raise ValueError(f"Frames(pool={pool!r}): there is 'mean' and 'min'")
        self.reward, self.every, self.pool = as_reward(reward), every, pool
        self.differentiable, self.unit = self.reward.differentiable, self.reward.unit
        self.higher_is_better = self.reward.higher_is_better
        self.name = f"{self.reward.name}, {pool} of frames"

    def score(self, samples: Any) -> Tensor:
        if not isinstance(samples, Tensor) or samples.dim() != 5:
            given = tuple(getattr(samples, "shape", ())) or type(samples).__name__
            raise ValueError(f"{self.name}: videos are a tensor (rows, frames, C, H, W), and not {given}")
        chosen = samples[:, :: self.every]
        scores = self.reward(chosen.flatten(0, 1)).view(chosen.shape[:2])
        return scores.mean(1) if self.pool == "mean" else scores.amin(1)

"""The progress bar of a reward that takes long to evaluate, and whether anybody is there to watch."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor

from rewards import Each, Reward

from ..engine.describe import describe

_DELAY = 4.0  # seconds that a reward may take before it has a bar


class Watched(Reward):
    """A reward of samples one by one, with a bar of its own once it has taken some seconds."""

    shown = False  # for all of them: a bar is no part of what a run is

    def __init__(self, reward: Each):
        self.reward, self.name, self.unit = reward, reward.name, reward.unit
        self.differentiable, self.higher_is_better = reward.differentiable, reward.higher_is_better

    @staticmethod
    def of(reward: Reward) -> Reward:
        """The reward, watched where its samples can be counted."""
        return Watched(reward) if isinstance(reward, Each) else reward

    def identity(self) -> Any:
        """What a checkpoint knows of it."""
        return describe(self.reward)

    def score(self, samples: Any) -> Any:
        if not Watched.shown or isinstance(samples, (str, Tensor)):
            return self.reward.score(samples)
        from tqdm.auto import tqdm

        with tqdm(samples, desc=self.name, unit="sample", delay=_DELAY, leave=False, dynamic_ncols=True) as counted:
            return self.reward.score(counted)


def wanted() -> bool:
    """Whether somebody watches: stderr is a terminal or a notebook, and no CI runs this."""
    notebook = "ipykernel" in sys.modules
    return not os.environ.get("CI") and (notebook or sys.stderr.isatty())

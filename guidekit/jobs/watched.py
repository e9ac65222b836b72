"""The progress bar of a slow reward, and whether anybody is there to watch."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor

from rewards import Each, Reward

from ..engine.describe import describe

_DELAY = 4.0  # seconds that a reward may take before it gets a bar


class Watched(Reward):
    """A reward that scores samples one by one, with a bar of its own once it has taken some seconds."""

    shown = False  # a class attribute: bars do not identify a run

    def __init__(self, reward: Each):
        self.reward, self.name, self.unit = reward, reward.name, reward.unit
        self.differentiable, self.higher_is_better = reward.differentiable, reward.higher_is_better

    @staticmethod
    def of(reward: Reward) -> Reward:
        """The reward, watched if its samples can be counted."""
        return Watched(reward) if isinstance(reward, Each) else reward

    def identity(self) -> Any:
        """What identifies the reward in a checkpoint."""
        return describe(self.reward)

    def score(self, samples: Any) -> Any:
        if not Watched.shown or isinstance(samples, (str, Tensor)):
            return self.reward.score(samples)
        from tqdm.auto import tqdm

        with tqdm(samples, desc=self.name, unit="sample", delay=_DELAY, leave=False, dynamic_ncols=True) as counted:
            return self.reward.score(counted)


def wanted() -> bool:
    """Whether somebody may be watching: stderr is a terminal or a notebook, and this is not CI."""
    notebook = "ipykernel" in sys.modules
    return not os.environ.get("CI") and (notebook or sys.stderr.isatty())

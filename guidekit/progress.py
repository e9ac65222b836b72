"""The progress bars: of a run, with step, effective sample size, best and mean reward, rows a second and time left; and
of a reward that takes long to evaluate."""

from __future__ import annotations

import os
import sys
from typing import Any

from torch import Tensor

from rewards import Each, Reward

from .describe import describe
from .population import Population
from .run import Run

_DELAY = 4.0  # seconds that a reward may take before it has a bar


def wanted() -> bool:
    """Whether somebody watches: stderr is a terminal or a notebook, and no CI runs this."""
    notebook = "ipykernel" in sys.modules
    return not os.environ.get("CI") and (notebook or sys.stderr.isatty())


class Bar:
    """A tqdm bar, or nothing. Reading the numbers waits for the device, so it is done only when tqdm draws."""

    def __init__(self, run: Run, shown: bool):
        self.run, self.bar = run, None
        if shown:
            from tqdm.auto import tqdm

            self.bar = tqdm(
                **{"total": len(run.moves), "unit": "step", "desc": "sample", "dynamic_ncols": True} | run.model.bar
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, pop: Population, done: int) -> None:
        """Show the state after `done` moves; the numbers are read only when the bar is drawn."""
        if self.bar is not None and (self.bar.update(done - self.bar.n) or done == len(self.run.moves)):
            self.bar.set_postfix(self._numbers(pop))

    def _numbers(self, pop: Population) -> dict[str, str]:
        shown = {"ess": f"{float(pop.ess.min()):.0f}"}
        known = pop.rewards[~pop.rewards.isnan()]
        if len(known):
            shown |= {"best": f"{float(known.max()):.3g}", "mean": f"{float(known.mean()):.3g}"}
        return shown | {"rows/s": f"{self.run.cost.network_rows / max(self.run.seconds, 1e-9):.0f}"}


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

r"""The hallucination filter (Aithal et al., 2024), https://arxiv.org/abs/2406.09358.

A network is smooth where the true denoiser jumps from one mode to the next, so some samples come out between modes, in
places where there are no data. Their clean estimates are not steady towards the end of the run:

    Hal(x)  =  mean over the last `window` predictions of (d_t - mean d)^2,    averaged over the numbers of a sample.

It is small inside the modes, and a threshold on it (or a preference for small values) filters what is between them.
The window has to cover the noise levels at which samples settle in a mode and not those at which they choose one: about
a tenth of the run was best in one dimension. Look at the values of a few hundred samples before you set a threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards import Reward

from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.result import Result
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..process import Gaussian


class Steadiness(Reward):
    """-Hal of the trajectory so far, unknown before the window. It is no function of samples: see Hallucination."""

    name = "steadiness"

    def score(self, samples: Any) -> Any:
        raise ValueError(
            "steadiness is known of a trajectory, not of a sample: put its gk.Hallucination into guides=[...], before "
            "the guide that uses it"
        )


@dataclass(frozen=True)
class Hallucination(Guide):
    """Hal of every sample, in `result.memos[place of the guide]` and by `hallucination(result)`. No cost.

    The trace has its mean so far, in the column "hallucination".

    window      predictions that it is taken over, the last ones of the run, at least 2
    threshold   samples above it weigh nothing
    alpha       all weigh exp(-Hal/alpha)
    steadiness  -Hal as a reward for the guides behind it in the list: best-of-N, Feynman-Kac steering, SVDD, beams

    >>> import guidekit as gk
    >>> steady = Hallucination(10)
    >>> guides = [steady, gk.BestOfN(steady.steadiness, 4)]
    """

    window: int = 10
    threshold: float = math.inf
    alpha: float = math.inf
    steadiness: Steadiness = field(default_factory=Steadiness, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 2:
            raise ValueError(f"Hallucination(window={self.window!r}): a variance needs 2 predictions or more")
        if not (self.threshold >= 0 and self.alpha > 0):
            raise ValueError(f"Hallucination(threshold={self.threshold}, alpha={self.alpha}): both are positive")

    def check(self, model: Model, steps: int) -> None:
        if not isinstance(model.process, Gaussian):
            raise ValueError("Hallucination is the variance of a clean mean, and tokens have none")
        if self.window > steps:
            raise ValueError(f"Hallucination(window={self.window}): the run makes {steps} predictions")
        if self.start > 0 or self.stop < 1:
            raise ValueError("Hallucination takes its window from the end of the run, and no start or stop")

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        count, total = self._count(view.step), view.step.total
        if view.step.last:
            hal = _mean(memo[1]) / min(self.window, total)
            view.tell(self.steadiness, -hal)
            increment = -hal / self.alpha if self.alpha < math.inf else 0.0
            return increment + torch.where(hal > self.threshold, -torch.inf, 0.0), hal
        if count < 1 or view.prediction is None:
            view.tell(self.steadiness, torch.full_like(view.zeros(), torch.nan))
            return 0.0, memo
        mean, square = (torch.zeros_like(view.prediction),) * 2 if memo is None else memo
        away = view.prediction.detach() - mean  # Welford's running mean and sum of squares
        mean = mean + away / count
        square = square + away * (view.prediction.detach() - mean)
        view.tell(self.steadiness, -_mean(square) / count)
        return 0.0, (mean, square)

    def traced(self, population: Population, step: Step) -> dict[str, Tensor]:
        memo, count = population.memos[step.place], self._count(step)
        if step.last:
            return {"hallucination": memo}
        unknown = torch.full_like(population.log_w, torch.nan)
        return {"hallucination": unknown if memo is None or count < 2 else _mean(memo[1]) / count}

    def _count(self, step: Step) -> int:
        """Predictions in the window up to this step."""
        return min(step.index - step.total + self.window, step.index) + 1


def hallucination(result: Result) -> Tensor:
    """Hal of every sample, float64 (rows,), from a run with a Hallucination among its guides."""
    names = [g.get("type", "") for g in result.config["guides"]]
    places = [i for i, name in enumerate(names) if name.endswith(f".{Hallucination.__name__}")]
    if not places:
        raise ValueError("hallucination(result): the run had no gk.Hallucination(window) among its guides")
    return result.memos[places[0]]


def _mean(v: Tensor) -> Tensor:
    return v.flatten(1).double().mean(1)

r"""The hallucination filter (Aithal et al., 2024), https://arxiv.org/abs/2406.09358.

A network is smooth where the true denoiser jumps from one mode to the next, so some samples end up between modes, where
there are no data. Their clean estimates do not settle towards the end of the run:

    Hal(x)  =  mean over the last `window` predictions of (d_t - mean d)^2,    averaged over the entries of a sample.

Hal is small inside the modes, so a threshold on it, or a preference for small values, filters out what lies between
them. The window should cover the noise levels at which samples settle in a mode, but not those at which they choose
one: about a tenth of the run was best in one dimension. Look at the values of a few hundred samples before setting a
threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rewards import Reward

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.result import Result
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Model
from ..process import Gaussian


class Steadiness(Reward):
    """-Hal of the trajectory so far, NaN before the window. It is not a function of samples: see `Hallucination`."""

    name = "steadiness"

    def score(self, samples: Any) -> Any:
        raise ValueError(
            "steadiness is known of a trajectory, not of a sample: put its gk.Hallucination into guides=[...], before "
            "the guide that uses it"
        )


@dataclass(frozen=True)
class Hallucination(Guide):
    """Measures Hal of every sample, and optionally weighs by it. No extra NFE.

    The values are in `result.memos[place of the guide]`, and are returned by `hallucination(result)`; their mean so far
    is the column "hallucination" of the trace.

    window       the number of predictions, the last ones of the run, that the variance is taken over; at least 2
    threshold    samples with a larger Hal get weight zero
    alpha        all samples get the weight exp(-Hal/alpha)
    steadiness   -Hal as a reward, for guides later in the list: best-of-N, Feynman-Kac steering, SVDD, beam search

    >>> import guidekit as gk
    >>> steady = Hallucination(10)
    >>> guides = [steady, gk.BestOfN(steady.steadiness, 4)]
    """

    window: int = 10
    threshold: float = math.inf
    alpha: float = math.inf
    steadiness: Steadiness = field(default_factory=Steadiness, compare=False, kw_only=True)

    card = Card(
        "detects samples between modes by the variance of their clean estimates",
        section="Diagnosis",
        processes=(Gaussian,),
        refusal="is the variance of a clean mean, and tokens have none: use it with a Gaussian process",
        changes="nothing, or weights",
        paper=Paper(
            "aithal2024hallucinations",
            "Aithal, Sumukh K. and Maini, Pratyush and Lipton, Zachary C. and Kolter, J. Zico",
            "Understanding Hallucinations in Diffusion Models through Mode Interpolation",
            2024,
            "2406.09358",
        ),
        example="gk.Hallucination(5, alpha=0.02)",
    )

    def __post_init__(self) -> None:
        if not is_count(self.window, 2):
            raise ValueError(f"Hallucination(window={self.window!r}): a variance needs 2 predictions or more")
        if not (self.threshold >= 0 and self.alpha > 0):
            raise ValueError(f"Hallucination(threshold={self.threshold}, alpha={self.alpha}): both are positive")

    def check(self, model: Model, steps: int) -> None:
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
        """The number of predictions in the window up to this step."""
        return min(step.index - step.total + self.window, step.index) + 1


def hallucination(result: Result) -> Tensor:
    """Hal of every sample, float64 (rows,), of a run with a Hallucination among its guides."""
    names = [g.get("type", "") for g in result.config["guides"]]
    places = [i for i, name in enumerate(names) if name.endswith(f".{Hallucination.__name__}")]
    if not places:
        raise ValueError("hallucination(result): the run had no gk.Hallucination(window) among its guides")
    return result.memos[places[0]]


def _mean(v: Tensor) -> Tensor:
    return v.flatten(1).double().mean(1)

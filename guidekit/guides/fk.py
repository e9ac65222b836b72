r"""Feynman-Kac steering (Singhal et al., 2025), https://arxiv.org/abs/2501.06848.

Particles move by the base model's kernel p(x_s | x_t) and are weighted by potentials whose product along a path is
exp(r(x_0)/alpha), so that the weighted particles follow

    p(x_0) exp(r(x_0)/alpha) / Z,      Z = E_p[exp(r(x_0)/alpha)].

The difference potential at a step that is scored is G = exp((V_s - V_before)/alpha) with V the look-ahead value, V = r
at the last step and V = 0 before the first: the sum telescopes to r(x_0)/alpha whatever V is, which only decides how
far the weights spread on the way. Weights are carried where nothing is resampled, and returned with log Z.

A value that is not known at a step (the clean estimate could not be scored) leaves the particle's last one standing;
a final sample without a score has weight zero. The code published with the paper differs: its adaptive mode drops the
weights of steps that do not resample, and it never weighs the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import resampling
from ..models.base import Model
from ..population import Population
from ..tree import Tree
from ..values import Tweedie, Value
from ..view import Step, View
from .base import Guide
from .resample import check_resampling, resample


@dataclass(frozen=True)
class FKSteering(Guide):
    """Feynman-Kac steering towards p exp(reward/alpha).

    reward      a Reward or a function of decoded samples
    alpha       temperature: the smaller, the harder the steering
    potential   "difference"
    every       score and resample at every so many steps, and at the last
    ess         resample a group when its ESS is below this share of it (0 never, 1 always)
    value       the look-ahead; None means `gk.values.Tweedie(reward)`
    """

    reward: Any
    alpha: float
    potential: str = "difference"
    every: int = 1
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"
    value: Value | None = None

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"FKSteering(reward=...) takes a function of samples, not {type(self.reward).__name__}")
        if not self.alpha > 0:
            raise ValueError(f"FKSteering(alpha={self.alpha}): the temperature must be positive")
        if self.potential != "difference":
            raise ValueError(f"FKSteering(potential={self.potential!r}): there is 'difference'")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"FKSteering(every={self.every!r}): a number of steps, at least 1")
        check_resampling(self.ess, self.resampler)

    def check(self, model: Model, steps: int) -> None:
        if self.steer:
            raise ValueError("FKSteering(steer=True): it has no tilt that the weights could correct for")

    def due(self, step: Step) -> bool:
        """Whether this step is scored."""
        return step.last or (step.index > 0 and step.index % self.every == 0 and self.active(step))

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        if not self.due(view.step):
            return 0.0, memo
        before = view.zeros() if memo is None else memo
        value = view.score(self.reward) if view.step.last else (self.value or Tweedie(self.reward))(view)
        unknown = -torch.inf if view.step.last else before
        now = torch.where(value.isfinite(), value / self.alpha, unknown)
        return now - before, now

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess if self.due(step) else 0.0, self.resampler)

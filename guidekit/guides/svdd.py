r"""Soft value-based decoding (Li et al., 2024), https://arxiv.org/abs/2408.08252.

Every particle draws M children x_s ~ p(x_s | x_t), and one of them lives, by the look-ahead value V of each:

    alpha = 0    the child of largest V, as in the paper's experiments and code. Greedy: no tilted law is its target,
                 and samples weigh alike.
    alpha > 0    child m with probability exp(V_m/alpha) / sum_j exp(V_j/alpha), and the log-weight grows by

                     log 1/M sum_m exp(V(x_s^m)/alpha) - V(x_t)/alpha,        V = r at t = 0, 0 before the first.

The second is nested importance sampling: the weighted samples follow p exp(r/alpha)/Z for any M and any V, and their
mean weight is an unbiased estimate of Z. (Without the weights, sampling children by exp(V/alpha) reaches that law
only for M -> infinity and the exact V.) For the paper's global resampling, SVDD-R, put `gk.Resample()` or
`gk.FKSteering` of the same reward and temperature after it in the list; equal rewards at equal temperatures count
once.

V is r(E[x_0 | x_t]) by default (SVDD-PM); `gk.values.Learned` makes it SVDD-MC. The last step is scored and selected
too, unless it is deterministic and all children would be one.

Children are exchangeable: with the part that all weights share, M min_m W_m, the first child lives, which has the
noise of an only child; with the rest, child m in proportion to W_m - min W. The law is the same as if m ~ W, and for
alpha -> infinity the run becomes the unguided one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.guide import Guide
from ..engine.population import Population, log_mean_exp
from ..engine.scoring import same
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..values import Value
from .shared.twist import check_reward, twist, value_of


@dataclass(frozen=True)
class SVDD(Guide):
    """Keep one of `candidates` children of every particle. Network rows: candidates a particle and step.

    alpha   0 for argmax, or the temperature of the tilted law
    value   the look-ahead; None means `gk.values.Tweedie(reward)`. With one that reads x_t alone, like
            `gk.values.Learned`, the network sees only the survivors: one row a particle and step
    """

    reward: Any
    alpha: float = 0.0
    candidates: int = 10
    value: Value | None = None

    def __post_init__(self) -> None:
        check_reward(self, positive=False)
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(f"SVDD(candidates={self.candidates!r}): at least one child of each particle is needed")

    @property
    def twist(self) -> tuple[Hashable, float] | None:
        return (same(self.reward), self.alpha) if self.alpha else None

    @property
    def sees_prediction(self) -> bool:  # type: ignore[override]
        return getattr(self.value, "sees_prediction", True)

    def check(self, model: Model, steps: int) -> None:
        if self.steer:
            raise ValueError("SVDD(steer=True): it has no tilt that the weights could correct for")

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        return n, self.candidates

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        if view.step.index == 0:
            return 0.0, memo
        if self.alpha == 0:
            return 0.0, value_of(self, view)
        before = view.zeros() if memo is None else memo
        now = twist(self, view, before)
        return now - before, now

    def select(self, population: Population, step: Step) -> Population:
        if step.index == 0:
            return population
        return self._greedy(population, step) if self.alpha == 0 else self._nested(population, step)

    def _greedy(self, population: Population, step: Step) -> Population:
        scores = population.siblings(population.memos[step.place]).nan_to_num(-torch.inf)
        best, child = scores.max(-1)
        log_w = population.siblings(population.log_w).gather(-1, child[..., None])[..., 0]
        return population.choose(child, torch.where(best.isfinite() | (not step.last), log_w, -torch.inf))

    def _nested(self, population: Population, step: Step) -> Population:
        log_w = population.siblings(population.log_w)
        keys = random.fold(step.key[:, None], torch.arange(log_w.shape[1], device=log_w.device))
        mean, share = log_mean_exp(log_w), log_w.softmax(-1)
        low = share.amin(-1, keepdim=True)
        drawn = ((share - low).log() + random.gumbel(keys, log_w.shape[-1:])).argmax(-1)
        alike = random.uniform(random.fold(keys, "alike")) < log_w.shape[-1] * low[..., 0]
        return population.choose(torch.where(alike | (mean == -torch.inf), 0, drawn), mean)

r"""Soft value-based decoding, SVDD (Li et al., 2024), https://arxiv.org/abs/2408.08252.

Every particle draws M candidate children x_s ~ p(x_s | x_t), of which one survives, depending on the look-ahead values
V of the candidates:

    alpha = 0    the child with the largest V, as in the paper's experiments and code. This is greedy: the samples have
                 equal weights and do not follow a tilted distribution.
    alpha > 0    child m with probability exp(V_m/alpha) / sum_j exp(V_j/alpha), and the log-weight increases by

                     log 1/M sum_m exp(V(x_s^m)/alpha) - V(x_t)/alpha,      V = r at t = 0, 0 before the first move

The second is nested importance sampling: for any M and any V the weighted samples follow p exp(r/alpha)/Z, and their
mean weight is an unbiased estimate of Z. (Without the weights, choosing children in proportion to exp(V/alpha) samples
that distribution only for M -> infinity and the exact V.) For the paper's global resampling, SVDD-R, put
`gk.Resample()`, or `gk.FKSteering` with the same reward and alpha, after it in the list; equal rewards with equal alpha
are counted once.

V is r(E[x_0 | x_t]) by default (SVDD-PM); with `gk.values.Learned` the method is SVDD-MC. The last step is scored and
selected too, unless it is deterministic, so that all children would be the same.

Children are exchangeable, which allows the choice to be coupled to the unguided run: with probability M min_m W_m, the
part that all weights share, the first child survives, which has the noise of an only child; otherwise child m, in
proportion to W_m - min W. The distribution is the same as for m ~ W, and for alpha -> infinity the run becomes the
unguided one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population, log_mean_exp
from ..engine.scoring import same
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..values import Value
from .shared.twist import TILTED, check_reward, twist, value_of


@dataclass(frozen=True)
class SVDD(Guide):
    """Keep one of several candidate children of every particle. NFE: `candidates` per particle and step.

    reward       a Reward, or a function of decoded samples
    alpha        the temperature of the tilted distribution; 0 takes the best child; or "auto", "kl=2", "ess=0.3", a
                 budget that decides it (`gk.Auto`)
    candidates   M, the number of children of each particle
    value        the look-ahead, or the name of one: "tweedie" (the default), "rollout", "flow", "parent". With one that
                 reads no prediction of the child, such as "parent" (for masked tokens) or `gk.values.Learned`, the
                 network sees only the survivors: one NFE per particle and step, however many candidates
    """

    reward: Any
    alpha: float | str | Auto = 0.0
    candidates: int = 10
    value: Value | str | None = None

    card = Card(
        "keeps one of several candidate children of every particle",
        section="Steering with rewards",
        rows="candidates - 1",
        exact=f"{TILTED}; alpha = 0 is greedy",
        changes="weights",
        paper=Paper(
            "li2024svdd",
            "Li, Xiner and Zhao, Yulai and Wang, Chenyu and Scalia, Gabriele and Eraslan, Gokcen and Nair, Surag and "
            "Biancalani, Tommaso and Ji, Shuiwang and Regev, Aviv and Levine, Sergey and Uehara, Masatoshi",
            "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding",
            2024,
            "2408.08252",
        ),
        example="gk.SVDD(reward, 0.5, 4)",
    )

    def __post_init__(self) -> None:
        check_reward(self, positive=False)
        if not is_count(self.candidates):
            raise ValueError(f"SVDD(candidates={self.candidates!r}): at least one child of each particle is needed")

    @property
    def twist(self) -> Hashable:
        return (same(self.reward), self.alpha) if self.alpha else None

    @property
    def sees_prediction(self) -> bool:  # type: ignore[override]
        return getattr(self.value, "sees_prediction", True)

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

r"""Feynman-Kac steering (Singhal et al., 2025), https://arxiv.org/abs/2501.06848.

Particles are proposed by the base model's kernel p(x_s | x_t) and weighted by potentials whose product along a path is
exp(r(x_0)/alpha), so that the weighted particles follow

    p(x_0) exp(r(x_0)/alpha) / Z,      Z = E_p[exp(r(x_0)/alpha)].

With v_j = gamma(t_j) V_j/alpha, where V_j is the look-ahead at the j-th step that is scored, the potentials on the way
are

    difference   log G_j = v_j - v_(j-1),   v_0 = 0            max   log G_j = max(v_1, ..., v_j)
    final        log G_j = 0                                   sum   log G_j = v_1 + ... + v_j

and the last one is exp(r(x_0)/alpha) divided by the product of the others. So the target does not depend on V and
gamma; they only decide how much the weights vary on the way ("sum" varies most). Log-weights accumulate until a group
is resampled.

If the value at a step is unknown (the clean estimate could not be scored), the particle keeps its last one; a final
sample without a score has weight zero.

The code published with the paper differs, and does not sample the distribution above: its last potential is that of the
running max or sum instead of r(x_0), its adaptive mode drops the weights of steps that do not resample, its max starts
at zero, so that all particles tie while rewards are negative, and it returns the samples without their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.population import Population
from ..engine.resampling import check_resampling, resample
from ..engine.scoring import same
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..values import Value
from .shared.twist import TILTED, check_reward, twist, value_of

# of the path so far: (sum of log G, running value, v_j) -> (sum of log G, running value)
POTENTIALS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "difference": lambda total, running, v: (v, v),
    "max": lambda total, running, v: (total + torch.fmax(running, v), torch.fmax(running, v)),
    "sum": lambda total, running, v: (total + running.nan_to_num(0.0) + v, running.nan_to_num(0.0) + v),
    "final": lambda total, running, v: (total, running),
}


@dataclass(frozen=True)
class FKSteering(Guide):
    """Feynman-Kac steering towards p exp(reward/alpha). No extra NFE; one reward call per particle and scored step.

    reward      a Reward, or a function of decoded samples
    alpha       the temperature: the smaller, the stronger the steering; or "auto", "kl=2", "ess=0.3", a budget that
                decides it (`gk.Auto`)
    potential   "difference" | "max" | "sum" | "final" (importance sampling: only final samples are scored)
    every       score and resample at every so many steps, or at the steps in this list, and at the last
    ess         resample a group when its effective sample size falls below this fraction of its particles: 0 never,
                1 always
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    value       the look-ahead, or the name of one: "tweedie" (the default), "rollout", "flow", "parent"
    tempering   gamma, a number or a function of t
    """

    reward: Any
    alpha: float | str | Auto
    potential: str = "difference"
    every: int | Sequence[int] = 1
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"
    value: Value | str | None = None
    _: KW_ONLY
    tempering: Scale = 1.0

    card = Card(
        "resamples particles by potentials of the reward",
        section="Steering with rewards",
        exact=TILTED,
        changes="weights",
        paper=Paper(
            "singhal2025fk",
            "Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and "
            "McKeown, Kathleen and Ranganath, Rajesh",
            "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
            2025,
            "2501.06848",
        ),
        example="gk.FKSteering(reward, 0.5)",
    )

    def __post_init__(self) -> None:
        check_reward(self)
        if self.potential not in POTENTIALS:
            raise ValueError(f"FKSteering(potential={self.potential!r}): there is {', '.join(POTENTIALS)}")
        check_every(self)
        check_resampling(self.ess, self.resampler)

    @property
    def twist(self) -> Hashable:
        return same(self.reward), self.alpha

    def due(self, step: Step) -> bool:
        """Whether the particles are scored, and perhaps resampled, at this step."""
        return step.last or in_turn(self.every, step.index)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        if not self.due(view.step) or (self.potential == "final" and not view.step.last):
            return 0.0, memo
        total, running = (view.zeros(), torch.full_like(view.zeros(), torch.nan)) if memo is None else memo
        if view.step.last:
            now = twist(self, view, total)
            return now - total, (now, running)
        v = at(self.tempering, view.t) * value_of(self, view) / float(self.alpha)
        level, best = POTENTIALS[self.potential](total, running, v)
        level, best = (torch.where(v.isfinite(), new, old) for new, old in ((level, total), (best, running)))
        return level - total, (level, best)

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess if self.due(step) else 0.0, self.resampler)


def in_turn(every: int | Sequence[int], index: int) -> bool:
    """Whether a step after the start is one of every so many, or in a list."""
    return index > 0 and (index % every == 0 if isinstance(every, int) else index in every)


def check_every(guide: Any) -> None:
    """Raise unless `every` is a number of steps, or a list of steps."""
    every = guide.every
    listed = list(every) if isinstance(every, Sequence) else [every]
    if isinstance(every, str) or not all(map(is_count, listed)):
        raise ValueError(f"{type(guide).__name__}(every={every!r}): a number of steps, at least 1, or a list of steps")

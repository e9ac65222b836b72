r"""Diffusion alignment as sampling (Kim et al., 2025), https://arxiv.org/abs/2501.05803: twisted SMC with tempering.

The twist at step i is exp(lambda_i V(x_t)/alpha), with lambda rising from 0 to 1, V = r(E[x_0 | x_t]), and V = r(x_0)
at the end. Its gradient bends the proposal, and the weights correct for it:

    d <- d + scale lambda (sigma_t^2/alpha_t) grad_x V(x_t)/alpha,
    log w += log p(x_s | x_t) - log q(x_s | x_t) + lambda_s V(x_s)/alpha - lambda_t V(x_t)/alpha.

    tempering = "exponential"   lambda = min((1 + gamma)^(100 f) - 1, 1)      f the fraction of the run, gamma = .008
                "power"         lambda = min((100 gamma f)^power, 1)
                a function      f -> lambda
                "adaptive"      the largest lambda for which the ESS of a group is still `ess` of its size, by bisection
                                between the previous lambda and 1; the gradient uses the previous one

All schedules reach lambda = 1 at the last step, so that weighted samples follow p exp(r/alpha)/Z. An adaptive lambda
depends on the population, and the estimate of Z is still unbiased: whatever is counted too early is subtracted again at
the next step, particle by particle. The code published with the paper differs: it does not move twists and gradients
along when particles are resampled, leaves the number of particles out of log Z, and mixes prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine import resampling
from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.population import Population, effective_size
from ..engine.resampling import resample
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..values import Value
from .shared.twist import Twisted, ascent, twist, value_of

_HALVINGS = 30


@dataclass(frozen=True)
class DAS(Twisted):
    """Tempered twisted SMC towards p exp(reward/alpha). It costs as much as `TDS`, whose options it shares.

    tempering      "adaptive" | "exponential" | "power" | a function of the fraction of the run
    gamma, power   of the exponential and the power schedule
    """

    reward: Any
    alpha: float | str | Auto
    tempering: str | Callable[[float], float] = "adaptive"
    scale: Scale = 1.0
    ess: float = 0.5
    resampler: str | resampling.Resampler = "ssp"
    value: Value | str | None = None
    _: KW_ONLY
    gamma: float = 0.008
    power: float = 1.0
    steer: bool = True

    card = replace(
        Twisted.card,
        about="TDS with a tempered twist",
        paper=Paper(
            "kim2025das",
            "Kim, Sunwoo and Kim, Minkyu and Park, Dongmin",
            "Test-time Alignment of Diffusion Models without Reward Over-optimization",
            2025,
            "2501.05803",
        ),
        example="gk.DAS(reward, 0.5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.tempering) and self.tempering not in ("adaptive", "exponential", "power"):
            raise ValueError(f"DAS(tempering={self.tempering!r}): there is adaptive, exponential, power, or a function")
        if self.tempering == "adaptive" and self.ess == 0:
            raise ValueError(
                "DAS(ess=0): adaptive tempering holds the ESS at `ess` of the group; give it, or a schedule"
            )

    def schedule(self, fraction: float) -> float:
        """lambda of the schedules that do not depend on the particles."""
        if fraction >= 1:
            return 1.0
        if callable(self.tempering):
            return float(self.tempering(fraction))
        rise = (1 + self.gamma) ** (100 * fraction) - 1
        return min(rise if self.tempering == "exponential" else (100 * self.gamma * fraction) ** self.power, 1.0)

    def tilt(self, view: View) -> Tensor | float:
        if self.tempering != "adaptive":
            level = self.schedule((view.step.index + 1) / view.step.total) * torch.ones_like(view.zeros())
        elif view.memo is None:
            return 0.0
        else:
            level = view.memo[2]
        return at(self.scale, view.t) / float(self.alpha) * view.rows(level) * ascent(view, value_of(self, view))

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        now, counted, level = (view.zeros(),) * 3 if memo is None else memo
        return 0.0, (twist(self, view, now), counted, level)

    def weigh(self, population: Population, step: Step) -> Population:
        """Add lambda_s V(x_s)/alpha to the log-weights and subtract lambda_t V(x_t)/alpha."""
        now, counted, level = population.memos[step.place]
        if step.last or self.tempering != "adaptive":
            level = torch.full_like(level, self.schedule(step.fraction))
        else:
            level = self._adapted(*map(population.by_group, (population.log_w - counted, now, level)))
        return population.weighed(step.place, level * now - counted, (now, level * now, level))

    def _adapted(self, log_w: Tensor, now: Tensor, level: Tensor) -> Tensor:
        """The lambda of every group, between its previous one and 1, at which the ESS equals the threshold."""
        enough = self.ess * now.shape[1]
        low, high = level.amax(1, keepdim=True), torch.ones_like(level[:, :1])
        whole = effective_size(log_w + now)[:, None] >= enough
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            fine = effective_size(log_w + middle * now)[:, None] >= enough
            low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
        return torch.where(whole, 1.0, low).expand_as(now).flatten()

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, min(self.ess * 1.001, 1.0), self.resampler)

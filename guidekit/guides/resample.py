r"""Resampling of each group by its weights, when its effective sample size falls.

Weights are carried while nothing is resampled. After resampling all particles of the group weigh the mean, so that
the mean weight at the end estimates Z without bias, whatever was decided on the way (Doucet and Johansen, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import resampling
from ..population import Population, log_mean_exp
from ..view import Step
from .base import Guide


@dataclass(frozen=True)
class Resample(Guide):
    """Resample a group when its ESS is below `ess` times its size: 0 never, 1 whenever the weights differ at all.

    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    """

    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"

    sees_prediction = False

    def __post_init__(self) -> None:
        check_resampling(self.ess, self.resampler)

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess if self.active(step) else 0.0, self.resampler)


def check_resampling(ess: float, resampler: str | resampling.Resampler) -> None:
    if not 0 <= ess <= 1:
        raise ValueError(f"ess={ess}: the threshold is a share of the population, in [0, 1]")
    resampling.get(resampler)


def resample(population: Population, step: Step, ess: float, resampler: str | resampling.Resampler) -> Population:
    """Resample the groups that need it; all of them where they meet children that are to be thinned to step.n."""
    log_w = population.by_group(population.log_w)
    size = log_w.shape[1]
    if ess == 0 and size == step.n:
        return population
    needed = (
        population.ess < ess * size * (1 - 1e-9) if size == step.n else torch.ones_like(log_w[:, 0], dtype=torch.bool)
    )
    if needed.device.type == "cpu" and not needed.any():
        return population
    drawn = resampling.get(resampler)(log_w.softmax(-1), step.n, step.key)
    if size != step.n:
        return population.select(drawn, log_mean_exp(log_w)[:, None].expand_as(drawn))
    needed = needed[:, None]
    index = torch.where(needed, drawn, torch.arange(size, device=drawn.device))
    return population.select(index, torch.where(needed, log_mean_exp(log_w)[:, None], log_w))

r"""Resampling of each group by its weights, when its effective sample size falls.

Weights are carried while nothing is resampled. After resampling all particles of the group weigh the mean, so that
the mean weight at the end estimates Z without bias, whatever was decided on the way (Doucet and Johansen, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engine import resampling
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.resampling import check_resampling, resample
from ..engine.view import Step


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
        return resample(population, step, self.ess, self.resampler)

r"""Resampling of each group by its weights when its effective sample size falls (Del Moral, Doucet and Jasra, 2006,
https://arxiv.org/abs/cond-mat/0212648).

Log-weights accumulate until a group is resampled. After resampling, all particles of the group have the mean weight, so
that the mean weight at the end is an unbiased estimate of Z, whenever the group was resampled.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.resampling import check_resampling, resample
from ..engine.view import Step


@dataclass(frozen=True)
class Resample(Guide):
    """Resample a group when its effective sample size is below `ess` times its number of particles. No cost.

    ess         the threshold in [0, 1]: 0 never resamples, 1 whenever the weights differ at all
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    """

    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"

    sees_prediction = False

    card = Card(
        "resamples by the weights of the other guides",
        section="Starts, noise and resampling",
        exact="leaves the weighted distribution unchanged",
        changes="selection",
        paper=Paper(
            "delmoral2002smc",
            "Del Moral, Pierre and Doucet, Arnaud and Jasra, Ajay",
            "Sequential Monte Carlo Samplers",
            2002,
            "cond-mat/0212648",
        ),
        example="gk.FKSteering(reward, 0.5, ess=0.0), gk.Resample()",
    )

    def __post_init__(self) -> None:
        check_resampling(self.ess, self.resampler)

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, self.resampler)

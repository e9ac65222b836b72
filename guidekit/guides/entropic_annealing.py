r"""Annealed resampling, the entropic annealing of Giannone et al. (2025), https://arxiv.org/abs/2510.05825.

Weights that are far apart early say more about the look-ahead than about the samples, and resampling by them leaves few
families. So a group whose effective sample size has fallen is resampled by flatter masses,

    m_i  ~  W_i^b,      1/b = max(1, (1 - f) N/ESS),      f the fraction of the run,

the flatter, the fewer particles carry the weight and the earlier it is. A survivor then has the weight

    w_i / (N m_i),

which the paper leaves out: N m_i copies of it in the mean, so that the weighted particles estimate what they did
before, and the target and log Z of the guides beside it stay as they are. At the end of the run b = 1, and all weights
are equal after a resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population, effective_size
from ..engine.resampling import check_resampling, resample
from ..engine.view import Step


@dataclass(frozen=True)
class EntropicAnnealing(Guide):
    """Resample by annealed weights when the effective sample size of a group is below `ess` times its number of
    particles; what the weights lose there they keep. No cost. Other guides of the list are to have ess=0.

    ess         the threshold in [0, 1]
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    """

    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"

    sees_prediction = False

    card = Card(
        "resamples early by flatter masses, so that more families survive",
        section="Starts, noise and resampling",
        exact="leaves the weighted distribution unchanged",
        changes="selection",
        paper=Paper(
            "giannone2025entropic",
            "Giannone, Giorgio and Xu, Guangxuan and Nayak, Nikhil Shivakumar and Awhad, Rohan Mahesh and "
            "Sudalairaj, Shivchander and Xu, Kai and Srivastava, Akash",
            "Mitigating Premature Exploitation in Particle-based Monte Carlo for Inference-Time Scaling",
            2025,
            "2510.05825",
        ),
        example="gk.FKSteering(reward, 0.5, ess=0.0), gk.EntropicAnnealing()",
    )

    def __post_init__(self) -> None:
        check_resampling(self.ess, self.resampler)

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, self.resampler, self._masses(population, step))

    def _masses(self, population: Population, step: Step) -> Tensor:
        """log m, (groups, particles)."""
        log_w = population.by_group(population.log_w)
        heat = (1 - step.fraction) * log_w.shape[1] / effective_size(log_w).clamp(min=1.0)
        return (log_w / heat.clamp(min=1.0)[:, None]).log_softmax(1)

r"""A funnel of particles (Su et al., 2025), https://arxiv.org/abs/2508.12361: many while the sample can still become
anything, few when it is almost made.

    width(f) n particles at the fraction f of the run, from the first to the last number along a schedule (`DSearch`)

Where fewer are to live, they are drawn by their weights, with the mean weight for each of them afterwards. That is
unbiased: N' of M particles with weights w, drawn N' W_i times in the mean and weighted sum w / M each, have the
expectation sum_i w_i f(x_i) / M. So the target of the guides beside it, and log Z, stay as they are, and its mean
number of particles is its cost. The paper also weights early rewards less, which is `tempering=` of `gk.FKSteering`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.resampling import check_resampling, resample
from ..engine.view import Step
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .dsearch import SCHEDULES


@dataclass(frozen=True)
class Funnel(Guide):
    """Particles that become fewer, for the guides that weight them. NFE: the width of the funnel, step by step.

    width       the first and the last number of particles for each one that is returned
    schedule    "linear" | "quadratic" | "exponential" | "sigmoid", or a function of the fraction of the run
    ess         also resample a group when its effective sample size falls below this fraction of its particles
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    """

    width: tuple[float, float] = (4.0, 1.0)
    _: KW_ONLY
    schedule: str | Callable[[float], float] = "linear"
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"

    sees_prediction = False

    card = Card(
        "has many particles early and few late",
        section="Starts, noise and resampling",
        rows="width - 1",
        exact="leaves the weighted distribution unchanged",
        changes="selection",
        paper=Paper(
            "su2025funnel",
            "Su, Xun and Huang, Jianming and Yang, Yusen and Fang, Zhongxi and Kasai, Hiroyuki",
            "Navigating the Exploration-Exploitation Tradeoff in Inference-Time Scaling of Diffusion Models",
            2025,
            "2508.12361",
        ),
        example="gk.FKSteering(reward, 0.5), gk.Funnel((4, 1))",
    )

    def __post_init__(self) -> None:
        check_resampling(self.ess, self.resampler)
        wide = self.width
        if not isinstance(wide, (tuple, list)) or len(wide) != 2 or not wide[0] >= wide[1] >= 1:
            raise ValueError(f"Funnel(width={wide!r}): two numbers that fall, and no less than 1, like (4, 1)")
        if not callable(self.schedule) and self.schedule not in SCHEDULES:
            raise ValueError(f"Funnel(schedule={self.schedule!r}): there is {', '.join(SCHEDULES)}, or a function of f")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, BestOfN | BeamSearch | Funnel):
            return "each decides how many particles live. Take one of them"
        return None

    def plan(self, n: int, step: Step) -> tuple[int, int]:
        way = self.schedule if callable(self.schedule) else SCHEDULES[self.schedule]
        first, last = self.width
        return round(n * (first + (last - first) * way(step.fraction))), 1

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, self.resampler)

r"""Boost-and-Skip (Um, Kim and Ye, 2025), https://arxiv.org/abs/2502.06516: minority samples without guidance.

    x_q <- gamma sigma(t_max) z,      z ~ N(0, 1),      q the time after the first `skip` steps

The starting noise is boosted by gamma and enters the run some steps later, where less of it is forgotten. For Gaussian
data with standard deviation s, in the limit of small steps and with v = alpha_q^2 s^2 + sigma_q^2, the samples have the
variance

    s^2 + (s^2/v) (gamma^2 sigma(t_max)^2 - v)               for the ODE: the deviation is gamma sigma(t_max) s/sqrt(v)
    s^2 + (alpha_q s^2/v)^2 (gamma^2 sigma(t_max)^2 - v)     for ancestral sampling, whose new noise is not boosted

The paper uses gamma = 4 (CelebA) or 2.5 (ImageNet) and skips 3 of 250 steps, on variance-preserving models, where
sigma(t_max) = 1. A run that skips steps is assumed to begin at t_max.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..errors import is_count
from ..models.base import Model
from ..process import Gaussian
from ..solvers import Move, starting_at
from .shared.training_free import TrainingFree
from .start_from import StartFrom


@dataclass(frozen=True)
class BoostAndSkip(Guide):
    """Start from gamma times the noise, `skip` steps later. It saves the network evaluations of the skipped steps.

    gamma   factor of the starting noise; 1: none
    skip    number of steps left out at the start of the run
    """

    gamma: float
    skip: int = 0

    card = Card(
        "boosts the starting noise and skips the first steps",
        section="Rare samples",
        processes=(Gaussian,),
        refusal="scales Gaussian noise, and tokens have none: use it with a Gaussian process",
        exact="the standard deviation, for Gaussian data",
        changes="start",
        paper=Paper(
            "um2025boostandskip",
            "Um, Soobin and Kim, Beomsu and Ye, Jong Chul",
            "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation",
            2025,
            "2502.06516",
        ),
        example="gk.BoostAndSkip(2.5, 6)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not self.gamma > 0:
            raise ValueError(f"BoostAndSkip(gamma={self.gamma}): the factor of the noise is positive; 1 is plain")
        if not is_count(self.skip, 0) or self.skip >= steps:
            raise ValueError(
                f"BoostAndSkip(skip={self.skip!r}): at most {steps - 1} of the {steps} steps, and at least 0"
            )
        if self.start > 0 or self.stop < 1:
            raise ValueError("BoostAndSkip changes how a run begins: it takes no start or stop")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, StartFrom):
            return "both say where the run starts, and one would overwrite the other; take one of them"
        if not after and self.skip and isinstance(other, TrainingFree):
            return f"{type(other).__name__} makes rows of the steps that are skipped: put BoostAndSkip before it"
        return None

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        firsts = [i for i, move in enumerate(moves) if move.s != move.t]  # the corrector moves of Heun belong to a step
        if self.skip == 0 or self.skip >= len(firsts):
            return moves if self.skip == 0 else []
        return starting_at(moves, firsts[self.skip])

    def begin(self, view: View, noise: Tensor) -> Tensor:
        x = view.model.process.prior(noise, view.model.process.t_max) if self.skip else view.x
        return x * self.gamma

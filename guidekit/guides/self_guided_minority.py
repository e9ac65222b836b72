r"""Self-guided minority sampling (Um and Ye, 2024), https://arxiv.org/abs/2407.11555, which needs no classifier.

With tau = 0.8 t_max, and sg() the stop-gradient,

    L = |d(x_t) - sg(d(alpha_tau d(x_t) + sigma_tau z))|^2,      g = grad_{x_t} L / max|grad_{x_t} L| by sample,
    mean of x_s <- mean + c^2 w g,      that is d <- d + c^2 w g / b_0

in every fifth step, where c^2 is the variance of the coming move and b_0 its coefficient of d; so the guidance fades
out by itself. Where x_t is almost pure noise (alpha_t < 0.001) d(x_t) is nearly the same for all x_t, and g would be
rounding, scaled up to 1: there it is 0. It acts at steps 0, 5, 10, ...; the authors' code acts at the last step of each
five, 4, 9, ...
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Model
from ..models.evaluations import Cond
from ..process import Gaussian
from ..solvers import Move
from .minority_guidance import Distance, measured
from .shared.twist import gradient


@dataclass(frozen=True)
class SelfGuidedMinority(Guide):
    """Guidance towards samples that the model reconstructs badly. In each step in which it acts, one extra NFE per
    particle and a backward pass through the network.

    scale      w, a number or a function of t; the paper uses 0.4 (CelebA) and 0.2 (ImageNet)
    tau        the time to which the estimate is noised, as a fraction of t_max
    interval   act in every so many steps; the paper uses 5, and 2 for ImageNet
    t_mid      act only at times above this
    distance   (estimate, reconstruction) -> (rows,); None: the squared distance. The paper's is LPIPS

    It acts only in moves with noise. With a multistep solver the shift also enters the next move, through its history.
    """

    scale: Scale
    tau: float = 0.8
    interval: int = 5
    t_mid: float = 0.0
    distance: Distance | None = None

    grad = True

    card = Card(
        "guides towards samples that the model reconstructs badly",
        section="Rare samples",
        processes=(Gaussian,),
        refusal="takes gradients in x, and tokens have none: use gk.FKSteering with a reward",
        rows="1 in every interval-th step, and a backward pass",
        changes="target",
        paper=Paper(
            "um2024selfguided",
            "Um, Soobin and Ye, Jong Chul",
            "Self-Guided Generation of Minority Samples Using Diffusion Models",
            2024,
            "2407.11555",
        ),
        example="gk.SelfGuidedMinority(1.5, interval=1)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.tau <= 1 or not is_count(self.interval):
            raise ValueError(
                f"SelfGuidedMinority(tau={self.tau}, interval={self.interval}): a share of t_max in (0, 1], and a "
                "whole number of steps"
            )

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if not any(move.c > 0 for move in moves):
            raise ValueError(
                "SelfGuidedMinority shifts moves by their variance, and these have none: take a stochastic solver, "
                "like DDPM(), DDIM(eta=1.) or SDEDPMpp()"
            )
        return moves

    def active(self, step: Step) -> bool:
        move = step.move
        due = step.index % self.interval == 0 and step.t > self.t_mid and at(self.scale, step.t) != 0
        return due and move is not None and move.c > 0 and move.s < move.t and super().active(step)

    def further(self, step: Step) -> int:
        return 1

    def tilt(self, view: View) -> Tensor:
        move, tau, clean = view.step.move, self.tau * view.model.process.t_max, view.evals[Cond()]
        assert move is not None
        z = random.normal(view.key, view.model.shape, clean.dtype)
        with torch.no_grad():
            again = view.evaluate(view.model.process.noised(clean.detach(), z, tau), tau)[Cond()]
        slope = gradient(measured(self.distance, clean, again), view.x)
        most = view.rows(slope.flatten(1).abs().amax(1))
        known = (most > 0) & (view.model.process.scales(view.t)[0] >= 1e-3)
        return at(self.scale, view.t) * move.c**2 / move.b[0] * torch.where(known, slope / most, 0.0)

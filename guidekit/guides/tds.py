r"""Twisted diffusion sampler, TDS (Wu et al., 2023), https://arxiv.org/abs/2306.17775.

The twist is exp(V(x_t)/alpha), with V = r(E[x_0 | x_t]), and V = r(x_0) at the end. Its gradient bends the proposal.
For the clean mean d = E[x_0 | x_t] the paper's change of the score by grad log twist is

    d <- d + scale (sigma_t^2/alpha_t) grad_x V(x_t)/alpha,

with the variance unchanged, and the weights correct for both the bend and the twist:

    log w += log p(x_s | x_t) - log q(x_s | x_t) + V(x_s)/alpha - V(x_t)/alpha.

For any scale the weighted samples follow p exp(r/alpha)/Z; scale 0 is Feynman-Kac steering. Log-weights accumulate
until a group is resampled. The paper's code also clamps d to [-1, 1] for images, which is left out here.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from torch import Tensor

from ..engine import resampling
from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import View
from ..values import Value
from .shared.twist import Twisted, ascent, twist, value_of


@dataclass(frozen=True)
class TDS(Twisted):
    """Twisted SMC towards p exp(reward/alpha): Feynman-Kac steering whose particles also follow the gradient. It needs
    a reward that torch can differentiate. No extra NFE, but a backward pass through the network at every step.

    reward      a Reward, or a function of decoded samples, that torch can differentiate
    alpha       the temperature; or "auto", "kl=2", "ess=0.3", a budget that decides it (`gk.Auto`)
    scale       the strength of the bend, a number or a function of t; the target does not depend on it
    ess         resample a group when its effective sample size falls below this fraction of its particles
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    value       the look-ahead, or the name of one: "tweedie" (the default), "rollout", "flow", "parent"
    """

    reward: Any
    alpha: float | str | Auto
    scale: Scale = 1.0
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"
    value: Value | str | None = None
    _: KW_ONLY
    steer: bool = True

    card = replace(
        Twisted.card,
        about="bends the proposal along the reward's gradient, corrected by weights",
        paper=Paper(
            "wu2023tds",
            "Wu, Luhuan and Trippe, Brian L. and Naesseth, Christian A. and Blei, David M. and Cunningham, John P.",
            "Practical and Asymptotically Exact Conditional Sampling in Diffusion Models",
            2023,
            "2306.17775",
        ),
        example="gk.TDS(reward, 0.5)",
    )

    def tilt(self, view: View) -> Tensor:
        return at(self.scale, view.t) / float(self.alpha) * ascent(view, value_of(self, view))

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        before = view.zeros() if memo is None else memo
        now = twist(self, view, before)
        return now - before, now

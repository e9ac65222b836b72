r"""Twisted diffusion sampler (Wu et al., 2023), https://arxiv.org/abs/2306.17775.

The twist is exp(V(x_t)/alpha), V = r(E[x_0 | x_t]) and V = r(x_0) at the end. Its gradient bends the proposal, in the
clean mean d = E[x_0 | x_t] (which is the paper's change of the score by grad log twist),

    d <- d + scale (sigma_t^2/alpha_t) grad_x V(x_t)/alpha,

with the variance left as it is, and the weights make up for both the bend and the twist:

    log w += log p(x_s | x_t) - log q(x_s | x_t) + V(x_s)/alpha - V(x_t)/alpha.

Weighted samples follow p exp(r/alpha)/Z whatever the scale; scale 0 is Feynman-Kac steering. Weights of steps that do
not resample are carried. The paper's code clamps d to [-1, 1] for images; here that is another guide's business.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor

from ..engine import resampling
from ..engine.guide import Scale, at
from ..engine.tree import Tree
from ..engine.view import View
from ..values import Value
from .shared.twist import Twisted, ascent, twist, value_of


@dataclass(frozen=True)
class TDS(Twisted):
    """Twisted SMC towards p exp(reward/alpha): FK steering whose particles also climb the gradient. Needs a reward that
    torch can differentiate, and a backward pass through the network at every step; no extra rows.

    scale   of the bend, a number or a function of t; the target does not depend on it
    ess     resample a group when its ESS is below this share of it
    """

    reward: Any
    alpha: float
    scale: Scale = 1.0
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"
    value: Value | None = None
    _: KW_ONLY
    steer: bool = True

    def tilt(self, view: View) -> Tensor:
        return at(self.scale, view.t) / self.alpha * ascent(view, value_of(self, view))

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        before = view.zeros() if memo is None else memo
        now = twist(self, view, before)
        return now - before, now

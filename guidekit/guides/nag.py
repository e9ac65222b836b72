r"""Normalized attention guidance (Chen et al., 2025), https://arxiv.org/abs/2505.21179: negative prompts inside the
network.

In chosen cross-attention layers the queries q attend to the keys and values of the condition and of the negative one,

    Z+ = softmax(q k+^T/sqrt(c)) v+,      Z- = softmax(q k-^T/sqrt(c)) v-
    Z~ = phi Z+ - (phi - 1) Z-            extrapolated
    Z^ = Z~ min(r, tau)/r,                r = |Z~|_1/|Z+|_1 of each token
    Z+ <- a Z^ + (1 - a) Z+

before the projection of the layer's output, with the norm over all heads. The network goes on with the result, so that
two branches never part, and models of a few steps, on which CFG fails, take negative prompts too. The guide replaces
the conditional prediction by the one of this network: d <- d + (d_nag - d_cond).

k- and v- are those of a row at the negative condition in the same forward pass. In networks in which text and image
attend jointly (SD3, Flux) they would depend on the image of that row, and such networks are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import Step, View
from ..errors import NetworkError
from ..models.attention import Attention, Heard, Perturbation, Perturbed
from ..models.base import Model
from ..models.evaluations import Cond, evaluation
from .shared.perturbing import Away


@dataclass(frozen=True, eq=False)
class Extrapolated(Perturbation):
    """Cross-attention away from what was heard at the same site."""

    heard: Heard
    phi: float
    tau: float
    alpha: float

    crosses = True
    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        if out.dim() != 4:
            raise NetworkError(f"NAG: attention (rows, heads, tokens, dim) is needed, not {tuple(out.shape)}")
        away = self.phi * out - (self.phi - 1) * self.heard.calls[call.site](query=call.query)
        length, own = (v.abs().sum((1, 3), keepdim=True) for v in (away, out))
        bound = torch.where(length > 0, (self.tau * own / length).clamp(max=1.0), 1.0)  # min(r, tau)/r
        return self.alpha * bound * away + (1 - self.alpha) * out


@dataclass(frozen=True)
class NAG(Away):
    """Normalized attention guidance. Two extra NFE per particle and step, in a forward pass of their own: the network
    with changed attention, and the one whose keys and values it pushes away from.

    scale      phi, a number or a function of t; 1 does nothing
    layers     dotted names of modules with cross-attention; None: all that are called so
    negative   the negative condition, the same for all groups; None is the null condition
    tau        the bound on the norm, relative to that of Z+
    alpha      a, the share of the result
    """

    negative: Any = None
    tau: float = 2.5
    alpha: float = 0.25

    neutral = 1.0

    card = replace(
        Away.card,
        about="pushes cross-attention away from a negative condition",
        rows="2",
        paper=Paper(
            "chen2025nag",
            "Chen, Dar-Yen and Bandyopadhyay, Hmrishav and Zou, Kai and Song, Yi-Zhe",
            "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Model",
            2025,
            "2505.21179",
        ),
        example='gk.NAG(4.0, "cross", negative=0)',
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return ()

    @property
    def idle(self) -> bool:
        return self.scale == 1 or self.alpha == 0

    def pair(self, t: float) -> tuple[Perturbed, Perturbed]:
        """The row that is heard, and the one that is changed."""
        heard = Heard(crosses=True)
        changed = Extrapolated(heard, at(self.scale, t), self.tau, self.alpha)
        negative = replace(Perturbed.of(heard, self.layers), branch=evaluation(self.negative))
        return negative, Perturbed.of(changed, self.layers)

    def check(self, model: Model, steps: int) -> None:
        if not (self.tau > 0 and 0 <= self.alpha <= 1):
            raise ValueError(f"NAG(tau={self.tau}, alpha={self.alpha}): tau is positive, and alpha lies in [0, 1]")
        for need in self.pair(1.0):
            need.check(model)

    def further(self, step: Step) -> int:
        return 0 if self.idle or at(self.scale, step.t) == 1 else 2

    def tilt(self, view: View) -> Tensor | float:
        if self.idle:
            return 0.0
        pair = self.pair(view.t)
        return view.evaluate(view.x, view.t, pair)[pair[1]] - view.evals[Cond()]

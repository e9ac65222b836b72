r"""Entropy rectifying guidance, ERG (Ifriqi et al., 2025), https://arxiv.org/abs/2504.13987.

    d <- d + s (d_cond - d_weak)

Attention is one step of descent on a Hopfield energy of its queries. d_weak comes from the same network with that
energy changed in chosen self-attention layers, which replaces their output softmax(q k^T/sqrt(c)) v by

    (1 - gamma) q + gamma alpha softmax(tau q k^T/sqrt(c)) v

tau < 1 raises the entropy of the attention map, which tends to the uniform one, and tau > 1 lowers it. The paper takes
gamma = 1 and one step; alpha = gamma = tau = 1 is the network itself. In its place of CFG the weight is w = 1 + s, and
the guide starts some way into the run (`start`).

The paper also blurs the condition, by the same change of the text encoder's attention (C-ERG). An encoder is not part
of the network that is sampled: encode the condition with one that is changed so, and put `gk.Compose` beside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..errors import NetworkError
from ..models.attention import Attention, Heads, Perturbation, Perturbed
from .shared.perturbing import Away


@dataclass(frozen=True)
class Rectified(Perturbation):
    """One step of another size, on another energy."""

    tau: float = 1.0
    gamma: float = 1.0
    alpha: float = 1.0

    def check(self) -> None:
        if not (self.tau >= 0 and self.gamma > 0 and self.alpha > 0):
            raise ValueError(
                f"tau={self.tau}, gamma={self.gamma}, alpha={self.alpha}: tau is at least 0, the others are positive"
            )

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        moved = self.gamma * self.alpha * call(query=self.tau * call.query)
        if self.gamma == 1:
            return moved
        if call.query.shape != moved.shape:
            raise NetworkError(
                f"ERG(gamma={self.gamma}) mixes queries {tuple(call.query.shape)} with values {tuple(moved.shape)}: "
                "they need one shape, or gamma=1"
            )
        return (1 - self.gamma) * call.query + moved


@dataclass(frozen=True)
class ERG(Away):
    """Entropy rectifying guidance. One extra NFE per particle and step, in the same forward pass.

    scale           s, a number or a function of t; 0 does nothing
    layers, heads   as in PAG; None: the middle of the network, and all heads
    tau             the inverse temperature of the attention, relative to the network's
    gamma, alpha    the step size, and the weight of the pattern
    """

    heads: Heads = None
    tau: float = 0.5
    gamma: float = 1.0
    alpha: float = 1.0

    card = replace(
        Away.card,
        about="extrapolates away from the network with attention of another entropy",
        paper=Paper(
            "ifriqi2025erg",
            "Ifriqi, Tariq Berrada and Romero-Soriano, Adriana and Drozdzal, Michal and Verbeek, Jakob and "
            "Alahari, Karteek",
            "Entropy Rectifying Guidance for Diffusion and Flow Models",
            2025,
            "2504.13987",
        ),
        example='gk.ERG(0.4, "blocks.1", tau=0.1)',
    )

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Rectified(self.tau, self.gamma, self.alpha), self.layers, self.heads)

    @property
    def idle(self) -> bool:
        return self.scale == 0 or self.tau == self.gamma == self.alpha == 1

r"""Locally typical sampling of tokens (Meister et al., 2022), https://arxiv.org/abs/2202.00666.

The surprise of a token should be near its mean, the entropy H = -sum_v p_i(v) log p_i(v). Of every prediction, position
by position and after all tilts, the tokens with the smallest

    |-log p_i(v) - H|

are kept: as few as have a probability of p at least together. The others cannot be drawn. So the most probable token is
left out where it would be too little of a surprise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Model
from ..models.tokens import LOG_ZERO
from ..process import Masked, Uniform


@dataclass(frozen=True)
class Typical(Guide):
    """Draws each token from those whose surprise is nearest to the entropy. No extra NFE.

    p   the share of the probability that is kept, in (0, 1]; 1 does nothing
    """

    p: float

    card = Card(
        about="draws tokens from those whose surprise is typical, a share p of the probability",
        section="Sampling of tokens",
        processes=(Masked, Uniform),
        refusal="leaves out untypical tokens; with a Gaussian process use gk.FKC.anneal(beta)",
        rows="0",
        changes="target",
        paper=Paper(
            "meister2022typical",
            "Meister, Clara and Pimentel, Tiago and Wiher, Gian and Cotterell, Ryan",
            "Locally Typical Sampling",
            2022,
            "2202.00666",
        ),
        example="gk.Typical(0.5)",
        picture="tokens",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"Typical(p={self.p}): the share of the probability that is kept lies in (0, 1]")
        if self.steer:
            raise ValueError(
                "Typical(steer=True): a proposal that leaves out tokens of the target cannot be corrected for by "
                "weights; take gk.Temperature(scale, steer=True), or steer=False"
            )

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        if self.p == 1:
            return prediction
        log_p = prediction.log_softmax(-1)
        entropy = torch.special.entr(log_p.exp()).sum(-1, keepdim=True)
        order = (log_p + entropy).abs().argsort(dim=-1, stable=True)
        share = log_p.exp().gather(-1, order)
        before = (share.cumsum(-1) - share).gather(-1, order.argsort(-1))
        return log_p.masked_fill(before >= self.p, LOG_ZERO)

"""Nucleus sampling of tokens (Holtzman et al., 2019), https://arxiv.org/abs/1904.09751.

Of every prediction, position by position and after all tilts, the smallest set of the most probable tokens is kept
whose probabilities add up to p at least. The others cannot be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Model
from ..models.tokens import LOG_ZERO
from ..process import Masked, Uniform


@dataclass(frozen=True)
class TopP(Guide):
    """Draws each token from the most probable ones that make up a share p. No extra NFE.

    p   the share of the probability that is kept, in (0, 1]; 1 does nothing
    """

    p: float

    card = Card(
        about="draws tokens from the most probable ones that make up a share p",
        section="Sampling of tokens",
        processes=(Masked, Uniform),
        refusal="leaves out improbable tokens; with a Gaussian process use gk.FKC.anneal(beta)",
        rows="0",
        changes="target",
        paper=Paper(
            "holtzman2019nucleus",
            "Holtzman, Ari and Buys, Jan and Du, Li and Forbes, Maxwell and Choi, Yejin",
            "The Curious Case of Neural Text Degeneration",
            2019,
            "1904.09751",
        ),
        example="gk.TopP(0.5)",
        picture="tokens",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.p <= 1:
            raise ValueError(f"TopP(p={self.p}): the share of the probability that is kept lies in (0, 1]")
        if self.steer:
            raise ValueError(
                "TopP(steer=True): a proposal that leaves out tokens of the target cannot be corrected for by weights; "
                "take gk.Temperature(scale, steer=True), or steer=False"
            )

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        if self.p == 1:
            return prediction
        log_p, order = prediction.log_softmax(-1).sort(-1, descending=True)
        before = log_p.exp().cumsum(-1) - log_p.exp()
        return log_p.masked_fill(before >= self.p, LOG_ZERO).gather(-1, order.argsort(-1))

r"""Temperature of tokens (Caccia et al., 2018), https://arxiv.org/abs/1811.02549:

    p_i(v) <- p_i(v)^(1/tau) / sum_w p_i(w)^(1/tau),

in every prediction, position by position, after all tilts. tau < 1 takes likely tokens more often. The law of a whole
sequence is not p^(1/tau): each token is sharpened given what stands already, as in language models.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.base import Model
from ..process import Masked, Uniform


@dataclass(frozen=True)
class Temperature(Guide):
    """Sharpens or flattens the distribution of every token. No extra NFE.

    scale   tau, a number or a function of t: 1 does nothing, less than 1 sharpens
    """

    scale: Scale

    neutral = 1.0
    card = Card(
        about="sharpens or flattens the distribution of every token",
        section="Sampling of tokens",
        processes=(Masked, Uniform),
        refusal="sharpens distributions of tokens; with a Gaussian process use gk.FKC.anneal(beta)",
        rows="0",
        changes="target",
        paper=Paper(
            "caccia2018temperature",
            "Caccia, Massimo and Caccia, Lucas and Fedus, William and Larochelle, Hugo and Pineau, Joelle and "
            "Charlin, Laurent",
            "Language GANs Falling Short",
            2018,
            "1811.02549",
        ),
        example="gk.Temperature(0.5)",
        picture="tokens",
    )

    def check(self, model: Model, steps: int) -> None:
        if not callable(self.scale) and not 0 < self.scale < float("inf"):
            raise ValueError(f"Temperature(scale={self.scale}): a number above 0, or a function of t, is needed")

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        return prediction.log_softmax(-1) / at(self.scale, view.t)

r"""Autoguidance (Karras et al., 2024), https://arxiv.org/abs/2406.02507: away from a weaker version of the same model.

    d <- d + (w - 1) (d_cond - d_weak)

in the coordinates of the prediction: the clean mean, or the log-probabilities of tokens. The weak model sees the same
condition, so it makes the same errors, only larger ones; w = 1 does nothing. The paper's weak model is smaller and was
trained for less time. If you have none, `gk.weakened` makes one from the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.base import Model
from ..models.evaluations import Cond, Other


@dataclass(frozen=True)
class AutoGuidance(Guide):
    """Guidance by a weaker base model. One extra NFE of the weak model per particle and step, in a forward pass of its
    own; guides with equal weak models share it.

    weak    a base model with the same shape and noising process; it sees the condition as the guided model encodes it
    scale   w, a number or a function of t: 1 does nothing, 2 is usual
    """

    weak: Model
    scale: Scale

    neutral = 1.0

    card = Card(
        "extrapolates away from a weaker model",
        section="Weaker and stronger models",
        rows="1, of the weak model",
        changes="target",
        paper=Paper(
            "karras2024autoguidance",
            "Karras, Tero and Aittala, Miika and Kynkäänniemi, Tuomas and Lehtinen, Jaakko and Aila, Timo and "
            "Laine, Samuli",
            "Guiding a Diffusion Model with a Bad Version of Itself",
            2024,
            "2406.02507",
        ),
        example="gk.AutoGuidance(weak, 1.5)",
        picture="trained",
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == 1 else (Other(self.weak),)

    def check(self, model: Model, steps: int) -> None:
        Other(self.weak).check(model)
        if self.weak == model:
            raise ValueError(
                "AutoGuidance(weak=...) was given the guided model itself, from which nothing can be told apart: give "
                "a weaker one, like gk.weakened(model, drop=['blocks.3'])"
            )

    def tilt(self, view: View) -> Tensor | float:
        return (at(self.scale, view.t) - 1) * (view.evals[Cond()] - view.evals[Other(self.weak)])

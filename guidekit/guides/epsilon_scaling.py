r"""Epsilon scaling (Ning et al., 2024), https://arxiv.org/abs/2308.15321, "Elucidating the Exposure Bias".

While sampling, a network sees states that it has made itself, and their noise is a little stronger than in training, so
that its predictions of noise come out too long. They are divided by a number a little above 1:

    e <- e / scale,      e = (x_t - alpha d)/sigma,      d <- d + (1 - 1/scale)(x_t/alpha - d)

The paper takes a constant, or a line in t: 1.0005 to 1.02 where steps are many, and more where they are few. The best
value is found by a metric of samples (`gk.tune`). Where x_t is pure noise, alpha = 0, the prediction is left as it is:
no d belongs to another e there. What is scaled is the prediction after all tilts, as the paper's code has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian


@dataclass(frozen=True)
class EpsilonScaling(Guide):
    """Divides the predicted noise by a number, against exposure bias. No extra NFE.

    scale   a number, or a function of t; 1 does nothing
    """

    scale: Scale

    card = Card(
        about="divides the predicted noise by a number, against exposure bias",
        section="Corrections of the prediction",
        processes=(Gaussian,),
        refusal="scales predicted noise, which tokens do not have; with a token process use gk.Temperature(scale)",
        rows="0",
        changes="target",
        paper=Paper(
            "ning2024elucidating",
            "Ning, Mang and Li, Mingxiao and Su, Jianlin and Salah, Albert Ali and Ertugrul, Itir Onal",
            "Elucidating the Exposure Bias in Diffusion Models",
            2024,
            "2308.15321",
        ),
        example="gk.EpsilonScaling(1.01)",
    )
    neutral = 1.0

    def check(self, model: Model, steps: int) -> None:
        if not callable(self.scale) and not 0 < self.scale < math.inf:
            raise ValueError(f"EpsilonScaling({self.scale}): the scale is a positive number, a little above 1")

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        alpha, _ = view.model.process.scales(view.t)
        if alpha == 0:
            return prediction
        return prediction + (1 - 1 / at(self.scale, view.t)) * (view.x / alpha - prediction)

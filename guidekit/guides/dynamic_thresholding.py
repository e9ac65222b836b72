r"""Dynamic thresholding (Saharia et al., 2022, Imagen), https://arxiv.org/abs/2205.11487: for models of pixels.

Under strong guidance the clean estimate leaves the range of images, [-1, 1], and pictures come out saturated. With s
the quantile of |d| over the numbers of a sample, but at least `bound`,

    d  <-  clip(d, -s, s) bound/s.

quantile = 0 is static thresholding, a plain clip at `bound` (DDPM; DPM-Solver++ has both), and quantile = 1 scales by
the largest number without a clip. It acts on the estimate after all tilts. Latents have no such range: leave it out
there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian


@dataclass(frozen=True)
class DynamicThresholding(Guide):
    """Keeps clean estimates of pixels in their range. No extra NFE.

    quantile   of the absolute values of a sample; 0.995 in the paper's figures, 0 is static thresholding
    bound      the range of the data is [-bound, bound]
    """

    quantile: float = 0.995
    bound: float = 1.0

    card = Card(
        about="keeps clean estimates of pixels in their range",
        section="Corrections of the prediction",
        processes=(Gaussian,),
        refusal="bounds pixels, and tokens have none: use it with a Gaussian process",
        changes="target",
        paper=Paper(
            "saharia2022imagen",
            "Saharia, Chitwan and Chan, William and Saxena, Saurabh and Li, Lala and Whang, Jay and Denton, Emily and "
            "Ghasemipour, Seyed Kamyar Seyed and Karagol Ayan, Burcu and Mahdavi, S. Sara and Gontijo Lopes, Rapha and "
            "Salimans, Tim and Ho, Jonathan and Fleet, David J. and Norouzi, Mohammad",
            "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding",
            2022,
            "2205.11487",
        ),
        example="gk.CFG(3.0), gk.DynamicThresholding(0.995, 2.0)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"DynamicThresholding(quantile={self.quantile}): a share of the numbers, in [0, 1]")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"DynamicThresholding(bound={self.bound}): data lie in [-bound, bound], a positive number")

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        s = view.rows(quantile(prediction.abs().flatten(1), self.quantile).clamp(min=self.bound))
        return prediction.clamp(-s, s) * (self.bound / s)


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of each row, by a line between neighbours; rows may be of any length."""
    place = q * (values.shape[1] - 1)
    below, share = math.floor(place), place - math.floor(place)
    top = values.topk(values.shape[1] - below, sorted=True).values
    return top[:, -1] + share * (top[:, max(top.shape[1] - 2, 0)] - top[:, -1])

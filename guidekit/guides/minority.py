r"""Minority guidance (Um, Lee and Ye, 2023), https://arxiv.org/abs/2301.12334: towards a quantile of the minority
score,

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(bin | x_t),

by a classifier that was trained on noised samples, labelled with the quantiles of their scores (`gk.minority_score`,
`gk.quantile_labels`). The paper has 100 bins and shifts the mean of each move by its variance times w grad log p, w =
3.5; as steps grow that is the change of the score above. The classifier knows no class: the condition stays the
model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError
from ..minority import held
from ..models.base import Model
from ..process import Gaussian
from ..view import View
from .base import Guide, Scale, at
from .twist import gradient


@dataclass(frozen=True)
class MinorityGuidance(Guide):
    """Guidance towards a quantile of the minority score, by a classifier. No network rows, one pass of the classifier.

    classifier   (x_t, t with one entry per row) -> logits (rows, bins), which torch can differentiate
    scale        w, a number or a function of t; 1 samples given the bin (as far as steps are fine), 0 does nothing
    bin          the quantile aimed at; the last is the rarest
    """

    classifier: Callable[[Tensor, Tensor], Tensor]
    scale: Scale
    bin: int = -1

    @property
    def models(self) -> tuple[Model, ...]:
        return (held(self.classifier),)

    def check(self, model: Model, steps: int) -> None:
        check_gaussian(self, model)
        if not callable(self.classifier):
            given = type(self.classifier).__name__
            raise TypeError(f"MinorityGuidance(classifier) is a function of (x_t, t), not {given}")

    def tilt(self, view: View) -> Tensor | float:
        (alpha, sigma), scale = view.model.process.scales(view.t), at(self.scale, view.t)
        if scale == 0 or alpha < 1e-3:  # next to nothing is left of the data
            return 0.0
        with torch.enable_grad():
            x = view.x.detach().requires_grad_()
            own = x.to(held(self.classifier).net_dtype or x.dtype)
            logits = self.classifier(own, torch.full((len(x),), view.t, dtype=own.dtype, device=x.device))
            if logits.dim() != 2 or len(logits) != len(x) or not -logits.shape[1] <= self.bin < logits.shape[1]:
                raise NetworkError(
                    f"the classifier returned {tuple(logits.shape)} for {len(x)} rows; logits of shape (rows, bins), "
                    f"with bin {self.bin}, are needed"
                )
            slope = gradient(logits.log_softmax(-1)[:, self.bin], x)
        return scale * sigma**2 / alpha * slope


def check_gaussian(guide: Any, model: Model) -> None:
    if not isinstance(model.process, Gaussian):
        name = type(guide).__name__
        raise ValueError(f"{name} takes gradients in x, and tokens have none; use it with a Gaussian process")

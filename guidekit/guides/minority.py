r"""Minority guidance (Um, Lee and Ye, 2023), https://arxiv.org/abs/2301.12334: towards a quantile of the minority
score,

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(bin | x_t),

by a classifier that was trained on noised samples, labelled with the quantiles of their scores (`gk.minority_score`,
`gk.quantile_labels`). The paper has 100 bins and shifts the mean of each move by its variance times w grad log p, w =
3.5; as steps grow that is the change of the score above. The classifier knows no class: the condition stays the
model's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import NetworkError
from ..models.base import Model
from ..view import View
from .base import Scale
from .classifier import Classifier, Labelled, check_gaussian, climbed


@dataclass(frozen=True)
class MinorityGuidance(Labelled):
    """Guidance towards a quantile of the minority score, by a classifier. No network rows, one pass of the classifier.

    classifier   (x_t, t with one entry per row) -> logits (rows, bins), which torch can differentiate
    scale        w, a number or a function of t; 1 samples given the bin (as far as steps are fine), 0 does nothing
    bin          the quantile aimed at; the last is the rarest
    """

    classifier: Classifier
    scale: Scale
    bin: int = -1

    label = None

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        check_gaussian(self, model, "gk.DCBG(classifier, label=bin)")

    def tilt(self, view: View) -> Tensor | float:
        return climbed(self, view, lambda x: self._of_bin(self.log_probs(x, view.t)))

    def _of_bin(self, log_p: Tensor) -> Tensor:
        if log_p.dim() != 2 or not -log_p.shape[1] <= self.bin < log_p.shape[1]:
            raise NetworkError(
                f"the classifier returned {tuple(log_p.shape)}; logits of shape (rows, bins), with bin {self.bin}, are "
                "needed"
            )
        return log_p[:, self.bin]

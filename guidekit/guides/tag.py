r"""Classifier guidance of masked tokens to first order (Nisonoff et al., 2025), https://arxiv.org/abs/2406.01572. TAG
takes the ratios from one gradient in the one-hot states, exact where log p(y | x) is linear:

    log p(y | x_t^{i -> v}) - log p(y | x_t)  ~  (d/dx_iv - d/dx_{i, mask}) log p(y | x_t).

What else is said of it stands in dcbg.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import one_hot

from ..engine.guide import Scale
from ..engine.view import View
from .dcbg import Discrete
from .shared.labelled import Classifier, Label, slope


@dataclass(frozen=True)
class TAG(Discrete):
    """First-order classifier guidance of masked tokens. No network rows; one pass of the classifier and back.

    classifier   (one-hot states (rows, length, V + 1), the last being the mask, t) -> as for `DCBG`
    scale        gamma, a number or a function of t; 0 does nothing
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    def ratios(self, view: View, masked: Tensor) -> Tensor:
        states = one_hot(view.x, view.model.process.states).to(view.model.dtype)  # type: ignore[attr-defined]
        rise = slope(lambda x: self.own(self.log_probs(x, view.t), view.group), states).double()
        return rise[..., :-1] - rise[..., -1:]

r"""TAG, Taylor-approximated guidance (Nisonoff et al., 2024), https://arxiv.org/abs/2406.01572: classifier guidance of
tokens to first order.

The ratios of the classifier are approximated by one gradient with respect to the one-hot states, which is exact if
log p(y | x) is linear in them:

    log p(y | x_t^{i -> v}) - log p(y | x_t)  ~  (d/dx_iv - d/dx_{i, x_t^i}) log p(y | x_t).

How they enter the prediction or, with posterior=True, the kernel is described in dcbg.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import one_hot

from ..engine.card import Paper
from ..engine.guide import Scale
from ..engine.view import View
from .dcbg import Discrete
from .shared.labelled import Classifier, Label, slope


@dataclass(frozen=True)
class TAG(Discrete):
    """First-order classifier guidance of tokens. No extra NFE; one forward and backward pass of the classifier a step.

    classifier   (one-hot states, t) -> as for `DCBG`; states are (rows, length, V + 1), of which the last is the mask,
                 and under uniform noise (rows, length, V)
    scale        gamma, a number or a function of t; 0 does nothing
    label        the class to guide towards, or a list with one for each condition of the run
    posterior    as for `DCBG`: True reweights the kernel, also under uniform noise
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None
    posterior: bool = False

    card = replace(
        Discrete.card,
        about="reweights every token by the gradient of a classifier",
        exact="p given the label, where log p(y given x) is linear and for many steps",
        paper=Paper(
            "nisonoff2024unlocking",
            "Nisonoff, Hunter and Xiong, Junhao and Allenspach, Stephan and Listgarten, Jennifer",
            "Unlocking Guidance for Discrete State-Space Diffusion and Flow Models",
            2024,
            "2406.01572",
        ),
        example="gk.TAG(right, 2.0)",
        picture="tokens",
    )

    def now(self, view: View) -> Tensor:
        return view.zeros()

    def ratios(self, view: View, where: Tensor) -> Tensor:
        states = one_hot(view.x, view.model.process.states).to(view.model.dtype)  # type: ignore[attr-defined]
        rise = slope(lambda x: self.own(self.log_probs(x, view.told), view.group), states).double()
        return rise[..., : view.model.process.V] - rise.gather(-1, view.x[..., None])  # type: ignore[attr-defined]

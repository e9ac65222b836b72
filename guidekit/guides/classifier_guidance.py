r"""Classifier guidance (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233.

A classifier p(y | x_t) of noisy states changes the score by w grad_x log p(y | x_t); for the clean mean d = E[x_0 |
x_t] that is

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(y | x_t).

With the exact classifier and w = 1 the result is E[x_0 | x_t, y]. A classifier that was trained on clean samples alone
has no meaningful gradient at x_t: train it on noised samples, or use the clean one as a reward, `gk.DPS(lambda x: log
p(y | x))`. The paper shifts the mean of each move by its variance times w grad log p, which is the same for small
steps. Where alpha_t < 0.001 nothing is added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale
from ..engine.view import View
from .shared.labelled import Classifier, Label, Labelled, climbed


@dataclass(frozen=True)
class ClassifierGuidance(Labelled):
    """Guidance by the gradient of a classifier of noisy states. No extra NFE; a forward and a backward pass of the
    classifier per step.

    classifier   (x_t, t with one entry per row) -> logits (rows, classes), or log p(y | x_t) (rows,) without a label
    scale        w, a number or a function of t: 1 samples given the label, 0 does nothing
    label        the class to guide towards, or a list with one for each condition of the run

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-2.0, 2.0], [0.5, 0.5])
    >>> right = ClassifierGuidance(lambda x, t: base.responsibilities(x, float(t[0])).log(), label=1)
    >>> bool((gk.sample(base, 50, steps=50, guides=[right]).x > 0).all())
    True
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    card = replace(
        Labelled.card,
        about="follows the gradient of a classifier of noisy states",
        exact="p given the label, for the exact classifier and small steps",
        paper=Paper(
            "dhariwal2021classifier",
            "Dhariwal, Prafulla and Nichol, Alex",
            "Diffusion Models Beat GANs on Image Synthesis",
            2021,
            "2105.05233",
        ),
        example="gk.ClassifierGuidance(component, 1.0, 3)",
    )

    def tilt(self, view: View) -> Tensor | float:
        return climbed(self, view, lambda x: self.own(self.log_probs(x, view.t), view.group))

r"""Guidance by a classifier p(y | x_t) (Dhariwal and Nichol, 2021), https://arxiv.org/abs/2105.05233, changes the score
by w times that of the label, here on the clean mean d = E[x_0 | x_t]:

    d <- d + w (sigma_t^2/alpha_t) grad_x log p(y | x_t).

With the exact classifier of noisy states and w = 1 that is E[x_0 | x_t, y]. A classifier that was trained on clean
samples alone knows nothing of x_t, and its gradient there means little: train it on noised ones, or give the clean one
as a reward, `gk.DPS(lambda x: log p(y | x))`. The paper shifts the mean of a move by its variance times w grad log p;
for small steps that is the same. Where alpha_t < 0.001 nothing is added.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.guide import Scale
from ..engine.view import View
from ..models.base import Model
from .shared.labelled import Classifier, Label, Labelled, check_gaussian, climbed


@dataclass(frozen=True)
class ClassifierGuidance(Labelled):
    """Guidance by the gradient of a classifier of noisy states. No network rows; one pass of the classifier and back.

    scale   w, a number or a function of t: 1 samples given the label, 0 does nothing

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-2.0, 2.0], [0.5, 0.5])
    >>> right = ClassifierGuidance(lambda x, t: base.responsibilities(x, float(t[0])).log(), label=1)
    >>> bool((gk.sample(base, 50, steps=50, guides=[right]).x > 0).all())
    True
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        check_gaussian(self, model, "gk.DCBG(classifier)")

    def tilt(self, view: View) -> Tensor | float:
        return climbed(self, view, lambda x: self.own(self.log_probs(x, view.t), view.group))

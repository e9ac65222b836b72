r"""AdvDiff (Dai, Liang and Xiao, 2023), https://arxiv.org/abs/2307.12499: samples that a classifier f gets wrong.

The paper shifts each x_s just drawn by sigma_t^2 w grad log f(y_a | x_s), where y_a is the wrong class to aim at. Here
the gradient is taken at x_t and changes the score,

    d <- d + w (sigma_t^2/alpha_t) grad_x log f(y_a | x_t),

which is the same for small steps and works with any solver. As in the authors' code, the guide acts in the last fifth
of the run, and if no y_a is given it is the most probable wrong class of each row. Two differences remain: in the
authors' code the classifier sees x_s decoded to an image, and its gradient is not multiplied by sigma_t^2.

`AdvDiff.restart` is the paper's noise sampling guidance.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale
from ..engine.result import Result
from ..engine.view import View
from ..models.base import Model
from ..models.networks import lent, networks_in
from .shared.labelled import Classifier, Label, Labelled, climbed, slope


@dataclass(frozen=True)
class AdvDiff(Labelled):
    """Adversarial guidance towards a wrong class. No extra NFE; a forward and a backward pass of the classifier per
    step.

    target   the class to aim at; None: the most probable class of each row other than its label
    label    the true class, or a list with one for each condition; required if there is no target
    scale    w, a number or a function of t. What the samples really show is kept by the condition and by gk.CFG
    """

    classifier: Classifier
    scale: Scale = 1.0
    target: int | None = None
    label: Label = None
    _: KW_ONLY
    start: float = 0.8

    card = replace(
        Labelled.card,
        about="guides towards a class that is wrong",
        refusal="takes gradients in x, and tokens have none: use gk.DCBG(classifier, label=target) with them",
        paper=Paper(
            "dai2023advdiff",
            "Dai, Xuelong and Liang, Kaisheng and Xiao, Bin",
            "AdvDiff: Generating Unrestricted Adversarial Examples using Diffusion Models",
            2023,
            "2307.12499",
        ),
        example="gk.AdvDiff(component, 1.0, 1)",
    )

    def tilt(self, view: View) -> Tensor | float:
        return climbed(self, view, lambda x: self._wrong(x, view.t, view.group))

    def _wrong(self, x: Tensor, t: float, group: Tensor) -> Tensor:
        """log f(y_a | x_t) of each row, (rows,)."""
        log_p = self.log_probs(x, t)
        classes = log_p.shape[1] if log_p.dim() == 2 else 1
        if classes < 2 or not 0 <= (self.target or 0) < classes:
            raise ValueError(f"AdvDiff(target={self.target}): the classifier has {classes} classes, counted from 0")
        if self.target is not None:
            return log_p[:, self.target]
        return log_p.scatter(1, self.labels(group, classes)[:, None], -torch.inf).amax(1)

    def restart(self, model: Model, result: Result, strength: float = 1.0) -> Tensor:
        """The starting noise of another run, for `noise=`: x_T + strength sigma_T^2 grad log f(y_a | x_0), with the
        gradient at the samples of this result."""
        if result.noise is None:
            raise ValueError("AdvDiff.restart moves the starting noise of a result, and this one has none")
        with lent(networks_in(self.classifier)):
            rise = slope(lambda x: self._wrong(x, 0.0, result.group), result.x)
        return result.noise + strength * model.process.scales(model.process.t_max)[1] * rise

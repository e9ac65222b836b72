r"""Gradient-free classifier guidance (Shenoy et al., 2024), https://arxiv.org/abs/2411.15393.

The method guides a conditional model away from the class with which its sample is most easily confused, and more
strongly the less certain a classifier is. The paper takes that class and the strength from the classifier's output at
every step. We could not obtain its formula for the strength; the one below is our own derivation. Scores average to
zero under p(k | x_t), so for the exact classifier

    (sigma_t^2/alpha_t) grad_x log p(c | x_t) = sum_{k != c} p(k | x_t) (d_c - d_k),       d_k = E[x_0 | x_t, k],

which is the gradient without computing one. GFCG keeps the most probable wrong classes and gives them the total weight
of all wrong classes:

    d <- d + w sum_j q_j (d - d_j),      q_j ~ p(j | x_t),      sum_j q_j = 1 - p(c | x_t).

With two classes, or if `references` covers all wrong classes, this is ClassifierGuidance of the conditional model. For
tokens the same rule is applied to log-probabilities; the identity does not hold for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Condition, Encoded, Model, stack
from ..models.evaluations import Cond, Given, rows_of
from .shared.labelled import Classifier, Label, Labelled


@dataclass(frozen=True, eq=False)
class GFCG(Labelled):
    """Gradient-free classifier guidance of a conditional model. `references` extra NFE per particle and step, in a
    forward pass of their own, and a forward pass of the classifier.

    classifier   (x_t, t with one entry per row) -> logits (rows, classes)
    scale        w, a number or a function of t
    label        the class that the run's condition stands for, or a list with one for each condition
    conditions   the condition of each class, as passed to gk.sample; None if they are 0, 1, 2, ...
    references   the number of most probable wrong classes to guide away from
    clean        the classifier sees the decoded clean estimate instead of x_t, for classifiers trained on clean samples
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None
    conditions: Sequence[Condition] | None = None
    references: int = 1
    clean: bool = False

    card = replace(
        Labelled.card,
        about="guides away from the classes that a classifier confuses the sample with",
        processes=(object,),
        refusal="",
        rows="references",
        exact="p given the label, if references are all wrong classes, for the exact classifier and small steps",
        paper=Paper(
            "shenoy2024gfcg",
            "Shenoy, Rahul and Pan, Zhihong and Balakrishnan, Kaushik and Cheng, Qisen and Jeon, Yongmoon and "
            "Yang, Heejune and Kim, Jaewon",
            "Gradient-Free Classifier Guidance for Diffusion Model Sampling",
            2024,
            "2411.15393",
        ),
        example="gk.GFCG(label, 2.0, 1, [0, 1])",
    )

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not is_count(self.references):
            raise ValueError(f"GFCG(references={self.references!r}): at least one wrong class to guide away from")

    def further(self, step: Step) -> int:
        return 0 if at(self.scale, step.t) == 0 else self.references

    def tilt(self, view: View) -> Tensor | float:
        scale = at(self.scale, view.t)
        if scale == 0:
            return 0.0
        log_p = self.log_probs(view.samples if self.clean else view.x, view.told)
        classes = log_p.shape[1] if log_p.dim() == 2 else 1
        if self.references >= classes:
            raise ValueError(
                f"GFCG(references={self.references}): the classifier has {classes} classes, one of them right"
            )
        own = self.labels(view.group, classes)[:, None]
        best = log_p.scatter(1, own, -torch.inf).topk(self.references)
        doubt = -torch.expm1(log_p.gather(1, own).clamp(max=0.0))  # 1 - p(c | x_t)
        weights = scale * doubt * best.values.softmax(1)
        encoded = self._encoded(view.model, classes)
        needs = tuple(Given(rows_of(encoded, best.indices[:, j])) for j in range(self.references))
        others = view.evaluate(view.x, view.t, needs)
        return sum(view.rows(weights[:, j]) * (view.evals[Cond()] - others[need]) for j, need in enumerate(needs))

    def _encoded(self, model: Model, classes: int) -> Encoded:
        """The encoded conditions of all classes, computed once."""
        conditions = range(classes) if self.conditions is None else self.conditions
        if len(conditions) != classes:
            raise ValueError(
                f"GFCG has {len(conditions)} conditions for {classes} classes of the classifier: one for each"
            )
        known = _encodings.get(self)
        if known is None or known[0] is not model:
            known = _encodings[self] = model, stack([model.encode(c) for c in conditions])
        return known[1]


_encodings: WeakKeyDictionary[GFCG, tuple[Model, Encoded]] = WeakKeyDictionary()  # an encoder may be large

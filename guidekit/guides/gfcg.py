r"""Gradient-free classifier guidance (Shenoy et al., 2024), https://arxiv.org/abs/2411.15393, guides a
conditional model away from the class with which its sample is most confused, the more so the less sure a classifier is.
The paper takes that class and the strength from the classifier's output at every step; its formula for the strength was
not at hand. What follows is derived here. Scores sum to zero under p(k | x_t), so for the exact classifier

    (sigma_t^2/alpha_t) grad_x log p(c | x_t) = sum_{k != c} p(k | x_t) (d_c - d_k),       d_k = E[x_0 | x_t, k],

a gradient without gradients. GFCG keeps the most probable wrong classes and gives them the weight of all of these:

    d <- d + w sum_j q_j (d - d_j),      q_j ~ p(j | x_t),      sum_j q_j = 1 - p(c | x_t).

With two classes, or with references = all others, that is ClassifierGuidance on the conditional model. For tokens, with
log-probabilities for d, it is the same rule without that identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..engine.guide import Scale, at
from ..engine.view import Step, View
from ..models.base import Condition, Encoded, Model, stack
from ..models.evaluations import Cond, rows_of
from .shared.labelled import Classifier, Label, Labelled


@dataclass(frozen=True, eq=False)
class _Given(Cond):
    """The model at an encoded condition of each row's own; no two are equal."""

    encoded: Encoded

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return self.encoded


@dataclass(frozen=True, eq=False)
class GFCG(Labelled):
    """Gradient-free classifier guidance of a conditional model. In each step `references` further network rows a
    particle, in a forward of their own, and one pass of the classifier.

    scale        w, a number or a function of t
    label        the class that the condition stands for, or a list with one for each condition
    conditions   the condition of each class, as for gk.sample; None where they are 0, 1, 2...
    references   how many of the most probable wrong classes to guide away from
    clean        the classifier sees the decoded clean estimate in place of x_t, as one that knows no noise must
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None
    conditions: Sequence[Condition] | None = None
    references: int = 1
    clean: bool = False

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if isinstance(self.references, bool) or not isinstance(self.references, int) or self.references < 1:
            raise ValueError(f"GFCG(references={self.references!r}): at least one wrong class to guide away from")

    def further(self, step: Step) -> int:
        return 0 if at(self.scale, step.t) == 0 else self.references

    def tilt(self, view: View) -> Tensor | float:
        scale = at(self.scale, view.t)
        if scale == 0:
            return 0.0
        log_p = self.log_probs(view.samples if self.clean else view.x, view.t)
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
        needs = tuple(_Given(rows_of(encoded, best.indices[:, j])) for j in range(self.references))
        others = view.evaluate(view.x, view.t, needs)
        return sum(view.rows(weights[:, j]) * (view.evals[Cond()] - others[need]) for j, need in enumerate(needs))

    def _encoded(self, model: Model, classes: int) -> Encoded:
        """The encoded conditions of all classes, made once."""
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

r"""Independent condition guidance (Sadat et al., 2024), https://arxiv.org/abs/2407.02687, section 4: CFG for models
that were trained without a null condition.

    d <- d(c') + w (d(c) - d(c')),      c' independent of x

As p(x | c') is then p(x) on average over c', the model at a condition that has nothing to do with the sample takes the
place of the unconditional one. c' is drawn for every row and step: from a list of conditions, or from a normal
distribution with the mean and the standard deviation of the encoded condition c. Averaged over c' the guided prediction
is that of Compose with the mean of all d(c') as unconditional one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.guide import at
from ..engine.view import Step, View
from ..models.base import Encoded, Model
from ..models.evaluations import At, Cond, Given, joined, rows_of
from .shared.contrast import Contrast
from .tsg import TSG


@dataclass(frozen=True)
class ICG(Contrast):
    """Independent condition guidance. One extra NFE per particle and step, in a forward pass of its own.

    scale        w, a number or a function of t; 1 does nothing
    conditions   conditions to draw from, each as likely as the others: all classes, or some prompts; None: normal
                 numbers in the place of embeddings
    """

    conditions: Sequence[Any] | None = None

    card = replace(
        Contrast.card,
        about="CFG with random conditions in place of the null one",
        processes=(object,),
        refusal="",
        paper=TSG.card.paper,
        example="gk.ICG(2.5, [0, 1])",
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return ()

    def check(self, model: Model, steps: int) -> None:
        if self.conditions is not None and not len(self.conditions):
            raise ValueError("ICG(conditions=[]): at least one condition to draw from is needed")
        for condition in self.conditions or ():
            At(condition).check(model)

    def further(self, step: Step) -> int:
        return 0 if at(self.scale, step.t) == 1 else 1

    def tilt(self, view: View) -> Tensor:
        need = Given(self._drawn(view))
        other = view.evaluate(view.x, view.t, (need,))[need]
        return (at(self.scale, view.t) - 1) * (view.evals[Cond()] - other)

    def _drawn(self, view: View) -> Encoded:
        """c' of every row."""
        if self.conditions is not None:
            one = rows_of(view.cond, view.group[:1] * 0)
            every = joined([At(c).cond(view.model, one) for c in self.conditions])
            index = (random.uniform(view.key) * len(self.conditions)).long().clamp(max=len(self.conditions) - 1)
            return rows_of(every, index)
        cond = view.cond
        entries = cond if isinstance(cond, dict) else {"": cond}
        if not any(isinstance(v, Tensor) and v.is_floating_point() for v in entries.values()):
            raise ValueError(
                "ICG() draws embeddings, and the conditions of this model encode to no real numbers: give it "
                "conditions=[...] to draw from"
            )
        drawn = {k: _like(v, random.fold(view.key, k)) for k, v in entries.items()}  # type: ignore[arg-type]
        return drawn if isinstance(cond, dict) else drawn[""]


def _like(v: Tensor, key: Tensor) -> Tensor:
    """Normal numbers with the mean and the standard deviation of each row; what is not real stays as it is."""
    if not v.is_floating_point():
        return v
    axes = tuple(range(1, v.dim()))
    mean, std = v.mean(axes, True), v.std(axes, correction=0, keepdim=True)
    return mean + std * random.normal(key, v.shape[1:], torch.float64).to(v)

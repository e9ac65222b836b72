r"""Prompt switching (Balaji et al., 2022, section 5), https://arxiv.org/abs/2211.01324.

Early steps determine the layout of a sample and late ones its details, so that another condition may take over in the
course of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Encoded, Model
from ..models.evaluations import evaluation, listed


@dataclass(frozen=True)
class Switch(Guide):
    """Other conditions in later parts of the run. No extra NFE. The unconditional branch of CFG is unchanged.

    conditions   one or a list, the same for all groups; None is the null condition
    at           the fractions of the run from which on they hold, increasing; before the first, the run's own condition
                 holds
    """

    conditions: Any
    at: float | Sequence[float] = 0.5

    card = Card(
        "switches to other conditions in the course of the run",
        section="Composition",
        changes="condition",
        paper=Paper(
            "balaji2022ediffi",
            "Balaji, Yogesh and others",
            "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert Denoisers",
            2022,
            "2211.01324",
        ),
        example="gk.Switch(0, 0.5)",
    )

    def __post_init__(self) -> None:
        points = listed(self.at)
        if len(points) != len(listed(self.conditions)) or not all(0 <= p <= 1 for p in points):
            raise ValueError(f"Switch(at={self.at!r}): a fraction of the run in [0, 1] for each condition")
        if any(a >= b for a, b in pairwise(points)):
            raise ValueError(f"Switch(at={self.at!r}): the fractions must rise")

    def check(self, model: Model, steps: int) -> None:
        for need in map(evaluation, listed(self.conditions)):
            if need.model(model) is not model:
                raise ValueError(
                    f"Switch(conditions=...): {need!r} is of another model; only conditions can be switched"
                )
            need.check(model)

    def condition(self, view: View, cond: Encoded) -> Encoded:
        past = [c for c, p in zip(listed(self.conditions), listed(self.at), strict=True) if p <= view.step.fraction]
        return evaluation(past[-1]).cond(view.model, cond) if past else cond

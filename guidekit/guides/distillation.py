r"""Distillation++ (Park, Lee and Ye, 2024), https://arxiv.org/abs/2412.08871: a teacher corrects a few-step student
during sampling.

    x_s = alpha_s d + sigma_s z,      d <- (1 - lambda) d + lambda d_teacher(x_s)

d is the student's clean estimate, which is renoised to the next time s of its run (the schedule that the paper found to
be best). d_teacher is the teacher's estimate, with classifier-free guidance of its own if `cfg` is not 1. This is one
step on the paper's proximal problem with a score-distillation loss. The paper guides the first one or two of four
steps; here `stop` is 0.5. d includes the tilts of all guides: a student with CFG is corrected as guided.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import Step, View
from ..models.base import Encoded, Model
from ..models.evaluations import Cond, Null, Other
from ..process import Gaussian


@dataclass(frozen=True)
class OtherNull(Other):
    """Another base model at its own null condition."""

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return Null().cond(model, cond)

    def check(self, model: Model) -> None:
        super().check(model)
        if self.network.null is None:
            raise ValueError("Distillation(cfg=...) needs a teacher with a null condition: build it with null=...")


@dataclass(frozen=True)
class Distillation(Guide):
    """Guidance of a student by a teacher. One extra NFE of the teacher per particle (two with cfg) in each step inside
    the window; none in the last step, where nothing is renoised.

    teacher   a base model with the same shape and noising process; it sees the condition as the student encodes it
    scale     lambda in [0, 1], a number or a function of t: 0 is the student, 1 the teacher
    cfg       the weight of the teacher's classifier-free guidance; 1: none
    renoise   s, a time or a function of t; None: the next time of the run
    """

    teacher: Model
    scale: Scale
    cfg: float = 1.0
    renoise: Scale | None = None
    _: KW_ONLY
    stop: float = 0.5

    card = Card(
        "lets a teacher correct the first steps of a student",
        section="Weaker and stronger models",
        processes=(Gaussian,),
        refusal="renoises a clean mean, and tokens have none: use it with a Gaussian process",
        rows="1 of the teacher (2 with cfg), while it acts",
        changes="target",
        paper=Paper(
            "park2024distillationpp",
            "Park, Geon Yeong and Lee, Sang Wan and Ye, Jong Chul",
            "Inference-Time Diffusion Model Distillation",
            2024,
            "2412.08871",
        ),
        example="gk.Distillation(trained, 0.9, stop=1.0)",
        picture="weak",
    )

    def check(self, model: Model, steps: int) -> None:
        for need in self._branches:
            need.check(model)
        if not callable(self.scale) and not 0 <= self.scale <= 1:
            raise ValueError(f"Distillation(scale={self.scale}): lambda lies in [0, 1], from student to teacher")
        if self.renoise is not None and not callable(self.renoise) and not 0 < self.renoise <= model.process.t_max:
            raise ValueError(f"Distillation(renoise={self.renoise}): a time in (0, {model.process.t_max}], or None")

    def further(self, step: Step) -> int:
        ends = self.renoise is None and step.move is not None and step.move.s == 0
        return 0 if ends or at(self.scale, step.t) == 0 else len(self._branches)

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        change = view.once(("teacher", view.step.name), lambda: self._change(view))
        return prediction if change is None else prediction + change

    @property
    def _branches(self) -> tuple[Cond, ...]:
        return (Other(self.teacher),) if self.cfg == 1 else (Other(self.teacher), OtherNull(self.teacher))

    def _change(self, view: View) -> Tensor | None:
        """lambda (d_teacher(x_s) - d)."""
        move, d = view.step.move, view.prediction
        assert move is not None and d is not None
        s, scale = min(move.s, view.t) if self.renoise is None else at(self.renoise, view.t), at(self.scale, view.t)
        if scale == 0 or s == 0:
            return None
        z = random.normal(view.key, view.model.shape, d.dtype)
        found = view.evaluate(view.model.process.noised(d, z, s), s, self._branches)
        clean = found[self._branches[0]]
        if self.cfg != 1:
            null = found[self._branches[1]]
            clean = null + self.cfg * (clean - null)
        return scale * (clean - d)

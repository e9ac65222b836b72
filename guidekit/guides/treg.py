r"""Regularisation by texts, TReg (Kim et al., 2023), https://arxiv.org/abs/2311.15658.

A measurement leaves several reconstructions open, and the condition of the run (a text) says which one is meant. With
the clean estimate d at that condition, under classifier-free guidance of strength `scale`,

    x^ = argmin_x  gamma |y - A x|^2/2 + |x - decode(d)|^2/2,    by `iters` conjugate gradients from decode(d),
    d <- a read(x^) + (1 - a) d,                                 a = alpha_s^2/(alpha_s^2 + sigma_s^2).

The null condition 0 of the guidance is moved away from what is already seen (adaptive negation), in `turns` steps from
the model's own null condition at every look:

    0 <- 0 - rate grad_0 similarity(decode(d), 0),               similarity: that of CLIP, in the paper.

A heuristic. The paper goes on from the null condition of the step before, and shares the noise of its moves out by
itself; here that is the solver's, DDIM(eta).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import Step, View
from ..errors import is_count
from ..measurements.measurement import of_samples
from ..models.base import Model
from ..models.evaluations import Cond, Given, Null
from .shared.inverse import Inverse


@dataclass(frozen=True)
class TReg(Inverse):
    """Fit decoded estimates to the measurement, with the run's condition as the prior. One more evaluation where scale
    is not 1. Any solver, and any linear operator with an adjoint; latent models need read=, as diffusers models have.

    scale       of classifier-free guidance, a number or a function of t; 1 is the condition alone
    gamma       the weight of the measurement
    iters       steps of conjugate gradients
    similarity  (samples, null conditions of the rows) -> a number for each row, by which the null condition is moved
    rate        of these steps
    turns       how many steps
    """

    measurement: Any
    scale: Scale = 1.0
    gamma: float = 5.0
    iters: int = 5
    similarity: Callable[[Any, Tensor], Tensor] | None = None
    rate: float = 1.0
    turns: int = 1

    in_states: ClassVar[bool]
    card = replace(
        Inverse.card,
        about="fits decoded estimates, under a condition and one that is negated",
        rows="1",
        paper=Paper(
            "kim2023treg",
            "Kim, Jeongsol and Park, Geon Yeong and Chung, Hyungjin and Ye, Jong Chul",
            "Regularization by Texts for Latent Diffusion Inverse Solvers",
            2023,
            "2311.15658",
        ),
        example="gk.TReg(measured, 2.0)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0 or not is_count(self.iters) or not is_count(self.turns):
            raise ValueError(
                f"TReg(gamma={self.gamma}, iters={self.iters!r}, turns={self.turns!r}): gamma > 0 and ints of at least "
                "1 are needed"
            )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == 1 or self.similarity is not None else (Null(),)

    def bind(self, model: Model) -> Guide:
        own, in_states = of_samples("TReg", self.measurement, model)
        return self.having(problem=own, in_states=in_states)

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if self.similarity is None:
            return
        if self.scale == 1:
            raise ValueError("TReg(similarity=...) moves the null condition, which scale=1 does not use: give scale")
        if not isinstance(model.null, Tensor) or not model.null.is_floating_point():
            raise ValueError(
                "TReg(similarity=...) moves the null condition by gradients: the model needs null=..., a tensor of "
                "real numbers"
            )

    def further(self, step: Step) -> int:
        return int(self.similarity is not None)

    def tilt(self, view: View) -> Tensor | float:
        if self.scale == 1:
            return 0.0
        null = view.evals[Null()] if self.similarity is None else self._negated(view)
        return view.model.guided(view.x, view.t, view.evals[Cond()], null, at(self.scale, view.t))

    def _negated(self, view: View) -> Tensor:
        """The prediction at the null condition that has been moved."""
        assert self.similarity is not None
        null, samples = view.model.nulled(view.cond), view.decode(view.evals[Cond()])
        for _ in range(self.turns):
            with torch.enable_grad():
                null = null.detach().requires_grad_()
                (slope,) = torch.autograd.grad(self.similarity(samples, null).sum(), null)
            null = null.detach() - self.rate * slope
        return view.evaluate(view.x, view.t, needs := (Given(null),))[needs[0]]

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own, model, move = self.problem, view.model, view.step.move
        assert move is not None
        x = prediction if self.in_states else model.decode(prediction)
        right = own.operator.adjoint(own.of(view.group).to(x)) + x / self.gamma
        fit = own.operator.solve(right, 1 / self.gamma, x, self.iters)
        alpha, sigma = model.process.scales(move.s)
        share = alpha**2 / (alpha**2 + sigma**2)
        return prediction + share * ((fit if self.in_states else model.read(fit).to(prediction)) - prediction)

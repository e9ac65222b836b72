r"""Classifier-free guidance (Ho and Salimans, 2022), https://arxiv.org/abs/2207.12598.

    d <- d_null + w (d_cond - d_null)

in the coordinates of the prediction. For Gaussian processes that is the clean mean, for which the rule is equivalent to
the usual one for noise, velocity or score; for tokens it is log p(x_0^i | x_t), so that the guided distribution is
p_cond^w p_null^(1 - w), normalised at every position. w = 1 is the conditional model, w = 0 the unconditional one.

For uniform noise this differs from D-CFG (Schiff et al., 2024, https://arxiv.org/abs/2412.10193), which interpolates
the log-probabilities of the next state x_s rather than those of the clean tokens, and is `DCFG`. For masked tokens the
two are the same.

`rescale` (Lin et al., 2023, https://arxiv.org/abs/2305.08891, section 3.4) brings the standard deviation of every
sample's prediction back towards that of the conditional one, d <- d (1 - phi + phi std(d_cond)/std(d)). Here it is
applied to the clean mean, so that it does not depend on what the network predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at, numbers
from ..engine.view import Step, View
from ..models.base import Model
from ..models.evaluations import Cond, Null, listed
from ..process import Gaussian


@dataclass(frozen=True)
class CFG(Guide):
    """Classifier-free guidance. One extra NFE per particle and step, in the same forward pass.

    scale     w, a number or a function of t, or a list with one for each condition of the run; 1 does nothing
    rescale   phi in [0, 1]; 0 does nothing

    >>> import guidekit as gk
    >>> gk.CFG(3.0, start=0.1, stop=0.8).needs
    (Null(),)
    """

    scale: Scale | Sequence[Scale]
    rescale: float = 0.0

    neutral = 1.0

    card = Card(
        "extrapolates from the unconditional to the conditional prediction",
        section="Classifier-free guidance and its relatives",
        rows="1",
        changes="target",
        paper=Paper(
            "ho2022cfg", "Ho, Jonathan and Salimans, Tim", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"
        ),
        example="gk.CFG(2.5)",
    )

    def __post_init__(self) -> None:
        if isinstance(self.scale, list):
            object.__setattr__(self, "scale", tuple(self.scale))

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if all(w == 1 for w in listed(self.scale)) else (Null(),)

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        if isinstance(self.scale, tuple) and len(self.scale) == of:
            return self.having(scale=tuple(self.scale[g] for g in groups))
        return self

    def active(self, step: Step) -> bool:
        if isinstance(self.scale, tuple) and len(self.scale) != len(step.keys):
            raise ValueError(
                f"CFG(scale={self.scale}): {len(self.scale)} scales for {len(step.keys)} conditions; one for each is "
                "needed, or one for all"
            )
        return super().active(step)

    def _idle(self, t: float) -> bool:
        return all(at(w, t) == 1 for w in listed(self.scale))

    def check(self, model: Model, steps: int) -> None:
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"CFG(rescale={self.rescale}): rescale lies in [0, 1]")
        if self.rescale and not isinstance(model.process, Gaussian):
            raise ValueError("CFG(rescale=...) is for Gaussian processes; log-probabilities of tokens are normalised")

    def tilt(self, view: View) -> Tensor | float:
        every = [at(w, view.t) for w in listed(self.scale)]
        if len(every) == 1:
            return view.model.guided(view.x, view.t, view.evals[Cond()], view.evals[Null()], every[0])
        own = numbers(every, view.x.device)
        scale = view.rows(own[view.group])
        return view.model.guided(view.x, view.t, view.evals[Cond()], view.evals[Null()], scale)

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        if self.rescale == 0:
            return prediction
        cond, guided = (v.reshape(len(v), -1).std(1, correction=0) for v in (view.evals[Cond()], prediction))
        ratio = torch.where(
            guided > 0, cond / guided, 1.0
        )  # a single number, or a constant, has no deviation to restore
        return prediction * view.rows(1 - self.rescale + self.rescale * ratio)

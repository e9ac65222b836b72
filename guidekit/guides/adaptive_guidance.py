r"""Adaptive guidance (Castillo et al., 2023), https://arxiv.org/abs/2312.12487: CFG that stops paying for the null
condition.

    d <- d_null + w (d_cond - d_null)      until    cos(e_cond, e_null) > g,      and d_cond from then on

The two predictions of noise, e = (x_t - alpha d)/sigma, align in the course of the run. Once their cosine is above g
the null condition changes little, and a row is not evaluated at it again. Each row decides for itself, and what it
decided follows it through selections. g = 1 never stops, and is CFG.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..models.evaluations import Cond, Null
from .shared.contrast import Contrast, dot


@dataclass(frozen=True)
class AdaptiveGuidance(Contrast):
    """CFG until the two predictions agree. One extra NFE per particle and step until then, in a forward pass of its
    own, and none afterwards.

    scale       w, a number or a function of t; 1 does nothing
    threshold   g in [-1, 1]; the paper uses 0.991 for latent diffusion
    """

    threshold: float = 0.991

    card = replace(
        Contrast.card,
        about="CFG that skips the null condition once the predictions agree",
        rows="1, until it stops",
        paper=Paper(
            "castillo2023adaptive",
            "Castillo, Angela and Kohler, Jonas and Pérez, Juan C. and Pérez, Juan Pablo and Pumarola, Albert and "
            "Ghanem, Bernard and Arbeláez, Pablo and Thabet, Ali",
            "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
            2023,
            "2312.12487",
        ),
        example="gk.AdaptiveGuidance(2.5, 0.9)",
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return ()

    def check(self, model: Model, steps: int) -> None:
        Null().check(model)
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"AdaptiveGuidance(threshold={self.threshold}): a cosine, in [-1, 1]")

    def further(self, step: Step) -> int:
        return 0 if at(self.scale, step.t) == 1 else 1

    def tilt(self, view: View) -> Tensor:
        shift, _ = self._look(view, view.memo)
        return (at(self.scale, view.t) - 1) * shift

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        asked = not view.step.last and self.active(view.step)
        return 0.0, self._look(view, memo)[1] if asked else memo

    def _look(self, view: View, memo: Tree) -> tuple[Tensor, Tensor]:
        """d_cond - d_null, zero where a row has stopped, and whether it stops here or has stopped before."""

        def make() -> tuple[Tensor, Tensor]:
            cond = view.evals[Cond()]
            done = torch.zeros(len(cond), dtype=torch.bool, device=cond.device) if memo is None else memo
            rest = (~done).nonzero()[:, 0]
            shift = torch.zeros_like(cond)
            if len(rest):
                some = view.take(rest)
                null = some.evaluate(some.x, some.t, (Null(),))[Null()]
                shift[rest] = cond[rest] - null
                done = done.index_put((rest,), self._agree(some, cond[rest], null))
            return shift, done

        return view.once(("adaptive", id(self)), make)

    def _agree(self, view: View, cond: Tensor, null: Tensor) -> Tensor:
        """Whether the cosine of both predictions of noise is above the threshold."""
        alpha, _ = view.model.process.scales(view.t)
        a, b = view.x - alpha * cond, view.x - alpha * null
        length = (dot(a, a) * dot(b, b)).sqrt()
        return torch.where(length > 0, dot(a, b) / length, 0.0).clamp(max=1.0) > self.threshold

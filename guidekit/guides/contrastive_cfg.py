r"""Contrastive CFG (Chang et al., 2024), https://arxiv.org/abs/2411.17077: negative prompts that stop pushing once
their concept is gone.

With D = d_cond - d_null and D_i = d_i - d_null of the i-th negative condition,

    d <- d_null + w l+ D - w sum_i b_i l-_i D_i
    l+   = 2/(1 + exp(-tau |e_cond - e_null|^2)),      l-_i = 2/(1 + exp(tau |e_i - e_null|^2))

These are the gradients of the noise-contrastive losses of being, and of not being, a sample of the condition. l+ lies
in [1, 2) and l- in (0, 1]: where the prediction at the negative condition is far from the unconditional one, it is
already unlikely and is let be. Distances are those of the predicted noise, e = (x_t - alpha d)/sigma. tau = 0 is
composition with negations, w D - w sum_i b_i D_i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Negative, both, dot


@dataclass(frozen=True)
class ContrastiveCFG(Negative):
    """Contrastive guidance. One extra NFE for the null condition and for each negative one.

    scale       w, a number or a function of t
    negatives   conditions, or evaluations such as At("blurry"): one or a list
    weights     b_i, one for all or one for each: numbers or functions of t
    tau         the sharpness, in units of 1/|e|^2: it falls with the number of entries of x
    """

    tau: float = 0.2

    card = replace(
        Negative.card,
        about="CFG away from negative conditions as far as they still apply",
        paper=Paper(
            "chang2024ccfg",
            "Chang, Jinho and Chung, Hyungjin and Ye, Jong Chul",
            "Contrastive CFG: Improving CFG in Diffusion Models by Contrasting Positive and Negative Concepts",
            2024,
            "2411.17077",
        ),
        example="gk.ContrastiveCFG(2.5, [0])",
    )

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not self.tau >= 0:
            raise ValueError(f"ContrastiveCFG(tau={self.tau}): at least 0")

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        scale = at(self.scale, view.t)
        shift = scale * view.rows(2 * self._nearness(view, cond - null, 1)) * (cond - null)
        for need, weight in self.weighted(view.t):
            other = view.evals[need] - null
            shift = shift - scale * weight * view.rows(2 * self._nearness(view, other, -1)) * other
        return null + shift - cond

    def _nearness(self, view: View, shift: Tensor, sign: int) -> Tensor:
        """1/(1 + exp(-sign tau |e|^2)) of each row, e being the difference of noise."""
        alpha, sigma = view.model.process.scales(view.t)
        return (sign * self.tau * (alpha / sigma) ** 2 * dot(shift, shift)).sigmoid()

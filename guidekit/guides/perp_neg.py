r"""Perp-Neg, perpendicular negative prompts (Armandpour et al., 2023), https://arxiv.org/abs/2304.04968.

With D = d_cond - d_null and D_i = d_i - d_null of the i-th negative condition,

    d <- d_null + w (D - sum_i b_i D_i_perp),      D_i_perp = D_i - <D_i, D>/|D|^2 D

Only the part of a negative prompt that is perpendicular to the prompt is subtracted, so that what the two have in
common stays. b_i = 0 is CFG. The paper writes its weights as -b_i. Where D is 0, or as small as rounding, there is no
direction, and all of D_i is perpendicular.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.view import View
from .shared.contrast import Negative, along, both, dot


@dataclass(frozen=True)
class PerpNeg(Negative):
    """CFG away from what negative conditions add. One extra NFE for the null condition and for each negative one.

    scale       w, a number or a function of t
    negatives   conditions, or evaluations such as At("blurry"): one or a list
    weights     b_i, one for all or one for each: numbers or functions of t
    """

    card = replace(
        Negative.card,
        about="CFG away from the part of negative conditions that is perpendicular to the condition",
        paper=Paper(
            "armandpour2023perpneg",
            "Armandpour, Mohammadreza and Sadeghian, Ali and Zheng, Huangjie and Sadeghian, Amir and Zhou, Mingyuan",
            "Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D, Alleviate Janus Problem and "
            "Beyond",
            2023,
            "2304.04968",
        ),
        example="gk.PerpNeg(2.5, [0])",
    )

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        own = cond - null
        shift = at(self.scale, view.t) * own
        least = 4 * torch.finfo(own.dtype).eps
        own = own * view.rows(dot(own, own) > least**2 * dot(cond, cond))  # rounding alone is no direction
        for need, weight in self.weighted(view.t):
            other = view.evals[need] - null
            shift = shift - at(self.scale, view.t) * weight * (other - along(view, other, own))
        return null + shift - cond

r"""Consistent direct diffusion bridges, CDDB (Chung et al., 2023), https://arxiv.org/abs/2305.19809.

Every clean estimate takes one step down the gradient of |y - A d|^2/2:

    d <- d + step A^T (y - A d).

The paper's process is a bridge from the measured picture x_1 to x_0, whose network has learned E[x_0 | x_t, x_1]. It is
a Gaussian process in other coordinates: the bridge x_t = (1 - t) x_0 + t x_1 + (t (1 - t))^1/2 s z has

    x_t = (1 - t)^1/2 v_t + t x_1,        v_t = (1 - t)^1/2 x_0 + t^1/2 s z,

so that a network of bridges is a model of v_t with the condition x_1, for any solver; noise that drifts to x_1 is
`gk.DriftingModel`. A heuristic: the step is the same
at all times. A component of the singular value v keeps 1 - step v^2 of its residual: none where A A^T = 1 and step = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.view import View
from .shared.inverse import Inverse


@dataclass(frozen=True)
class CDDB(Inverse):
    """A gradient step from the clean estimate towards the measurement. No extra NFE and no backward pass; any solver,
    any linear operator with an adjoint, and models of bridges.

    step   a number or a function of t, below 2/v^2 for the largest singular value v
    """

    measurement: Any
    step: Scale = 1.0

    card = replace(
        Inverse.card,
        about="a gradient step at the clean estimate, made for bridges",
        paper=Paper(
            "chung2023cddb",
            "Chung, Hyungjin and Kim, Jeongsol and Ye, Jong Chul",
            "Direct Diffusion Bridge using Data Consistency for Inverse Problems",
            2023,
            "2305.19809",
        ),
        example="gk.CDDB(measured)",
    )

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own = self.problem
        return prediction + at(self.step, view.t) * own.operator.adjoint(own.rest(prediction, view.group))

r"""Tweedie moment projected diffusion, TMPD (Boys et al., 2023), https://arxiv.org/abs/2310.06721, with the
covariance by conjugate gradients as in moment matching posterior sampling, MMPS (Rozet et al., 2024),
https://arxiv.org/abs/2405.13712.

x_0 given x_t is taken as Gaussian with its true first two moments, by Tweedie's formulas

    d = E[x_0 | x_t],        C = Cov[x_0 | x_t] = (sigma_t^2/alpha_t) dd/dx_t,
    d <- d + C A^T (A C A^T + noise^2)^-1 (y - A d).

The inverse is found by `iters` steps of conjugate gradients, each of which is a vector-Jacobian product, a backward
pass through the network. Exact for Gaussian data of any covariance; elsewhere p(x_0 | x_t) is no Gaussian, and it is
a heuristic. TMPD itself replaces A C A^T by its row sums, which saves the iterations. A trained network's Jacobian is
not quite symmetric, as conjugate gradients need it, so a few iterations are better than many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.view import View
from ..errors import is_count
from ..values.likelihood import weighed
from .shared.inverse import Inverse, pushed


@dataclass(frozen=True)
class TMPD(Inverse):
    """Follow the likelihood of a Gaussian with the two true moments of x_0 given x_t. No extra NFE, but iters + 1
    backward passes; any solver, and any linear operator with an adjoint.

    scale   times the tilt, a number or a function of t
    iters   steps of conjugate gradients
    """

    measurement: Any
    scale: Scale = 1.0
    iters: int = 3

    grad = True
    neutral = 0.0
    card = replace(
        Inverse.card,
        about="follows the likelihood with the posterior covariance",
        rows="0, and iters + 1 backward passes",
        paper=Paper(
            "boys2023tmpd",
            "Boys, Benjamin and Girolami, Mark and Pidstrigach, Jakiw and Reich, Sebastian and Mosca, Alan and "
            "Akyildiz, O. Deniz",
            "Tweedie Moment Projected Diffusions For Inverse Problems",
            2023,
            "2310.06721",
        ),
        example="gk.TMPD(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.iters):
            raise ValueError(f"TMPD(iters={self.iters!r}): an int of at least 1 is needed")

    def tilt(self, view: View) -> Tensor:
        if view.model.process.scales(view.t)[0] < 1e-3:  # no gradient through the network in pure noise
            return torch.zeros_like(view.x)
        w = weighed(view, self.problem, self.rest(view), "tweedie", self.iters)
        return at(self.scale, view.t) * pushed(view, self.problem.operator.adjoint(w))

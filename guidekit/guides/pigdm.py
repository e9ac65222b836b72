r"""Pseudoinverse-guided diffusion, PiGDM (Song et al., 2023), https://openreview.net/forum?id=9_gsMA8MRKQ.

x_0 given x_t is taken as N(d, r_t^2), so that p(y | x_t) = N(y; A d, r_t^2 A A^T + noise^2), and its score is added:

    d <- d + (sigma_t^2/alpha_t) (dd/dx_t)^T A^T (r_t^2 A A^T + noise^2)^-1 (y - A d),
    r_t^2 = sigma_t^2/(alpha_t^2 + sigma_t^2),  the variance for data of unit variance.

Without noise this is A^+ (y - A d)/r_t^2 before the Jacobian. Exact for Gaussian data of unit variance, and a
heuristic otherwise. In its algorithm the paper adds (alpha_t r_t^2/sigma_t^2 times) that, with alpha_t in the place
of alpha_s; here, as in its derivation, it is a change of the score, for any solver. The same tilt as a twist, with
weights that make it exact, is `gk.TDS(measured, 1.0, value=gk.values.Likelihood(measured))`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.view import View
from ..values.likelihood import unit_variance
from .shared.inverse import Inverse, pushed


@dataclass(frozen=True)
class PiGDM(Inverse):
    """Follow the likelihood of a Gaussian around the clean estimate. No extra NFE, but a backward pass.

    scale      times the tilt, a number or a function of t
    variance   r_t^2, a number or a function of t; None is that of data of unit variance
    """

    measurement: Any
    scale: Scale = 1.0
    variance: Scale | None = None

    grad = True
    neutral = 0.0
    card = replace(
        Inverse.card,
        about="follows the likelihood with a fixed posterior variance",
        rows="0, and a backward pass",
        paper=Paper(
            "song2023pigdm",
            "Song, Jiaming and Vahdat, Arash and Mardani, Morteza and Kautz, Jan",
            "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
            2023,
            "International Conference on Learning Representations",
        ),
        example="gk.PiGDM(measured)",
    )

    def tilt(self, view: View) -> Tensor:
        variance = unit_variance(view) if self.variance is None else at(self.variance, view.t)
        u = self.problem.gain(self.rest(view), variance) / variance
        return at(self.scale, view.t) * pushed(view, u)

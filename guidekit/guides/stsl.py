r"""Second-order Tweedie sampler from a surrogate loss, STSL (Rout et al., 2023), https://arxiv.org/abs/2312.00852.

The likelihood at x_t is bounded by Jensen's inequality, with d and C the mean and the covariance of x_0 given x_t:

    log p(y | x_t) = log E[p(y | x_0)] >= E[log p(y | x_0)] = -(|y - A d|^2 + tr(A C A^T))/(2 noise^2) + constant,

so that the clean estimate follows the measurement where that costs no certainty: DPS knows the first term alone. By
Tweedie's second-order formula C = (sigma_t^2/alpha_t) dd/dx_t, and the trace is estimated by one normal z,

    tr(A C A^T) = E[(A z).(A C z)],        C z ~ (sigma_t^2/alpha_t) (d(x_t + h z) - d(x_t))/h,

which costs one more evaluation instead of a Jacobian. A heuristic; the paper's trace is that of the Hessian of log p_t
alone, with a weight in the place of A. An operator or decoder that is not linear is linear over steps of h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import random
from ..engine.card import Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import Step, View
from ..measurements.measurement import Decoded, Problem, decoded
from ..models.base import Model
from ..models.evaluations import Cond
from .shared.inverse import Inverse
from .shared.twist import ascent


@dataclass(frozen=True)
class STSL(Inverse):
    """Follow the expected log-likelihood of x_0 given x_t. One more evaluation, and a backward pass through both; any
    solver, any differentiable operator and any decoder, with Gaussian noise.

    scale   times the tilt, a number or a function of t
    gamma   weight of the trace; 0 is DPS
    probe   h in units of sigma_t
    """

    measurement: Any
    scale: Scale = 1.0
    gamma: float = 1.0
    probe: float = 0.1

    problem: ClassVar[Problem | Decoded]  # type: ignore[misc]
    grad = True
    neutral = 0.0
    card = replace(
        Inverse.card,
        about="follows the likelihood, less what the estimate is uncertain of",
        rows="1 where it acts, and a backward pass",
        paper=Paper(
            "rout2023stsl",
            "Rout, Litu and Chen, Yujia and Kumar, Abhishek and Caramanis, Constantine and Shakkottai, Sanjay and "
            "Chu, Wen-Sheng",
            "Beyond First-Order Tweedie: Solving Inverse Problems using Latent Diffusion",
            2023,
            "2312.00852",
        ),
        example="gk.STSL(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gamma < 0 or not self.probe > 0:
            raise ValueError(f"STSL(gamma={self.gamma}, probe={self.probe}): gamma >= 0 and probe > 0 are needed")

    def bind(self, model: Model) -> Guide:
        own = decoded("STSL", self.measurement, model)
        if own.noise == 0:
            raise ValueError("STSL weighs the measurement by its noise: give noise a value, or take ReSample or DDNM")
        return self.having(problem=own)

    def further(self, step: Step) -> int:
        return 1

    def tilt(self, view: View) -> Tensor:
        if view.model.process.scales(view.t)[0] < 1e-3:  # no gradient through the network in pure noise
            return torch.zeros_like(view.x)
        e = self.problem.rest(view.clean, view.group)
        loss = _dot(e, e) + self.gamma * self._trace(view)
        return at(self.scale, view.t) * ascent(view, -loss / (2 * self.problem.noise**2))

    def _trace(self, view: View) -> Tensor:
        """(A z).(A C z), from the network's own estimates at x_t and near it."""
        alpha, sigma = view.model.process.scales(view.t)
        d, h = view.evals[Cond()], self.probe * sigma
        z = random.normal(view.key, view.model.shape, d.dtype)
        near = view.evaluate(view.x + h * z, view.t)[Cond()]
        there, along, moved = (self.problem.rest(v, view.group) for v in (d, d + h * z, near))
        return sigma**2 / alpha * _dot(along - there, moved - there) / h**2


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)

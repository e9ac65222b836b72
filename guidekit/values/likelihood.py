r"""The likelihood of a linear measurement at x_t, with the clean sample taken as Gaussian around its estimate:

    p(y | x_t) ~ N(y; A d, A C A^T + noise^2),        d = E[x_0 | x_t], C ~ Cov[x_0 | x_t].

    covariance = "unit"      C = r_t^2 1, r_t^2 = sigma_t^2/(alpha_t^2 + sigma_t^2): the posterior variance of unit data
                             (PiGDM; Song et al., 2023, https://openreview.net/forum?id=9_gsMA8MRKQ)
                 "tweedie"   C = (sigma_t^2/alpha_t) dd/dx_t, the covariance itself, by vector-Jacobian products and
                             conjugate gradients (TMPD; Boys et al., 2023, https://arxiv.org/abs/2310.06721; MMPS;
                             Rozet et al., 2024, https://arxiv.org/abs/2405.13712)

V = -e^T (A C A^T + noise^2)^-1 e/2 with e = y - A d. Terms that do not depend on d are left out, and C counts as
constant in the gradient: as a twist it may be anything, since the last weight is that of the true likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..engine.view import View
from ..measurements.measurement import Problem, problem
from ..measurements.operators import gradients
from ..models.base import Model

COVARIANCES = ("unit", "tweedie")


@dataclass(frozen=True)
class Likelihood:
    """The look-ahead of a linear measurement with Gaussian noise, which knows how uncertain the clean estimate is:

        gk.TDS(measured, 1.0, value=gk.values.Likelihood(measured))

    measurement  a `gk.Measurement`, or a `rewards.ByGroup` of them
    covariance   "unit", or "tweedie", which only guides that take gradients through the network can use (TDS, DAS)
    iters        "tweedie": conjugate-gradient steps, each of them a backward pass through the network
    """

    measurement: Any
    covariance: str = "unit"
    iters: int = 5
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.covariance not in COVARIANCES:
            raise ValueError(f"Likelihood(covariance={self.covariance!r}): there is {', '.join(COVARIANCES)}")

    def at(self, alpha: float) -> Likelihood:
        """At a temperature: the likelihood to the power 1/alpha is that of the noise times alpha^1/2."""
        return replace(self, alpha=alpha)

    def __call__(self, view: View) -> Tensor:
        own = _known(self.measurement, view.model)
        own = replace(own, noise=own.noise * self.alpha**0.5)
        e = own.rest(view.clean, view.group)
        w = weighed(view, own, e.detach(), self.covariance, self.iters)
        slope = -((e - e.detach()) * w).flatten(1).sum(1, dtype=torch.float64)  # 0, with the gradient of V
        return self.alpha * (slope - 0.5 * (e.detach() * w).flatten(1).sum(1, dtype=torch.float64))


_problems: WeakKeyDictionary[Model, WeakKeyDictionary[Any, Problem]] = WeakKeyDictionary()


def _known(measurement: Any, model: Model) -> Problem:
    """The problem, which is made and checked once for a measurement and a model, as long as both are in use."""
    made = _problems.setdefault(model, WeakKeyDictionary())
    if measurement not in made:
        made[measurement] = problem("gk.values.Likelihood", measurement, model)
    return made[measurement]


def weighed(view: View, own: Problem, e: Tensor, covariance: str, iters: int) -> Tensor:
    """(A C A^T + noise^2)^-1 e."""
    alpha, sigma = view.model.process.scales(view.t)
    if covariance == "unit" or alpha < 1e-3:
        return (e - own.operator.A(own.gain(e, unit_variance(view)))) / own.noise**2
    if not view.x.requires_grad:
        raise ValueError(
            'covariance="tweedie" takes derivatives through the network, and this guide has none: take TDS or DAS, or '
            'covariance="unit"'
        )

    def through(w: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(view.clean, view.x, own.operator.adjoint(w), retain_graph=True)
        return own.operator.A(sigma**2 / alpha * pulled) + own.noise**2 * w

    return gradients(through, e, None, iters).detach()


def unit_variance(view: View) -> float:
    """r_t^2, the variance of x_0 given x_t for data of unit variance."""
    alpha, sigma = view.model.process.scales(view.t)
    return sigma**2 / (alpha**2 + sigma**2)

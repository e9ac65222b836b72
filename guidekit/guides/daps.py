r"""Decoupled annealing posterior sampling, DAPS (Zhang et al., 2024), https://arxiv.org/abs/2407.01521.

At every time of the grid a clean sample is drawn and noised to the next time, wherever x_t was:

    x' = the end of the flow ODE from x_t,
    x_0 ~ exp(-|x_0 - x'|^2/(2 r_t^2)) p(y | x_0)    by `iters` steps of Langevin dynamics from x',
    x_s = alpha_s x_0 + sigma_s z.

The ODE takes `inner` Euler steps in equal parts of t, and a Langevin step is

    x_0 <- x_0 + h grad [-|x_0 - x'|^2/(2 r_t^2) + log p(y | x_0)] + (2 h)^1/2 z,      h = step/(1/r_t^2 + curvature),

where curvature bounds the second derivative of log p(y | x_0), so that step < 1 is stable. For Gaussian noise it is
|J|^2/noise^2 by default, J being the derivative of A(decode(x)) at a random x, by power iteration.

r_t^2 = sigma_t^2/(alpha_t^2 + sigma_t^2), the variance for data of unit variance, is the paper's sigma_t^2 (with
alpha = 1) where that is small. A heuristic: x_0 given x_t is no Gaussian around the end of the ODE, and Langevin
dynamics without Metropolis steps has a bias of the order of `step`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import random
from ..engine.card import Paper
from ..engine.guide import Guide
from ..engine.view import Step, View
from ..errors import is_count
from ..measurements import Gaussian as Normal, Measurement
from ..measurements.measurement import listed
from ..models.base import Model
from ..models.evaluations import Cond
from ..solvers import Move, Point
from ..solvers.ddim import posterior
from ..values.likelihood import unit_variance
from .shared.inverse import Inverse
from .shared.twist import gradient


@dataclass(frozen=True)
class DAPS(Inverse):
    """Draw a clean sample at every time, by Langevin dynamics, and noise it to the next. Any differentiable operator
    and any likelihood; no backward pass through the network. NFE: `inner` per particle and step; `iters` likelihoods.

    inner      evaluations of the ODE that ends in the clean estimate
    iters      Langevin steps
    step       their size, below 1; the bias grows with it
    curvature  a bound of the second derivative of log p(y | x_0) in the state; None: that of Gaussian noise
    """

    measurement: Any
    inner: int = 3
    iters: int = 50
    step: float = 0.1
    curvature: float | None = None

    bound: ClassVar[float]
    moving = True
    card = replace(
        Inverse.card,
        about="draws clean samples by Langevin dynamics, and noises them again",
        rows="2",
        paper=Paper(
            "zhang2024daps",
            "Zhang, Bingliang and Chu, Wenda and Berner, Julius and Meng, Chenlin and Anandkumar, Anima and Song, Yang",
            "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing",
            2024,
            "2407.01521",
        ),
        example="gk.DAPS(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_count(self.inner) or not is_count(self.iters) or not 0 < self.step < 1:
            raise ValueError(
                f"DAPS(inner={self.inner!r}, iters={self.iters!r}, step={self.step}): ints of at least 1, and a "
                "step between 0 "
                "and 1, are needed"
            )

    def bind(self, model: Model) -> Guide:
        each = listed(self.measurement)
        for m in each:
            m.fits(model, gradient=True)
        if self.curvature is None and not isinstance(each[0].noise, Normal):
            raise ValueError(
                "DAPS(curvature=None) knows the step for Gaussian noise alone: give curvature=..., a bound of the "
                "second "
                "derivative of log p(y | x_0)"
            )
        return self.having(bound=_curvature(model, each[0]) if self.curvature is None else self.curvature)

    def further(self, step: Step) -> int:
        return self.inner - 1

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        self.one_move_each(moves, "makes the moves itself, and takes the solver's times alone")
        scales = model.process.scales
        return [m if m.s > m.t else Move(m.t, m.s, 0.0, (scales(m.s)[0],), scales(m.s)[1]) for m in moves]

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        centre = self._flown(view, prediction)
        r2 = unit_variance(view)
        h, x = self.step / (1 / r2 + self.bound), centre
        for i in range(self.iters):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                slope = gradient(view.scorer(self.measurement, view.decode(x), view.group), x)
            z = random.normal(random.fold(view.key, i), x.shape[1:], x.dtype)
            x = x.detach() + h * (slope - (x.detach() - centre) / r2) + (2 * h) ** 0.5 * z
        return x

    def _flown(self, view: View, d: Tensor) -> Tensor:
        """The end of the ODE from x_t, by Euler steps, the last of which ends in the clean estimate."""
        x, process = view.x.detach(), view.model.process
        times = [view.t * (1 - j / self.inner) for j in range(self.inner)]
        points = [Point(t, *process.scales(t)) for t in times]
        for t, s in pairwise(points):
            move = posterior(t, s, 0.0)
            x = move.a * x + move.b[0] * d
            with torch.no_grad():
                d = view.evaluate(x, s.t)[Cond()]
        return d.detach()


def _curvature(model: Model, measurement: Measurement) -> float:
    """|J|^2/noise^2."""
    assert isinstance(measurement.noise, Normal)
    x = 0.5 * random.normal(random.key([4], model.device), model.shape, model.dtype)
    v = random.normal(random.key([5], model.device), model.shape, model.dtype)
    v = v / v.norm()
    for _ in range(10):
        _, u = torch.autograd.functional.jvp(lambda x: measurement.operator(model.decode(x)), x, v)
        _, pulled = torch.autograd.functional.vjp(lambda x: measurement.operator(model.decode(x)), x, u)
        size = torch.linalg.vector_norm(pulled)  # type: ignore[arg-type]
        v = pulled / size  # type: ignore[operator]
    return float(size) / measurement.noise.std**2

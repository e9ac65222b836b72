r"""Denoising diffusion restoration models, DDRM (Kawar et al., 2022), https://arxiv.org/abs/2201.11793.

With A = U S V^T, every component of V^T x moves by itself. Let d and y^ = A^+ y be components of the clean estimate
and of the pseudo-inverse, and r = noise/s the noise of y^. In units of x_0, with sigma' = sigma_s/alpha_s,
x_s/alpha_s is

    s = 0            N(d + (1 - eta^2)^1/2 sigma' (x_t - alpha_t d)/sigma_t,  eta^2 sigma'^2)
    sigma' <  r      N(d + (1 - eta^2)^1/2 sigma' (y^ - d)/r,                 eta^2 sigma'^2)
    sigma' >= r      N((1 - eta_b) d + eta_b y^,                              sigma'^2 - eta_b^2 r^2),

and the start is N(alpha_T y^, sigma_T^2 - alpha_T^2 r^2) where s > 0. The solver gives the times alone. A heuristic:
the variational bound which it optimises leaves the network as it is. Without noise and with eta_b = 1, A x_0 = y
exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.population import Population
from ..engine.view import Step, View
from ..measurements.measurement import Problem
from ..models.base import Model
from ..process import Gaussian
from ..solvers import Move
from .shared.inverse import Inverse


@dataclass(frozen=True)
class DDRM(Inverse):
    """Move each singular component between the clean estimate and the measurement. No extra NFE and no backward pass.
    The operator has to know its singular values.

    eta     noise of components that are not measured, or measured with more noise than x_s has
    eta_b   how far the others follow the measurement
    """

    measurement: Any
    eta: float = 0.85
    eta_b: float = 1.0

    moving = True
    isotropic = True
    card = replace(
        Inverse.card,
        about="moves singular components between estimate and measurement",
        exact="A x_0 = y, without noise",
        changes="kernel",
        paper=Paper(
            "kawar2022ddrm",
            "Kawar, Bahjat and Elad, Michael and Ermon, Stefano and Song, Jiaming",
            "Denoising Diffusion Restoration Models",
            2022,
            "2201.11793",
        ),
        example="gk.DDRM(measured)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta", "eta_b"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"DDRM({name}={getattr(self, name)}): a number from 0 to 1 is needed")

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        if not self.problem.operator.decomposed:
            raise ValueError(
                "DDRM needs the singular values of the operator, and this one does not know them: take DDS, PiGDM or "
                "DiffPIR, which need none"
            )

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        self.one_move_each(moves, "makes the moves itself, and takes the solver's times alone")
        return moves

    def begin(self, view: View, noise: Tensor) -> Tensor:
        own, (alpha, sigma) = self.problem, view.model.process.scales(view.step.t)
        if alpha < 1e-3 or view.step.t < view.model.process.t_max:
            return view.x
        y = own.operator.pinv(own.of(view.group).to(view.x))
        kept = lambda s: (1 - (alpha * _noise(own, s) / sigma).square()).clamp(min=0)  # noqa: E731
        start = own.operator.spectral(lambda s: alpha * own.operator.known(s) * (kept(s) > 0), y)
        return start + own.operator.spectral(lambda s: torch.where(kept(s) > 0, kept(s), 1.0).sqrt(), view.x)

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        assert step.move is not None
        if step.move.s > step.move.t:
            return kernel
        assert isinstance(model.process, Gaussian)
        y = self.problem.operator.pinv(self.problem.of(population.group).to(population.x))
        return Restored(kernel, population.x, y, step.move, model.process, self.problem, self.eta, self.eta_b)


@dataclass(frozen=True)
class Restored:
    """The kernel of a move, by components; weights do not correct for it."""

    inner: Any
    x: Tensor
    y: Tensor  # A^+ y
    move: Move
    process: Gaussian
    own: Problem
    eta: float
    eta_b: float
    random = True

    @property
    def history(self) -> tuple[Tensor, ...]:
        return self.inner.history

    def push(self, noise: Tensor) -> Tensor:
        (a_t, s_t), (a_s, s_s) = self.process.scales(self.move.t), self.process.scales(self.move.s)
        d, spectral = self.history[0], self.own.operator.spectral
        along = (1 - self.eta**2) ** 0.5 * s_s

        def share(s: Tensor) -> Tensor:
            """Of y^ - d, in x_s."""
            r = _noise(self.own, s)
            near = torch.where(self._clear(s), a_s * self.eta_b, along / r.clamp(min=1e-30))
            return torch.where(self.own.operator.known(s), near, 0.0)

        def std(s: Tensor) -> Tensor:
            clear = (s_s**2 - (a_s * self.eta_b * _noise(self.own, s)).square()).clamp(min=0).sqrt()
            return torch.where(self._clear(s), clear, self.eta * s_s)

        ahead = spectral(lambda s: along * (~self.own.operator.known(s)).to(d), (self.x - a_t * d) / s_t)
        return a_s * d + spectral(share, self.y - d) + ahead + spectral(std, noise)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _clear(self, s: Tensor) -> Tensor:
        """Whether y^ has no more noise than x_s."""
        a_s, s_s = self.process.scales(self.move.s)
        return self.own.operator.known(s) & (a_s * _noise(self.own, s) <= s_s)


def _noise(own: Problem, s: Tensor) -> Tensor:
    """r, the noise of a component of A^+ y; 0 where nothing is measured."""
    return torch.where(own.operator.known(s), own.noise / s.clamp(min=own.operator.cut), 0.0)

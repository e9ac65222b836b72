"""The noising law of a pipeline: a Gaussian process on its scheduler's levels, and the scheduler as its solver."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ...process import Gaussian, Normal
from ...solvers import Move, Solver
from .grids import Grids, Place

WEIGHTED = (
    "solver=gk.solvers.DDPM() weighs on any pipeline. Schedulers that do: DDPMScheduler, DDIMScheduler with eta=1, "
    "EulerAncestralDiscreteScheduler, LCMScheduler, DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++', "
    "FlowMatchEulerDiscreteScheduler with stochastic_sampling=True"
)


@dataclass(frozen=True)
class Scheduler(Solver):
    """A pipeline's own scheduler, by name: its solver unless another is given."""

    name: str
    noisy: bool
    spreads: bool = False
    _: KW_ONLY
    times: Any = "uniform"

    advice = WEIGHTED

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.noisy

    def __repr__(self) -> str:
        return f"the pipeline's {self.name}"


class Kernel:
    """One step of the scheduler: N(mean, c^2) given what it remembers; c = 0 is a point mass. The network may say the
    variance of each number, by its `spread` (Nichol and Dhariwal, 2021, https://arxiv.org/abs/2102.09672).

    predictions   the newest one, and what the scheduler remembers; after a step `history` is what the next one will
                  need besides its own prediction
    """

    def __init__(
        self,
        process: Scheduled,
        x: Tensor,
        predictions: tuple[Tensor, ...],
        place: Place,
        move: Move,
        spread: Tensor | None = None,
    ):
        if process.grids.spreads and spread is None:
            raise ValueError(
                f"{process.grids.name} with a learned variance needs what the network says of it, which is not known "
                "here: take solver=gk.solvers.DDPM()"
            )
        self.process, self.x, self.predictions, self.place, self.move = process, x, predictions, place, move
        self.spread = spread
        self.history: tuple[Tensor, ...] = ()

    @property
    def random(self) -> bool:
        return self.move.c > 0

    @property
    def mean(self) -> Tensor:
        return self.push(None)

    def push(self, noise: Tensor | None) -> Tensor:
        """The scheduler's own arithmetic, with this noise (None is zeros)."""
        (stepper, index), (clean, *memory) = self.place, self.predictions
        grids = self.process.grids
        out = self.process.output(clean, self.x, self.move.t).to(grids.out)
        x, self.history = stepper.step(index, self.x.to(grids.dtype), out, tuple(memory), noise, self.spread)
        return x.to(self.x.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, c^2), one float64 per row."""
        if not self.random:
            raise ValueError(f"a deterministic step has no log-probability; {WEIGHTED}")
        c = torch.full((len(x), 1), self.move.c, dtype=torch.float64, device=x.device)
        if self.spread is not None:
            c = self.place[0].deviation(self.place[1], self.spread).flatten(1)
        z = (x - self.mean).double().flatten(1) / c
        return -0.5 * z.square().sum(1) - c.log().expand_as(z).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)

    def correction(self, p: Kernel, x: Tensor) -> Tensor:
        """log p(x)/q(x), one float64 per row."""
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True)
class Scheduled(Gaussian):
    """Gaussian diffusion on the levels of a scheduler.

    A number of steps with solver=None is the scheduler's grid and arithmetic. Another solver takes the same grid,
    unless it names one (times="karras"). Times of one's own are stepped by the solver given, or by DDPM().
    """

    grids: Grids = None  # type: ignore[assignment]

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        own = isinstance(solver, Scheduler)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            return super().moves(steps, None if own else solver)
        if own or solver is None:
            return self.grids.moves(steps)
        if solver.times != "uniform":
            return super().moves(steps, solver)
        self.grids.know(steps)
        times = self.grids.times(steps)
        kept = [t for i, t in enumerate(times) if i == 0 or t < times[i - 1]]  # two-stage schedulers repeat theirs
        return super().moves(kept, solver)

    def prior(self, noise: Tensor, t: float) -> Tensor:
        start = self.grids.start(noise, t)
        return super().prior(noise, t) if start is None else start

    def kernel(  # type: ignore[override]
        self, x: Tensor, predictions: tuple[Tensor, ...], move: Move, spread: Tensor | None = None
    ) -> Kernel | Normal:
        place = self.grids.place(move)
        return Normal(x, predictions, move) if place is None else Kernel(self, x, predictions, place, move, spread)

    def output(self, clean: Tensor, x: Tensor, t: float) -> Tensor:
        """What the network would have to return for this clean mean, in float64: (d - A x) / B."""
        a, b = self.grids.weights(t)
        return (clean.double() - a * x.double()) / b

    def clean_of(self, out: Tensor, x: Tensor, t: float) -> Tensor:
        """d = A x + B out in float64, from which `output` gives back the same bits."""
        a, b = self.grids.weights(t)
        return (x.double() * a).add(out.double(), alpha=b)

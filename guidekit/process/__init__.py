"""Noising laws. A process knows its schedule, prior, reverse kernel and clean estimate, and no network or reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..solvers import Move, Solver
from .gaussian import Gaussian, Normal
from .tokens import Categorical, Masked, Uniform


class Kernel(Protocol):
    """q(x_s | x_t). `push` is its reparametrised draw, so the noise can be searched over; one that is not `random`
    takes no noise and has no log-probability. `history` is what the next move may read of earlier ones, newest first:
    predictions, or what else the solver remembers; it is complete after `push`."""

    @property
    def random(self) -> bool: ...
    @property
    def history(self) -> tuple[Tensor, ...]: ...
    def push(self, noise: Any) -> Tensor: ...
    def log_prob(self, x: Tensor) -> Tensor: ...


class Process(Protocol):
    """What the engine asks of a noising law."""

    @property
    def t_max(self) -> float: ...

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        """The table of a run."""
        ...

    def scales(self, t: float) -> tuple[float, float]:
        """alpha and sigma at t; for tokens the shares kept and noised."""
        ...

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one particle's noise in one move."""
        ...

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Noise of these keys, shape (rows, \\*shape)."""
        ...

    def prior(self, noise: Tensor, t: float) -> Tensor:
        """x_t at the first time from its noise."""
        ...

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The estimate of x_0 in a prediction."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t from x_0 by the forward process."""
        ...

    def draws(self, move: Move) -> bool:
        """Whether the kernel of this move is random."""
        ...

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Kernel:
        """The reverse kernel, from the predictions with the newest first."""
        ...


__all__ = ["Categorical", "Gaussian", "Kernel", "Masked", "Normal", "Process", "Uniform"]

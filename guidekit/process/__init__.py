"""Noising processes. A process knows its schedule, prior, reverse kernel and clean estimate, but no network or
reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..solvers import Move, Solver
from .blackout import Blackout
from .gaussian import Gaussian, Normal
from .independent import Categorical, Masking
from .lengths import Lengths
from .many_masks import ManyMasks
from .revealing import Revealing
from .riffle import PlackettLuce, Riffle
from .tokens import LOG_ZERO, Masked, Uniform


class Kernel(Protocol):
    """The reverse kernel q(x_s | x_t) of one move. `push` is its reparametrised sample, a function of the noise, so
    that the noise can be searched over. A kernel that is not `random` takes no noise and has no log-probability.
    `history` is what the next move may use of earlier ones, newest first: predictions, or whatever the solver
    remembers; it is complete after `push`. `correction` is log p(x)/q(x) for particles x that this kernel q has moved
    where p was meant, one float64 per row."""

    @property
    def random(self) -> bool: ...
    @property
    def history(self) -> tuple[Tensor, ...]: ...
    def push(self, noise: Any) -> Tensor: ...
    def log_prob(self, x: Tensor) -> Tensor: ...
    def correction(self, p: Any, x: Tensor) -> Tensor: ...


class Process(Protocol):
    """What the engine asks of a noising process."""

    @property
    def t_max(self) -> float: ...

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        """The moves of a run."""
        ...

    def scales(self, t: float) -> tuple[float, float]:
        """alpha and sigma at t; for tokens the fractions kept and noised."""
        ...

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one particle's noise in one move."""
        ...

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The noise that belongs to these keys, shape (rows, \\*shape)."""
        ...

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """The same, for kernels alone: where they read few numbers of it, none is drawn before it is read."""
        ...

    def prior(self, noise: Tensor, t: float) -> Tensor:
        """x_t at the first time t, from its noise."""
        ...

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The estimate of x_0 that a prediction contains."""
        ...

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        """x_t from x_0 by the forward process."""
        ...

    def begins(self, clean: Tensor, level: float) -> float:
        """The time at which a run begins whose samples have been noised up to this level."""
        ...

    def decided(self, x: Tensor) -> Tensor | None:
        """The rows of x_t in which nothing is left to draw, bool (rows,), or None where that is never so."""
        ...

    def apart(self, move: Move) -> bool:
        """Whether the noise of a move alone says which positions are revealed, whatever the prediction; of `Masked`."""
        ...

    def told(self, x: Tensor) -> Tensor:
        """The prediction of rows that are decided, for which no network is asked."""
        ...

    def draws(self, move: Move) -> bool:
        """Whether the kernel of this move is random."""
        ...

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Kernel:
        """The reverse kernel of a move, given the predictions, newest first."""
        ...


__all__ = [
    "LOG_ZERO",
    "Blackout",
    "Categorical",
    "Gaussian",
    "Kernel",
    "Lengths",
    "ManyMasks",
    "Masked",
    "Masking",
    "Normal",
    "PlackettLuce",
    "Process",
    "Revealing",
    "Riffle",
    "Uniform",
]

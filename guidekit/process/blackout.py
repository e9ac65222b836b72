r"""Blackout diffusion: pure death of counts (Santos et al., 2023), https://arxiv.org/abs/2305.11089.

An element of a sample is a count, 0 to V - 1: a brightness, a number of molecules. Each of its units lives on until t
with probability alpha(t) = 1 - t (the paper's e^-t), and none at t = 1, where every sample is black:

    x_t | x_0       Binomial(x_0, alpha_t)
    x_s | x_t, x_0  x_t + Binomial(x_0 - x_t, r),        r = (alpha_s - alpha_t)/(1 - alpha_t),    s < t

A prediction is log p(x_0^i = v | x_t), shape (rows, length, V), of which what lies below x_t^i is left out. The reverse
kernel is the second line, averaged over it, for each element on its own: exact in one move, if the prediction is the
exact marginal, and with a log-probability in closed form. The paper's networks predict the mean of x_0 - x_t alone,
and its steps are binomial with that mean; `gk.BlackoutModel(predicts="births")` is for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..solvers import DDPM, Ancestral, Move, Solver, times
from .independent import Categorical
from .tokens import LOG_ZERO


@dataclass(frozen=True)
class Blackout:
    """Counts from 0 to V - 1 whose units die, each with probability t until the time t."""

    V: int
    t_max = 1.0

    @property
    def states(self) -> int:
        return self.V

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        if not isinstance(solver, DDPM | Ancestral | None):
            raise ValueError(f"solver={solver!r}: counts move by their own kernel; leave solver=None")
        own = Ancestral() if solver is None else solver
        return Ancestral().table(times.make(steps, own.times, None, self.t_max))

    def scales(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.V)

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return random.gumbel(keys, shape)

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.noise(keys, shape, dtype)

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return torch.zeros(noise.shape[:-1], dtype=torch.long, device=noise.device)

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return self._possible(prediction, x).argmax(-1)

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        return self.kernel(clean, (), Move(0.0, t)).push(noise)

    def begins(self, clean: Tensor, level: float) -> float:
        return level

    def decided(self, x: Tensor) -> Tensor:
        """Where no element can grow."""
        return (x == self.V - 1).all(-1)

    def apart(self, move: Move) -> bool:
        return False

    def told(self, x: Tensor) -> Tensor:
        return torch.full((*x.shape, self.V), LOG_ZERO, device=x.device).scatter_(-1, x[..., None], 0.0)

    def draws(self, move: Move) -> bool:
        return True

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Categorical:
        alive_t, alive_s = 1 - move.t, 1 - move.s
        if move.s > move.t:  # units die
            return Categorical(binomial(self.V, alive_s / alive_t, x.device)[x].log())
        born = binomial(self.V, (alive_s - alive_t) / move.t, x.device)
        p = self._possible(predictions[0], x).double().softmax(-1)
        step = torch.arange(self.V, device=x.device)
        grown, back = x[..., None] + step, step - x[..., None]  # x + n for each n, and k - x for each k
        ahead = p.gather(-1, grown.clamp(max=self.V - 1)) * (grown < self.V)  # of the number that is still to come
        q = (ahead @ born).gather(-1, back.clamp(min=0)) * (back >= 0)
        return Categorical(q.log())

    def _possible(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The prediction without counts below those that are there."""
        below = torch.arange(self.V, device=x.device) < x[..., None]
        return prediction.masked_fill(below, -torch.inf)


def binomial(V: int, p: float, device: torch.device | None = None) -> Tensor:
    """P(k) of Binomial(n, p) in row n and column k, float64 (V, V)."""
    n = torch.arange(V, dtype=torch.float64, device=device)
    k, n = n[None], n[:, None]
    choose = (n + 1).lgamma() - (k + 1).lgamma() - (n - k).clamp(min=0).add(1).lgamma()
    share = torch.full((), min(p, 1.0), dtype=torch.float64, device=device)  # 1 up to rounding
    log_p = choose + torch.xlogy(k, share) + torch.xlogy((n - k).clamp(min=0), 1 - share)
    return torch.where(k <= n, log_p.exp(), 0.0)

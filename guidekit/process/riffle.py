r"""Diffusion over permutations by riffle shuffles (SymmetricDiffusers: Zhang et al., 2024),
https://arxiv.org/abs/2410.02942.

A state x has the items 0 ... n - 1 in an order. The forward process makes T riffle shuffles in the time from 0 to 1,
and k of them are one shuffle of a = 2^k packets (Bayer and Diaconis, 1992): every place is given one of the packets,
uniformly, and the items, from the first one, fill the places of the first packet, then those of the second... So, with
r rising sequences,

    q(x_s | x_t) = C(a + n - r, n)/a^n,        s > t.

The reverse kernel is a Plackett-Luce distribution by the network's scores, one for each item: the first place is given
to item i with probability softmax(score)_i, the second one by the softmax over all others, and so on. That is the order
of score + Gumbel noise, with the log-probability

    log p(x_s | x_t) = sum_i (score of x_s^i - log sum_(j >= i) exp(score of x_s^j)).

Networks are trained to reverse the moves between certain times, so a prediction speaks of x_s and not of x_0. What
stands for the clean estimate is the most probable next order, which is that of x_0 in the last move alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..solvers import DDPM, Ancestral, Move, Solver, times


@dataclass(frozen=True, eq=False)
class PlackettLuce:
    """An order of the items x (rows, n), by their scores (rows, n)."""

    x: Tensor
    scores: Tensor
    random = True
    history = ()

    def push(self, noise: Tensor) -> Tensor:
        return self.x.gather(1, (self.scores + noise).argsort(dim=1, descending=True))

    def log_prob(self, x: Tensor) -> Tensor:
        s = self.scores.gather(1, self.x.argsort(1)).gather(1, x)  # of the items in the order of x
        return (s - s.flip(1).logcumsumexp(1).flip(1)).sum(1)

    def correction(self, p: PlackettLuce, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True, eq=False)
class Shuffle:
    """A riffle shuffle of `packets` packets."""

    x: Tensor
    packets: int
    random = True
    history = ()

    def push(self, noise: Tensor) -> Tensor:
        packet = (noise.neg().exp().neg().exp() * self.packets).long()
        return torch.empty_like(self.x).scatter(1, packet.argsort(dim=1, stable=True), self.x)

    def log_prob(self, x: Tensor) -> Tensor:
        place = x.argsort(1).gather(1, self.x).double()  # where each item has gone, in the order of before
        rising = 1 + (place.diff(dim=1) < 0).double().sum(1)
        n, top = x.shape[1], self.packets + x.shape[1] - rising
        chance = (top + 1).lgamma() - math.lgamma(n + 1) - (top - n + 1).lgamma() - n * math.log(self.packets)
        return torch.where(rising <= self.packets, chance, -torch.inf)

    def correction(self, p: Shuffle, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True)
class Riffle:
    """Orders that are shuffled so many times, until t = 1."""

    shuffles: int
    t_max = 1.0

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        if not isinstance(solver, DDPM | Ancestral | None):
            raise ValueError(f"solver={solver!r}: permutations move by their own kernel; leave solver=None")
        grid = times.make(steps, "uniform", None, self.t_max)
        if any(abs(t * self.shuffles - round(t * self.shuffles)) > 1e-6 for t in grid):
            raise ValueError(
                f"{len(grid) - 1} steps: this model reverses {self.shuffles} shuffles; give a number of steps that "
                f"divides them, or times that are multiples of 1/{self.shuffles}"
            )
        return Ancestral().table(grid)

    def scales(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return random.gumbel(keys, shape)

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.noise(keys, shape, dtype)

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return noise.argsort(1)

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return x.gather(1, prediction.argsort(dim=1, descending=True, stable=True))

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        return self.kernel(clean, (), Move(0.0, t)).push(noise)

    def begins(self, clean: Tensor, level: float) -> float:
        return level

    def decided(self, x: Tensor) -> None:
        return None

    def apart(self, move: Move) -> bool:
        return False

    def told(self, x: Tensor) -> Tensor:
        return x

    def draws(self, move: Move) -> bool:
        return True

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> PlackettLuce | Shuffle:
        if move.s > move.t:
            return Shuffle(x, 2 ** round((move.s - move.t) * self.shuffles))
        return PlackettLuce(x, predictions[0].double())

r"""Absorbing noise with several masks (ReDDiT: Ma et al., 2025), https://arxiv.org/abs/2505.19656.

A token is replaced by one of m masks, each with probability 1/m, with probability t altogether; the network sees which.
Let b be x with all masks taken for one, and p the prediction at x_t. A move is that of masked noise for b_t, and then

    `ReDDiT`      every mask of x_s is drawn anew:    q(x_s | x_t) = q(b_s | x_t) m^-(number of masks in x_s)
    `Ancestral`   a mask that stays is the same one;  those that a move up in time makes are drawn

The first is the reverse of a process whose masks change all the time, the second of one whose masks stay. Noise has one
Gumbel number more than states of masked noise: g, with which a mask is number floor(m exp(-exp(-g))).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..solvers import Move
from ..solvers.reddit import ReDDiT
from ..solvers.token_solver import solver_of
from .independent import Masking
from .revealing import Revealing
from .tokens import Masked, _Tokens


@dataclass(frozen=True)
class ManyMasks(_Tokens):
    """Masked noise whose mask is one of `masks`; they have the ids V, ..., V + masks - 1."""

    masks: int = 2
    noising = "many-mask"  # type: ignore[assignment]

    @property
    def states(self) -> int:
        return self.V + 2

    @property
    def one(self) -> Masked:
        """The same noise with one mask."""
        return Masked(self.V)

    def prior(self, noise: Any, t: float) -> Tensor:
        return drawn_masks(noise, self.V, self.masks)

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return torch.where(x >= self.V, prediction.argmax(-1), x)

    def decided(self, x: Tensor) -> Tensor:
        return (x < self.V).all(-1)

    def told(self, x: Tensor) -> Tensor:
        return super().told(x.clamp(max=self.V - 1))

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Marked:
        inner = self.one.kernel(x.clamp(max=self.V), predictions, move)
        return Marked(inner, x, self.V, self.masks, isinstance(solver_of(move), ReDDiT))


def drawn_masks(noise: Tensor, V: int, masks: int) -> Tensor:
    """A mask for every position, by the last number of its noise."""
    return V + (masks * (-(-noise[..., -1]).exp()).exp()).long().clamp(max=masks - 1)


@dataclass(frozen=True, eq=False)
class Marked:
    """The kernel of `inner`, whose masks are then told apart; `again` says that all are drawn anew."""

    inner: Masking | Revealing
    x: Tensor
    V: int
    masks: int
    again: bool
    random = True
    history = ()

    def push(self, noise: Tensor) -> Tensor:
        moved, masks = self.inner.push(noise[..., :-1]), drawn_masks(noise, self.V, self.masks)
        masks = masks if self.again else torch.where(self.x >= self.V, self.x, masks)
        return torch.where(moved == self.V, masks, moved)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x), one float64 per row."""
        masked, old = x >= self.V, self.x >= self.V
        each = torch.full(x.shape, self.masks, dtype=torch.float64, device=x.device).log().neg()
        if not self.again:
            each = torch.where(old, torch.where(x == self.x, 0.0, -torch.inf), each)
        return self.inner.log_prob(x.clamp(max=self.V)) + torch.where(masked, each, 0.0).sum(1)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)

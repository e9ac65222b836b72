r"""Kernels of tokens whose positions move independently of each other, x_s^i ~ q_i.

Of kernels with a mask its Gumbel number g decides first: x_s^i is the mask where exp(-exp(-g)), a uniform number, is
below m_i = q_i(mask). If it is not, the letter is the one with the largest log q_i(v) + g_v. So which positions are
revealed depends on no prediction, and `Masking` draws numbers, and normalises predictions in float64, only where a
token can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import random


def normalised(prediction: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """log p at these places of these rows, float64 (places, V)."""
    return prediction[rows, places].double().log_softmax(-1)


def letters(prediction: Tensor, gumbel: Tensor) -> Tensor:
    """Letters drawn by predictions, which may lack a constant, and Gumbel numbers: both (places, V)."""
    return (prediction.double().log_softmax(-1) + gumbel).argmax(-1)


def revealed(x: Tensor, shown: Tensor, prediction: Tensor, noise: Any) -> Tensor:
    """x with letters drawn where they are `shown`; noise is a tensor, or `random.Gumbels`."""
    where = shown.nonzero(as_tuple=True)
    return x.index_put(where, letters(prediction[where], noise[(*where, slice(prediction.shape[-1]))]))


@dataclass(frozen=True)
class Categorical:
    """log_probs has shape (rows, length, states), float64, normalised; `mask` is the last state, if that is a mask."""

    log_probs: Tensor
    mask: int | None = None
    random = True
    history = ()

    @property
    def table(self) -> Categorical:
        """The kernel with the log-probabilities of every state."""
        return self

    def push(self, noise: Any) -> Tensor:
        sums = self.log_probs + random.drawn(noise)
        if self.mask is None:
            return sums.argmax(-1)
        hidden = random.below(noise, (..., self.mask), self.log_probs[..., self.mask].exp())
        return torch.where(hidden, self.mask, sums[..., : self.mask].argmax(-1))

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x), one float64 per row."""
        return self.log_probs.gather(-1, x[..., None])[..., 0].flatten(1).sum(1)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True, eq=False)
class Masking:
    """x_s^i is the mask with probability `hide`, float64 (rows, length). Where it is not, a token of x_t stays, and a
    mask becomes a letter by the prediction (rows, length, V), which may lack a constant; `mask` is the id V."""

    x: Tensor
    hide: Tensor
    prediction: Tensor
    mask: int
    random = True
    history = ()

    def push(self, noise: Any) -> Tensor:
        hidden = self.hidden(noise)
        shown = (self.x == self.mask) & ~hidden
        return revealed(torch.where(hidden, self.mask, self.x), shown, self.prediction, noise)

    def hidden(self, noise: Any) -> Tensor:
        """Where x_s is masked, bool (rows, length)."""
        rows, places = ((self.hide > 0) & (self.hide < 1)).nonzero(as_tuple=True)
        below = random.below(noise, (rows, places, self.mask), self.hide[rows, places])
        return (self.hide == 1).index_put_((rows, places), below)

    def shown(self, noise: Any) -> Tensor:
        """The masks of x_t that are revealed, bool (rows, length)."""
        return (self.x == self.mask) & ~self.hidden(noise)

    @cached_property
    def table(self) -> Categorical:
        """The kernel with the log-probabilities of every state."""
        masked = (self.x == self.mask)[..., None]
        stay = torch.zeros(self.prediction.shape, dtype=torch.float64, device=self.x.device)
        stay = stay.sub(torch.inf).scatter_(-1, self.x.clamp(max=self.mask - 1)[..., None], 0.0)
        log_p = torch.where(masked, self.prediction.double().log_softmax(-1), stay)
        log_m = self.hide.log()[..., None]
        return Categorical(torch.cat([log_p + (1 - self.hide).log()[..., None], log_m], -1), self.mask)

    @property
    def log_probs(self) -> Tensor:
        """log q_i(v), float64 (rows, length, V + 1)."""
        return self.table.log_probs

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x), one float64 per row."""
        masked, hidden = self.x == self.mask, x == self.mask
        chance = torch.where(hidden, self.hide, 1 - self.hide).log()
        chance = torch.where(masked | hidden | (x == self.x), chance, -torch.inf)
        where = (masked & ~hidden).nonzero(as_tuple=True)
        log_p = normalised(self.prediction, *where).gather(-1, x[where][:, None])[:, 0]
        return chance.index_put(where, log_p, accumulate=True).sum(1)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)

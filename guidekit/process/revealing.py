r"""The kernel of samplers that choose positions: k masked positions of each row are revealed, their tokens drawn.

    q(x_s | x_t) = P(S | x_t) prod_{i in S} p_i(x_s^i),        S the positions that are revealed

P(S | x_t) is the solver's: uniform, or certain where an order follows from the prediction. The token of a position is
drawn with the Gumbel numbers of its letters, and S with those of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..solvers import Joint, Move
from ..solvers.token_solver import Order
from .independent import normalised, revealed


@dataclass(frozen=True, eq=False)
class Revealing:
    """prediction is log p, (rows, length, V), which may lack a constant; `mask` is the id of the mask."""

    prediction: Tensor
    x: Tensor
    mask: int
    order: Order
    move: Move
    random = True
    history = ()

    @cached_property
    def masked(self) -> Tensor:
        """Where x_t is masked, bool (rows, length)."""
        return self.x == self.mask

    @cached_property
    def log_probs(self) -> Tensor:
        """log p, normalised, float64 (rows, length, V): where x_t is masked, and 0 elsewhere."""
        where = self.masked.nonzero(as_tuple=True)
        found = torch.zeros(self.prediction.shape, dtype=torch.float64, device=self.x.device)
        return found.index_put_(where, normalised(self.prediction, *where))

    @cached_property
    def asked(self) -> Tensor:
        """How many positions the time grid reveals, (rows, 1)."""
        masks = self.masked.sum(-1, keepdim=True)
        return masks - self.order.left(masks, self.move)

    @property
    def count(self) -> Tensor:
        """How many positions are revealed, (rows, 1)."""
        return self.asked

    def push(self, noise: Any) -> Tensor:
        return revealed(self.x, self.shown(noise), self.prediction, noise)

    def letters(self, x: Tensor, shown: Tensor) -> Tensor:
        """log-probabilities of the letters at each position, (rows, length, V), where those `shown` become x."""
        return self.log_probs

    def shown(self, noise: Any) -> Tensor:
        """The positions that are revealed, bool (rows, length)."""
        return self.order.first(self.log_probs, noise[..., self.mask], self.masked, self.count, self.move)

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x), one float64 per row."""
        shown = x != self.x
        tokens = self.letters(x, shown).gather(-1, x.clamp(max=self.mask - 1)[..., None])[..., 0]
        possible = (shown <= self.masked).all(-1) & (shown.sum(-1, keepdim=True) == self.count)[:, 0]
        chance = self.order.log_chance(self.log_probs, self.masked, shown & self.masked, self.move)
        return torch.where(possible, chance + torch.where(shown, tokens, 0.0).sum(-1), -torch.inf)

    def correction(self, p: Revealing, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True, eq=False)
class Joining(Revealing):
    """The kernel of `Joint`: the tokens of a move are drawn from the left, each given those before it."""

    order: Joint

    def push(self, noise: Any) -> Tensor:
        shown, x = self.shown(noise), self.x.clone()
        h = torch.zeros(len(x), self.order.said.shape[-1], dtype=torch.float64, device=x.device)
        rank = shown.cumsum(-1)
        for k in range(1, int(shown.sum(-1).max()) + 1):
            rows, places = (shown & (rank == k)).nonzero(as_tuple=True)  # the k-th from the left
            log_p = self.log_probs[rows, places] + self.order.change(places, h[rows])
            x[rows, places] = (log_p + noise[rows, places, : self.mask]).argmax(-1)
            h[rows] += self.order.word(places, x[rows, places])
        return x

    def letters(self, x: Tensor, shown: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        words = torch.where(shown[..., None], self.order.word(place, x.clamp(max=self.mask - 1)), 0.0)
        before = words.cumsum(1) - words
        return (self.log_probs + self.order.change(place, before)).log_softmax(-1)


@dataclass(frozen=True, eq=False)
class Revising(Revealing):
    """The kernel of solvers that also take tokens back. `memory` has, of the time when a position was revealed, the
    probability of its token and of the most probable one, (rows, length, 2); 0 where there is a mask, and where a token
    was given and is never taken back."""

    memory: Tensor
    kept: list[Tensor] = field(default_factory=list)  # the memory after a move

    @cached_property
    def log_probs(self) -> Tensor:  # type: ignore[override]
        """log p everywhere: the network judges tokens too."""
        return self.prediction.double().log_softmax(-1)

    @property
    def count(self) -> Tensor:
        return torch.maximum(self.asked, self.order.sure(self.log_probs, self.masked, self.memory[..., 1]))

    @property
    def history(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(self.kept)

    def push(self, noise: Any) -> Tensor:
        shown, x = self.shown(noise), super().push(noise)
        p, before = self.log_probs.exp(), self.memory[..., 0]
        chance = p.gather(-1, x.clamp(max=self.mask - 1)[..., None])[..., 0]
        back = self.order.taken_back(torch.where(before > 0, before - chance, 0.0), shown, self.asked)
        found = torch.where(shown[..., None], torch.stack([chance, p.amax(-1)], -1), self.memory)
        self.kept[:] = [torch.where(back[..., None], 0.0, found)]
        return torch.where(back, self.mask, x)


@dataclass(frozen=True, eq=False)
class Routing(Revealing):
    """The kernel of solvers whose tokens compete with the masks: the positions that come first in the order hold tokens
    after the move, all others masks. `still` are positions that never hold a mask, bool, of a shape that broadcasts."""

    still: Tensor

    @cached_property
    def log_probs(self) -> Tensor:  # type: ignore[override]
        """log p everywhere: the network judges tokens too."""
        return self.prediction.double().log_softmax(-1)

    def push(self, noise: Any) -> Tensor:
        free = torch.ones_like(self.masked) & ~self.still
        count = free.sum(-1, keepdim=True) - self.order.left(self.masked.sum(-1, keepdim=True), self.move)
        first = self.order.first(self.log_probs, noise[..., self.mask], free, count, self.move)
        x = revealed(self.x, first & self.masked, self.prediction, noise)
        return torch.where(free & ~first, self.mask, x)

"""Semi-autoregressive sampling of masked tokens (LLaDA: Nie et al., 2025), https://arxiv.org/abs/2502.09992.

Positions are revealed block by block from the left, within a block by another solver. The steps are shared out among
the blocks, so that no step reveals tokens of two of them; with times of one's own, or where a part is known from the
beginning, a step may complete a block and begin the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import is_count
from .base import Move
from .first_hitting import FirstHitting
from .token_solver import Order


@dataclass(frozen=True)
class Blocks(Order):
    """Reveals blocks of so many positions from the left, each by an inner solver.

    size    positions of a block; the last one may be smaller
    inner   FirstHitting(), Confidence(), Margin() or Entropy()
    """

    size: int
    inner: Order = field(default_factory=FirstHitting)

    def __post_init__(self) -> None:
        if not is_count(self.size):
            raise ValueError(f"Blocks(size={self.size!r}): positions of a block, an int of at least 1")
        orders = isinstance(self.inner, Order) and not isinstance(self.inner, Blocks)
        if not orders or self.inner.revises or self.inner.routes:
            raise ValueError(f"Blocks(inner={self.inner!r}): a solver that orders positions, like FirstHitting()")

    @property
    def unsteerable(self) -> str:  # type: ignore[override]
        return self.inner.unsteerable

    def counts(self, steps: int, length: int) -> list[int]:
        sizes = [min(self.size, length - start) for start in range(0, length, self.size)]
        if steps < len(sizes):
            raise ValueError(
                f"steps={steps}: {len(sizes)} blocks of {self.size} of {length} positions take one step each at least"
            )
        found, left = [length], length
        for i, size in enumerate(sizes):
            own = steps // len(sizes) + (i < steps % len(sizes))
            left -= size
            found += [left + n for n in self.inner.counts(own, size)[1:]]
        return found

    def blocks(self, length: int) -> Tensor:
        return torch.arange(length) // self.size

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return self.inner.keys(log_p, gumbel, move)

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        if self.unsteerable:
            return super().log_chance(log_p, masked, shown, move)
        return self.uniform_chance(masked, shown)

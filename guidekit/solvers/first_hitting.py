r"""First-hitting sampling (Zheng et al., 2024), https://arxiv.org/abs/2409.02908.

In the absorbing process every position has one time at which it is revealed, and where n positions are masked, each
of them is the next one with probability 1/n, whatever the time is. So the chain is run from one of these times to the
next: every evaluation of the network reveals one position, chosen uniformly, and

    x_i ~ p(x_0^i = v | x_t)

is drawn for that position alone. With a network whose prediction does not depend on t, samples have the law of the
ancestral chain with infinitely many steps, from as many evaluations as there are positions. With `tokens` > 1 at a
time, or fewer steps than positions, those of one move are drawn independently.

The paper also draws the times, which only a network that reads t would notice. Here the network is told n/L, the
share of positions that are masked, which is the mode of that time.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import is_count
from .base import Move
from .token_solver import Order


@dataclass(frozen=True)
class FirstHitting(Order):
    """Reveals masked positions one by one in random order; at most as many evaluations as there are positions.

    tokens   positions that one evaluation reveals, unless the run has fewer steps than that needs
    """

    tokens: int = 1

    def __post_init__(self) -> None:
        if not is_count(self.tokens):
            raise ValueError(f"FirstHitting(tokens={self.tokens!r}): positions of one evaluation, an int of at least 1")

    def counts(self, steps: int, length: int) -> list[int]:
        return super().counts(min(steps, -(-length // self.tokens)), length)

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return gumbel

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        return self.uniform_chance(masked, shown)

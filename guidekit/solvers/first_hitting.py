r"""First-hitting sampling (Zheng et al., 2024), https://arxiv.org/abs/2409.02908.

In the absorbing process every position has one time at which it is revealed, and where n positions are masked, each
of them is the next one with probability 1/n, whatever the time is. So the chain is run from one of these times to the
next: every evaluation of the network reveals one position, chosen uniformly, and

    x_i ~ p(x_0^i = v | x_t, t)

is drawn for that position alone. Samples have the law of the ancestral chain with infinitely many steps, from as many
evaluations as there are positions. With `tokens` > 1 at a time, or fewer steps than positions, those of one move are
drawn independently.

The times. Let 1 - alpha(t), which is t in guidekit, be the share that is masked. A position that is masked at t is
still so at s < t with probability (1 - alpha(s))/(1 - alpha(t)) = s/t, whatever the others do. So it is revealed at t
U_i with U_i uniform, and the next time of a row with n masks is

    t' = t max_i U_i,        P(t' < s) = (s/t)^n,  that is  t' = t u^(1/n).

The network is asked at t'. Which position is the next one is independent of t', and given t' the times of the others
are again uniform below it. So the order of the U_i decides the positions, and their sizes decide the times: after a
move from the masks M that has revealed S, with U_i = exp(-exp(-g_i)) and g the Gumbel numbers by which positions were
chosen,

    t'' = t' max_{M \ S} U_i / max_M U_i.

Each row has its own times, which belong to its particle, so that weights stay exact. They are drawn where a network
reads t, and a classifier then gets them too. Scales that are functions of t, and learned values, are told n/L. What is
known of a sample (`Keep`) is there from the start, and the times are those of the rest.
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

    clocked = True

    def __post_init__(self) -> None:
        if not is_count(self.tokens):
            raise ValueError(f"FirstHitting(tokens={self.tokens!r}): positions of one evaluation, an int of at least 1")

    def counts(self, steps: int, length: int) -> list[int]:
        return super().counts(min(steps, -(-length // self.tokens)), length)

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return gumbel

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        return self.uniform_chance(masked, shown)

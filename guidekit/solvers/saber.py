r"""Saber: adaptive acceleration and backtracking (Dong et al., 2025), https://arxiv.org/abs/2510.18165.

With c_i = max_v p_i(v) the confidence at a masked position, and tau the mean confidence at the positions of a row when
they were revealed (1 before the first one), a move

    reveals      all masked positions with c_i > tau, and of the others the surest that the grid `times` asks for,
    masks again  at most max(n/2, k/8) of the k - n tokens that the row is ahead of the grid: those whose probability
                 p_i(x_i) has fallen most since they were revealed, and only if it has fallen,

where k positions are revealed in the move and the grid asks for n. So more tokens are revealed per step the more
context there is, and tokens that later ones speak against are taken back. The last move masks nothing. A row that is
complete waits for the others.

Tokens can be taken back only with a network that judges them, as LLaDA does: its prediction p_i at a position that is
not masked is what it would have there. Where it is the token itself, with probability 1, nothing is taken back.

The authors take the most probable tokens, and the probability of the token for c_i; here tokens are drawn, and keep
their probabilities, and positions are chosen by the prediction alone. Their code compares with the step before, takes
back what has risen least where nothing has fallen, and runs until all is revealed; here the number of steps is given.
Samples have a law of their own. Which positions are revealed follows from the prediction, so that moves have no
log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Move
from .token_solver import Order, TokenMove


@dataclass(frozen=True)
class Saber(Order):
    """Reveals more positions per step where the network is sure, and takes tokens back that have become unlikely."""

    unsteerable = "which positions it reveals follows from the prediction, so that a proposal reveals other ones"
    revises = True

    def move(self, t: float, s: float) -> TokenMove:
        move = TokenMove(t, s, b=(1.0, 0.0))  # the newest prediction, and what the kernel remembers
        move.solver = self
        return move

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return log_p.amax(-1)

    def sure(self, log_p: Tensor, masked: Tensor, memory: Tensor) -> Tensor:
        """How many masked positions of a row are surer than its others were, (rows, 1), by their confidences then."""
        known = (memory > 0).sum(-1, keepdim=True)
        tau = torch.where(known > 0, memory.sum(-1, keepdim=True) / known.clamp(min=1), 1.0)
        return (masked & (log_p.amax(-1).exp() > tau)).sum(-1, keepdim=True)

    def taken_back(self, fall: Tensor, shown: Tensor, asked: Tensor) -> Tensor:
        """The tokens that are masked again, bool (rows, length); `fall` is how far the probability of each one has
        fallen, at most 0 where it has not, and `asked` (rows, 1) what the grid asked for."""
        k = shown.sum(-1, keepdim=True)
        most = torch.minimum(torch.maximum(asked // 2, (k + 7) // 8), k - asked)
        place = fall.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        return (fall > 0) & (place < most)

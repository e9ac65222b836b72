r"""Orders that follow the prediction: the positions of which the network is surest are revealed first.

With p_i(v) the prediction at a masked position i, those with the largest score are revealed, and their tokens are drawn
from p_i:

    Confidence   log max_v p_i(v)                       MaskGIT (Chang et al., 2022), https://arxiv.org/abs/2202.04200
    Margin       p_i(v_1) - p_i(v_2), the two largest   Kim et al. (2025), https://arxiv.org/abs/2502.06768
    Entropy      sum_v p_i(v) log p_i(v)                Kim et al. (2025), there as one of several orders

How many are revealed in each step is the grid `times`: "uniform", or "cosine", few at first, as in MaskGIT. With a
temperature tau, tau s times a Gumbel number is added to the score in the move to s, as in MaskGIT, so that the order
is more random at the beginning. MaskGIT takes the probability of the token that was drawn for max_v p_i(v), and so
reveals likely tokens; here the choice depends on the prediction alone, and so tokens keep their probabilities.

The prediction is that after all guides. Where a guide pulls it towards a measurement, the positions are first of which
that posterior is sure, whatever the network says by itself: the anchored remasking of APS (Rout et al., 2025),
https://arxiv.org/abs/2510.02291, up to max_v p_i(v) for the probability of the token that was drawn.

Samples do not follow the ancestral chain in law, unless the network's conditionals fit together and every step reveals
one position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Move
from .token_solver import Order


@dataclass(frozen=True)
class Scored(Order):
    """Base of orders by a score of the prediction at each position."""

    temperature: float = 0.0

    unsteerable = "which positions it reveals follows from the prediction, so that a proposal reveals other ones"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"{type(self).__name__}(temperature={self.temperature}): the scale of the noise, a number of at least 0"
            )

    def score(self, log_p: Tensor) -> Tensor:
        """How sure the prediction is at each position, (rows, length)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its score is")

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return self.score(log_p) + self.temperature * move.s * gumbel


@dataclass(frozen=True)
class Confidence(Scored):
    """Reveals first where the most probable token has the largest probability.

    temperature   how random the order is at the beginning; 0: not at all
    """

    def score(self, log_p: Tensor) -> Tensor:
        return log_p.amax(-1)


@dataclass(frozen=True)
class Margin(Scored):
    """Reveals first where the two most probable tokens are furthest apart.

    temperature   how random the order is at the beginning; 0: not at all
    """

    def score(self, log_p: Tensor) -> Tensor:
        top = log_p.exp().topk(min(2, log_p.shape[-1]), -1).values
        return top[..., 0] - top[..., 1:].sum(-1)


@dataclass(frozen=True)
class Entropy(Scored):
    """Reveals first where the prediction has the least entropy.

    temperature   how random the order is at the beginning; 0: not at all
    """

    def score(self, log_p: Tensor) -> Tensor:
        return torch.special.entr(log_p.exp()).sum(-1).neg()

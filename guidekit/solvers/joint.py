r"""Approximate joint sampling (Bansal and Sanghavi, 2025), https://arxiv.org/abs/2509.22738: several tokens of one
evaluation that know of each other, by a light layer on top of the network.

A move reveals a set S of masked positions, chosen uniformly. Their tokens are drawn from the left to the right, i in S
from

    q_i(v)  ~  p_i(v) exp(U_{i,v} . h),        h = sum of E_{j, x_j} over all j in S that were drawn before i,

with p the prediction at x_t and E, U of shape (length, V, rank). U = 0 draws all of them independently. The product of
the q_i is the probability of the tokens, so that moves have a log-probability. `gk.search.joint(model)` fits E and U:
q_i is to be what the network itself would say once the tokens before i are there.

The paper's layer is a transformer block over the network's hidden states; this one reads the prediction alone, so that
it serves any network, and is bilinear. The paper reveals the surest positions; here they are random, so that a move of
many tokens has the law of `FirstHitting` where the layer is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import is_count
from .base import Move
from .token_solver import Order


@dataclass(frozen=True, eq=False, repr=False)
class Joint(Order):
    """Reveals several positions, chosen at random, with each evaluation, and draws their tokens one after the other.

    said     E, what a token that was drawn says, (length, V, rank)
    heard    U, what that changes at a position, (length, V, rank)
    tokens   positions that one evaluation reveals, unless the run has fewer steps than that needs
    """

    said: Tensor
    heard: Tensor
    tokens: int = 4

    clocked = True
    factorised = False

    def __post_init__(self) -> None:
        shapes = tuple(self.said.shape), tuple(self.heard.shape)
        if (
            shapes[0] != shapes[1]
            or len(shapes[0]) != 3
            or not bool(torch.cat([self.said, self.heard]).isfinite().all())
        ):
            raise ValueError(
                f"Joint(said, heard) of shapes {shapes}: finite numbers of one shape (length, V, rank), as "
                "gk.search.joint(model) fits them"
            )
        if not is_count(self.tokens):
            raise ValueError(f"Joint(tokens={self.tokens!r}): positions of one evaluation, an int of at least 1")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        length, V, rank = self.said.shape
        return f"Joint(length={length}, V={V}, rank={rank}, tokens={self.tokens})"

    def counts(self, steps: int, length: int) -> list[int]:
        if length != len(self.said):
            raise ValueError(
                f"Joint has a layer for {len(self.said)} positions, and the model has {length}: fit it to this model, "
                "gk.search.joint(model)"
            )
        return super().counts(min(steps, -(-length // self.tokens)), length)

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return gumbel

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        return self.uniform_chance(masked, shown)

    def word(self, place: Tensor, token: Tensor) -> Tensor:
        """E of these tokens at these places, float64 (..., rank)."""
        return self.said.to(place.device)[place, token].double()

    def change(self, place: Tensor, h: Tensor) -> Tensor:
        """U . h at these places, (..., V)."""
        return (self.heard.to(place.device)[place].double() * h[..., None, :]).sum(-1)

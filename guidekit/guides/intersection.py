r"""Superposition by AND (Skreta et al., 2024), https://arxiv.org/abs/2412.17762: samples that all experts find equally
likely.

Particles move with d = sum_i k_i d_i, sum_i k_i = 1, with weights k for which the log-densities of the experts, l_i,
are expected to be equal after the move. l_i is followed along the path, as for `gk.Mixture`: by the probabilities of
the moves under each expert's reverse kernel q_i = N(a x_t + b d_i, c^2), which for small steps differ as the densities
do. A move with d changes l_i - l_0 by (b^2/c^2)(<d, D_i> - (|d_i|^2 - |d_0|^2)/2) on average, with D_i = d_i - d_0, so
that

    d = d_0 + sum_i k_i D_i,      sum_j <D_i, D_j> k_j = |D_i|^2/2 - (c^2/b^2)(l_i - l_0)

For two experts k = 1/2 - (c^2/b^2)(l_1 - l_0)/|D|^2. The paper solves for the same equality with the noise of the move
known; here what noise has done to it is made good by the next move. In the last one, without noise, all experts count
alike. `Mixture` is OR, and `Compose` the product, which is AND in another sense.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian
from ..solvers import Move
from .mixture import Mixture


@dataclass(frozen=True)
class Intersection(Mixture):
    """Samples that the run's condition and experts find equally likely. One extra NFE for each expert, in one forward
    pass per network.

    experts   conditions, base models or evaluations, one or a list, as in Compose
    weights   a_i, the run's own condition first: the densities a_i p_i are made equal. None: equal ones
    """

    card = replace(
        Mixture.card,
        about="samples what conditions and models find equally likely",
        processes=(Gaussian,),
        refusal="solves for a clean mean, and tokens have none: use Mixture or Compose with them",
        exact="equal densities of all experts, up to the noise of the last steps",
        example="gk.Intersection(other)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.adaptive:
            raise ValueError("Intersection(adaptive=False): the weights follow from the densities along the path")

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if any(len(move.b) != 1 for move in moves if move.s <= move.t):
            raise ValueError("Intersection solves for the next move of a solver of one step: DDPM() or DDIM(eta)")
        return moves

    def tilt(self, view: View) -> Tensor:
        own, *others = self.every(view)
        move, log_p = view.step.move, self.log_rho(view, view.memo)
        assert move is not None
        if not move.b:  # it goes up, by noise alone
            return torch.zeros_like(own)
        shifts = torch.stack([d - own for d in others], 1)
        flat = shifts.flatten(2).double()
        gram, gap = flat @ flat.mT, log_p[:, 1:] - log_p[:, :1]
        wanted = gram.diagonal(dim1=1, dim2=2) / 2 - (move.c / move.b[0]) ** 2 * gap
        k = (torch.linalg.pinv(gram, hermitian=True) @ wanted[..., None]).view(*wanted.shape, *[1] * (own.dim() - 1))
        return (k.to(own) * shifts).sum(1)

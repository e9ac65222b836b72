r"""Token perturbation guidance (Rajabi et al., 2025), https://arxiv.org/abs/2506.10036.

    d <- d + s (d_cond - d_shuffled)

where d_shuffled comes from the same network with the tokens that enter chosen layers in a random order. A permutation
keeps the norm of the tokens and everything they say, and takes away where they are; it needs no condition. The order is
another one at every step and in every layer, and the same for all rows. The tokens of a feature map (rows, channels,
height, width) are its pixels.

Tokens come back in the order of the network, so that a residual connection around the layer adds up tokens of different
places. As in the authors' code, nothing is put back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .. import random
from ..engine.card import Paper
from ..models.attention import Perturbation, Perturbed
from ..models.base import Model
from .shared.perturbing import Away, Drawn


@dataclass(frozen=True)
class Shuffle(Perturbation):
    """The tokens that enter a module, in an order that is drawn from the key and the layer's name."""

    key: int

    whole = True

    def given(self, x: Tensor, layer: str) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"TPG: {layer!r} is given {tuple(x.shape)}; tokens (rows, tokens, features) are needed")
        axis = 1 if x.dim() == 3 else 2
        flat = x if axis == 1 else x.flatten(2)
        key = random.fold(random.key(self.key, x.device), layer)
        return flat.index_select(axis, random.uniform(key, (flat.shape[axis],)).argsort()).view_as(x)


@dataclass(frozen=True)
class TPG(Drawn):
    """Token perturbation guidance. One extra NFE per particle and step, in a forward pass of its own.

    scale    s, a number or a function of t; 0 does nothing
    layers   dotted names of the modules whose first input is shuffled, such as "down_blocks.0"; None: the middle of the
             network, as for SLG
    seed     of the orders
    """

    seed: int = 0

    card = replace(
        Away.card,
        about="extrapolates away from the network with shuffled tokens",
        paper=Paper(
            "rajabi2025tpg",
            "Rajabi, Javad and Mehraban, Soroush and Sadat, Seyedmorteza and Taati, Babak",
            "Token Perturbation Guidance for Diffusion Models",
            2025,
            "2506.10036",
        ),
        example='gk.TPG(0.4, "blocks.1")',
    )

    def drawn(self, model: Model, key: int, t: float) -> Perturbed:
        return Perturbed.of(Shuffle(key), self.layers)

r"""The rehash sampler (ReDDiT: Ma et al., 2025), https://arxiv.org/abs/2505.19656, for networks with several masks.

Such a network was trained on tokens that are replaced by one of m masks, drawn uniformly, and it sees which. In a move
from t to s, with p the prediction,

    a masked position   becomes the token v with probability (1 - s/t) p_i(v), and each of the masks with (s/t)/m,
    a token             stays.

So masks are drawn anew in every move, also where they stay, and the network sees the same position under many of them.
`Ancestral` keeps the masks that stay. Every move has a log-probability; how tokens and masks move is in
`guidekit.process.many_masks`. Paper and code draw the next state from weights that sum to one in the paper; the code
gives all masks together the weight of one, and so reveals more than its schedule says. Here it is as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from .token_solver import TokenSolver


@dataclass(frozen=True)
class ReDDiT(TokenSolver):
    """Ancestral sampling of tokens with several masks, which are drawn anew in every move."""

    noises = ("many-mask",)

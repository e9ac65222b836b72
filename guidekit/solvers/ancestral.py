"""Ancestral sampling of tokens: the reverse kernel of the noising process with the network's prediction in it.

Masked positions are revealed independently of each other, with probability 1 - s/t in a move from t to s; how tokens
with uniform noise move, and ordered ones, is in `guidekit.process.tokens`.

References: Austin et al. (2021), https://arxiv.org/abs/2107.03006; Sahoo et al. (2024), https://arxiv.org/abs/2406.07524.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from .base import Move
from .token_solver import TokenSolver


@dataclass(frozen=True)
class Ancestral(TokenSolver):
    """Ancestral sampling of tokens: the default of token processes."""

    noises = ("masked", "ordered", "uniform", "many-mask")

    def table(self, grid: Sequence[float]) -> list[Move]:
        return [Move(t, s) for t, s in pairwise(grid)]

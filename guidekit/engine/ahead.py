r"""Moves of masked tokens in which nobody takes part but the network, made by what their noise says ahead of them.

The noise of a move has an address, so that it is known before the network is asked, and of masked noise it says alone
which positions are revealed. Where no guide acts and nobody watches, that is found out for many moves together: a mask
is revealed in the first move k with

    exp(-exp(-g_k)) >= u_k,        u_k the probability that a mask stays in move k, g_k its Gumbel number.

What is left to each move is to ask for predictions of the rows in which something is revealed, and to draw the letters
by them. The samples are those of moves that are made one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random
from ..process import Masked
from ..process.independent import letters
from ..solvers import Move
from .noise import Noise
from .population import Population

MOVES, POSITIONS = 64, 1 << 21  # at a time
_NUMBERS = 1 << 17  # drawn at a time, so that they stay in the caches


class Part(NamedTuple):
    """What a micro-batch reveals in one move: its rows, and of each letter which of these it is in, the place there and
    among those of all rows, and its Gumbel numbers."""

    rows: Tensor
    which: Tensor
    place: Tensor
    cell: Tensor
    gumbel: Tensor


class Ahead:
    """The moves from number `first` on, from the states x, as far as their noise says. `left` is what the first of them
    leaves of x, where tokens do not stay."""

    def __init__(self, x: Tensor, first: int, moves: list[list[Part]], left: Tensor | None = None):
        self.x, self.first, self.moves, self.left = x, first, moves, left

    def has(self, index: int) -> bool:
        """Whether move number `index` is among them."""
        return 0 <= index - self.first < len(self.moves)

    def moved(self, index: int, ask: Callable[[Tensor, Part], Tensor]) -> Tensor:
        """The states after that move; ask(states, part) returns the predictions by which letters are drawn."""
        x, parts = self.x, self.moves[index - self.first]
        self.moves[index - self.first] = []  # whose numbers are needed no more
        drawn = [letters(ask(x.index_select(0, p.rows), p), p.gumbel) for p in parts]
        x = x if self.left is None else self.left
        for part, tokens in zip(parts, drawn, strict=True):
            x = x.view(-1).index_copy(0, part.cell, tokens).view(x.shape)
        self.x = x
        return x


def ahead(process: Masked, moves: Sequence[Move], pop: Population, first: int, noise: Noise, most: int) -> Ahead:
    """Some of these moves, of which `first` is the number of the first one, in micro-batches of at most `most` rows."""
    x = pop.x
    stay, V = process.steady(x, moves), noise.shape[-1] - 1
    if stay is None:
        return _next(process.early(x, moves[0]), x, first, noise(pop, first + 1), most)
    stay = stay[: _worth(stay, int((x == V).sum()), V)]
    late = noise.ahead(pop, first + 1, len(stay))
    return Ahead(x, first, parted(len(stay), _revealed(x, stay, late), late.flat, x.shape, most))


def _next(kernel: Any, x: Tensor, first: int, noise: Any, most: int) -> Ahead:
    """One move alone, whose kernel takes tokens back, or reveals masks by how many there are."""
    rows, places = kernel.shown(noise).nonzero(as_tuple=True)
    parts = parted(1, (torch.zeros_like(rows), rows, places), noise, x.shape, most)
    return Ahead(x, first, parts, x.masked_fill(kernel.hidden(noise), kernel.mask))


def _worth(stay: Tensor, masks: int, V: int) -> int:
    """How many moves are looked at together."""
    letters = masks * V * (1 - stay.cumprod(0).mean(1))
    return max(1, min(_NUMBERS // max(masks, 1), int((letters <= _NUMBERS).sum())))


def _revealed(x: Tensor, stay: Tensor, noise: random.Gumbels) -> tuple[Tensor, Tensor, Tensor]:
    """The moves, rows and places in which masks are revealed that stay with these probabilities, (moves, 1 or length),
    in the order of moves and rows; noise has the shape (moves, rows, ...)."""
    mask = noise.shape[-1] - 1
    rows, places = (x == mask).nonzero(as_tuple=True)
    below = random.below(noise, (rows, places, mask), stay if stay.shape[1] == 1 else stay[:, places])
    found, move = (~below).to(torch.uint8).max(0)
    some = found.nonzero()[:, 0]
    move, order = move[some].sort(stable=True)
    return move, rows[some[order]], places[some[order]]


def parted(
    moves: int, shown: tuple[Tensor, Tensor, Tensor], noise: Any, shape: Sequence[int], most: int
) -> list[list[Part]]:
    """What is revealed in each of so many moves; noise has one row for every move and row, as x_t has this shape."""
    (move, rows, places), (size, length) = shown, shape
    each = -(-size // most)
    asked, which = torch.unique_consecutive(move * size + rows, return_inverse=True)
    row = torch.arange(len(asked), device=rows.device)
    first = torch.searchsorted(asked, size * torch.arange(moves, device=rows.device))
    part = asked // size * each + (row - first[asked // size]) // most
    count = part.bincount(minlength=moves * each)
    in_part = which - (count.cumsum(0) - count)[part[which]]
    gumbel = noise[move * size + rows, places, : noise.shape[-1] - 1]
    letters = part[which].bincount(minlength=moves * each).tolist()
    lists = [v.split(letters) for v in (in_part, places, rows * length + places, gumbel)]
    parts = [Part(*v) for v in zip((asked % size).split(count.tolist()), *lists, strict=True)]
    return [[p for p in parts[i : i + each] if len(p.rows)] for i in range(0, moves * each, each)]

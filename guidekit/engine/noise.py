"""The noise of a run, by address: that of (seed, move, row) depends on nothing else.

So a row has the same noise in any batch, in any number of processes, and in a run that was interrupted and resumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Model
from .population import Population

_BLOCK, _STEPS = 1 << 17, 8  # numbers of noise made at a time where that serves so many steps at least
_ROWS = 1 << 12  # of the noise of the start made at a time, which takes several numbers for each of its own


class Noise:
    """Noise of the start and of the moves. `noise(population, index)` is that of the start for index 0, else that of
    move index - 1; the caller may use its memory.

    alive   rows of each group at every step
    given   what the user gave: of the start (rows, *shape) or of the whole chain (moves + 1, rows, *shape), or None;
            of a solver whose first move takes them also two parts of the start, (2, rows, *shape)
    """

    def __init__(self, model: Model, keys: Tensor, alive: Sequence[int], given: Tensor | None = None):
        self.model, self.keys, self.alive, self.given = model, keys, alive, given
        self.shape = model.process.noise_shape(model.shape)
        self.late = isinstance(self._made(keys[:1]), random.Gumbels)
        self.rows = max(alive)
        ids = torch.arange(len(keys) * self.rows, device=keys.device)
        self._keys = self._address(ids // self.rows, ids % self.rows)
        self._block: tuple[int, Any] = (-1, self._keys)

    def second(self, pop: Population) -> tuple[Tensor, ...]:
        """The second part of the noise of the start, if it was given."""
        if self.given is None or not self.chain_given or len(self.given) == len(self.alive):
            return ()
        return (self.given[1][pop.group * self.alive[0] + pop.slot],)

    @property
    def chain_given(self) -> bool:
        """Whether the user gave the noise of the whole chain."""
        return self.given is not None and self.given.dim() == len(self.shape) + 2

    def __call__(self, pop: Population, index: int) -> Any:
        if self.given is not None and (index == 0 or self.chain_given):
            if pop.branch > 1:
                raise ValueError("noise= for the whole chain has one row per particle, but a guide branches")
            row = pop.group * self.alive[0] + pop.slot
            return self.given[index][row] if self.chain_given else self.given[row]
        if pop.branch == 1:
            return self._ahead(index, pop.group * self.rows + pop.slot)
        keys = self._address(pop.group, random.address(pop.slot, self.alive[max(index - 1, 0)]))
        return self._made(random.fold(keys, index))

    def ahead(self, pop: Population, index: int, count: int) -> random.Gumbels:
        """The noise of so many moves that follow each other, late and not given: (moves, rows, *shape)."""
        steps = torch.arange(index, index + count, device=pop.x.device)[:, None]
        return self._made(random.fold(self._keys[pop.group * self.rows + pop.slot], steps))

    def start(self, root: Tensor) -> Tensor:
        """The noise from which the particles with these rows of the start began."""
        if self.given is not None:
            return self.given[0][root] if self.chain_given else self.given[root]
        rows = root // self.alive[0] * self.rows + root % self.alive[0]
        return torch.cat([random.drawn(self._ahead(0, some)) for some in rows.split(_ROWS)])

    def chain(self, moves: int) -> Tensor:
        """The noise of the whole chain, (moves + 1, rows, ...), where no guide branches: as `noise=` takes it."""
        if self.given is not None and self.chain_given:
            return self.given.clone()
        rows = torch.arange(len(self.keys) * self.alive[0], device=self.keys.device)
        own = rows // self.alive[0] * self.rows + rows % self.alive[0]
        return torch.stack([self.start(rows), *(random.drawn(self._ahead(i, own)) for i in range(1, moves + 1))])

    def _ahead(self, index: int, rows: Tensor) -> Any:
        """Noise by address, where it is small for several steps at a time: calls then cost more than their work."""
        size = len(self._keys) * (1 if self.late else math.prod(self.shape))
        steps = min(_BLOCK // size, max(len(self.alive), _STEPS))
        if steps < _STEPS:
            return self._made(random.fold(self._keys[rows], index))
        if index // steps != self._block[0]:
            first = index - index % steps
            keys = random.fold(self._keys, torch.arange(first, first + steps, device=rows.device)[:, None])
            self._block = (index // steps, self._made(keys))
        return self._block[1][index % steps][rows]  # a copy: moves use their noise up

    def _made(self, keys: Tensor) -> Any:
        return self.model.process.late_noise(keys, self.shape, self.model.dtype)

    def _address(self, group: Tensor, slot: Tensor) -> Tensor:
        """The key of each row's noise, which is the same for a row of the same slot in any group with this seed."""
        return random.fold(random.fold(self.keys, "noise")[group], slot)

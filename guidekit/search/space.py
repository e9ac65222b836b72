"""What is searched: the noise of a sampler, in standard normal coordinates.

A **cell** is one sample to be returned, (condition, place); each has a search of its own. A **candidate** is a noise
vector for it. Noise is a tensor (cells, candidates, *shape), where shape is that of the starting noise, or (moves + 1,
...) for the whole chain. Candidate j of place i is the noise of row j n + i of `gk.sample`, so candidate 0 is the plain
sampler's own noise, and random search chooses among the samples that `gk.BestOfN` would draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..engine.run import Run
from ..process import Gaussian, Process
from .sphere import gumbel_to_normal, normal_to_gumbel


@dataclass(frozen=True)
class Space:
    """The noise of `n` samples for every condition.

    moves    number of moves of the sampler; None if only the starting noise is searched
    each     shape of the noise of one move
    keys     the key of each condition
    """

    process: Process
    n: int
    moves: int | None
    each: tuple[int, ...]
    keys: Tensor
    dtype: torch.dtype

    @staticmethod
    def of(run: Run, over: str | None) -> Space:
        """By default the starting noise if the rest of the run is deterministic, otherwise that of the whole chain."""
        if over not in (None, "start", "chain"):
            raise ValueError(f"over={over!r}: there is 'start', 'chain', or None for what the solver draws")
        process, random_moves = run.model.process, any(map(run.model.process.draws, run.moves))
        if over == "start" and random_moves:
            raise ValueError(
                "over='start' needs a deterministic solver, like gk.solvers.DDIM(): here later moves draw noise too"
            )
        chain = over == "chain" or (over is None and random_moves)
        each = process.noise_shape(run.model.shape)
        return Space(process, run.n, len(run.moves) if chain else None, each, run.keys, run.model.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one candidate."""
        return self.each if self.moves is None else (self.moves + 1, *self.each)

    @property
    def groups(self) -> int:
        return len(self.keys)

    @property
    def cells(self) -> int:
        return self.groups * self.n

    @property
    def group(self) -> Tensor:
        """The condition of each cell."""
        return torch.arange(self.groups, device=self.keys.device).repeat_interleave(self.n)

    def draw(self, numbers: Sequence[int]) -> Tensor:
        """The noise of the candidates with these numbers, (cells, candidates, *shape)."""
        device = self.keys.device
        place = torch.arange(self.n, device=device).repeat(self.groups)
        slot = place[:, None] + self.n * torch.as_tensor(numbers, device=device)
        keys = random.fold(random.fold(self.keys, "noise")[self.group][:, None], slot)
        steps = torch.arange(1 if self.moves is None else self.moves + 1, device=device)
        noise = self.process.noise(random.fold(keys[..., None], steps), self.each, self.dtype)
        return self.normal(noise[:, :, 0] if self.moves is None else noise)

    def key(self, name: str, number: int) -> Tensor:
        """One key per cell, for random numbers of a strategy in round `number`."""
        keys = random.fold(random.fold(random.fold(self.keys, f"search.{name}"), number)[self.group], 0)
        return random.fold(keys, torch.arange(self.n, device=keys.device).repeat(self.groups))

    def directions(self, name: str, number: int, candidates: int) -> Tensor:
        """Standard normal random numbers for a strategy, float64 (cells, candidates, size of a candidate)."""
        keys = random.fold(self.key(name, number)[:, None], torch.arange(candidates, device=self.keys.device))
        return random.normal(keys, (torch.Size(self.shape).numel(),), torch.float64)

    def flat(self, z: Tensor) -> Tensor:
        """Candidates as vectors, float64 (cells, candidates, size)."""
        return z.double().flatten(2)

    def shaped(self, z: Tensor) -> Tensor:
        """The inverse of `flat`, in the dtype that the sampler takes."""
        return z.unflatten(2, self.shape).to(torch.float64 if self._gumbel else self.dtype)

    def normal(self, noise: Tensor) -> Tensor:
        """Standard normal coordinates of the process's noise."""
        return gumbel_to_normal(noise) if self._gumbel else noise

    def noise(self, z: Tensor) -> Tensor:
        """The process's noise with these standard normal coordinates."""
        return normal_to_gumbel(z) if self._gumbel else z

    def rows(self, z: Tensor) -> Tensor:
        """Candidates (cells, k, *shape) as `noise=` of a run; its group g k + c is candidate c of condition g."""
        noise = self.noise(z).unflatten(0, (self.groups, self.n)).transpose(1, 2).flatten(0, 2)
        return noise if self.moves is None else noise.transpose(0, 1).contiguous()

    def by_cell(self, rows: Tensor) -> Tensor:
        """Rearrange values of such a run from (rows, ...) to (cells, k, ...)."""
        return rows.view(self.groups, -1, self.n, *rows.shape[1:]).transpose(1, 2).flatten(0, 1)

    @property
    def _gumbel(self) -> bool:
        return not isinstance(self.process, Gaussian)

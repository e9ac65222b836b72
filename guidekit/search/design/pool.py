"""The candidates of a round: samples that are new, each once, that fulfil what is required."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .memory import Memory
from .proposals import Candidates


@dataclass
class Scaffolds:
    """How many molecules of each Bemis-Murcko scaffold were asked: none more than `most` times, as in the memory of
    REINVENT (Blaschke et al., 2020, https://doi.org/10.1186/s13321-020-00473-0)."""

    most: int
    counts: Counter[str | None] = field(default_factory=Counter)
    seen: int = 0

    def room(self, memory: Memory, pool: Sequence[str], samples: Sequence[str]) -> list[bool]:
        """Whether each sample still has room, beside the memory and what is in the pool before it."""
        from rewards.molecules.descriptors import scaffold

        self.counts.update(map(scaffold, memory.samples[self.seen :]))
        self.seen = len(memory)
        own, found = Counter(map(scaffold, pool)), []
        for name in map(scaffold, samples):
            found.append(self.counts[name] + own[name] < self.most)
            own[name] += found[-1]
        return found


@dataclass
class Pool:
    """Candidates with their states, if they have one, and the proposals that they are from."""

    memory: Memory
    require: Callable[[Any], Any] | None = None
    scaffolds: Scaffolds | None = None
    samples: list[Any] = field(default_factory=list)
    x: list[Tensor | None] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    met: set[Hashable] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, source: str, found: Candidates) -> None:
        """Take what is new and allowed."""
        if not len(found.samples):
            return
        domain = self.memory.domain
        names = domain.names(found.samples)
        rows = [i for i, name in enumerate(names) if self._is_new(name)]
        if not rows:
            return
        kept = domain.kept(found.samples, rows, names)
        for row, sample, fine in zip(rows, kept, self._allowed(kept), strict=True):
            if fine:
                self.samples.append(sample)
                self.x.append(None if found.x is None else found.x[row].detach().cpu())
                self.sources.append(source)

    def batch(self, rows: Sequence[int] | None = None) -> Any:
        """Samples as a reward takes them: a list, or one tensor."""
        found = self.samples if rows is None else [self.samples[i] for i in rows]
        return torch.stack(found) if found and isinstance(found[0], Tensor) else found

    def _is_new(self, name: Hashable) -> bool:
        if name is None or name in self.memory.names or name in self.met:
            return False
        self.met.add(name)
        return True

    def _allowed(self, samples: Any) -> list[bool]:
        fine = [True] * len(samples)
        if self.require is not None:
            fine = required(self.require, samples)
        if self.scaffolds is not None:
            passed = [i for i, v in enumerate(fine) if v]
            room = self.scaffolds.room(self.memory, self.samples, [samples[i] for i in passed])
            fine = [False] * len(samples)
            for i, v in zip(passed, room, strict=True):
                fine[i] = v
        return fine


def required(require: Callable[[Any], Any], samples: Any) -> list[bool]:
    """What a predicate says of samples; a reward's score counts as true above 0, and NaN as false."""
    found = torch.as_tensor(require(samples))
    if found.shape != (len(samples),):
        raise ValueError(f"require returned shape {tuple(found.shape)} for {len(samples)} samples: one bool for each")
    return (found if found.dtype == torch.bool else found.double().nan_to_num(0.0) > 0).tolist()

"""Segments of two parents, place by place, with a few random tokens: the genetic algorithm of texts of fixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .... import random
from ..study import Study
from .base import Candidates, Proposal


@dataclass(frozen=True)
class Crossover(Proposal):
    """A child has the tokens of its first parent, in one random segment those of the second.

    mutations   mean number of its tokens that are replaced by random ones
    """

    mutations: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mutations < math.inf:
            raise ValueError(f"Crossover(mutations={self.mutations!r}): a mean number of at least 0 is needed")

    def refuses(self, study: Study) -> str | None:
        if not hasattr(study.model, "vocab_size"):
            return "Crossover is for models of tokens: segments of pictures do not fit together"
        if study.domain.content == "smiles":
            return "Crossover of tokens breaks the grammar of molecules: GraphOperators crosses their graphs"
        held = self.held(study)
        return f"Crossover does not know the constraint of {held}: give require=... as well" if held else None

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        pairs = [study.memory.parents(count, random.fold(key, name)) for name in ("first", "second")]
        (a, b), known = (list(v) for v in zip(*(study.memory.state(rows) for rows in pairs), strict=True))
        both = known[0] & known[1]
        x = self._children(a[both], b[both], study.model.vocab_size, key)  # type: ignore[attr-defined]
        return Candidates(study.model.decode(x.to(study.model.device)), x)

    def _children(self, a: Tensor, b: Tensor, vocab: int, key: Tensor) -> Tensor:
        length = a.shape[1]
        rows = random.fold(random.fold(key, "children"), torch.arange(len(a)))
        ends = (random.uniform(rows, (2,)) * (length + 1)).long().sort(1).values
        place = torch.arange(length)
        x = torch.where((place >= ends[:, :1]) & (place < ends[:, 1:]), b, a)
        u = random.uniform(random.fold(rows, "mutations"), (length, 2))
        return torch.where(u[..., 0] < self.mutations / length, (u[..., 1] * vocab).long(), x)

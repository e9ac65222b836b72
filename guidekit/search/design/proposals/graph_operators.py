"""Mutations and crossovers of molecular graphs as a proposal: what a genetic algorithm would try, whatever the model
knows. Molecules come out that the model may not be able to write; they are samples like all others, without a state."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .... import random
from ....errors import is_count
from .. import graph
from ..study import Study
from .base import Candidates, Proposal


@dataclass(frozen=True)
class GraphOperators(Proposal):
    """Children of one or two parents, by the operators of Jensen (2019), https://doi.org/10.1039/C8SC05372C.

    mutation   probability of a mutation of one parent, otherwise two are crossed
    atoms      most heavy atoms of a child, or as many as its larger parent has if these are more; None for no limit
    """

    screen: int = 16  # they take milliseconds
    mutation: float = 0.1
    atoms: int | None = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mutation <= 1:
            raise ValueError(f"GraphOperators(mutation={self.mutation!r}): a probability is needed")
        if self.atoms is not None and not is_count(self.atoms, 1):
            raise ValueError(f"GraphOperators(atoms={self.atoms!r}): at least 1, or None for no limit")

    def refuses(self, study: Study) -> str | None:
        if study.domain.content != "smiles":
            return f"GraphOperators is for molecules, and these samples are {study.domain.content}"
        held = self.held(study)
        return f"graph operators do not know the constraint of {held}: give require=... as well" if held else None

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        a, b = (study.memory.batch(study.memory.parents(count, random.fold(key, name))) for name in ("first", "second"))
        seeds = random.fold(random.fold(key, "children"), torch.arange(len(a))).tolist()
        most = math.inf if self.atoms is None else self.atoms
        return Candidates(graph.offspring(list(zip(a, b, strict=True)), self.mutation, seeds, most))

"""New samples of the model, from noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..study import Study
from .base import Candidates, Proposal


@dataclass(frozen=True)
class Fresh(Proposal):
    """Samples of the model, under the user's guides and condition."""

    screen: int = 2

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        found = study.draw(count, key)
        return Candidates(found.samples, found.x)

r"""Noising parents part of the way back and denoising them again, at random levels:

    x_t ~ q(x_t | x_0),     x_0' ~ the guided sampler from t to 0,     t uniform between `low` and `high`.

Of token models that write in order, the end of a text is written anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .... import random
from ....engine.result import Result
from ....guides.start_from import from_level
from ..study import Study
from .base import Candidates, Proposal

LEAST = 4  # children at a level, as a run of the model is dear


@dataclass(frozen=True)
class Regrow(Proposal):
    """Children of parents that the model can write, under the guides too: with what `gk.Keep` keeps.

    low, high   levels between which it draws
    levels      how many levels there are in a round, if each has at least `LEAST` children
    """

    screen: int = 4
    low: float = 0.1
    high: float = 0.9
    levels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.low <= self.high < 1:
            raise ValueError(f"Regrow(low={self.low}, high={self.high}): levels are times within (0, 1)")
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 1:
            raise ValueError(f"Regrow(levels={self.levels!r}): an int of at least 1 is needed")

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        x, known = study.memory.state(study.memory.parents(count, key))
        x = study.admitted(x[known])
        levels = min(self.levels, max(1, len(x) // LEAST))
        parts = [x[i::levels] for i in range(levels)]
        found = [self._regrown(study, part, random.fold(key, i)) for i, part in enumerate(parts) if len(part)]
        if not found:
            return Candidates([])
        samples = [f.samples for f in found]
        joined = torch.cat(samples) if isinstance(samples[0], Tensor) else [s for part in samples for s in part]
        return Candidates(joined, torch.cat([f.x for f in found]))

    def _regrown(self, study: Study, x: Tensor, key: Tensor) -> Result:
        u = float(random.uniform(random.fold(key, "level"), (1,)))
        level = self.low + (self.high - self.low) * u
        start, times = from_level(study.model, x.to(study.model.device), level, max(1, round(study.chain * level)))
        return study.draw(len(x), key, [start], times)

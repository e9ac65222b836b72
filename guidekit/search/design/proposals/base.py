"""What a proposal is: a source of samples that may be asked.

A proposal of one's own is a class with `propose`; give it to `gk.evolve(..., proposals=[Mine(), ...])`:

    class Doubled(gk.search.Proposal):
        def propose(self, study, count, key):
            rows = study.memory.parents(count, key)
            return gk.search.Candidates([s + s for s in study.memory.batch(rows)])

What was asked before, twice, or is no sample is left out by the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ....guides.shared.constrained import Within
from ..study import Study


class Candidates(NamedTuple):
    """Samples, as the model's `decode` returns them, and their states if the proposal has them."""

    samples: Any
    x: Tensor | None = None


@dataclass(frozen=True)
class Proposal:
    """Base of all proposals.

    screen   candidates for each of its calls where a surrogate chooses among them
    """

    screen: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.screen, bool) or not isinstance(self.screen, int) or self.screen < 1:
            raise ValueError(f"{self.name}(screen={self.screen!r}): candidates for each call, at least 1")

    @staticmethod
    def held(study: Study) -> str | None:
        """The first constraint of the user's guides, which only the model's own runs keep."""
        return next((type(g).__name__ for g in study.guides if isinstance(g, Within)), None)

    @property
    def name(self) -> str:
        """In the log, the trace and the address of its random numbers."""
        return type(self).__name__

    def refuses(self, study: Study) -> str | None:
        """Why it is of no use for this model and its constraints, or None if it is."""
        return None

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        """About `count` samples. Random numbers are drawn from the key, so that a loop can be replayed."""
        raise NotImplementedError(f"{self.name} does not say what it proposes")

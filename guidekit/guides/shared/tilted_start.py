"""Shared by guides whose runs begin with noise that is tilted by the reward, and that weigh it afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from ...engine.guide import Guide
from ..fk_steering import FKSteering


@dataclass(frozen=True)
class TiltedStart(FKSteering):
    """Feynman-Kac steering that goes on from a tilted start: by default only samples are scored, none is resampled."""

    potential: str = "final"
    ess: float = 0.0

    @property
    def stochastic(self) -> bool:
        return self.steer or self.ess > 0

    def clashes(self, other: Guide, after: bool) -> str | None:
        if other.has("begin"):
            return "both say where the run starts; take one of them"
        if not after and other.twist == self.twist:
            name = type(self).__name__
            return f"the weights of the first of two equal rewards count: put {name} before {type(other).__name__}"
        return None

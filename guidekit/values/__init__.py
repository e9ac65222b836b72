"""Values: how a reward is looked ahead from x_t. A value is a callable view -> one float64 per row, in the reward's
own units (not divided by alpha), NaN where it is not known."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..engine.view import View
from .fit import fit
from .learned import Calibration, Learned
from .rollout import Rollout
from .tweedie import Tweedie


class Value(Protocol):
    """`sees_prediction = False` says that it reads x_t alone, which saves evaluations; `at(alpha)` gives the value for
    the temperature of the guide that asks. Both may be left out."""

    def __call__(self, view: View) -> Tensor: ...


def lookahead(value: Value | None, reward: Any, alpha: float) -> Value:
    """The value that a guide uses: the one given, for its temperature, or the reward of the clean estimate."""
    value = Tweedie(reward) if value is None else value
    return value.at(alpha) if hasattr(value, "at") else value  # type: ignore[attr-defined]


__all__ = ["Calibration", "Learned", "Rollout", "Tweedie", "Value", "fit", "lookahead"]

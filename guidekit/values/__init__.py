"""Values: how a reward is looked ahead from x_t. A value is a callable view -> one float64 per row, in the reward's
own units (not divided by alpha), NaN where it is not known."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..view import View
from .tweedie import Tweedie


class Value(Protocol):
    def __call__(self, view: View) -> Tensor: ...


__all__ = ["Tweedie", "Value"]

"""Values: look-aheads, which estimate at x_t the reward that the finished sample will get. A value is a callable from a
view to one float64 per row, in the reward's own units (not divided by alpha), NaN where it is unknown."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..engine.view import View
from .bank import Bank
from .energy import Energy, fit_energy
from .explained import Explained, explained
from .fit import fit
from .flow_map import FlowMap
from .learned import Calibration, Learned
from .likelihood import Likelihood
from .names import NAMED as NAMED, named as named
from .pooled import Pooled
from .proxy import Proxy, proxy
from .resubstitution import Resubstitution
from .rollout import Rollout
from .tweedie import Tweedie


class Value(Protocol):
    """A look-ahead: a callable view -> float64 (rows,). It may set `sees_prediction = False` if it reads only x_t; this
    saves network evaluations. It may have a method `at(alpha)`, which returns the value at the temperature of the guide
    that uses it."""

    def __call__(self, view: View) -> Tensor: ...


def lookahead(value: Value | None, reward: Any, alpha: float) -> Value:
    """The value that a guide uses: the given one at its temperature, or by default the reward of the clean estimate."""
    value = Tweedie(reward) if value is None else value
    return value.at(alpha) if hasattr(value, "at") else value  # type: ignore[attr-defined]


__all__ = [
    "Bank",
    "Calibration",
    "Energy",
    "Explained",
    "FlowMap",
    "Learned",
    "Likelihood",
    "Pooled",
    "Proxy",
    "Resubstitution",
    "Rollout",
    "Tweedie",
    "Value",
    "explained",
    "fit",
    "fit_energy",
    "lookahead",
    "proxy",
]

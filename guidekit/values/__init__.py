"""Values: look-aheads, which estimate at x_t the reward that the finished sample will get. A value is a callable from a
view to one float64 per row, in the reward's own units (not divided by alpha), NaN where it is unknown."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..engine.view import View
from .bank import Bank
from .fit import fit
from .flow_map import FlowMap
from .learned import Calibration, Learned
from .likelihood import Likelihood
from .proxy import Proxy, proxy
from .resubstitution import Resubstitution
from .rollout import Rollout
from .tweedie import Tweedie


class Value(Protocol):
    """A look-ahead: a callable view -> float64 (rows,). It may set `sees_prediction = False` if it reads only x_t; this
    saves network evaluations. It may have a method `at(alpha)`, which returns the value at the temperature of the guide
    that uses it."""

    def __call__(self, view: View) -> Tensor: ...


# The look-aheads that need nothing but the reward, by the names that guides and the command line take.
NAMED = {"tweedie": Tweedie, "rollout": Rollout, "flow": FlowMap, "parent": Resubstitution}


def named(name: str, reward: Any, who: str) -> Value:
    """The look-ahead of this name."""
    if name not in NAMED:
        raise ValueError(f"{who}(value={name!r}): there is {', '.join(map(repr, NAMED))}, and gk.values")
    return NAMED[name](reward)


def lookahead(value: Value | None, reward: Any, alpha: float) -> Value:
    """The value that a guide uses: the given one at its temperature, or by default the reward of the clean estimate."""
    value = Tweedie(reward) if value is None else value
    return value.at(alpha) if hasattr(value, "at") else value  # type: ignore[attr-defined]


__all__ = [
    "Bank",
    "Calibration",
    "FlowMap",
    "Learned",
    "Likelihood",
    "Proxy",
    "Resubstitution",
    "Rollout",
    "Tweedie",
    "Value",
    "fit",
    "lookahead",
    "proxy",
]

"""The look-aheads that need nothing but the reward, by the names that guides and the command line take."""

from __future__ import annotations

from typing import Any

from .flow_map import FlowMap
from .resubstitution import Resubstitution
from .rollout import Rollout
from .tweedie import Tweedie

NAMED = {"tweedie": Tweedie, "rollout": Rollout, "flow": FlowMap, "parent": Resubstitution}


def named(name: str, reward: Any, who: str) -> Any:
    """The look-ahead of this name."""
    if name not in NAMED:
        raise ValueError(f"{who}(value={name!r}): there is {', '.join(map(repr, NAMED))}, and gk.values")
    return NAMED[name](reward)

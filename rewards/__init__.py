"""Rewards of generated molecules, DNA and images: callables from a batch of samples to one float per sample."""

from .base import Each, Reward, RewardError, RewardWarning, as_reward
from .cached import Cached
from .combine import (
    ParetoRank,
    arithmetic_mean,
    filtered,
    geometric_mean,
    pareto_rank,
    standardised,
    weighted_sum,
)
from .external import from_callable, from_command, from_module
from .grouped import ByGroup
from .http import from_url
from .pooled import Pooled

__all__ = [
    "ByGroup",
    "Cached",
    "Each",
    "ParetoRank",
    "Pooled",
    "Reward",
    "RewardError",
    "RewardWarning",
    "arithmetic_mean",
    "as_reward",
    "filtered",
    "from_callable",
    "from_command",
    "from_module",
    "from_url",
    "geometric_mean",
    "pareto_rank",
    "standardised",
    "weighted_sum",
]

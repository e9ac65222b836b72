"""What can go wrong in a run that started well. Wrong arguments are plain ValueError or TypeError."""

from typing import Any, TypeGuard

from rewards.base import RewardError

__all__ = ["CheckpointError", "CollapseWarning", "NetworkError", "RewardError", "is_count"]


class NetworkError(RuntimeError):
    """The user's network raised no exception but returned something unusable: a wrong shape, NaN."""


class CheckpointError(ValueError):
    """A checkpoint or a saved result is truncated, malformed or of another run."""


class CollapseWarning(UserWarning):
    """The weights rest on very few particles, so means and log Z from them are not to be trusted."""


def is_count(value: Any, least: int = 1) -> TypeGuard[int]:
    """Whether a value is an int of at least so much; True and False are not.

    >>> is_count(3), is_count(0), is_count(True), is_count(2.0)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

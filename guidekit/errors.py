"""What can go wrong in a run that started well. Wrong arguments are plain ValueError or TypeError."""

from rewards.base import RewardError

__all__ = ["CheckpointError", "CollapseWarning", "NetworkError", "RewardError"]


class NetworkError(RuntimeError):
    """The user's network raised no exception but returned something unusable: a wrong shape, NaN."""


class CheckpointError(ValueError):
    """A checkpoint or a saved result is truncated, malformed or of another run."""


class CollapseWarning(UserWarning):
    """The weights rest on very few particles, so means and log Z from them are not to be trusted."""

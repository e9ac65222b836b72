"""The engine: one loop that moves, looks and selects, and the hooks that methods plug into."""

from . import resampling

__all__ = ["resampling"]

"""The command line: `guidekit`, or `python -m guidekit.cli`. Heavy packages are imported only when needed."""

from .app import main

__all__ = ["main"]

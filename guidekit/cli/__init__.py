"""The command line: `guidekit`, or `python -m guidekit.cli`. Nothing heavy is imported before a command needs it."""

from .app import main

__all__ = ["main"]

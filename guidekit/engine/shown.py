"""How results look in a notebook: drawn by `guidekit.report.notebook`, a room above this one.

The renderer is looked up by name when something is shown, as pandas looks up its plotting backends, so that the engine
does not import the report.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_RENDERERS = "guidekit.report.notebook"


def rendered(name: str, value: Any) -> Any:
    """What the function `name` of the renderers makes of a value."""
    return getattr(import_module(_RENDERERS), name)(value)

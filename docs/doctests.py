"""For the site: the examples of docstrings as blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around every paragraph that begins with >>>."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    return re.sub(r"(?ms)^(>>> .*?)(?=\n\s*\n|\Z)", r"```python\n\1\n```", text)

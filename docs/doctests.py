"""For the site: docstrings as Markdown, their examples as blocks of code and their aligned arguments as lists."""

from __future__ import annotations

import re
from typing import Any

import griffe

# "name, other   what they are", with further lines indented
ENTRY = re.compile(r"^([A-Za-z_][\w.()=]*(?:, [A-Za-z_][\w.()=]*)*)(?: {2,})(\S.*)$")


class Doctests(griffe.Extension):
    """Rewrites docstrings before they are rendered."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(escaped(listed(obj.docstring.value)))


def escaped(text: str) -> str:
    """Asterisks as they are, as in (rows, *shape), outside of code, **bold** words and the marks of lists."""
    return re.sub(r"(?m)^(?! {4}|>>>|\.\.\.)( *\* )?(.*)$", lambda m: (m[1] or "") + _escaped(m[2]), text)


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]*`|\*\*[^*]+\*\*)", line)
    return "".join(part if i % 2 else part.replace("*", r"\*") for i, part in enumerate(parts))


def fenced(text: str) -> str:
    """A fence around every paragraph that begins with >>>."""
    return re.sub(r"(?ms)^(>>> .*?)(?=\n\s*\n|\Z)", r"```python\n\1\n```", text)


def listed(text: str) -> str:
    """Paragraphs of aligned names and explanations as lists."""
    return "\n\n".join(_list(part) for part in text.split("\n\n"))


def _list(paragraph: str) -> str:
    lines = paragraph.strip("\n").split("\n")
    if not ENTRY.match(lines[0]):
        return paragraph
    out: list[str] = []
    for line in lines:
        entry = ENTRY.match(line)
        if entry:
            names = ", ".join(f"`{name}`" for name in entry[1].split(", "))
            out.append(f"* {names}: {entry[2]}")
        elif line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            out += [] if out and not out[-1].startswith(("*", "  ")) else [""]
            out.append(line)
    return "\n".join(out)

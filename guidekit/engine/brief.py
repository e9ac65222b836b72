"""Short texts of values for reprs: names in place of functions, shapes in place of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from rewards import Reward

from ..models.base import Model
from ..models.evaluations import Cond

_FEW = 4  # entries of a tensor or a list that are written out
_LONG = 60  # characters of anything else


def brief(value: Any) -> str:
    """A value in a few words.

    >>> import torch
    >>> brief(0.5), brief(torch.zeros(3, 2)), brief(len), brief([1, 2])
    ('0.5', '<tensor of shape (3, 2)>', 'len', '[1, 2]')
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return _array(value)
    if isinstance(value, Reward):
        return value.name if value.name.isidentifier() else repr(value.name)
    if isinstance(value, (Model, nn.Module)):
        return f"{type(value).__name__}(...)"
    if isinstance(value, Cond):
        return settings(value)
    if isinstance(value, partial):
        return f"partial of {brief(value.func)}"
    if isinstance(value, Mapping):
        return "{" + _several([f"{k!r}: {brief(v)}" for k, v in list(value.items())[:_FEW]], len(value)) + "}"
    if isinstance(value, list) or type(value) is tuple:
        inside = _several([brief(v) for v in value[:_FEW]], len(value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__
    return _cut(repr(value), value)


def _array(value: Tensor | np.ndarray) -> str:
    kind, size = ("tensor", value.numel()) if isinstance(value, Tensor) else ("array", value.size)
    return f"{kind}({value.tolist()})" if size <= _FEW else f"<{kind} of shape {tuple(value.shape)}>"


def _several(parts: list[str], count: int) -> str:
    return ", ".join(parts if len(parts) == count else [*parts, f"... {count} in all"])


def _cut(text: str, value: Any) -> str:
    """What Python says of it, unless that is an address in memory or very long."""
    if text.startswith("<") and " at 0x" in text:
        return f"{type(value).__name__}(...)"
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


def settings(value: Any) -> str:
    """A dataclass by those of its fields that differ from their defaults.

    >>> import guidekit as gk
    >>> settings(gk.CFG(3.0, stop=0.8))
    'CFG(scale=3.0, stop=0.8)'
    """
    given = [f for f in dataclasses.fields(value) if f.init and f.repr and not _usual(getattr(value, f.name), f)]
    given.sort(key=lambda f: f.kw_only is True)
    return f"{type(value).__name__}({', '.join(f'{f.name}={brief(getattr(value, f.name))}' for f in given)})"


def _usual(value: Any, field: dataclasses.Field) -> bool:
    """Whether a field has its default. Only plain values are compared: tensors have no single answer."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    plain = isinstance(value, (bool, int, float, str)) and isinstance(default, (bool, int, float, str))
    return value is default or (plain and value == default)

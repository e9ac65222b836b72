"""Plain, stable descriptions of a run's arguments: for the record in a result, and to know a checkpoint's run again."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn


def describe(value: Any) -> Any:
    """JSON-able and the same in another process: types with their fields, functions by name, tensors by hash."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device, PurePath)):
        return str(value)
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype), "sha256": digest(value)}
    if isinstance(value, nn.Module):
        return {
            "module": _name(type(value)),
            "parameters": {k: list(p.shape) for k, p in value.state_dict().items()},
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": _name(type(value))} | {
            f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, Set):
        return sorted(map(str, value))
    if isinstance(value, Sequence):
        return [describe(v) for v in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    if hasattr(value, "__dict__"):
        return {"type": _name(type(value))} | {k: describe(v) for k, v in sorted(vars(value).items())}
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

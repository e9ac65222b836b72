"""Plain, stable descriptions of a run's arguments: for the record in a result, and to know a checkpoint's run again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.networks import is_empty

if TYPE_CHECKING:
    pass


def describe(value: Any) -> Any:
    """JSON-able and the same in another process: types with their fields, functions by their code, tensors by hash.

    Deep or large objects are cut off: below six levels, and after a thousand values, only types are named.
    """
    return _describe(value, 6, [1000])


def _describe(value: Any, depth: int, left: list[int]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    left[0] -= 1
    if depth == 0 or left[0] < 0:
        return _name(type(value))
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype), "sha256": digest(value)}
    if isinstance(value, nn.Module):
        return {"module": _name(type(value)), "weights": {k: list(p.shape) for k, p in value.state_dict().items()}}
    if hasattr(value, "__array_interface__") and not isinstance(value, type):
        return _array(np.asarray(value), depth, left)
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if isinstance(value, (list, tuple, Mapping)) and len(value) > 100:
        return {"items": len(value), "sha256": hashlib.sha256(_plain(value).encode()).hexdigest()}
    if isinstance(value, (list, tuple)):
        return [_describe(v, depth - 1, left) for v in value]
    if isinstance(value, type) or (hasattr(value, "__qualname__") and not _parts(value)):
        return _name(value)
    parts = value if isinstance(value, Mapping) else _parts(value)
    return _plain(value) if parts is None else {str(k): _describe(v, depth - 1, left) for k, v in parts.items()}


def _array(value: np.ndarray, depth: int, left: list[int]) -> Any:
    """Of arrays and pictures: their values, or a hash of many."""
    if value.size <= 100 or value.dtype.hasobject:
        return _describe(value.tolist(), depth, left)
    data = np.ascontiguousarray(value).tobytes()
    return {"array": list(value.shape), "dtype": str(value.dtype), "sha256": hashlib.sha256(data).hexdigest()}


def _parts(value: Any) -> dict[str, Any] | None:
    """What a function or an object is made of, by name; None where that cannot be seen."""
    if isinstance(value, partial):
        return {"partial": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, MethodType):
        return {"method": value.__name__, "of": value.__self__}
    if isinstance(value, FunctionType):
        held = [c.cell_contents for c in value.__closure__ or () if not is_empty(c)]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return {"function": _name(value), "code": _code(value.__code__), "holds": held, "defaults": defaults}
    identity = getattr(value, "identity", None)  # of what changes as it is used
    if callable(identity) and not isinstance(value, type):
        return {"type": _name(type(value)), "identity": identity()}
    if dataclasses.is_dataclass(value):
        return {"type": _name(type(value))} | {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {"type": _name(type(value))} | dict(sorted(vars(value).items())) if hasattr(value, "__dict__") else None


def _plain(value: Any) -> str:
    """repr without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _code(code: CodeType) -> str:
    """A hash of what a function does."""
    return hashlib.sha256(repr((code.co_code, code.co_names, _const(code.co_consts))).encode()).hexdigest()


def _const(value: Any) -> Any:
    """A constant in a form whose repr does not depend on the process."""
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return [_const(v) for v in value] if isinstance(value, tuple) else value


def difference(a: Any, b: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Where two descriptions first differ, and the values there."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        found = (difference(a[k], b[k], f"{path}.{k}" if path else k) for k in a)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        found = (difference(v, w, f"{path}[{i}]") for i, (v, w) in enumerate(zip(a, b, strict=True)))
    else:
        return None if a == b else (path, a, b)
    return next((f for f in found if f is not None), None)


def weights(modules: Iterable[nn.Module]) -> str:
    """A hash of the sums of all weights: another training of the same network is told apart, at the cost of a pass."""
    sums = [v.detach().double().sum() for m in modules for v in m.state_dict().values() if v.numel()]
    return digest(torch.stack([s.cpu() for s in sums])) if sums else ""


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's bytes; of its sums and ends where it is large."""
    value = value.detach().flatten()
    if value.numel() > 1 << 20:
        wide = value.double()
        value = torch.cat([wide[:1024], wide[-1024:], wide.sum()[None], wide.abs().sum()[None]])
    data = value.cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

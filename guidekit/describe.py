"""Plain, stable descriptions of a run's arguments: for the record in a result, and to know a checkpoint's run again."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .run import Run


def describe(value: Any, depth: int = 6) -> Any:
    """JSON-able and the same in another process: types with their fields, functions by name, tensors by hash."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth == 0:
        return _name(type(value))
    if isinstance(value, (Tensor, np.ndarray)):
        value = torch.as_tensor(value)
        return {"tensor": list(value.shape), "dtype": str(value.dtype), "sha256": digest(value)}
    if isinstance(value, nn.Module):
        return {"module": _name(type(value)), "weights": {k: list(p.shape) for k, p in value.state_dict().items()}}
    if isinstance(value, Mapping):
        return {str(k): describe(v, depth - 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v, depth - 1) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"type": _name(type(value))} | describe(fields, depth - 1)
    if hasattr(value, "__qualname__"):
        return _name(value)
    if hasattr(value, "__dict__"):
        return {"type": _name(type(value))} | describe(dict(sorted(vars(value).items())), depth - 1)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def describe_run(run: Run) -> dict[str, Any]:
    """What decides the bytes of a run."""
    return {
        "model": describe(run.model),
        "n": run.n,
        "moves": [list(m) for m in run.moves],
        "guides": describe(run.guides),
        "cond": describe(run.conditions),
        "reward": describe(run.reward),
        "solver": describe(run.solver),
        "noise": describe(run.noise),
        "seed": describe(run.seed),
    }


def weights(modules: Iterable[nn.Module]) -> str:
    """A hash of the sums of all weights: another training of the same network is told apart, at the cost of a pass."""
    sums = [v.detach().double().sum() for m in modules for v in m.state_dict().values() if v.numel()]
    return digest(torch.stack([s.cpu() for s in sums])) if sums else ""


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

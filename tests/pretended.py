"""A device that is pretended: its tensors say that they are elsewhere, and their values lie on the host.

    with device() as seen:
        x = torch.arange(3, device=NAME)

What a device refuses is refused: one operation on tensors of both places (numbers without axes apart), places on the
device in a tensor of the host, arrays of numpy. What makes the host wait for a device is noted in `seen.waits`, with
the function of the library that does it: values that are read, rows whose number depends on values, copies between
the two. What networks and rewards of the tests ask for is noted as theirs. Operations are done on the host, so that a
run gives what it gives there, to the last bit.

The name is that of PyTorch's device without values, which has all that autograd asks of one; while the device is
pretended there are values on it. It knows the host from the device, and not one device from another.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

import guidekit
from guidekit import random

NAME = "meta"
LIBRARY, HERE = Path(guidekit.__file__).parent, Path(__file__)
USERS = "a function of the user's"
READ = {
    *("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "unique_consecutive", "equal", "masked_select"),
    "bincount",
}
COPIED = {"_to_copy", "copy_"}
PLACED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Far(Tensor):
    """A tensor on the device; `near` has its values."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        kind = {"dtype": near.dtype, "device": torch.device(NAME)}
        return cls._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), **kind
        )

    def __init__(self, near: Tensor):
        self.near = near

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near!r})"


class Seen(TorchDispatchMode):
    """What happens while the device is pretended."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waits(func, args, kwargs or {}):
            self.waits.add(asking())
        return computed(func, args, kwargs or {})


class Made(TorchFunctionMode):
    """Makes tensors of the values of Python, which a device without values forgets."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], Far):
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor) and at_device(kwargs.get("device")):
            return func(*args, **kwargs | {"device": None}).to(NAME)
        return func(*args, **kwargs)


@contextmanager
def device() -> Iterator[Seen]:
    """A context in which there is such a device."""
    try:
        with Made(), Seen() as seen:
            yield seen
    finally:
        random._counter.cache_clear()  # which holds tensors that are nowhere now


def at_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def sorted_out(args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a call that are on the device, and those that are not."""
    every = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    return [v for v in every if isinstance(v, Far)], [v for v in every if not isinstance(v, Far)]


def lands(name: str, args: Any, kwargs: Any, far: list[Tensor]) -> bool:
    """Whether the outcome is on the device."""
    if name in PLACED or name == "copy_":
        return isinstance(args[0], Far)
    return bool(far) if kwargs.get("device") is None else at_device(kwargs["device"])


def waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host waits for the device in this call."""
    name, (far, near) = func.overloadpacket.__name__, sorted_out(args, kwargs)
    if not far and not at_device(kwargs.get("device")):
        return False
    if name in COPIED:
        return bool(near) if name == "copy_" else bool(far) != lands(name, args, kwargs, far)
    if name in PLACED:
        masks = [v for v in tree_leaves(args[1]) if isinstance(v, Tensor) and v.dtype in (torch.bool, torch.uint8)]
        return bool(masks) or any(v.dim() for v in near)
    return name in READ or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def computed(func: Any, args: Any, kwargs: Any) -> Any:
    """The outcome of a call."""
    name, (far, near) = func.overloadpacket.__name__, sorted_out(args, kwargs)
    there = lands(name, args, kwargs, far)
    refused = (far and not there) if name in PLACED else bool(far) and any(v.dim() for v in near)
    if refused and name not in COPIED:
        raise RuntimeError(f"{name}: tensors on two devices, {[tuple(v.shape) for v in near]} on the host")
    given, named = tree_map_only(Far, lambda v: v.near, (args, kwargs))
    out = func(*given, **named | ({"device": "cpu"} if named.get("device") is not None else {}))
    out = tree_map_only(Tensor, Far, out) if there else out
    return return_and_correct_aliasing(func, args, kwargs, out) if far and shares(func) else out


@cache
def shares(func: Any) -> bool:
    """Whether the outcome is an argument or shares memory with one."""
    return any(a.alias_info is not None for a in func._schema.arguments)


def asking() -> str:
    """The function of the library that makes the call, or that a network or reward of the tests does so."""
    frame = sys._getframe(2)
    while frame is not None:
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        if LIBRARY in file.parents and not name.startswith("<"):
            return f"{file.stem}.{name}"
        if file != HERE and HERE.parent in file.parents:
            return USERS
        frame = frame.f_back
    return USERS

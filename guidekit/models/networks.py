"""Networks: finding the torch modules inside any callable, and lending them to a run.

A user's network may be a module, a closure over one, a method or a partial. A run needs the modules behind it, to put
them into evaluation mode and to restore them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from rewards.base import Reward

_lent: dict[int, list[Any]] = {}  # by id, for each module and parameter in use: how often, the object, its old state
_lending = Lock()


def networks_in(*holders: Any) -> list[nn.Module]:
    """The modules that callables hold: in their closures, their object, or the attributes of that object; also in lists
    and dicts there, and in the rewards from which a reward is built."""
    entered: set[tuple[int, int]] = set()
    return list(dict.fromkeys(m for holder in holders for m in _found(holder, 4, entered)))


def kind_of(networks: Sequence[nn.Module]) -> tuple[torch.dtype | None, torch.device]:
    """Floating-point dtype and device of the networks: those of the first floating-point parameter or buffer."""
    for v in (v for m in networks for v in [*m.parameters(), *m.buffers()]):
        if v.is_floating_point():
            return v.dtype, v.device
    return None, torch.device("cpu")


@contextmanager
def lent(networks: Iterable[nn.Module]) -> Iterator[None]:
    """A context with networks in evaluation mode and without parameter gradients; restores them afterwards.

    Runs in several threads may share a network; the last one to end restores it.
    """
    modules = dict.fromkeys(m for net in networks for m in net.modules())
    things = [*modules, *dict.fromkeys(p for m in modules for p in m.parameters(recurse=False))]
    with _lending:
        for thing in things:
            _lent.setdefault(id(thing), [0, thing, _mode(thing)])[0] += 1
            _set_mode(thing, False)
    try:
        yield
    finally:
        with _lending:
            for thing in things:
                entry = _lent[id(thing)]
                entry[0] -= 1
                if entry[0] == 0:
                    _set_mode(thing, entry[2])
                    del _lent[id(thing)]


def _mode(thing: nn.Module | nn.Parameter) -> bool:
    return thing.training if isinstance(thing, nn.Module) else thing.requires_grad


def _set_mode(thing: nn.Module | nn.Parameter, mode: bool) -> None:
    if isinstance(thing, nn.Module):
        thing.training = mode
    else:
        thing.requires_grad_(mode)


def _found(holder: Any, depth: int, entered: set[tuple[int, int]]) -> Iterator[nn.Module]:
    """The modules in `holder`: up to `depth` levels down, and through rewards made of rewards at any depth."""
    if isinstance(holder, nn.Module):
        yield holder
    elif depth and holder is not None and (id(holder), depth) not in entered:
        if isinstance(holder, Reward):
            entered.add((id(holder), depth))
        deeper = depth if isinstance(holder, Reward) else depth - 1
        for part in _parts(holder):
            yield from _found(part, deeper, entered)


def _parts(holder: Any) -> list[Any]:
    if isinstance(holder, Reward):
        return [part for value in vars(holder).values() for part in _several(value) or [value]]
    if isinstance(holder, (list, tuple, dict)):
        return _several(holder)
    if isinstance(holder, MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, FunctionType):
        cells = [c.cell_contents for c in holder.__closure__ or () if not is_empty(c)]
        named = [holder.__globals__.get(n) for n in holder.__code__.co_names]
        return [*cells, *(v for v in named if isinstance(v, (nn.Module, FunctionType, partial)))]
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    return list(vars(holder).values()) if hasattr(holder, "__dict__") and not isinstance(holder, type) else []


def _several(value: Any) -> list[Any]:
    """The modules or rewards in a list, tuple or dict of them."""
    if not isinstance(value, (list, tuple, dict)):
        return []
    items = list(value.values() if isinstance(value, dict) else value)
    return items if items and isinstance(items[0], (Reward, nn.Module)) else []


def is_empty(cell: CellType) -> bool:
    """Whether a function refers to a variable that has no value yet."""
    try:
        return cell.cell_contents is None
    except ValueError:
        return True

"""A base model: a process, somebody's network, and how to encode a condition and decode a sample.

The engine calls a model as `model(x, t, cond)` and receives predictions in the coordinates in which guidance is linear
(see `guidekit.process`). It asks for evaluations by description: `Cond()`, `Null()` and others of this form are small
hashable objects, so that equal ones of several guides are evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..describe import is_empty
from ..errors import NetworkError
from ..process import Process
from ..solvers import Solver

Condition = Any  # what the user gives for one group: "HepG2", a prompt, 3, a tensor
Encoded = Any  # None, a tensor, or a dict of tensors


class Model:
    """What every base model has. Subclasses say how a network's output becomes a prediction, in `__call__`."""

    process: Process
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype  # of the state x of Gaussian processes and of its noise
    net: Callable
    null: Encoded
    solver: Solver | None = None  # of its runs, where none is given; None is the process's own

    def __init__(self, net, process, shape, decode=None, encode_cond=None, null=None, dtype=None, device=None):
        if not callable(net):
            raise TypeError(f"net is a callable (x, t, cond) -> tensor, not {type(net).__name__}")
        if not isinstance(shape, Sequence):
            raise TypeError(f"shape={shape!r}: the shape of one sample is needed, like (3, 64, 64) or (2,)")
        self.net, self.process, self.shape = net, process, tuple(shape)
        self._decode, self._encode = decode, encode_cond
        self.net_dtype, found = _kind(list(_networks(net)))
        if dtype not in (None, torch.float32, torch.float64):
            raise ValueError(f"dtype={dtype}: the state is float32 or float64; a network may be in half precision")
        self.dtype = dtype or (torch.float64 if self.net_dtype == torch.float64 else torch.float32)
        self.device = torch.device(device or found)
        self.null = None if null is None else _tensors(null, self.device)

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        """The prediction at x_t; one forward of the network. cond has one entry per row, or is None."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its network predicts")

    def encode(self, cond: Condition) -> Encoded:
        """One condition as the network takes it, without a row axis; None is the null condition."""
        if cond is None:
            return self.null
        return _tensors(cond if self._encode is None else self._encode(cond), self.device)

    def encode_all(self, conds: Sequence[Condition]) -> Encoded:
        """The conditions of all groups, with a group axis."""
        return stack([self.encode(c) for c in conds])

    def nulled(self, cond: Encoded) -> Encoded:
        """The null condition of every row, given the rows' conditions."""
        return map_cond(lambda v, rows: v.expand(len(rows), *v.shape), self.null, cond)

    def guided(self, x: Tensor, t: float, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        """The tilt of classifier-free guidance, (scale - 1) (cond - null), from the two predictions at x_t."""
        return (scale - 1) * (cond - null)

    @property
    def bar(self) -> dict[str, Any]:
        """What a progress bar of its runs is told, besides what it is told anyway."""
        return {}

    def lent(self) -> AbstractContextManager:
        """What holds while a run uses the model."""
        return nullcontext()

    def decode(self, x: Tensor) -> Any:
        """Samples as the user wants them: a tensor, or a list with one entry per row."""
        if self._decode is None:
            return x
        samples = self._decode(x if x.requires_grad else x.clone())  # its own, to do with as it likes
        if len(samples) != len(x):
            raise ValueError(f"decode returned {len(samples)} samples for {len(x)} rows; it must return one for each")
        return samples

    def modules(self) -> list[nn.Module]:
        """The networks whose mode a run must leave as it found it."""
        return list(dict.fromkeys(m for f in (self.net, self._decode, self._encode) for m in _networks(f)))

    def _forward(self, x: Tensor, t: float, cond: Encoded, shape: tuple[int, ...]) -> Tensor:
        """Call the network with one t per row, in its own precision, and check what it returns."""
        times = torch.full((len(x),), t, dtype=self.dtype, device=x.device)
        if x.is_floating_point():
            x = x.to(self.net_dtype or x.dtype)
        version = None if x.is_inference() else x._version
        out = self.net(x, times, cond)
        if version is not None and x._version != version:
            raise NetworkError(
                "the network works on its input x in place; it must leave x as it is (x = x + ..., not +=)"
            )
        given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if given != (len(x), *shape):
            raise NetworkError(
                f"the network returned {given} for an input of shape {tuple(x.shape)}; "
                f"{type(self).__name__} needs a tensor of shape {(len(x), *shape)}"
            )
        return out.to(self.dtype)


# evaluations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cond:
    """The model at the user's condition; every run evaluates it. Other evaluations change one of these methods."""

    def model(self, base: Model) -> Model:
        """Whose network."""
        return base

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        """The condition of the rows, given the user's."""
        return cond

    def during(self, model: Model, rows: slice) -> AbstractContextManager:
        """What holds during the forward in which these rows are evaluated."""
        return nullcontext()

    def check(self, model: Model) -> None:
        """Raise if the model cannot offer this evaluation."""


@dataclass(frozen=True)
class Null(Cond):
    """The model at its null condition."""

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return model.nulled(cond)

    def check(self, model: Model) -> None:
        if model.null is None:
            raise ValueError(
                "a guide needs the model without its condition, but the model has no null condition: "
                "build it with null=..., the encoded 'no condition' that it was trained with"
            )


@dataclass(frozen=True)
class Other(Cond):
    """Another base model of the same noising law, at the user's condition."""

    network: Model

    def model(self, base: Model) -> Model:
        return self.network

    def check(self, model: Model) -> None:
        other = self.network
        if not isinstance(other, Model):
            raise TypeError(f"a second base model is needed, not {type(other).__name__}")
        if other.shape != model.shape or other.process != model.process:
            raise ValueError(
                f"two models in one target share shape and noising law; given {model.shape}, {model.process} and "
                f"{other.shape}, {other.process}"
            )
        if other.process.t_max < model.process.t_max:
            raise ValueError(
                f"the other model starts at t={other.process.t_max}, where its prediction of noise or score says "
                f"something of the data, and the first at {model.process.t_max}: change them about, or let the other "
                "predict the clean mean or a velocity"
            )


def evaluate(
    model: Model,
    needs: Sequence[Cond],
    x: Tensor,
    t: float,
    cond: Encoded,
    count: Callable[[int], None],
    limit: int | None = None,
) -> dict[Cond, Tensor]:
    """All evaluations at (x, t), in one forward for each distinct network (more where `limit` rows are exceeded).

    `count` is told the rows of each forward.
    """
    found: dict[Cond, Tensor] = {}
    rows = len(x)
    most = len(needs) if limit is None else max(1, limit // rows)
    networks: dict[Model, list[Cond]] = {}
    for need in needs:
        networks.setdefault(need.model(model), []).append(need)
    for net, branches in networks.items():
        for part in (branches[i : i + most] for i in range(0, len(branches), most)):
            with ExitStack() as stack:
                for i, need in enumerate(part):
                    stack.enter_context(need.during(net, slice(i * rows, (i + 1) * rows)))
                out = net(_repeat(x, len(part)), t, _join([need.cond(net, cond) for need in part]))
            count(rows * len(part))
            found |= dict(zip(part, out.split(rows), strict=True))
    return found


def stack(encoded: Sequence[Encoded]) -> Encoded:
    """The groups' conditions in one, with a group axis."""
    if encoded[0] is None:
        return None
    if isinstance(encoded[0], dict):
        return {k: stack([e[k] for e in encoded]) for k in encoded[0]}
    shapes = {tuple(e.shape) for e in encoded}
    if len(shapes) > 1:
        raise ValueError(f"the conditions encode to different shapes, {shapes}; encode_cond must pad them to one")
    return torch.stack(list(encoded))


def rows_of(encoded: Encoded, group: Tensor) -> Encoded:
    """The condition of every row from the stacked ones of the groups."""
    if isinstance(encoded, dict):
        return {k: v[group] for k, v in encoded.items()}
    return None if encoded is None else encoded[group]


def map_cond(f: Callable[[Tensor, Tensor], Tensor], encoded: Encoded, like: Encoded) -> Encoded:
    """f(encoded tensor, row tensor) for a tensor or for every entry of a dict."""
    if isinstance(encoded, dict):
        return {k: f(v, like[k]) for k, v in encoded.items()}
    return f(encoded, like)


def held(f: Any) -> Model:
    """A function as a model, so that a run leaves the networks in it as it found them."""
    return Model(f if callable(f) else len, None, ())  # type: ignore[arg-type]


_lent: dict[int, list[Any]] = {}  # of every module and parameter that runs have borrowed: how many, it, as it was
_lending = Lock()


@contextmanager
def borrowed(models: Sequence[Model]) -> Iterator[None]:
    """Put networks into evaluation mode without parameter gradients, and afterwards back as they were.

    Runs in several threads may borrow one network; the last to end gives it back.
    """
    modules = dict.fromkeys(m for model in models for net in model.modules() for m in net.modules())
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


def _repeat(x: Tensor, times: int) -> Tensor:
    return x if times == 1 else torch.cat([x] * times)


def _join(conds: list[Encoded]) -> Encoded:
    if len(conds) == 1 or conds[0] is None:
        return conds[0]
    if isinstance(conds[0], dict):
        return {k: torch.cat([c[k] for c in conds]) for k in conds[0]}
    return torch.cat(conds)


def _tensors(value: Any, device: torch.device) -> Encoded:
    """A tensor or a dict of tensors from what encode_cond returned."""
    if isinstance(value, dict):
        return {k: torch.as_tensor(v, device=device) for k, v in value.items()}
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the condition {value!r} is no tensor or dict of tensors; give the model an encode_cond that makes it one"
        ) from error


def _networks(holder: Any, depth: int = 4) -> Iterator[nn.Module]:
    """The modules that a callable holds: in its variables, its object or that object's attributes."""
    if isinstance(holder, nn.Module):
        yield holder
    elif depth and holder is not None:
        for part in _held(holder):
            yield from _networks(part, depth - 1)


def _held(holder: Any) -> list[Any]:
    if isinstance(holder, MethodType):
        return [holder.__self__, holder.__func__]
    if isinstance(holder, FunctionType):
        cells = [c.cell_contents for c in holder.__closure__ or () if not is_empty(c)]
        named = [holder.__globals__.get(n) for n in holder.__code__.co_names]
        return [*cells, *(v for v in named if isinstance(v, (nn.Module, FunctionType, partial)))]
    if isinstance(holder, partial):
        return [holder.func, *holder.args, *holder.keywords.values()]
    return list(vars(holder).values()) if hasattr(holder, "__dict__") and not isinstance(holder, type) else []


def _kind(modules: Sequence[nn.Module]) -> tuple[torch.dtype | None, torch.device]:
    """Floating dtype and device of the network: those of the first floating parameter or buffer."""
    for v in (v for m in modules for v in [*m.parameters(), *m.buffers()]):
        if v.is_floating_point():
            return v.dtype, v.device
    return None, torch.device("cpu")

"""Perturb some rows of a batched forward pass inside chosen layers of a network, and leave everything else unchanged.

    with Perturbed.of(by, layers).during(model, rows):
        out = model(x, t, cond)                  # these rows are the perturbed branch, the others are unchanged

`Perturbed` is an evaluation like `Null`: if several guides need equal ones, they are computed once, in the forward pass
of the step. A `Perturbation` defines how a layer is perturbed: it replaces the output of attention
(`guidekit.guides.pag`, `seg`), or what a whole module returns (`slg`) or is given (`tpg`).

Inside the chosen layers, every call of torch.nn.functional.scaled_dot_product_attention is intercepted, however it was
imported, including that of torch.nn.MultiheadAttention. Its leading axis holds the network's rows, possibly with heads
or frames folded in: (rows, heads, tokens, dim), (rows*heads, tokens, dim), (rows*frames, heads, tokens, dim).
Only self-attention is perturbed, or only cross-attention (`nag`). Cross-attention is recognised by different numbers of
queries and keys, by a module with `is_cross_attention`, or by keys from an argument like `encoder_hidden_states`;
attention whose queries are joined with such keys (SD3, Flux) is self-attention.

The leading axis of the network's first tensor must be the rows of x. During such a forward pass, compiled modules run
uncompiled, and torch.nn.MultiheadAttention does not use its fast path, which changes rounding. Other kernels
(flash-attn, xformers, explicit softmax) cannot be intercepted; a `NetworkError` then says what to do.

If gradient checkpointing recomputes parts of the forward pass, these are perturbed again.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import NetworkError
from .base import Encoded, Model
from .evaluations import Cond
from .hooked import Where, in_this_thread, named, uncompiled
from .networks import networks_in
from .stitched import parts

Layers = str | Sequence[str] | None
Heads = Sequence[int] | Mapping[str, Sequence[int]] | None
Span = tuple[int | None, int | None]

_SDPA = torch._C._nn.scaled_dot_product_attention  # type: ignore[attr-defined]
_MHA = torch.nn.functional.multi_head_attention_forward
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_SOURCES = ("encoder_hidden_states", "context", "key_value_states", "memory")  # where the keys of cross-attention are
_MIDDLES = ("mid_block", "middle_block", "mid", "middle")  # names of the middle block of a U-Net


class Attention(NamedTuple):
    """A call of scaled_dot_product_attention, restricted to the rows that are perturbed; calling it attends again."""

    query: Tensor
    key: Tensor
    value: Tensor
    options: dict[str, Any]
    site: Hashable = None  # of the call in the forward pass: the module, and how often it has attended before

    def __call__(self, query: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """The attention with other queries, or restricted to `allowed`, a Boolean mask (tokens, tokens)."""
        options = dict(self.options)
        if allowed is not None:
            mask = options.pop("attn_mask", None)
            if options.pop("is_causal", False):
                allowed = allowed.tril()
            if mask is None or mask.dtype == torch.bool:
                options["attn_mask"] = allowed if mask is None else mask & allowed
            else:
                options["attn_mask"] = mask.masked_fill(~allowed, -math.inf)
        with torch._C.DisableTorchFunction():  # other patches expect the whole batch
            return _SDPA(self.query if query is None else query, self.key, self.value, **options)


@dataclass(frozen=True)
class Perturbation:
    """What is done to the chosen rows of a layer. Subclasses override `attention`, or `module` if whole = True."""

    whole = False  # True replaces what the chosen module returns or is given instead of the output of its attention
    crosses = False  # True replaces cross-attention, and leaves self-attention alone

    def check(self) -> None:
        """Raise ValueError for invalid options."""

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        """What the attention returns instead of `out`, for the perturbed rows."""
        return out

    def given(self, x: Tensor, layer: str) -> Tensor:
        """What the module is given in place of its first tensor; the axis of rows comes first."""
        return x

    def module(self, given: list[Tensor], out: Any, put: Callable[[Tensor, Tensor], Tensor]) -> Any:
        """What the module returns instead of `out`, given its inputs; put(v, w) is v with the perturbed rows of w."""
        return out


@dataclass(frozen=True, eq=False)
class Heard(Perturbation):
    """Leaves attention as it is, and keeps its calls by their sites. No two are equal."""

    crosses: bool = False  # type: ignore[misc]
    calls: dict[Hashable, Attention] = field(default_factory=dict, repr=False)

    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        self.calls[call.site] = call
        return out


@dataclass(frozen=True)
class Perturbed(Cond):
    """The model at the user's condition with some layers perturbed; `Perturbed.of` accepts layers in the user's form.

    layers   dotted names: "blocks.1" is that module and everything inside it, never blocks.10. None is the middle of
             the network: mid_block of a U-Net, otherwise the middle one of its modules with self-attention. Of a
             `Stitched` model, each part is perturbed in the layers that it has
    heads    None (all), indices, or (layer, indices) for each layer
    branch   the evaluation that is perturbed: the model at the user's condition, or at another one
    """

    by: Perturbation
    layers: tuple[str, ...] | None = None
    heads: tuple[int, ...] | tuple[tuple[str, tuple[int, ...]], ...] | None = None
    branch: Cond = field(default_factory=Cond)

    @classmethod
    def of(cls, by: Perturbation, layers: Layers = None, heads: Heads = None) -> Perturbed:
        """With layers as a name or names, and heads as indices or {layer: indices}; the latter names the layers too."""
        names = None if layers is None else (layers,) if isinstance(layers, str) else tuple(sorted(set(layers)))
        if not isinstance(heads, Mapping):
            return cls(by, names, None if heads is None else _indices(heads))
        if names is not None:
            raise ValueError("heads={layer: indices} names the layers itself; leave layers=None")
        return cls(by, tuple(sorted(heads)), tuple((k, _indices(heads[k])) for k in sorted(heads)))

    def cond(self, model: Model, cond: Encoded) -> Encoded:
        return self.branch.cond(model, cond)

    def check(self, model: Model) -> None:
        self.by.check()
        self.branch.check(model)
        if self.branch.model(model) is not model:
            raise ValueError(f"{self.branch!r} is of another model, and only the model itself can be perturbed")
        _known.setdefault(model, {})[self._key] = _choose(model, self.layers, self.by)

    def during(self, model: Model, rows: slice) -> _Patch:
        if self._key not in _known.setdefault(model, {}):
            self.check(model)
        return _Patch(self, _known[model][self._key], rows)

    @property
    def _key(self) -> tuple[tuple[str, ...] | None, bool, bool]:
        return self.layers, self.by.whole, self.by.crosses

    def heads_of(self, layer: str) -> tuple[int, ...] | None:
        """The heads that are perturbed in a layer."""
        per_layer = dict(h for h in self.heads or () if isinstance(h, tuple))
        return per_layer.get(layer, self.heads)  # type: ignore[return-value]


def _indices(heads: Sequence[int]) -> tuple[int, ...]:
    if isinstance(heads, str) or not all(isinstance(h, Integral) and not isinstance(h, bool) and h >= 0 for h in heads):
        raise ValueError(f"heads={heads!r}: indices of heads, counted from 0, or {{layer: indices}}")
    return tuple(sorted({int(h) for h in heads}))


@contextmanager
def counting(model: Model, layers: Sequence[str]) -> Iterator[dict[str, int]]:
    """Count the heads of these layers during a forward pass of one row; layers without attention are left out."""
    patch = _Patch(Perturbed(Perturbation()), _choose(model, tuple(layers), Perturbation()), slice(0, 1))
    with patch:
        yield patch.heads


# which modules ---------------------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The modules to watch: the networks that are called, with their layers, and for each module the layers to which
    it belongs."""

    roots: dict[nn.Module, tuple[str, ...]]
    layers: dict[nn.Module, tuple[str, ...]]  # the innermost layer first
    parts: tuple[tuple[nn.Module, ...], ...]  # the networks of each model, where several are stitched

    def due(self, called: set[nn.Module]) -> list[str]:
        """The layers that a forward pass through these networks must reach; of stitched models only one is called."""
        one = len(self.parts) > 1 and (called or not all(self.parts))
        return list(dict.fromkeys(p for net, names in self.roots.items() if not one or net in called for p in names))


# what the last check of a model found, by its layers, and whether whole modules or cross-attention are replaced
_known: WeakKeyDictionary[Model, dict[Hashable, Chosen]] = WeakKeyDictionary()


def attention_layers(model: Model) -> list[str]:
    """Names of the modules that look like self-attention, in the order in which they were registered.

    >>> import torch, guidekit as gk
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True)
    >>> net = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    >>> attention_layers(gk.GaussianModel(lambda x, t, cond: net(x), shape=(5, 8)))
    ['layers.0.self_attn', 'layers.1.self_attn', 'layers.2.self_attn']
    """
    return list(dict.fromkeys(name for net in _roots(model) for name in _attending(net)))


def blocks(model: Model) -> list[str]:
    """Names of the longest list of modules of the same class in each network of the model: its transformer blocks.

    >>> import torch, guidekit as gk
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True)
    >>> net = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    >>> blocks(gk.GaussianModel(lambda x, t, cond: net(x), shape=(5, 8)))
    ['layers.0', 'layers.1', 'layers.2']
    """
    return list(dict.fromkeys(name for net in _roots(model) for name in _stack(net)))


def modules(model: Model) -> list[str]:
    """The dotted names of all modules of the model's networks."""
    return [name for root in _roots(model) for name, _ in named(root)]


def _roots(model: Model) -> tuple[nn.Module, ...]:
    return tuple(dict.fromkeys(m for part in parts(model) for m in _networks(part)))


def _networks(part: Model) -> tuple[nn.Module, ...]:
    return tuple(m for m in networks_in(part.net) if not isinstance(m, torch.jit.ScriptModule))


def _choose(model: Model, layers: tuple[str, ...] | None, by: Perturbation) -> Chosen:
    roots: dict[nn.Module, tuple[str, ...]] = dict.fromkeys(_roots(model), ())
    if not roots:
        raise ValueError(
            "layers of a torch.nn.Module are to be perturbed, and the model's network holds none (scripts do not count)"
        )
    belongs: dict[nn.Module, tuple[str, ...]] = {}
    whole = by.whole
    for root in roots:
        names = _default(root, by) if layers is None else layers
        for name, module in named(root):
            inside = [p for p in names if name == p or (not whole and name.startswith(p + "."))]
            if inside:
                every = {*belongs.get(module, ()), *inside}
                belongs[module] = tuple(sorted(every, key=lambda p: (-len(p), p)))
                roots[root] = tuple(dict.fromkeys([*roots[root], *inside]))
    found = {p for inside in belongs.values() for p in inside}
    for name in layers or ():
        if name not in found:
            raise ValueError(_unknown(str(name), model))
    if layers is None and not found:
        raise ValueError(
            f"no default layer was found in the network, a torch.nn.Module that {'cross-' * by.crosses}attends or is "
            "one of a list of layers; name some with layers=(...)"
        )
    for module, (name, *_) in belongs.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"layers: {name!r} holds a script of torch.jit, which cannot be watched")
        if whole and isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise ValueError(f"layers: {name!r} is a list of modules and never called itself; name its members")
    return Chosen(roots, belongs, tuple(map(_networks, parts(model))))


def _default(root: nn.Module, by: Perturbation) -> tuple[str, ...]:
    """The layers of a network where none are named."""
    if by.crosses:
        return tuple(name for name, m in named(root) if name and _is_cross(name, m) and _attends(m))
    name = _middle_block(root) if by.whole else _middle_attention(root)
    return () if name is None else (name,)


def _unknown(name: str, model: Model) -> str:
    names, last = modules(model), name.split(".")[-1]
    near = difflib.get_close_matches(name, names, 5) or [n for n in names if n.split(".")[-1] == last][:5]
    near = near or attention_layers(model)[:5]
    return f"layers: the network has no module {name!r}" + (f"; near it are {', '.join(near)}" if near else "")


def _attending(network: nn.Module) -> list[str]:
    """The outermost modules whose own code calls attention, or "", the network itself. If there are none, modules are
    recognised by the names of their classes."""
    modules = [(name, m) for name, m in named(network) if not _is_cross(name, m)]
    found = [name for name, m in modules if _attends(m)]
    found = [name for name in found if name] or found
    found = found or [name for name, m in modules if name and "attention" in type(m).__name__.lower()]
    return [n for n in dict.fromkeys(found) if not any(n.startswith(other + ".") for other in found)]


def _is_cross(name: str, module: nn.Module) -> bool:
    last = name.split(".")[-1].lower()  # multihead_attn is that of torch.nn.TransformerDecoderLayer
    return bool(getattr(module, "is_cross_attention", False)) or "cross" in last or last == "multihead_attn"


def _attends(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention) or hasattr(module, "get_processor"):  # the latter in diffusers
        return True
    kinds = type(module).__mro__
    own = kinds[: kinds.index(nn.Module)]
    return any(_mentions(f) for kind in own for f in vars(kind).values() if isinstance(f, FunctionType))


def _mentions(function: FunctionType, depth: int = 2) -> bool:
    """Whether a function, or one that it calls, names scaled_dot_product_attention."""
    names = function.__code__.co_names
    if "scaled_dot_product_attention" in names:
        return True
    called = [function.__globals__.get(n) for n in names] if depth else []
    return any(isinstance(f, FunctionType) and _mentions(f, depth - 1) for f in called)


def _middle_attention(network: nn.Module) -> str | None:
    names = _attending(network)
    return _middle_of_unet(names) or (names[len(names) // 2] if names else None)


def _middle_block(network: nn.Module) -> str | None:
    """The middle block of a U-Net, otherwise the middle one of the longest list of modules of the same class."""
    stack = _stack(network)
    return _middle_of_unet([n for n, _ in named(network)]) or (stack[len(stack) // 2] if stack else None)


def _stack(network: nn.Module) -> list[str]:
    """The members of the longest list of modules of the same class, if there are two or more."""
    every = [(n, m) for n, m in named(network) if isinstance(m, (nn.ModuleList, nn.Sequential))]
    name, stack = max((p for p in every if len({*map(type, p[1])}) == 1), key=lambda p: len(p[1]), default=("", ()))
    return [f"{name}.{i}".lstrip(".") for i in range(len(stack))] if len(stack) > 1 else []


def _middle_of_unet(names: list[str]) -> str | None:
    parts = [n.split(".") for n in names]
    return next((".".join(p[: p.index(m) + 1]) for m in _MIDDLES for p in parts if m in p), None)


# the forward pass ------------------------------------------------------------------------------------------------


@dataclass
class Frame:
    """A call of a watched module that has not returned, and how often it has attended so far."""

    module: nn.Module
    layers: tuple[str, ...]
    args: tuple
    kwargs: dict[str, Any]
    attended: int = 0

    def arguments(self) -> dict[str, Any]:
        """The arguments by parameter name, in order."""
        try:
            forward = getattr(self.module, "_orig_mod", self.module).forward
            return dict(inspect.signature(forward).bind_partial(*self.args, **self.kwargs).arguments)
        except (TypeError, ValueError):
            return {str(i): v for i, v in enumerate(self.args)} | self.kwargs

    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, including those in *args and **kwargs."""
        flat = [v for a in self.arguments().values() for v in (a if isinstance(a, tuple) else [a])]
        flat = [v for a in flat for v in (a.values() if isinstance(a, dict) else [a])]
        return [v for v in flat if isinstance(v, Tensor)]

    def rows(self) -> int:
        """The leading axis of the first tensor that has a second one."""
        tensors = self.tensors()
        return next((len(v) for v in tensors if v.dim() > 1), len(tensors[0]) if tensors and tensors[0].dim() else 0)


class _Patch:
    """The context of one forward pass. It acts in its own thread only, and leaves hooks and modes as it found them.

    first   for recomputation by gradient checkpointing: the patch of the forward pass. Only inner modules run again, so
            what the outer ones revealed, the number of rows and what is cross-attention, is taken from that patch
    """

    def __init__(self, need: Perturbed, chosen: Chosen, rows: slice, where: Where | None = None, first: Any = None):
        self.need, self.chosen, self.rows, self.first = need, chosen, rows, first
        self.here = in_this_thread() if where is None else where
        self.mode, self.inside = _Mode(self), 0
        self.frames: list[Frame] = []
        self.total = 0  # rows of the forward pass
        self.totals: dict[nn.Module, int] = {} if first is None else first.totals
        self.crossing: dict[tuple[nn.Module, int, torch.Size], set[bool]] = {} if first is None else first.crossing
        self.handles: list[Any] = []
        self.eager = uncompiled()
        self.called: set[nn.Module] = set()
        self.entered: set[str] = set()
        self.hits: set[str] = set()
        self.heads: dict[str, int] = {}
        self.crossed = False

    def again(self, where: Where) -> _Patch:
        """The same patch for a recomputation of the forward pass."""
        return _Patch(self.need, self.chosen, self.rows, where, self)

    def __enter__(self) -> _Patch:
        self.eager.__enter__()
        for module in dict.fromkeys([*self.chosen.roots, *self.chosen.layers]):
            before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            after = module.register_forward_hook(self._leave, with_kwargs=True, prepend=True, always_call=True)
            self.handles += [before, after]
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()
        if self.inside and not self.need.by.whole and self.first is None:  # after an interruption that no hook noticed
            self.mode.__exit__(None, None, None)
        self.eager.__exit__(None, None, None)
        if kind is None and self.first is None:
            self._verify()

    def _enter(self, module: nn.Module, args: tuple, *rest: Any) -> Any:
        if not self.here():  # another thread, which may meet a hook half put in, without the keyword arguments
            return None
        (kwargs,) = rest
        frame = Frame(module, self.chosen.layers.get(module, ()), args, kwargs)
        if not self.frames:
            self.total = frame.rows() if self.first is None else self.totals[module]
        self.totals[module] = self.total
        self.frames.append(frame)
        self.called.add(module)
        if frame.layers:
            self.entered.update(frame.layers)
            self.inside += 1
            if self.inside == 1 and not self.need.by.whole:
                self.mode.__enter__()
            if type(self.need.by).given is not Perturbation.given:
                return self._given(frame, args, kwargs)
        return None

    def _given(self, frame: Frame, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of a module, with the perturbed rows of its first tensor."""
        first = frame.tensors()[0]
        axis = self._axis(first)
        new = self.need.by.given(first.movedim(axis, 0), frame.layers[0]).movedim(0, axis)
        swap = lambda v: self._put(first, new, axis) if v is first else v  # noqa: E731
        return tuple(map(swap, args)), {k: swap(v) for k, v in kwargs.items()}

    def _leave(self, module: nn.Module, args: tuple, *rest: Any) -> Any:
        if not self.here() or not self.frames or self.frames[-1].module is not module:
            return None
        out = rest[-1]
        frame = self.frames[-1]
        try:
            if frame.layers and self.need.by.whole and out is not None:  # None: an exception is on its way
                self.hits.update(frame.layers)
                return self.need.by.module(frame.tensors(), out, lambda v, new: self._put(v, new, self._axis(v)))
        finally:
            self.frames.pop()
            if frame.layers:
                self.inside -= 1
                if self.inside == 0 and not self.need.by.whole:
                    self.mode.__exit__(None, None, None)
        return None

    def _verify(self) -> None:
        """Check that every requested layer was perturbed; of the default layers, one per network, at least one."""
        missed = [p for p in self.chosen.due(self.called) if p not in self.hits]
        if not missed or (self.need.layers is None and self.hits):
            return
        name = "nothing was perturbed in " + ", ".join(repr(p) if p else "the network itself" for p in missed)
        if not self.entered.intersection(missed):
            raise NetworkError(f"{name}: the forward did not run it, or ran it in another thread or as a script")
        if self.crossed:
            has, needed = ("self", "cross") if self.need.by.crosses else ("cross", "self")
            raise NetworkError(f"{name}: it has {has}-attention only, and {needed}-attention is needed")
        raise NetworkError(
            f"{name}: it ran without torch's scaled_dot_product_attention, which alone can be seen. Switch the network "
            "to it: no flash-attn, xformers, sliced or explicit softmax attention. In diffusers "
            "set_attn_processor(AttnProcessor2_0()) or set_attention_backend('native'), in timm fused_attn=True"
        )

    # rows ------------------------------------------------------------------------------------------------------------

    def _part(self, leading: int) -> slice:
        """The perturbed rows in a leading axis that may have heads or frames folded in."""
        total, n = self.total, self.rows.stop - self.rows.start
        fold, rest = divmod(leading, max(total, 1))
        if rest or fold == 0 or total < self.rows.stop or total % n:
            raise NetworkError(
                f"rows {self.rows.start} to {self.rows.stop} are to be perturbed, but the network was called with "
                f"{total} rows and {self.frames[-1].layers[0]!r} works on {leading}: the network must see the rows of "
                "x as the leading axis of its first tensor, and the layer that axis or a multiple of it"
            )
        return slice(self.rows.start * fold, self.rows.stop * fold)

    def _axis(self, v: Tensor) -> int:
        """The axis of rows in a module's output: 1 if tokens come first."""
        tokens_first = any(not getattr(m, "batch_first", True) for m in self.frames[-1].module.modules())
        return int(v.dim() > 2 and v.shape[1] == self.total and (tokens_first or len(v) % self.total > 0))

    def _put(self, old: Tensor, new: Tensor, axis: int) -> Tensor:
        """`old` with the perturbed rows of `new`."""
        part = (slice(None),) * axis + (self._part(old.shape[axis]),)
        out = old.clone()  # with its strides; kernels may have kept `old` for their gradient
        out[part] = new[part].to(old.dtype)
        return out

    # attention -------------------------------------------------------------------------------------------------------

    def attend(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """scaled_dot_product_attention with some rows of its result replaced."""
        out = _SDPA(*args, **kwargs)
        options = dict(zip(_NAMES, args, strict=False)) | kwargs
        query, key, value = (options.pop(name) for name in _NAMES[:3])
        if query.is_nested:
            raise NetworkError("attention on nested tensors cannot be perturbed; give the network padded ones")
        frame = self.frames[-1]
        site = frame.module, frame.attended
        frame.attended += 1
        if (query.shape[-2] != key.shape[-2] or self._crosses(key, site)) != self.need.by.crosses:
            self.crossed = True
            return out
        part = self._part(len(query))
        mask = options.get("attn_mask")
        if mask is not None and mask.dim() == query.dim() and len(mask) == len(query):
            options["attn_mask"] = mask[part]
        q, k, v = (v[part] if len(v) == len(query) else v for v in (query, key, value))
        new = out.clone()
        new[part] = self._headed(
            self.need.by.attention(Attention(q, k, v, options, site), out[part]).to(out.dtype), out[part]
        )
        self.hits.update(frame.layers)
        return new

    def _headed(self, new: Tensor, out: Tensor) -> Tensor:
        """`new` in the chosen heads and `out` in the others."""
        layer, rows = self.frames[-1].layers[0], self.rows.stop - self.rows.start
        heads, count = self.need.heads_of(layer), out.shape[1] if out.dim() > 3 else len(out) // rows
        self.heads[layer] = count
        if heads is None:
            return new
        if out.dim() not in (3, 4):
            raise NetworkError(f"heads: {layer!r} attends on {out.dim()} axes; (rows, heads, tokens, dim) is needed")
        if any(h >= count for h in heads):
            raise NetworkError(f"heads={heads}: {layer!r} has {count} heads, counted from 0")
        mixed = out.clone()
        for h in heads:
            if out.dim() == 4:
                mixed[:, h] = new[:, h]
            else:
                mixed[h::count] = new[h::count]
        return mixed

    def _crosses(self, key: Tensor, site: tuple[nn.Module, int]) -> bool:
        """Whether keys and queries come from different tokens; in a recomputation, what the forward pass found."""
        frame = self.frames[-1]
        call = *site, key.shape
        if self.first is None:
            told = self._told(key)
            self.crossing.setdefault(call, set()).add(told)
            return told
        if len(self.crossing[call]) > 1:
            raise NetworkError(
                f"a gradient is needed through {frame.layers[0]!r}, which is recomputed (gradient checkpointing) and "
                "attends to itself in one call and to others in another: switch checkpointing off"
            )
        return next(iter(self.crossing[call]))

    def _told(self, key: Tensor) -> bool:
        """Whether keys and queries come from different tokens, as far as the modules around the call can tell."""
        for frame in reversed(self.frames):
            if getattr(frame.module, "is_cross_attention", False):
                return True
            arguments = frame.arguments()
            if isinstance(frame.module, nn.MultiheadAttention):
                return arguments["key"] is not arguments["query"]
            source = next((arguments[name] for name in _SOURCES if name in arguments), None)
            if isinstance(source, Tensor) and source is not next(iter(arguments.values())):
                return source.dim() > 2 and source.shape[-2] == key.shape[-2]
            if not next(iter(arguments), "").startswith("q"):  # a module that is given queries and keys cannot tell
                return False
        return False

    def multi_head(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """multi_head_attention_forward calls attention internally: this is a copy of it that calls `attend` instead.

        If it must return weights it makes no such call; the perturbed rows then come from a second one without weights.
        """
        names = {**_MHA.__globals__, "has_torch_function": lambda _: False}
        names["scaled_dot_product_attention"] = lambda *a, **k: self.attend(a, k)
        watched = FunctionType(_MHA.__code__, names, "watched", _MHA.__defaults__)
        new, _ = watched(*args, **kwargs | {"need_weights": False})
        if not kwargs.get("need_weights", True):
            return new, None
        out, weights = _MHA(*args, **kwargs)
        return self._put(out, new, 1), weights


class _Mode(TorchFunctionMode):
    """Sends attention to a patch; active only inside the chosen layers."""

    def __init__(self, patch: _Patch):
        super().__init__()
        self.patch = patch

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is _SDPA:
            return self.patch.attend(args, kwargs or {})
        if func is _MHA:
            return self.patch.multi_head(args, kwargs or {})
        return func(*args, **(kwargs or {}))

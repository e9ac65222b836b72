r"""A weaker version of a model, made from the model itself, for autoguidance (Karras et al., 2024),
https://arxiv.org/abs/2406.02507: modules are skipped, or channels dropped. The latter is the dropout of the paper's
synthetic corruptions, but with one mask for all rows and steps.

Compiled networks run uncompiled when weakened. Of a `Stitched` model, each part is weakened in the modules it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import random
from ..errors import NetworkError
from .base import Condition, Encoded, Mixed, Model
from .hooked import Where, held_again, in_this_thread, made, named, uncompiled
from .networks import networks_in
from .stitched import part_at, parts

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def weakened(
    model: Model,
    *,
    drop: Sequence[str] = (),
    share: float = 0.1,
    skip: Sequence[str] = (),
    seed: int = 0,
    axis: int | None = None,
) -> Weakened:
    """A weaker version of a base model, which shares the weights and leaves the model as it is.

    drop    modules by their full names, as in `network.named_modules()` before torch.compile. A fraction `share` of the
            channels of each output, chosen by `seed`, is set to zero and the others are scaled up to compensate, for
            all rows and at all times
    skip    modules whose output is replaced by their input (they are computed all the same)
    axis    of the channels in the outputs. None is 1 for convolutions, their norms and outputs of four or more axes,
            and the last axis otherwise, as for linear layers and transformer blocks

    >>> import torch, guidekit as gk
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2))
    >>> model = gk.GaussianModel(lambda x, t, cond: net(x), shape=(2,))
    >>> guide = gk.AutoGuidance(weakened(model, drop=["1"], share=0.25), scale=2.0)
    >>> gk.sample(model, 3, steps=4, guides=[guide]).cost.network_rows
    24
    """
    if isinstance(drop, str) or isinstance(skip, str):
        raise TypeError("weakened(drop=..., skip=...) take lists of names, like drop=['blocks.3']")
    return Weakened(model, tuple(drop), share, tuple(skip), seed, axis)


class Weakened(Model):
    """See `weakened`. Two of the same model with the same settings are equal, so they are evaluated once."""

    def __init__(
        self, base: Model, drop: tuple[str, ...], share: float, skip: tuple[str, ...], seed: int, axis: int | None
    ):
        if not isinstance(base, Model):
            raise TypeError(f"weakened(model) takes a base model, not {type(base).__name__}")
        super().__init__(
            base.net, base.process, base.shape, base._decode, base._encode, base.null, base.dtype, base.device,
            base._read,
        )  # fmt: skip
        self.base, self.drop, self.share, self.skip, self.seed, self.axis = base, drop, share, skip, seed, axis
        if not (drop or skip):
            raise ValueError("weakened(model) needs modules to weaken: name them in drop=[...] or skip=[...]")
        if not 0 < share < 1:
            raise ValueError(f"weakened(share={share}): the share of the channels to drop lies between 0 and 1")
        for name in (*drop, *skip):
            _check_name(name, [_modules(part) for part in parts(base)])

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self._heard(part_at(self.base, t), partial(self.base, x, t, cond))

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        return self._heard(part_at(self.base, times.spans[0][0]), partial(self.base.mixed, x, times, cond))

    def _heard(self, part: Model, asked: Callable[[], Tensor]) -> Tensor:
        """What the base model says while the modules of this part of it are weaker."""
        every, hit, since = _modules(part), set(), made()
        weak = {name: every[name] for name in (*self.drop, *self.skip) if name in every}
        with self._weak(weak, hit, in_this_thread()):
            out = asked()
        missed = [name for name in weak if name not in hit]
        if missed:
            raise NetworkError(
                f"the weakened network never called {', '.join(missed)}: name modules whose forward runs, and that as "
                "Python in this thread"
            )
        held_again(out, since, partial(self._weak, weak, hit))
        return out

    def encode(self, cond: Condition) -> Encoded:
        return self.base.encode(cond)

    def decode(self, x: Tensor) -> Any:
        return self.base.decode(x)

    def modules(self) -> list[nn.Module]:
        return self.base.modules()

    def _settings(self) -> tuple[Any, ...]:
        return self.base, self.drop, self.share if self.drop else None, self.skip, self.seed, self.axis

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Weakened) and self._settings() == other._settings()

    def __hash__(self) -> int:
        return hash(self._settings())

    @contextmanager
    def _weak(self, modules: dict[str, nn.Module], hit: set[str], where: Where) -> Iterator[None]:
        """Hooks on the modules that act only here, since others may be using the network (and may meet a hook that is
        half put in, without the keyword arguments); `hit` records what ran."""

        def hook(change, name, module, args, *rest):
            if not where():
                return None
            kwargs, out = rest
            hit.add(name)
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            if not isinstance(first, Tensor):
                raise NetworkError(f"module {name!r} returns {type(out).__name__}; to weaken it a tensor is needed")
            new = change(name, module, first, [*args, *kwargs.values()])
            return new if first is out else (new, *out[1:])

        with uncompiled(), ExitStack() as stack:
            for change, names in ((self._dropped, self.drop), (_skipped, self.skip)):
                for name in (n for n in names if n in modules):
                    handle = modules[name].register_forward_hook(partial(hook, change, name), with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _dropped(self, name: str, module: nn.Module, out: Tensor, inputs: list) -> Tensor:
        first = isinstance(module, _CHANNELS_FIRST) or out.dim() > 3
        axis = (1 if first else -1) if self.axis is None else self.axis
        channels = out.shape[axis]
        if channels < 2:
            raise NetworkError(f"module {name!r} has one channel along axis {axis} of {tuple(out.shape)}; give axis=")
        count = min(max(round(self.share * channels), 1), channels - 1)
        order = random.uniform(random.fold(random.key(self.seed, out.device), name), (channels,)).argsort()
        kept = torch.full_like(order, channels / (channels - count), dtype=out.dtype)
        kept[order[:count]] = 0.0
        shape = [1] * out.dim()
        shape[axis] = channels
        return out * kept.view(shape)


def _skipped(name: str, module: nn.Module, out: Tensor, inputs: list) -> Tensor:
    x = next((v for v in inputs if isinstance(v, Tensor)), None)
    if x is None or x.shape != out.shape:
        given = None if x is None else tuple(x.shape)
        raise NetworkError(
            f"module {name!r} turns {given} into {tuple(out.shape)}; one that is skipped must keep the shape"
        )
    return x.to(out.dtype)


def _modules(model: Model) -> dict[str, nn.Module]:
    """The modules of the network by name; if several networks share a name, that of the first."""
    return {n: m for net in reversed(networks_in(model.net)) for n, m in named(net) if n}


def _check_name(name: str, networks: list[dict[str, nn.Module]]) -> None:
    """Check that one of the networks has a module of this name that can run."""
    having = [modules[name] for modules in networks if name in modules]
    if not having:
        names = [n for modules in networks for n in modules]
        near = get_close_matches(name, names, 3, 0.4) or names[:8]
        raise ValueError(f"weakened: the network has no module {name!r}; it has {', '.join(near) or 'none'}, ...")
    for module in having:
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            inside = next(iter(dict(module.named_children())), "0")
            raise ValueError(
                f"weakened: {name!r} is a list and never runs itself; name its members, like '{name}.{inside}'"
            )

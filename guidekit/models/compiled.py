"""Networks that run compiled by torch.compile, in runs with compile=True.

The time comes in as a tensor, so that one compilation serves the whole grid, and later runs of the same network too.
The number of rows is left open where states are whole numbers, of which fewer and fewer rows are evaluated. On a CUDA
device, where states are not, there are always as many, and calls without gradients are replayed as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

Network = Callable[..., Tensor]


class Compiler:
    """How the networks of a run are compiled: by a backend of torch.compile, its name or a function."""

    def __init__(self, backend: str | Callable = "inductor"):
        self.backend = backend
        self._made: dict[tuple[int, bool], tuple[Network, Network]] = {}  # with the network, whose number stays its own

    def call(self, net: Network, x: Tensor, times: Tensor, cond: Any) -> Tensor:
        """What the compiled network says of these rows."""
        whole = not x.is_floating_point()
        if whole:
            for v in (x, times, *(cond.values() if isinstance(cond, dict) else () if cond is None else (cond,))):
                torch._dynamo.maybe_mark_dynamic(v, 0)
        if whole or x.requires_grad or not x.is_cuda or self.backend != "inductor":
            return self._compiled(net, False)(x, times, cond)
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(net, True)(x, times, cond).clone()  # the next replay overwrites it

    def _compiled(self, net: Network, replayed: bool) -> Network:
        known = self._made.get((id(net), replayed))
        if known is None:
            function = net if isinstance(net, nn.Module) or hasattr(net, "__code__") else net.__call__
            made = torch.compile(function, backend=self.backend, mode="reduce-overhead" if replayed else None)
            known = self._made[id(net), replayed] = net, made
        return known[1]


_compiler: ContextVar[Compiler | None] = ContextVar("compiler", default=None)


@contextmanager
def compiling(compiler: Compiler | None) -> Iterator[None]:
    """A context in which models call their networks by this compiler; None calls them as they are."""
    before = _compiler.set(compiler)
    try:
        yield
    finally:
        _compiler.reset(before)


def called(net: Network, x: Tensor, times: Tensor, cond: Any) -> Tensor:
    """What a network says of these rows, compiled where the run asks for it."""
    compiler = _compiler.get()
    return net(x, times, cond) if compiler is None else compiler.call(net, x, times, cond)

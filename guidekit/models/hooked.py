"""Hooks on a user's modules that act in one forward pass, in all of it, and nowhere else.

Another thread may be using the same modules, so hooks ask `Where` they are. Code of torch.compile does not see hooks
that are set later, so it runs `uncompiled` meanwhile. And gradient checkpointing discards activations and recomputes
parts of the forward pass in the backward pass, when its hooks are gone: the gradient would be that of another function,
or torch would notice that activations differ. So the hooks are `held_again` there:

    since = made()
    with hooks(in_this_thread()):
        out = network(x)
    held_again(out, since, hooks)

This works whoever takes the gradient, however often and in whichever thread. The nodes of a graph are numbered as they
are created, so the node that triggers a recomputation identifies its forward pass.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Where = Callable[[], bool]


def named(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """All modules with their dotted names, without the parts that torch.compile inserts."""
    every = network.named_modules(remove_duplicate=False)
    return [(".".join(p for p in name.split(".") if p != "_orig_mod"), module) for name, module in every]


def in_this_thread() -> Where:
    """A function that tells whether its caller runs in the thread that is current now."""
    thread = threading.get_ident()
    return lambda: threading.get_ident() == thread


# recomputation -------------------------------------------------------------------------------------------------------


def made() -> int:
    """How many graph nodes this thread has created."""
    return torch.autograd._get_sequence_nr()  # type: ignore[reportPrivateImportUsage]


def held_again(out: Tensor, since: int, hold: Callable[[Where], AbstractContextManager]) -> None:
    """Enter hold(where) in every backward pass that reaches `out`, and leave it when the pass ends, however it ends.

    where() tells whether something computed for `out`, after `since`, is being recomputed.
    """
    if out.grad_fn is not None:
        out.grad_fn.register_prehook(partial(_hold, hold, range(since, made())))


def _hold(hold: Callable[[Where], AbstractContextManager], nodes: range, grads: Any) -> None:
    task = torch._C._current_graph_task_id()
    stack, end = ExitStack(), _End()
    stack.enter_context(hold(lambda: _recomputes(task, nodes)))
    weakref.finalize(end, stack.close).atexit = False
    torch.autograd.Variable._execution_engine.queue_callback(end)  # the pass owns it, even if it fails


def _recomputes(task: int, nodes: range) -> bool:
    node = torch._C._current_autograd_node() if torch._C._current_graph_task_id() == task else None
    return node is not None and node._sequence_nr() in nodes


class _End:
    """Lives as long as the backward pass that holds it."""

    def __call__(self) -> None:
        pass


# torch.compile -------------------------------------------------------------------------------------------------------

_stance: list[Any] = [0, None]  # how many contexts have switched the compiler off, and what restores it
_standing = threading.Lock()


@contextmanager
def uncompiled() -> Iterator[None]:
    """A context in which compiled modules run uncompiled, because they do not see hooks that are set later."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled
        yield
        return
    with _standing:
        if _stance[0] == 0:
            _stance[1] = torch.compiler.set_stance("force_eager")
        _stance[0] += 1
    try:
        yield
    finally:
        with _standing:
            _stance[0] -= 1
            if _stance[0] == 0:
                _stance[1].__exit__(None, None, None)

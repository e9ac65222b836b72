"""What hooks on somebody's modules need, to hold for one forward and nothing else, and for all of that forward.

Another thread may be using the same modules: hooks ask `Where` they are. Code of torch.compile knows nothing of hooks
that come later: meanwhile it runs `uncompiled`. And gradient checkpointing throws activations away and runs parts of
the forward once more in the backward pass, when hooks that held during the forward are gone. Then the gradient is that
of another function, or torch sees that the activations are others. So what held is `held_again`:

    since = made()
    with hooks(in_this_thread()):
        out = network(x)
    held_again(out, since, hooks)

That does not depend on who takes the gradient, how often and in which thread. Nodes of a graph are numbered as they are
made, so the node for which something is recomputed tells to which forward it belongs.
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
    """All modules with their dotted names, without what torch.compile puts in."""
    every = network.named_modules(remove_duplicate=False)
    return [(".".join(p for p in name.split(".") if p != "_orig_mod"), module) for name, module in every]


def in_this_thread() -> Where:
    """Whether the caller is in the thread that is in here now."""
    thread = threading.get_ident()
    return lambda: threading.get_ident() == thread


# recomputation -------------------------------------------------------------------------------------------------------


def made() -> int:
    """How many nodes of graphs this thread has made."""
    return torch.autograd._get_sequence_nr()  # type: ignore[reportPrivateImportUsage]


def held_again(out: Tensor, since: int, hold: Callable[[Where], AbstractContextManager]) -> None:
    """Enter hold(where) in every backward pass that reaches `out`, and leave it when the pass ends, however it ends.

    where() says whether something is being recomputed that was computed for `out`, after `since`.
    """
    if out.grad_fn is not None:
        out.grad_fn.register_prehook(partial(_hold, hold, range(since, made())))


def _hold(hold: Callable[[Where], AbstractContextManager], nodes: range, grads: Any) -> None:
    task = torch._C._current_graph_task_id()
    stack, end = ExitStack(), _End()
    stack.enter_context(hold(lambda: _recomputes(task, nodes)))
    weakref.finalize(end, stack.close).atexit = False
    torch.autograd.Variable._execution_engine.queue_callback(end)  # the pass owns it, also one that fails


def _recomputes(task: int, nodes: range) -> bool:
    node = torch._C._current_autograd_node() if torch._C._current_graph_task_id() == task else None
    return node is not None and node._sequence_nr() in nodes


class _End:
    """Lives as long as the backward pass that holds it."""

    def __call__(self) -> None:
        pass


# torch.compile -------------------------------------------------------------------------------------------------------

_stance: list[Any] = [0, None]  # how many have set the compiler aside, and what restores it
_standing = threading.Lock()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled code, which knows nothing of hooks added later, runs as the modules that it was made from."""
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

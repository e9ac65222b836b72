"""A call in a thread of its own, so that rewards are asked about one round while the network works on the next.

It pays if scoring and sampling wait for different things: programs, workers, another device. The thread has the
caller's context, gradient mode and device. It is a daemon: an interrupted search does not wait for it, and what it was
scoring is scored again when the search is resumed.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import torch


class Task:
    """Runs `call` in a thread at once. `result` waits for it, and returns what it returned or raises what it raised."""

    def __init__(self, call: Callable[[], Any]):
        self._call, self._value, self._error = call, None, None
        self._context, self._grad = contextvars.copy_context(), torch.is_grad_enabled()
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._work, name="guidekit-rewards", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            with torch.set_grad_enabled(self._grad):
                self._value = self._context.run(self._call)
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

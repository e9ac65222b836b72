"""A call in a thread of its own, so that one round is scored while the network samples the next.

This saves time if scoring uses other resources than sampling: external programs, workers, another device. The thread
has the caller's context, gradient mode and device. It is a daemon: an interrupted search does not wait for it, and
resuming the search scores that round again.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import torch


class Task:
    """Starts `call` in a thread at once. `result` waits for it and returns its value, or raises its error."""

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

"""Long runs that others end: a signal or a time limit stops a run as Ctrl-C does, and what is done is saved."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..jobs.specs import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Stopped(KeyboardInterrupt):
    """The run is to end now; `code` is what the process exits with."""

    def __init__(self, why: str, code: int):
        super().__init__(why)
        self.why, self.code = why, code


def seconds(text: str) -> float:
    """A time like 90, 90s, 30m or 11h30m, in seconds."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(f"{number}{unit}" for number, unit in parts) != text:
        raise ConfigError(f"the time limit {text!r} is not a time: 90s, 30m or 11h30m is")
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in parts)


@contextmanager
def stoppable(limit: str | None) -> Iterator[None]:
    """Context in which SIGTERM and the end of the time limit raise `Stopped`; signals reach the main thread only."""
    timed = hasattr(signal, "setitimer")
    if limit is not None and not timed:
        raise ConfigError("--time-limit needs the timer of a POSIX system, which this one does not have")
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    allowed = seconds(limit) if limit is not None else 0.0
    heard = {signal.SIGTERM: ("stopped by SIGTERM", 143)}
    if allowed:
        heard[signal.SIGALRM] = f"stopped at the time limit of {limit}", 75
    before = {number: signal.signal(number, _raise(*stop)) for number, stop in heard.items()}
    if allowed:
        signal.setitimer(signal.ITIMER_REAL, allowed)
    try:
        yield
    finally:
        if allowed:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(why: str, code: int) -> Any:
    def stop(*_: Any) -> None:
        raise Stopped(why, code)

    return stop

r"""Scores from a pool of workers: any `concurrent.futures.Executor`, including those of dask, loky and MPI.

Samples are sent in chunks, and scores return in order. A failure costs only its own sample, whose score is NaN:

    an exception        the chunk is scored again one by one, in the worker
    no answer in time   stopped by an alarm in the worker if possible, otherwise the worker is killed from outside
    a worker that dies  (killed, out of memory, a crash in C) the pool is rebuilt, and unfinished chunks are tried again
                        one by one, then their samples one by one; a sample that kills its worker alone is given up

Processes are the default because rewards in Python, and RDKit, hold the interpreter's lock: threads make them slower.
An executor that you pass in stays open; a pool created here is closed by `close()` or at the end of a `with`.

Ray has no executor, but a few lines make one:

    class Ray:
        def submit(self, function, *args):
            return ray.remote(function).remote(*args).future()
        def shutdown(self, wait=True, cancel_futures=False):
            pass
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pickle
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from multiprocessing import parent_process
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .base import Reward, RewardError, RewardWarning, as_reward, strict

Scores = list[float]
_GRACE = 1.0  # seconds beyond its timeout that a worker has to answer
_holding = threading.Lock()
_held: dict[str, Reward] = {}  # in a worker: the reward of each payload, unpickled once


def _work(payload: Any, name: str, samples: Any, timeout: float | None, retries: int) -> tuple[Scores, list[str]]:
    """In a worker: the scores of a chunk, and its errors."""
    with _holding:
        if name not in _held:
            reward, initializer = pickle.loads(payload) if isinstance(payload, bytes) else payload
            if initializer is not None:
                initializer()
            _held.clear()
            _held[name] = reward
        reward = _held[name]
    strict.on = True
    if parent_process() is not None:
        torch.set_num_threads(1)  # there is one worker per core, and a forked process may lack the threads
    try:
        with _alarm(None if timeout is None else timeout * len(samples)):
            return reward(samples).tolist(), []
    except Exception as error:
        if len(samples) == 1 and retries == 0:
            return [math.nan], [_told(error)]
        return _one_by_one(reward, samples, timeout, retries - (len(samples) == 1))
    finally:
        strict.on = False


def _one_by_one(reward: Reward, samples: Any, timeout: float | None, retries: int) -> tuple[Scores, list[str]]:
    scores, errors = [], []
    for i in range(len(samples)):
        score, error = math.nan, ""
        for _ in range(1 + retries):
            try:
                with _alarm(timeout):
                    score, error = float(reward(samples[i : i + 1])[0]), ""
                break
            except Exception as caught:
                error = _told(caught)
        scores.append(score)
        errors += [error] if error else []
    return scores, errors


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


@contextlib.contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError after this many seconds, if this thread can receive alarms."""
    able = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not able:
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"no score in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Pooled(Reward):
    """A reward whose samples are scored by a pool of workers. Scores have no gradients.

    executor     an Executor, a function that makes one (called again if a pool breaks), or a number of processes; None
                 is one process per core
    chunk_size   number of samples sent to a worker at a time
    timeout      seconds for one sample
    retries      how often a sample that raised or took too long is tried again
    initializer  a function that every worker calls once before it scores
    progress     show a progress bar

    `failed` counts the samples that were given up.
    """

    def __init__(
        self,
        reward: Any,
        executor: Executor | Callable[[], Executor] | int | None = None,
        chunk_size: int = 16,
        timeout: float | None = None,
        retries: int = 0,
        *,
        initializer: Callable[[], Any] | None = None,
        progress: bool = False,
    ):
        self.reward = as_reward(reward)
        for name, value, least in (("chunk_size", chunk_size, 1), ("retries", retries, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Pooled({name}={value!r}): an int of at least {least} is needed")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"Pooled(timeout={timeout}): seconds for one sample, or None")
        self._make = _maker(executor)
        self._executor: Any = executor if _submits(executor) else None
        self._own = self._executor is None
        self.chunk_size, self.timeout, self.retries, self.progress = chunk_size, timeout, retries, progress
        self.initializer, self.failed = initializer, 0
        self.name, self.higher_is_better, self.unit = self.reward.name, self.reward.higher_is_better, self.reward.unit
        self.content = getattr(self.reward, "content", "content")
        self._payload, self._name = self._packed(isinstance(executor, ThreadPoolExecutor))

    def _packed(self, threads: bool) -> tuple[Any, str]:
        """What is sent to workers, and a name for it: threads get the reward itself, processes its pickle."""
        if threads:
            return (self.reward, self.initializer), uuid.uuid4().hex
        try:
            payload = pickle.dumps((self.reward, self.initializer))
        except Exception as error:
            raise ValueError(
                f"Pooled: the reward {self.reward.name!r} cannot be sent to a worker ({error}); it may hold no lambda, "
                "inner function or open file. Define its function at the top of a module, or take a ThreadPoolExecutor"
            ) from error
        return payload, hashlib.sha256(payload).hexdigest()

    def score(self, samples: Any) -> Scores:
        scores: Scores = [math.nan] * len(samples)
        for part, found in self.stream(samples):
            for i, score in zip(part, found, strict=True):
                scores[i] = score
        return scores

    def stream(self, samples: Any) -> Iterator[tuple[list[int], Scores]]:
        """Indices and their scores, chunk by chunk as they arrive."""
        if isinstance(samples, Tensor):
            samples = samples.detach().cpu()
        errors: list[str] = []
        suspects: list[list[int]] = []
        with tqdm(total=len(samples), desc=self.name, unit=" samples", disable=not self.progress) as bar:
            for part, found in self._together(samples, errors, suspects):
                bar.update(len(part))
                yield part, found
            for suspect in suspects:
                for part, found in self._carefully(samples, suspect, errors):
                    bar.update(len(part))
                    yield part, found
        self.failed += len(errors)
        if errors:
            if "ImportError" in errors[0] or "ModuleNotFoundError" in errors[0]:
                raise RewardError(f"no sample can be scored by the workers: {errors[0]}")
            text = f"reward {self.name!r} failed on {len(errors)} of {len(samples)} samples, first {errors[0]}"
            warnings.warn(text, RewardWarning, stacklevel=3)

    def close(self) -> None:
        """Shut down the workers, unless the executor was passed in."""
        if self._own and self._executor is not None:
            self._executor.shutdown(wait=True)
            self._executor = None

    def __enter__(self) -> Pooled:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __getstate__(self) -> Any:
        raise TypeError("a Pooled reward belongs to its process; send the reward inside it")

    def identity(self) -> Any:
        """What determines the scores, as opposed to who computes them."""
        return self.reward

    # chunks -------------------------------------------------------------------------------------------------------

    def _together(
        self, samples: Any, errors: list[str], suspects: list[list[int]]
    ) -> Iterator[tuple[list[int], Scores]]:
        """Score all chunks in parallel; those that are late, or unfinished when a worker dies, become suspects."""
        size = self.chunk_size
        left = [list(range(i, min(i + size, len(samples)))) for i in range(0, len(samples), size)][::-1]
        running: dict[Future, tuple[list[int], float]] = {}
        while left or running:
            broken = False
            while left and not broken and len(running) < 2 * _workers(self._pool):
                try:
                    running[self._submit(samples, left[-1])] = left[-1], self._deadline(len(left[-1]))
                    left.pop()
                except Exception as error:
                    broken = _is_broken(error)
                    if not broken:
                        raise
            done, _ = wait(running, None if self.timeout is None else 0.2, return_when=FIRST_COMPLETED)
            for future in done:
                part, _ = running[future]
                try:
                    found, wrong = future.result()
                except (Exception, CancelledError) as error:
                    broken = broken or _is_broken(error)
                    suspects.append(part)
                else:
                    errors += wrong
                    yield part, found
                del running[future]
            late = [f for f, (_, deadline) in running.items() if time.monotonic() > deadline]
            if broken or late:
                for future, (part, _) in running.items():
                    (suspects if broken or future in late else left).append(part)
                    future.cancel()
                running.clear()
                self._anew()

    def _carefully(self, samples: Any, part: list[int], errors: list[str]) -> Iterator[tuple[list[int], Scores]]:
        """Score one chunk on its own, and if that fails its samples one by one."""
        try:
            allowed = None if self.timeout is None else self._allowed(len(part))
            found, wrong = self._submit(samples, part).result(timeout=allowed)
        except (Exception, CancelledError) as error:
            self._anew()
            if len(part) > 1:
                for place in part:
                    yield from self._carefully(samples, [place], errors)
                return
            late = isinstance(error, (TimeoutError, futures.TimeoutError))
            why = f"no score in {self.timeout:g} s" if late else f"its worker died: {type(error).__name__}"
            found, wrong = [math.nan], [why]
        errors += wrong
        yield part, found

    def _allowed(self, count: int) -> float:
        """Seconds that a chunk may take, for a first attempt, one by one, and retries."""
        return (self.timeout or math.inf) * count * (2 + self.retries) + _GRACE

    def _deadline(self, count: int) -> float:
        """The time after which a chunk is late, allowing for one other chunk of the same size before it."""
        return time.monotonic() + 2 * self._allowed(count)

    def _submit(self, samples: Any, part: Sequence[int]) -> Future:
        chosen = samples[list(part)] if isinstance(samples, Tensor) else [samples[i] for i in part]
        return self._pool.submit(_work, self._payload, self._name, chosen, self.timeout, self.retries)

    @property
    def _pool(self) -> Any:
        if self._executor is None:
            self._executor = self._make()
        return self._executor

    def _anew(self) -> None:
        """Stop the workers and start new ones."""
        old, self._executor = self._executor, None
        if old is None:
            return
        for process in list((getattr(old, "_processes", None) or {}).values()):
            with contextlib.suppress(Exception):
                process.kill()
        if isinstance(old, ProcessPoolExecutor) or hasattr(old, "_processes"):
            old.shutdown(wait=False)
            self._own = True
        else:
            self._executor = old  # a cluster's executor recovers by itself


def _submits(executor: Any) -> bool:
    return callable(getattr(executor, "submit", None))


def _maker(executor: Any) -> Callable[[], Any]:
    """A function that creates a pool like this one."""
    if executor is None or (type(executor) is int and executor > 0):
        count = executor or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
        )
        return lambda: ProcessPoolExecutor(count)
    if isinstance(executor, ProcessPoolExecutor):
        names = ("_max_workers", "_mp_context", "_initializer", "_initargs")
        count, context, first, args = (getattr(executor, name) for name in names)
        return lambda: ProcessPoolExecutor(count, context, first, args)
    if _submits(executor):
        remake = getattr(type(executor), "get_reusable_executor", None)  # loky
        if remake is not None:
            count = _workers(executor)
            return lambda: remake(max_workers=count)[0]
        return lambda: executor
    if callable(executor):
        return executor
    raise TypeError(
        f"Pooled(executor={executor!r}): an Executor, a function that makes one, or a number of processes is needed"
    )


def _workers(executor: Any) -> int:
    return getattr(executor, "_max_workers", None) or os.cpu_count() or 1


def _is_broken(error: BaseException) -> bool:
    """Whether the error says that the pool lost a worker."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"BrokenExecutor", "BrokenProcessPool", "TerminatedWorkerError", "ShutdownExecutorError"})

r"""Rewards from your own function, program or network.

A program reads one sample per line from standard input and writes JSON to standard output: a list of numbers in order,
or {"scores": [...]}, or REINVENT's {"version": 1, "payload": {name: [...]}}. null, NaN and strings mean that a sample
has no score. Programs are started without a shell.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Each, Function, Reward, evaluating


class _EachFunction(Each):
    def __init__(self, function: Callable[[Any], float]):
        self.function = function

    def one(self, sample: Any) -> float:
        return self.function(sample)


def from_callable(
    function: Callable[[Any], Any],
    name: str | None = None,
    *,
    each: bool = False,
    differentiable: bool | None = None,
    higher_is_better: bool = True,
    unit: str = "",
) -> Reward:
    """A function of a batch of samples, or with each=True of one sample, as a reward.

    >>> from_callable(len, each=True)(["CC", "CCO"])
    tensor([2., 3.], dtype=torch.float64)
    """
    if not callable(function):
        raise TypeError(f"from_callable takes a function, not {type(function).__name__}")
    reward = _EachFunction(function) if each else Function(function, None, differentiable)
    reward.name = name or getattr(function, "__name__", type(function).__name__)
    reward.higher_is_better, reward.unit = higher_is_better, unit
    return reward


class Command(Reward):
    """A program as a reward; see `from_command`."""

    def __init__(self, command: Sequence[str], name: str | None, endpoint: str | None, timeout: float | None):
        if isinstance(command, str) or not command or not all(isinstance(c, str) for c in command):
            raise TypeError(f'from_command({command!r}): a list is needed, like ["python", "score.py"]')
        if shutil.which(command[0]) is None:
            raise ValueError(f"from_command: there is no program {command[0]!r}; give its path")
        self.command, self.endpoint, self.timeout = list(command), endpoint, timeout
        self.name = name or endpoint or command[0]

    def score(self, samples: Any) -> list[float]:
        lines = [str(s) for s in samples]
        asked = [i for i, line in enumerate(lines) if line and line.isprintable()]  # others would shift the lines
        out = [math.nan] * len(lines)
        if asked:
            for i, score in zip(asked, self._run([lines[i] for i in asked]), strict=True):
                out[i] = score
        return out

    def _run(self, lines: list[str]) -> list[float]:
        done = subprocess.run(
            self.command, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True,
            encoding="utf-8", timeout=self.timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.command[0]} ended with {done.returncode}: {done.stderr[-500:].strip()}")
        try:
            found = json.loads(done.stdout)
        except ValueError as error:
            raise ValueError(f"{self.command[0]} wrote no JSON: {done.stdout[:200]!r}") from error
        return scores_in(found, len(lines), self.command[0], self.endpoint)


def scores_in(found: Any, count: int, who: str, endpoint: str | None = None) -> list[float]:
    """The scores of so many samples in what a program or a server wrote; NaN where there is none."""
    payload = found.get("payload", found) if isinstance(found, dict) else found
    if isinstance(payload, dict):
        name = endpoint or ("scores" if "scores" in payload else next(iter(payload), ""))
        if name not in payload:
            raise ValueError(f"{who} has no endpoint {name!r}; it has {', '.join(map(str, payload))}"[:300])
        payload = payload[name]
    if not isinstance(payload, list) or len(payload) != count:
        got = len(payload) if isinstance(payload, list) else type(payload).__name__
        raise ValueError(f"{who} returned {got} scores for {count} samples; one for each is needed")
    return [float(v) if isinstance(v, (int, float)) and abs(v) < 1e300 else math.nan for v in payload]


def from_command(
    command: Sequence[str], name: str | None = None, *, endpoint: str | None = None, timeout: float | None = None
) -> Reward:
    """A program that reads samples and writes scores, as a reward.

    It is started once per call: wrap it in `Cached`, and in `Pooled` if it is slow.

    endpoint   which of several scores to use; the first one by default
    timeout    seconds for one call
    """
    return Command(command, name, endpoint, timeout)


class Module(Reward):
    """A torch network as a reward; see `from_module`."""

    def __init__(
        self, module: nn.Module, name: str | None, prepare: Any, output: Any, batch: int, differentiable: bool
    ):
        if not isinstance(module, nn.Module):
            raise TypeError(f"from_module takes a torch.nn.Module, not {type(module).__name__}")
        if batch < 1:
            raise ValueError(f"from_module(batch={batch}): at least 1")
        self.module, self.prepare, self.output, self.batch = module, prepare, output, batch
        self.differentiable, self.name = differentiable, name or type(module).__name__

    def score(self, samples: Any) -> Tensor:
        x = samples if self.prepare is None else self.prepare(samples)
        if not isinstance(x, Tensor):
            raise TypeError(f"a tensor is needed, not {type(x).__name__}: give prepare=, which makes one of samples")
        own = next(self.module.parameters(), None)
        if own is not None:
            x = x.to(own.device, own.dtype if x.is_floating_point() else x.dtype)
        with evaluating(self.module), torch.set_grad_enabled(bool(self.differentiable) and torch.is_grad_enabled()):
            return torch.cat([self._read(self.module(part)) for part in x.split(self.batch)])

    def _read(self, out: Any) -> Tensor:
        if callable(self.output):
            return torch.as_tensor(self.output(out))
        if self.output is not None:
            return out[:, self.output]
        return out[:, 0] if out.dim() == 2 and out.shape[1] == 1 else out


def from_module(
    module: nn.Module,
    name: str | None = None,
    *,
    prepare: Callable[[Any], Tensor] | None = None,
    output: int | Callable[[Any], Tensor] | None = None,
    batch: int = 256,
    differentiable: bool = True,
) -> Reward:
    """A torch network that returns one number per row, as a reward.

    It runs in evaluation mode, on its own device and in its own precision, and is left as it was.

    prepare   samples -> the tensor that the network takes
    output    a column of the network's output, or a function of the output; None if that is (rows,) or (rows, 1)
    """
    return Module(module, name, prepare, output, batch, differentiable)

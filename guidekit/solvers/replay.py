"""Predictions in a file: what a network has said is written as it is said, so that a fit which was interrupted goes on.

A fit is a function of the network's predictions, which it asks for in a fixed order. The file has one line that
describes the fit, and then the predictions, one after the other. The same fit reads them instead of asking again, but
for the first, which shows that the network is the same. The file is deleted when the fit is done. Of several processes
that make a fit together all read it, and the first one writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

Predict = Callable[[Tensor, float], Tensor]
_ADDRESS = re.compile(" at 0x[0-9a-f]+")  # of functions, in the repr of a solver
_NEAR = 1e-3  # of the first prediction, by which that of the same network may differ on another machine


@contextmanager
def replayed(
    predict: Predict, file: str | Path | None, about: dict[str, Any], bar: Any, world: Any
) -> Iterator[Predict]:
    """A context that gives `predict` with a memory in this file, which is deleted if all goes well; None has none."""
    if file is None:
        yield predict
        return
    yield Replay(predict, Path(file), about, bar, world)
    world.agree("all have read it")
    with world.together():
        if world.rank == 0:
            Path(file).unlink()


class Replay:
    """Predictions, from the file as far as it goes. The bar moves on by the rows of what is read, too."""

    def __init__(self, predict: Predict, file: Path, about: dict[str, Any], bar: Any, world: Any):
        self.predict, self.file, self.bar, self.world, self.rows = predict, file, bar, world, 0
        self.head = (_ADDRESS.sub("", json.dumps(about, sort_keys=True)) + "\n").encode()
        self.asked, self.known = 0, world.told(world.first(self._begun))[0]

    def __call__(self, x: Tensor, t: float) -> Tensor:
        number, self.asked = self.asked, self.asked + 1
        known = number < self.known // _size(x)
        if known and number:
            self.bar.update(self.rows)
            return self._read(number, x)
        before = self.bar.n
        told = self.predict(x, t)
        self.rows = self.bar.n - before
        if known:
            return self._same(told, self._read(0, x))
        with self.world.together():
            if self.world.rank == 0:
                self._write(number, told)
        return told

    def _begun(self) -> int:
        """Bytes of predictions that the file has."""
        if not self.file.exists():
            self._append(self.head, "wb")
            return 0
        with self.file.open("rb") as file:
            head = file.readline()
        if head != self.head:
            raise CheckpointError(
                f"{self.file} is of another fit, {head[:200]!r}...; this one is {self.head[:200]!r}..."
            )
        return self.file.stat().st_size - len(head)

    def _read(self, number: int, x: Tensor) -> Tensor:
        kind = np.float64 if x.dtype == torch.float64 else np.float32
        found = np.fromfile(self.file, kind, x.numel(), offset=len(self.head) + number * _size(x))
        return torch.from_numpy(found).view(x.shape).to(x)

    def _write(self, number: int, told: Tensor) -> None:
        with self.file.open("r+b") as file:  # half a prediction, which a kill may have left, is overwritten
            file.truncate(len(self.head) + number * _size(told))
        self._append(told.cpu().numpy().tobytes(), "ab")

    def _append(self, data: bytes, mode: str) -> None:
        try:
            with self.file.open(mode) as file:
                file.write(data)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be written: {error}") from error

    def _same(self, told: Tensor, before: Tensor) -> Tensor:
        if float((told.double() - before.double()).norm()) > _NEAR * float(told.double().norm()):
            raise CheckpointError(f"{self.file} is of a fit of another model: its first prediction is not this model's")
        return before


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()

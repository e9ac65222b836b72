"""Runs that survive a kill: the population after a step, written so that the file is either whole or absent.

One safetensors file holds the tensors, and in its header, as JSON, the form of the population, the trace, the cost and
a description of the run. A run given the same file continues after the saved step with the same bytes as one that was
never interrupted, because its noise is addressed and not consumed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from . import tree
from .cost import Cost
from .describe import difference, weights
from .population import Population
from .run import Run
from .trace import Record
from .whole import check_writable, whole

_FORMAT = "guidekit-checkpoint-3"
_SHARE = 0.05  # of the time at most goes into saving


class Checkpoint:
    """The file of one run. `load` gives where to start; `save` writes as often as costs little."""

    def __init__(self, path: str | Path, run: Run):
        self.path, self.run = Path(path), run
        self.config = json.loads(json.dumps(run.describe() | {"weights": weights(run.modules())}))
        self._saved_at, self._took, self._index = time.perf_counter(), 0.0, -1
        with run.world.together():
            if run.world.rank == 0:
                check_writable(self.path)

    def load(self) -> tuple[Population | None, int]:
        """The saved population and the number of moves it has behind it, or (None, 0) where there is no file."""
        there, world = self.path.exists(), self.run.world
        world.agree(("checkpoint", there))
        if not there:
            return None, 0
        with world.together():
            pop, index, records, cost = self._read()
        world.agree(("steps in the checkpoint", index))
        self._index = index
        self.run.resume(records, cost if world.rank == 0 else Cost())
        return pop.take(self.run.share(index)), index

    def _read(self) -> tuple[Population, int, list[Record], Cost]:
        """The saved population, the number of moves behind it, their records, and what they have cost."""
        try:
            with safe_open(str(self.path), "pt", device=str(self.run.model.device)) as file:
                text = json.loads((file.metadata() or {})["guidekit"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._expect(text)
            form = {f.name: text["population"][f.name] for f in fields(Population)}
            pop = Population(**{k: _unflat(v, tensors) for k, v in form.items()})
            index, cost = int(text["index"]), replace(self.run.cost, **text["cost"])
            records = [Record(*(_unflat(v, tensors) for v in row)) for row in text["records"]]
            if (
                not 0 < index == len(records) <= len(self.run.moves)
                or len(pop) != self.run.groups * self.run.step(index).n
            ):
                raise ValueError(f"{index} steps, {len(records)} records, {len(pop)} rows")
            return pop, index, records, cost
        except CheckpointError:
            raise
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"checkpoint {self.path} is truncated or was not written by guidekit ({error}); delete it to start anew"
            ) from error

    def save(self, pop: Population, index: int, force: bool = False) -> None:
        """Write the state after `index` moves, unless that would take more than a small share of the time."""
        now = time.perf_counter()
        world, due = self.run.world, force or (now - self._saved_at) * _SHARE >= self._took
        if index == self._index or world.told(due) == [False]:
            return
        self.run.settle()
        pop, cost = world.whole(pop), world.cost(replace(self.run.cost, seconds=self.run.seconds))
        with world.together():
            self._write(pop, index, cost)
        self._saved_at, self._index = time.perf_counter(), index
        self._took = self._saved_at - now

    def _write(self, pop: Population, index: int, cost: Cost) -> None:
        if self.run.world.rank:
            return
        tensors: dict[str, Tensor] = {}
        form = {f.name: _flat(getattr(pop, f.name), f.name, tensors) for f in fields(Population)}
        records = [
            [_flat(v, f"record.{i}.{j}", tensors) for j, v in enumerate(r)]
            for i, r in enumerate(self.run.records[:index])
        ]
        text = {"format": _FORMAT, "index": index, "run": self.config, "population": form, "records": records}
        text["cost"] = asdict(cost)
        with whole(self.path) as part:
            own = {k: v.cpu().contiguous().clone() for k, v in tensors.items()}
            save_file(own, part, {"guidekit": json.dumps(text)})

    def _expect(self, text: dict[str, Any]) -> None:
        if text["format"] != _FORMAT:
            raise CheckpointError(
                f"checkpoint {self.path} has format {text['format']!r}, not {_FORMAT!r}; delete it to start anew"
            )
        other = difference({k: text["run"].get(k) for k in self.config}, self.config)
        if other:
            place, was, now = other
            raise CheckpointError(
                f"checkpoint {self.path} is of another run: {place} was {_short(was)} and is {_short(now)} now; give "
                "this run another file, or delete that one"
            )


def _flat(value: Any, name: str, into: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {k: _flat(v, f"{name}.{k}", into) for k, v in value.items()}
    return value if isinstance(value, (int, float)) else tree.flatten(value, name, into)


def _unflat(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {k: _unflat(v, tensors) for k, v in value.items()}
    return value if isinstance(value, (int, float)) else tree.unflatten(value, tensors)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."

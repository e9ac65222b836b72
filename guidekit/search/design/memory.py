"""The memory of a design loop: every sample that was ever asked, with its reward, and the files in which it is kept.

A folder holds `calls.csv`, one line for each call in its order; `design.json`, what decides the outcome; `rounds.json`,
one row for each complete round; and the states of each round's samples. A loop that was interrupted begins again after
its last complete round; calls that were made since then are in the log, and are not made again.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ... import random
from ...engine.describe import difference
from ...engine.result import with_nan, without_nan
from ...engine.whole import check_writable, unwritten, whole
from ...errors import CheckpointError
from ...models import Model
from .domain import Domain
from .kernels import Features

COLUMNS: tuple[str, ...] = ("call", "round", "proposal", "sample", "value", "predicted")
TOP = 3.0  # parents are drawn from the best 10^-u of the memory, u uniform from 0 to this
NICHES = 50  # parents, where they are to differ from each other
GIVEN = "known"  # the proposal of what was measured before


class Call(NamedTuple):
    """One sample that was asked: by which proposal, what it is worth, and what the surrogate said before."""

    round: int
    proposal: str
    value: float
    predicted: float


@dataclass
class Memory:
    """Samples in the order in which they were asked, each once.

    samples    in canonical form: texts, or one array or tensor each
    states     of samples that the model drew or was asked to read; None where they are not known yet
    """

    domain: Domain
    model: Model
    samples: list[Any] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    states: list[Tensor | None] = field(default_factory=list)
    names: dict[Hashable, int] = field(default_factory=dict)
    unwritten: set[int] = field(default_factory=set)  # rows that the model cannot write, which are not read again
    apart: int | None = None  # parents are taken from samples that differ from each other at so many places
    features: Features | None = None

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def asked(self) -> int:
        """Calls made, without what was known before."""
        return sum(call.proposal != GIVEN for call in self.calls)

    @property
    def values(self) -> Tensor:
        """Rewards, float64 (rows,); NaN where a sample could not be scored."""
        return torch.tensor([call.value for call in self.calls], dtype=torch.float64)

    @property
    def predicted(self) -> Tensor:
        return torch.tensor([call.predicted for call in self.calls], dtype=torch.float64)

    def best(self, count: int | None = None) -> list[int]:
        """Rows with a reward, the best first."""
        values = self.values
        order = values.nan_to_num(-math.inf).sort(descending=True, stable=True).indices
        found = order[values[order].isfinite()].tolist()
        return found if count is None else found[:count]

    def distinct(self, count: int, apart: int) -> list[int]:
        """The best rows, of samples that the model can write, that differ from all better ones at so many places at
        least."""
        rows = self.best()
        x, known = self.state(rows)
        found: list[int] = []
        for i in known.nonzero()[:, 0].tolist():
            if len(found) == count:
                break
            if bool(((x[i] != x[found]).sum(1) >= apart).all()):
                found.append(i)
        return [rows[i] for i in found]

    def batch(self, rows: Sequence[int]) -> Any:
        """Samples as a reward takes them: a list, or one tensor."""
        found = [self.samples[i] for i in rows]
        return torch.stack(found) if found and isinstance(found[0], Tensor) else found

    def parents(self, count: int, key: Tensor) -> list[int]:
        """Rows drawn from the best: uniformly from the best share 10^-u, u uniform from 0 to 3, so that every
        order of magnitude of ranks gets the same attention (Tripp and Hernandez-Lobato, 2023,
        https://arxiv.org/abs/2310.09267)."""
        order = self.best() if self.apart is None else self.distinct(NICHES, self.apart)
        if not order:
            return []
        u = random.uniform(random.fold(key, "parents"), (count, 2))
        share = 10 ** (-TOP * u[:, 0])
        return [order[i] for i in (u[:, 1] * (share * len(order)).clamp(min=1)).long().tolist()]

    def state(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States (rows, *shape), and whether the model can write the sample; where it cannot, masks (or NaN)."""
        unknown = [i for i in dict.fromkeys(rows) if self.states[i] is None and i not in self.unwritten]
        for i, x in zip(unknown, self._read(unknown), strict=True):
            self.states[i] = x
            if x is None:
                self.unwritten.add(i)
        found = [self.states[i] for i in rows]
        blank = self._blank()
        x = torch.stack([blank if s is None else s for s in found]) if found else blank[None][:0]
        return x, torch.tensor([s is not None for s in found], dtype=torch.bool)

    def _blank(self) -> Tensor:
        """The state of a sample that the model cannot write."""
        process, shape = self.model.process, self.model.shape
        tokens = getattr(process, "states", None)
        if tokens is None:
            return torch.full(shape, math.nan, dtype=self.model.dtype)
        return torch.full(shape, tokens - 1 if tokens > self.model.vocab_size else -1)  # type: ignore[attr-defined]

    def _read(self, rows: Sequence[int]) -> list[Tensor | None]:
        if not rows:
            return []
        if len(rows) > 1 and self.domain.texts:  # of texts any may be foreign, and a batch would be read in vain
            return [x for i in rows for x in self._read([i])]
        try:
            return list(self.model.read(self.batch(rows)).cpu())
        except ValueError:
            return [None] if len(rows) == 1 else [x for i in rows for x in self._read([i])]

    def add(self, samples: Any, x: Sequence[Tensor | None], calls: Sequence[Call]) -> None:
        """Remember samples that were asked; they are new, and in canonical form."""
        if not len(samples):
            return
        for name, sample, state, call in zip(self.domain.names(samples), samples, x, calls, strict=True):
            self.names[name] = len(self.samples)
            self.samples.append(sample)
            self.states.append(state)
            self.calls.append(call)
        found = self.domain.features(samples)
        self.features = found if self.features is None else self.features.join(found)


@dataclass
class Log:
    """The folder of a loop, or none; of several processes the one that leads writes it."""

    folder: Path | None
    leads: bool = True
    rounds: list[dict[str, Any]] = field(default_factory=list)
    lines: list[dict[str, str]] = field(default_factory=list)  # of all calls in the file

    @staticmethod
    def open(folder: str | Path | None, config: dict[str, Any], leads: bool = True) -> Log:
        log = Log(None if folder is None else Path(folder), leads)
        if log.folder is None:
            return log
        config, file = json.loads(json.dumps(config)), log.folder / "design.json"
        if leads:
            check_writable(file)
        if file.exists():
            other = difference(_loaded(file, _json), config)
            if other:
                raise CheckpointError(
                    f"{folder} is of another search: {other[0]} was {other[1]!r:.80} and is {other[2]!r:.80} now; give "
                    "this one another folder, or delete that one"
                )
            log._read()
        if leads:
            _written(file, json.dumps(config, indent=1))
        return log

    def restore(self, memory: Memory, first: int) -> None:
        """Fill the memory with the calls of all complete rounds; so many samples were known before."""
        assert self.folder is not None or not self.rounds
        for number, row in enumerate(self.rounds):
            states = _loaded(self.folder / f"states-{number:04d}.safetensors", load_file)  # type: ignore[operator]
            part = self.lines[len(memory) - first : row["calls"]]
            calls = [Call(int(v["round"]), v["proposal"], float(v["value"]), float(v["predicted"])) for v in part]
            rows = iter(states["x"])
            memory.add(
                states.get("samples", [v["sample"] for v in part]),
                [next(rows) if has else None for has in states["has"].tolist()],
                calls,
            )

    def known(self, call: int, text: str) -> float | None:
        """The value of this call, if the log has it."""
        line = self.lines[call] if call < len(self.lines) else None
        return float(line["value"]) if line is not None and line["sample"] == text else None

    def append(self, lines: Sequence[dict[str, str]], first: int) -> None:
        """Calls from this one on; those that the log has already are not written again."""
        new = lines[max(0, len(self.lines) - first) :]
        self.lines += new
        if self.folder is None or not (new and self.leads):
            return
        file = self.folder / "calls.csv"
        begun = file.exists()
        try:
            with file.open("a", encoding="utf-8", newline="") as out:
                writer = csv.DictWriter(out, COLUMNS)
                if not begun:
                    writer.writeheader()
                writer.writerows(new)
        except OSError as error:
            raise unwritten(file, error) from error

    def end(self, memory: Memory, first: int, row: dict[str, Any]) -> None:
        """A round is complete: its row, and the states of what it asked, from this row of the memory on."""
        self.rounds.append(row)
        if self.folder is None or not self.leads:
            return
        own = range(first, len(memory))
        states = [x for i in own if (x := memory.states[i]) is not None]
        found = {"has": torch.tensor([memory.states[i] is not None for i in own], dtype=torch.bool)}
        found["x"] = torch.stack(states) if states else torch.zeros(0)
        if not memory.domain.texts and len(own):
            found["samples"] = torch.stack([torch.as_tensor(memory.samples[i]) for i in own])
        with whole(self.folder / f"states-{len(self.rounds) - 1:04d}.safetensors") as part:
            save_file({k: v.contiguous().clone() for k, v in found.items()}, part)
        self._write_rounds()

    def back(self) -> None:
        """Forget the last round, which a budget had cut short: it is made again, with its calls known."""
        self.rounds.pop()
        if self.folder is not None and self.leads:
            self._write_rounds()

    def _write_rounds(self) -> None:
        assert self.folder is not None
        _written(self.folder / "rounds.json", json.dumps(without_nan(self.rounds), indent=1))

    def _read(self) -> None:
        """Read what an earlier call left; a line that was cut off is dropped."""
        assert self.folder is not None
        file, rounds = self.folder / "calls.csv", self.folder / "rounds.json"
        if rounds.exists():
            self.rounds = [with_nan(row) for row in _loaded(rounds, _json)]
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        lines = text[: text.rfind("\n") + 1]
        if lines != text and self.leads:
            _written(file, lines)
        self.lines = list(csv.DictReader(lines.splitlines()))
        if self.rounds and self.rounds[-1]["calls"] > len(self.lines):
            raise CheckpointError(
                f"{file} has {len(self.lines)} calls, and rounds.json knows of {self.rounds[-1]['calls']}: the file is "
                "truncated; delete the folder to start anew"
            )


def line(domain: Domain, number: int, sample: Any, call: Call) -> dict[str, str]:
    """A line of the log."""
    own = (str(number), str(call.round), call.proposal, domain.text(sample, number), repr(call.value))
    return dict(zip(COLUMNS, (*own, repr(call.predicted)), strict=True))


def measured(known: Any) -> tuple[list[str] | Any, list[float]]:
    """Samples and values that were measured before: a pair of both, or a CSV file with columns sample (or smiles,
    sequence) and value (or reward, score, y)."""
    if not isinstance(known, (str, Path)):
        try:
            samples, values = known
            values = [float(v) for v in values]
        except (TypeError, ValueError) as error:
            raise ValueError(f"known={known!r:.60}: a CSV file, or a pair (samples, values) is needed") from error
        if len(samples) != len(values):
            raise ValueError(f"known: {len(samples)} samples and {len(values)} values; one value for each is needed")
        return samples, values
    try:
        text = Path(known).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"known={str(known)!r} cannot be read: {error}") from error
    head = text.partition("\n")[0]
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count)))
    columns = list(rows[0]) if rows else []
    sample, value = (next((c for c in columns if c and c.lower() in names), None) for names in (_SAMPLE, _VALUE))
    if sample is None or value is None:
        raise ValueError(
            f"known={str(known)!r} has the columns {', '.join(map(str, columns)) or '(none)'}: one of "
            f"{', '.join(_SAMPLE)} and one of {', '.join(_VALUE)} is needed"
        )
    try:
        return [row[sample] for row in rows], [float(row[value] or "nan") for row in rows]
    except ValueError as error:
        raise ValueError(f"known={str(known)!r}: column {value} holds something that is no number ({error})") from error


_SAMPLE, _VALUE = ("sample", "smiles", "sequence"), ("value", "reward", "score", "y")


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _loaded(file: Path, load: Callable[[Path], Any]) -> Any:
    """What a file of the folder holds."""
    try:
        return load(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} is missing or truncated ({error}). Give calls.csv of its folder as known= to a loop with another "
            "folder, and no call is lost; or delete the folder to start anew"
        ) from error


def _written(file: Path, text: str) -> None:
    """Write a file atomically."""
    with whole(file) as part:
        part.write_text(text, encoding="utf-8")

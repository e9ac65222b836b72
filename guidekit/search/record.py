"""The folder of a search: its settings, every evaluation, and the best candidates so far.

    search.json         what decides the outcome
    evaluations.jsonl   one line for each candidate (round, condition, sample, candidate, worth, scores, and the sample
                        if it is text or a row of tokens), and after each round a line with the cost so far
    best.safetensors    noise, x and rewards of the best candidate of every sample so far
    state*.safetensors  of searches like gradient ascent that do not replay their past rounds

An interrupted search resumes after its last complete round: the strategy replays the past rounds, and texts and tokens
in the log are not scored again.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engine.cost import Cost
from ..engine.describe import difference
from ..engine.whole import check_writable, unwritten, whole
from ..errors import CheckpointError


class Evaluations(NamedTuple):
    """The candidates of a round with their scores, cell by cell and candidate by candidate.

    scores, worth   (cells, k, V) and (cells, k)
    samples         what was scored: texts, or rows of tokens; None for anything else
    cost            of the search so far
    conditions      the indices of those that took part, all with the same number of cells
    numbers         which candidates of each cell these are
    """

    scores: Tensor
    worth: Tensor
    samples: Any
    cost: Cost
    conditions: list[int]
    numbers: list[int]

    @property
    def group(self) -> Tensor:
        """The condition of every candidate."""
        each = self.worth.numel() // len(self.conditions)
        return torch.tensor(self.conditions, device=self.worth.device).repeat_interleave(each)

    def lines(self, number: int) -> list[dict[str, Any]]:
        """The lines of the log, one for each candidate."""
        cells, k = self.worth.shape
        n, samples = cells // len(self.conditions), self.samples
        kind = "tokens" if isinstance(samples, Tensor) else "text"
        given = samples.tolist() if isinstance(samples, Tensor) else samples
        scores, worth, found = self.scores.flatten(0, 1).tolist(), self.worth.flatten().tolist(), []
        for i in range(cells * k):
            cell, candidate = divmod(i, k)
            line = {"round": number, "condition": self.conditions[cell // n], "sample": cell % n}
            line |= {"candidate": self.numbers[candidate], "worth": worth[i], "scores": scores[i]}
            found.append(line if given is None else line | {kind: given[i]})
        return found


@dataclass
class Record:
    """The rounds of a search, in a folder or in memory only."""

    folder: Path | None
    rounds: list[Evaluations] = field(default_factory=list)
    writes: bool = True  # one of several processes does

    @staticmethod
    def open(folder: str | Path | None, config: dict[str, Any], writes: bool = True) -> Record:
        record = Record(None if folder is None else Path(folder), writes=writes)
        if record.folder is None:
            return record
        if writes:
            check_writable(record.file("search.json"))
        config = json.loads(json.dumps(config))
        if record.file("search.json").exists():
            record._expect(config)
            record._read()
        if writes:
            _replace(record.file("search.json"), json.dumps(config, indent=1))
        return record

    def file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def add(self, found: Evaluations) -> None:
        """Append a round."""
        number = len(self.rounds)
        self.rounds.append(found._replace(cost=Cost(**asdict(found.cost))))
        if self.folder is None or not self.writes:
            return
        lines = [{k: _plain(v) for k, v in line.items()} for line in found.lines(number)]
        lines.append({"round": number, "end": list(found.scores.shape), "cost": asdict(found.cost)})
        log = self.file("evaluations.jsonl")
        try:
            with log.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise unwritten(log, error) from error

    def lines(self) -> list[dict[str, Any]]:
        """The lines of all rounds, one for each candidate."""
        return [line for number, found in enumerate(self.rounds) for line in found.lines(number)]

    def keep(self, name: str, tensors: dict[str, Tensor], meta: Any = None) -> None:
        """Write tensors and plain values next to the log, atomically."""
        if self.folder is not None and self.writes:
            own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
            with whole(self.file(f"{name}.safetensors")) as part:
                save_file(own, part, {"meta": json.dumps(meta)})

    def has(self, name: str) -> bool:
        """Whether `keep` wrote it."""
        return self.folder is not None and self.file(f"{name}.safetensors").exists()

    def kept(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """What `keep` wrote."""
        try:
            with safe_open(str(self.file(f"{name}.safetensors")), "pt") as file:
                meta = json.loads((file.metadata() or {})["meta"])
                return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118
        except (SafetensorError, OSError, LookupError, ValueError) as error:
            raise CheckpointError(f"{self.folder}: {name}.safetensors is missing or truncated ({error})") from error

    def _expect(self, config: dict[str, Any]) -> None:
        try:
            before = json.loads(self.file("search.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{self.folder}: search.json is truncated; delete the folder to start anew"
            ) from error
        other = difference(before, config)
        if other:
            was, now = (f"{v!r:.80}" for v in other[1:])
            raise CheckpointError(
                f"{self.folder} is of another search: {other[0]} was {was} and is {now} now; give this one another "
                "folder, or delete that one"
            )

    def _read(self) -> None:
        """Read complete rounds; a partly written one is cut off."""
        log, done, rows = self.file("evaluations.jsonl"), 0, []
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        lines = text.splitlines(keepends=True)
        for i, line in enumerate(lines):
            try:
                row = json.loads(line) if line.endswith("\n") else {}
            except ValueError as error:
                raise CheckpointError(f"{log}, line {i + 1} is no JSON; delete the folder to start anew") from error
            if "end" in row:
                self.rounds.append(_evaluations(rows, row))
                rows, done = [], i + 1
            elif "scores" in row:
                rows.append(row)
        if done < len(lines) and self.writes:
            _replace(log, "".join(lines[:done]))


def _evaluations(rows: list[dict[str, Any]], end: dict[str, Any]) -> Evaluations:
    """A round, read from its lines and the one that ends it."""
    cells, k, _ = end["end"]
    scores = torch.tensor([[_number(v) for v in row["scores"]] for row in rows], dtype=torch.float64)
    worth = torch.tensor([-math.inf if row["worth"] is None else row["worth"] for row in rows], dtype=torch.float64)
    kind = next((kind for kind in ("text", "tokens") if kind in rows[0]), None)
    samples = None if kind is None else [row[kind] for row in rows]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    return Evaluations(
        scores.reshape(end["end"]),
        worth.reshape(cells, k),
        torch.tensor(samples) if kind == "tokens" else samples,
        Cost(**end["cost"]),
        conditions,
        [row["candidate"] for row in rows[:k]],
    )


def _number(v: float | None) -> float:
    return math.nan if v is None else v


def _plain(v: Any) -> Any:
    """The value with None for numbers that JSON does not have, which becomes null."""
    if isinstance(v, list):
        return [_plain(x) for x in v]
    return None if isinstance(v, float) and not math.isfinite(v) else v


def _replace(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    with whole(file) as part:
        part.write_text(text, encoding="utf-8")

"""The folder of a search: what it is, every evaluation, and the best so far.

    search.json         what decides the outcome
    evaluations.jsonl   one line for each candidate (round, condition, sample, candidate, worth, scores and, where it is
                        text, what was scored), and a line with the cost so far behind each round
    best.safetensors    noise, x and rewards of the best candidate of every sample so far
    state*.safetensors  of a gradient search, which cannot be told its past again

A search that was killed goes on after its last whole round: the strategy is asked and told again what it was told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..engine.describe import difference
from ..engine.scoring import Cost
from ..errors import CheckpointError


@dataclass
class Record:
    """The rounds of a search, in a folder or nowhere."""

    folder: Path | None
    rounds: list[tuple[Tensor, Cost]] = field(default_factory=list)  # scores (cells, k, V) and the cost so far

    @staticmethod
    def open(folder: str | Path | None, config: dict[str, Any]) -> Record:
        record = Record(None if folder is None else Path(folder))
        if record.folder is None:
            return record
        record.folder.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(config))
        if record.file("search.json").exists():
            record._expect(config)
            record._read()
        _replace(record.file("search.json"), json.dumps(config, indent=1))
        return record

    def file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def add(
        self,
        scores: Tensor,
        worth: Tensor,
        texts: list[str] | None,
        cost: Cost,
        n: int,
        conditions: Sequence[int],
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Append a round of these conditions; `texts` are cell by cell, `numbers` those of the candidates of each."""
        number = len(self.rounds)
        self.rounds.append((scores, Cost(**asdict(cost))))
        if self.folder is None:
            return
        lines, k = [], scores.shape[1]
        for i, (row, value) in enumerate(zip(scores.flatten(0, 1).tolist(), worth.flatten().tolist(), strict=True)):
            cell, candidate = divmod(i, k)
            candidate = candidate if numbers is None else numbers[candidate]
            line = {"round": number, "condition": conditions[cell // n], "sample": cell % n, "candidate": candidate}
            line |= {"worth": _plain(value), "scores": [_plain(v) for v in row]}
            lines.append(line if texts is None else line | {"text": texts[i]})
        lines.append({"round": number, "end": list(scores.shape), "cost": asdict(cost)})
        with self.file("evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))

    def keep(self, name: str, tensors: dict[str, Tensor], meta: Any = None) -> None:
        """Write tensors and plain values beside the log, whole or not at all."""
        if self.folder is not None:
            part = self.file(f"{name}.part")
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, {"meta": json.dumps(meta)}
            )
            part.replace(self.file(f"{name}.safetensors"))

    def kept(self, name: str) -> tuple[dict[str, Tensor], Any]:
        """What `keep` wrote."""
        try:
            with safe_open(str(self.file(f"{name}.safetensors")), "pt") as file:
                meta = json.loads((file.metadata() or {})["meta"])
                return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118
        except (SafetensorError, OSError, LookupError, ValueError) as error:
            raise CheckpointError(f"{self.folder}: {name}.safetensors is missing or truncated ({error})") from error

    def _expect(self, config: dict[str, Any]) -> None:
        other = difference(json.loads(self.file("search.json").read_text(encoding="utf-8")), config)
        if other:
            was, now = (f"{v!r:.80}" for v in other[1:])
            raise CheckpointError(
                f"{self.folder} is of another search: {other[0]} was {was} and is {now} now; give this one another "
                "folder, or delete that one"
            )

    def _read(self) -> None:
        """Whole rounds; a round that was being written is cut off."""
        log, whole, rows = self.file("evaluations.jsonl"), 0, []
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        lines = text.splitlines(keepends=True)
        for i, line in enumerate(lines):
            try:
                row = json.loads(line) if line.endswith("\n") else {}
            except ValueError as error:
                raise CheckpointError(f"{log}, line {i + 1} is no JSON; delete the folder to start anew") from error
            if "end" in row:
                scores = torch.tensor(rows, dtype=torch.float64).reshape(row["end"])
                self.rounds.append((scores, Cost(**row["cost"])))
                rows, whole = [], i + 1
            elif "scores" in row:
                rows.append([math.nan if v is None else v for v in row["scores"]])
        if whole < len(lines):
            _replace(log, "".join(lines[:whole]))


def _plain(v: float) -> float | None:
    return v if math.isfinite(v) else None


def _replace(file: Path, text: str) -> None:
    """Write a file beside the old one and move it over it."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)

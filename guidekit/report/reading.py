"""Read an output directory. Everything except result/ may be missing; a broken file raises an error that names it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.result import Result, load_result
from .recorder import FORMAT, survivors

_PNG = "data:image/png;base64,"


@dataclass(frozen=True)
class Lineage:
    """lineage.json: the clean estimates of ancestors at some steps. rows: each survivor's node at every moment."""

    steps: list[int]
    t: list[float]
    nodes: list[list[dict[str, Any]]]
    rows: dict[int, list[int]]


@dataclass(frozen=True)
class Output:
    """An output directory. table holds the extra columns of samples.csv, or of designs.csv, by row of the result;
    screened are the samples with which a design is compared, and laws what gk.check found."""

    path: Path
    result: Result
    base: Result | None = None
    best: Result | None = None
    screened: Result | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    table: dict[int, dict[str, str]] = field(default_factory=dict)
    lineage: Lineage | None = None
    config: str = ""
    laws: list[dict[str, str]] = field(default_factory=list)


def read(folder: str | Path) -> Output:
    """Read everything in the folder."""
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such folder; give the output directory of a run")
    result = _result(path / "result")
    table = next((path / name for name in _TABLES if (path / name).exists()), path / _TABLES[0])
    return Output(
        path,
        result,
        base=_result(path / "base") if (path / "base").exists() else None,
        best=_result(path / "best_of_n") if (path / "best_of_n").exists() else None,
        screened=_result(path / "screening" / "result") if (path / "screening" / "result").exists() else None,
        summary=_parsed(path / "summary.json", _summary) or {},
        table=_parsed(table, lambda text: _table(text, result)) or {},
        lineage=_parsed(path / "lineage.json", lambda text: _lineage(text, result)),
        config=_parsed(path / "run.toml", str) or "",
        laws=_parsed(path / "check.json", _laws) or [],
    )


def _result(path: Path) -> Result:
    result = load_result(path)
    if result.groups < 1 or len(result.samples) != len(result) or len(result) % result.groups:
        raise ValueError(f"{path}: {len(result)} rows and {len(result.samples)} samples in {result.groups} groups")
    return result


def _parsed(file: Path, parse: Callable[[str], Any]) -> Any:
    if not file.exists():
        return None
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(
            f"{file} is broken or of another version ({type(error).__name__}: {error}); "
            "run again, or delete the file for a report without it"
        ) from error


_SUMMARY: dict[str, type] = {
    "domain": str, "measure": str, "model": str, "reward": str, "title": str, "version": str, "bibtex": str,
    "components": list, "guides": list, "columns": list, "rows": list, "warnings": list, "constant": list,
    "reconstructed": list,
    "better": dict, "weights": dict,
}  # fmt: skip


def _summary(text: str) -> dict[str, Any]:
    found = json.loads(text)
    for key, kind in _SUMMARY.items():
        if key in found and not isinstance(found[key], kind):
            raise TypeError(f"{key!r} is {type(found[key]).__name__}, not {kind.__name__}")
    if not all(isinstance(row, dict) and isinstance(row["name"], str) for row in found.get("rows", [])):
        raise TypeError("'rows' are objects with a name")
    return found


def _laws(text: str) -> list[dict[str, str]]:
    return [{key: str(row[key]) for key in ("law", "verdict", "found")} for row in json.loads(text)]


_TABLES = ("designs.csv", "samples.csv")
_KNOWN = {"row", "condition", "sample", "reward", "holdout", "log_weight", "weight"}


def _table(text: str, result: Result) -> dict[int, dict[str, str]]:
    """The columns of the table that are not in the result, by row."""
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) != len(result):
        raise ValueError(f"{len(rows)} rows where the result has {len(result)}")
    found = {int(row["row"]): {k: v or "" for k, v in row.items() if k and k not in _KNOWN} for row in rows}
    if sorted(found) != list(range(len(result))):
        raise ValueError("its column 'row' does not number the rows of the result from 0 on")
    return found


def _lineage(text: str, result: Result) -> Lineage:
    found = json.loads(text)
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']!r}, this version reads {FORMAT!r}")
    rows = {int(row): list(nodes) for row, nodes in found["rows"].items()}
    made = Lineage(list(found["steps"]), [float(t) for t in found["t"]], found["nodes"], rows)
    if len(result.ancestors) != found["total"] or not set(rows) <= set(range(len(result))):
        raise ValueError("it belongs to another run than result/")
    if not len(made.steps) == len(made.t) == len(made.nodes) or sorted(rows) != sorted(survivors(result)):
        raise ValueError("moments or samples are missing")
    ancestors = result.lineage()
    for i, (step, nodes) in enumerate(zip(made.steps, made.nodes, strict=True)):
        wrong = [r for r, path in rows.items() if nodes[path[i]]["row"] != int(ancestors[step, r])]
        if wrong:
            raise ValueError(f"the ancestor of sample {wrong[0]} at step {step} is another one in result/")
        for node in nodes:
            reward = node["reward"]
            node["reward"] = math.nan if reward is None else float(reward)
            if not isinstance(node.get("text", ""), str) or not str(node.get("image", _PNG)).startswith(_PNG):
                raise TypeError(f"a node that is neither text nor a PNG: {str(node)[:80]}")
    return made


def value(text: str) -> float | str:
    """The text as a number if it is one."""
    try:
        return float(text)
    except ValueError:
        return text

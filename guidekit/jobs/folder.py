"""The output folder of a run: whose it is, making it, reading it, clearing it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.result import Result, load_result
from ..errors import CheckpointError
from ..report import table as comparison
from .config import Config
from .specs import ConfigError

FOLDERS = ("result", "base", "best_of_n", "search")


_FILES = (
    "run.toml", "samples.csv", "samples.smi", "samples.sdf", "samples.fasta", "grid.png", "summary.json",
    "lineage.json", "report.html", "run.log", "checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a run gave. summary is the content of summary.json; folder is None where nothing was written."""

    result: Result
    summary: dict[str, Any]
    base: Result | None = None
    best_of_n: Result | None = None
    folder: Path | None = None
    new: bool = True

    @property
    def table(self) -> str:
        """The table as text."""
        return comparison.text(named(self.summary), self.summary["columns"])


def check_folder(out: Path, config: Config, overwrite: bool) -> None:
    """Raise unless the folder is new, empty or of this run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder")
    file = out / "run.toml"
    if not file.exists():
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no run.toml; give a new folder")
        return
    if overwrite:
        return
    was, now = (replace(c, batch_size=None, title=None) for c in (Config.load(file), config))
    if was != now:
        key = next(k for k in vars(now) if getattr(was, k) != getattr(now, k))
        raise ConfigError(
            f"{out} holds another run: {key} was {getattr(was, key)!r} and is {getattr(now, key)!r} now; give another "
            "folder, or --overwrite (overwrite=True) to delete that run"
        )


def make_folder(out: Path, config: Config, overwrite: bool) -> None:
    """The folder with its run.toml."""
    try:
        if overwrite:
            clear(out)
        out.mkdir(parents=True, exist_ok=True)
        config.save(out / "run.toml")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error


def clear(out: Path) -> None:
    """Delete a run from its folder, and nothing else that is there."""
    if not (out / "run.toml").exists():
        return
    for name in (*FOLDERS, *(f".{name}.part" for name in FOLDERS)):
        shutil.rmtree(out / name, ignore_errors=True)
    for file in (out / "images").glob("[0-9]*.png"):
        file.unlink()
    for name in reversed(_FILES):  # run.toml last: it says whose the folder is
        (out / name).unlink(missing_ok=True)


def load(out: Path) -> Outcome:
    """Read an output directory."""
    base, best = (load_result(out / name) if (out / name).exists() else None for name in FOLDERS[1:3])
    return Outcome(load_result(out / "result"), summary_of(out), base, best, out)


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, whole or not at all; it says that the run is finished."""
    part = out / ".summary.part"
    part.write_text(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    os.replace(part, out / "summary.json")


def retitle(out: Path, title: str) -> bool:
    """Give a finished run another title; False where it has this one already."""
    summary = summary_of(out)
    if summary.get("title") == title:
        return False
    replace(Config.load(out / "run.toml"), title=title).save(out / "run.toml")
    write_summary(out, summary | {"title": title})
    return True


def named(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table with the N of best-of-N."""
    number = summary.get("best_of") or "N"
    return [row | {"name": row["name"].replace("best of N", f"best of {number}")} for row in summary["rows"]]


def summary_of(out: Path) -> dict[str, Any]:
    """The table of an output directory."""
    try:
        found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        if not isinstance(found["rows"], list) or not isinstance(found["columns"], list):
            raise TypeError("rows and columns are lists")
        return found
    except FileNotFoundError as error:
        raise ConfigError(f"{out} holds no finished run: there is no summary.json") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{out / 'summary.json'} cannot be read: {error}") from error

"""The output folder of a run: which run it belongs to, making it, reading it, clearing it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.result import Result, load_result
from ..errors import CheckpointError
from ..report import reconstructed, table as comparison
from .config import Config
from .specs import ConfigError

FOLDERS = ("result", "base", "best_of_n", "search")
LOCK = ".lock"
_OF_RESULT = (
    "samples.csv", "samples.smi", "samples.sdf", "samples.fasta", "grid.png", "summary.json", "lineage.json",
    "report.html", "run.log", "checkpoint", "check.json", reconstructed.TABLE,
)  # fmt: skip
_FILES = ("run.toml", *_OF_RESULT)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run. summary is the content of summary.json; folder is None if nothing was written."""

    result: Result
    summary: dict[str, Any] = field(repr=False)
    base: Result | None = None
    best_of_n: Result | None = None
    folder: Path | None = None
    new: bool = True

    @property
    def table(self) -> str:
        """The table as text."""
        return comparison.text(name_rows(self.summary), self.summary["columns"])


# which run it belongs to ---------------------------------------------------------------------------------------------


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """Lock the folder, which is made if necessary, so that no other process writes to it.

    The lock is the operating system's, on the file .lock: it is released when the process ends, in whatever way. A
    folder that remains empty is removed again.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = _lock(out / LOCK)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written to: {error.strerror or error}") from error
    try:
        yield
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(file)
        for folder in made:
            if not folder.is_dir() or any(folder.iterdir()):
                break
            folder.rmdir()


def _lock(path: Path) -> int:
    """Open and lock a file, whose text then names the process that holds it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _hold(file, path)
        except BaseException:
            os.close(file)
            raise
        if _is_at(file, path):
            break
        os.close(file)  # the process that held it has just removed it
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _hold(file: int, path: Path) -> None:
    """Lock the open file, or raise an error that names the process that holds it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = path.read_text(encoding="utf-8").strip() or "another process"
        raise ConfigError(
            f"{path.parent} is in use by {who}; wait until it has finished, or give another folder"
        ) from error
    except OSError:
        warnings.warn(f"{path.parent} is on a file system without locks; do not start a second run in it")


def check_folder(out: Path, config: Config, overwrite: bool) -> None:
    """Raise unless the folder is new, empty or from this run. Searches of different lengths are the same run."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, and a folder is needed")
    if not (out / "run.toml").exists():
        if out.exists() and any(entry.name != LOCK for entry in out.iterdir()):
            raise ConfigError(f"{out} is not empty and has no run.toml; give a new folder")
        return
    if overwrite:
        return
    was, now = Config.load(out / "run.toml"), config
    key = _difference(was, now)
    if key is not None:
        raise ConfigError(
            f"{out} holds another run: {key} was {getattr(was, key)!r} and is now {getattr(now, key)!r}; give another "
            "folder, or delete the old run with --overwrite (overwrite=True)"
        )


def _difference(was: Config, now: Config) -> str | None:
    """A key in which two runs differ, apart from their titles, micro-batches, compilation and the length of a
    search."""
    a, b = (vars(c) | {"search": _endless(c)} for c in (was, now))
    return next((k for k in a if k not in ("title", "batch_size", "budget", "compile") and a[k] != b[k]), None)


def _endless(config: Config) -> Any:
    """The search without its number of rounds."""
    from .names import make_search

    if config.search is None:
        return None
    make, options = make_search(config.search)
    return make, {k: v for k, v in options.items() if k != "rounds"}


def is_continued(out: Path, config: Config) -> bool:
    """Whether the folder holds this search with another length."""
    if config.search is None or not (out / "run.toml").exists():
        return False
    was = Config.load(out / "run.toml")
    return (was.search, was.budget) != (config.search, config.budget)


# making and clearing it ----------------------------------------------------------------------------------------------


def make_folder(out: Path, config: Config, overwrite: bool) -> None:
    """Make the folder with its run.toml, in which paths of Python files are relative to the folder."""
    try:
        if overwrite:
            clear(out)
        elif is_continued(out, config):
            reopen(out)
        out.mkdir(parents=True, exist_ok=True)
        config.relative(out).save(out / "run.toml")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written to: {error.strerror or error}") from error


def reopen(out: Path) -> None:
    """Delete the results of a search but keep its evaluations, from which it continues."""
    (out / "summary.json").unlink(missing_ok=True)  # first, since it marks the run as finished
    for name in ("result", "best_of_n"):
        shutil.rmtree(out / name, ignore_errors=True)
    _clear_files(out, _OF_RESULT)


def clear(out: Path) -> None:
    """Delete a run from its folder, and no other files."""
    if not (out / "run.toml").exists():
        return
    for name in (*FOLDERS, *(f".{name}.part" for name in FOLDERS)):
        shutil.rmtree(out / name, ignore_errors=True)
    _clear_files(out, _FILES)


def _clear_files(out: Path, names: tuple[str, ...]) -> None:
    for file in (out / reconstructed.FOLDER).glob("*"):
        file.unlink()
    for file in (out / "images").glob("[0-9]*.png"):
        file.unlink()
    for file in out.glob("checkpoint.*"):  # of pilot and further runs
        file.unlink()
    for name in reversed(names):  # run.toml last: it says which run the folder belongs to
        (out / name).unlink(missing_ok=True)


def share_modes(out: Path) -> None:
    """Give tensor files, which only their owner may read at first, the permissions of the other files."""
    for file in (file for name in FOLDERS for file in (out / name).glob("*.safetensors")):
        shutil.copymode(out / "run.toml", file)


# reading it ----------------------------------------------------------------------------------------------------------


def load(out: Path) -> Outcome:
    """Read an output folder."""
    base, best = (load_result(out / name) if (out / name).exists() else None for name in FOLDERS[1:3])
    return Outcome(load_result(out / "result"), load_summary(out), base, best, out)


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, completely or not at all; it marks the run as finished."""
    part = out / ".summary.part"
    part.write_text(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    os.replace(part, out / "summary.json")


def retitle(out: Path, title: str) -> bool:
    """Give a finished run another title; False if it has this one already."""
    summary = load_summary(out)
    if summary.get("title") == title:
        return False
    replace(Config.load(out / "run.toml"), title=title).relative(out).save(out / "run.toml")
    write_summary(out, summary | {"title": title})
    return True


def name_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table, with the N of best-of-N in their names."""
    number = summary.get("best_of") or "N"
    return [row | {"name": row["name"].replace("best of N", f"best of {number}")} for row in summary["rows"]]


def load_summary(out: Path) -> dict[str, Any]:
    """The content of summary.json."""
    try:
        found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        if not isinstance(found["rows"], list) or not isinstance(found["columns"], list):
            raise TypeError("rows and columns are lists")
        return found
    except FileNotFoundError as error:
        raise ConfigError(f"{out} holds no finished run: there is no summary.json") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{out / 'summary.json'} cannot be read: {error}") from error

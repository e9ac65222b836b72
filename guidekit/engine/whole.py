"""Files that are whole or absent: written beside the old one, whose place they take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """Context that gives the path to write to; at its end that file becomes `file`. On a full disk, or where nothing
    can be written, the old file stays as it is."""
    part = file.with_name(f"{file.name}.part")
    try:
        yield part
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise unwritten(file, error) from error


def check_writable(file: Path) -> None:
    """Raise where a file cannot be written, before a run finds it out."""
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise unwritten(file, error) from error


def unwritten(file: Path, error: Exception) -> CheckpointError:
    """What to say of a file that could not be written."""
    return CheckpointError(
        f"{file} could not be written ({error}): is the disk full, or its folder read-only? What was saved before is "
        "as it was, and the same call continues from there"
    )

"""The finished runs of several folders as one, in a new folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from ..engine.join import join
from ..engine.result import Result, load_result
from ..engine.whole import unwritten
from ..report import export
from .config import Config
from .folder import load_summary
from .specs import ConfigError


def merge(folders: Sequence[Path], out: Path) -> Result:
    """Write OUT/result and the samples of all folders in the formats of their domain. Weights and log Z are those of
    `gk.join`; scores of single rewards stay in the folders."""
    if len(folders) < 2:
        raise ConfigError("merge takes two folders at least")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty: give a new folder")
    domains = [load_summary(folder)["domain"] for folder in folders]
    try:
        whole = join([load_result(folder / "result") for folder in folders])
    except ValueError as error:
        names = ", ".join(f"{i} is {folder}" for i, folder in enumerate(folders))
        raise ConfigError(f"{error} ({names})") from error
    try:
        whole.save(out / "result")
        export.write(out, whole, domains[0], {}, Config.load(folders[0] / "run.toml").cond or (None,))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(out, ignore_errors=True)  # it was new
        raise unwritten(out, error) from error
    return whole

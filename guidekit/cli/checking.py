"""`guidekit check`: the laws of `gk.check`, on a model and guides that are named."""

from __future__ import annotations

from pathlib import Path

from ..jobs import inputs
from ..jobs.config import Config
from ..jobs.job import prepare
from ..jobs.specs import ConfigError
from ..report import write
from ..search.check import LEAST, Check, check


def checked(config: Config, data: Path | None, draws: int, out: Path | None) -> Check:
    """The table, which goes into an output folder too. The report of a run that lies there is written again with it."""
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file, and a folder is needed")
    job = prepare(config)
    states = None if data is None else inputs.states(data, job.domain, job.model, "data")
    if states is not None and len(states) < LEAST:
        raise ConfigError(
            f"data {str(data)!r} holds {len(states)} samples: {LEAST} are needed, and better some hundreds"
        )
    found = check(job.model, *job.guides, data=states, cond=list(config.cond) or None, draws=draws,
                  steps=config.steps, n=config.n, seed=config.seed)  # fmt: skip
    if out is not None:
        found.save(out)
        if (out / "result").is_dir():
            write(out)
    return found

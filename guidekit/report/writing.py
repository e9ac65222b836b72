"""Write an output directory with its report for a result made in Python."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import guidekit as gk
from rewards.base import needs

from ..engine.guide import Guide
from ..engine.result import Result
from ..search.check import Check
from .page import write
from .recorder import Recorder, replaced


def write_result(
    result: Result,
    folder: str | Path,
    *,
    base: Result | None = None,
    best_of_n: Result | None = None,
    recorder: Recorder | None = None,
    model: str = "",
    reward: str = "",
    guides: Iterable[Guide] = (),
    title: str = "",
    check: Check | None = None,
) -> Path:
    """Save a result into `folder` with its report.html, which is returned.

    base, best_of_n   results to compare with: of the same model without guides, and the best of more samples
    recorder          the callback of the run that recorded its clean estimates
    model, reward     their names, for the page
    guides            the guides of the run, to be named and cited
    title             of the page; by default it names the model and the reward
    check             what gk.check found of the model

        base = gk.sample(model, 64, reward=reward)
        result = gk.sample(model, 64, guides=guides, callbacks=[recorder])
        write_result(result, "out", base=base, recorder=recorder, guides=guides)
    """
    needs("jinja2", "report", "a report")
    folder, listed = Path(folder), list(guides)
    made = {"result": result, "base": base, "best_of_n": best_of_n}
    given = made | {"lineage.json": recorder, "check.json": check}
    _refuse_stale(folder, {k for k, v in given.items() if v is not None})
    for name, one in made.items():
        if one is not None:
            one.save(folder / name)
    if recorder is not None:
        recorder.save(folder, result)
    if check is not None:
        check.save(folder)
    summary = {
        "title": title,
        "model": model,
        "reward": reward,
        "guides": [type(g).__name__ for g in listed],
        "version": gk.__version__,
        "bibtex": gk.cite(listed),
    }
    replaced(folder / "summary.json", json.dumps(summary, indent=1))
    return write(folder)


def _refuse_stale(folder: Path, written: set[str]) -> None:
    """Raise if the folder has parts of an earlier run, which would be shown with this result."""
    parts = ("base", "best_of_n", "lineage.json", "samples.csv", "run.toml", "check.json")
    old = [name for name in parts if name not in written and (folder / name).exists()]
    if old:
        raise FileExistsError(f"{folder} has {', '.join(old)} of another run; give an empty folder, or delete them")

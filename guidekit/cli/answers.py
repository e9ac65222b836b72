"""How a command answers: results on stdout, everything else on stderr, and an exit code.

0     success
1     the run failed
2     the request was wrong, and nothing has run
75    stopped at its time limit: the same command goes on
130   interrupted by Ctrl-C
143   stopped by SIGTERM
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..jobs.specs import ConfigError
from .stopping import Stopped, stoppable

if TYPE_CHECKING:
    from ..jobs.folder import Outcome

_BEST = 5  # number of samples that are printed if no files are written


@contextmanager
def answered(debug: bool = False, out: Path | None = None, limit: str | None = None) -> Iterator[None]:
    """Turn errors into one line and an exit code; with `debug` they are raised unchanged. After the time limit the run
    is stopped."""
    try:
        with stoppable(limit):
            yield
    except (typer.Exit, typer.Abort):
        raise
    except Stopped as stopped:
        _say(_stopped(out).replace("stopped", stopped.why, 1))
        raise typer.Exit(stopped.code) from None
    except KeyboardInterrupt:
        _say(_stopped(out))
        raise typer.Exit(130) from None
    except Exception as error:
        if debug:
            raise
        wrong = isinstance(error, (ConfigError, ImportError))
        _say(f"error: {error}" if wrong or not _nameless(error) else f"error: {type(error).__name__}: {error}")
        raise typer.Exit(2 if wrong else 1) from None


@contextmanager
def alone(command: str) -> Iterator[None]:
    """Context of a command that processes cannot share: under torchrun each of them would do all of it."""
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise ConfigError(
            f"guidekit {command} works in one process, and torchrun has started {os.environ['WORLD_SIZE']}: start it "
            "without torchrun"
        )
    yield


def _nameless(error: Exception) -> bool:
    """Whether the message alone would be puzzling, so that the type of the error is shown too."""
    return not str(error) or isinstance(error, (KeyError, IndexError, AttributeError, AssertionError, TypeError))


def _stopped(out: Path | None) -> str:
    kept = out is not None and any((out / n).exists() for n in ("checkpoint", "result", "search", "calls.csv"))
    return f"stopped; progress is saved in {out}, and the same command resumes there" if kept else "stopped"


def _say(text: str) -> None:
    typer.echo(text, err=True)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    _say(f"warning: {text}")


def show(outcome: Outcome, as_json: bool, told: Sequence[str] = ()) -> None:
    """Print the table, or summary.json, on stdout; on stderr the warnings not yet shown, and where the files are."""
    for text in outcome.summary["warnings"] if outcome.new else []:
        if text not in told:
            warn(text)
    if as_json:
        return put(outcome.summary)
    typer.echo(outcome.table)
    if rows := outcome.summary.get("reconstructed"):
        typer.echo(f"\n{numbers(rows)}")
    if found := outcome.summary.get("strength"):
        _say(f"alpha {found['alpha']:.4g}, by a pilot run: KL {found['kl']:.3g} nats from the model")
    if outcome.folder is None:
        return _best(outcome)
    if not outcome.new:
        _say(f"{outcome.folder} already holds this run, so nothing was done; --overwrite repeats it")
    return written(outcome.folder)


def listed(rows: Sequence[dict[str, Any]]) -> str:
    """Samples with their numbers as text: the numbers in columns, the sample at the end of each line."""
    from ..report.table import shown

    names = [k for k in rows[0] if k not in ("row", "sample", "proposal")] if rows else []
    cells = [names, *([shown(row[k]) for k in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    samples = ["sample", *(str(row["sample"]) for row in rows)]
    columns = ["  ".join(v.rjust(w) for v, w in zip(c, widths, strict=True)) for c in cells]
    return "\n".join(f"{line}  {sample}" for line, sample in zip(columns, samples, strict=True))


def numbers(rows: Sequence[dict[str, Any]]) -> str:
    """Named rows of numbers as text."""
    from ..report.table import text

    return text(rows, list(rows[0])[1:])


def written(folder: Path) -> None:
    """Say where the files are, on stderr."""
    page = folder / "report.html"
    _say(f"written to {folder}" + (f", see {page}" if page.exists() else ""))


def _best(outcome: Outcome) -> None:
    """Print the best samples, if they are texts."""
    result = outcome.result
    if isinstance(result.samples, list) and result.rewards is not None:
        typer.echo("")
        size = len(result) // result.groups
        best = result.best(min(_BEST, size))
        assert best.rewards is not None
        for reward, sample in zip(best.rewards.tolist(), best.samples, strict=True):
            typer.echo(f"{reward:.3f}  {sample}")


def put(value: Any) -> None:
    """Print JSON on stdout, in ASCII."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")


def lines(pairs: Sequence[tuple[str, str]], indent: str = "  ") -> str:
    """Names and their descriptions, one per line."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{indent}{name.ljust(width)}  {text}".rstrip() for name, text in pairs)

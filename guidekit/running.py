"""What a `Config` does: checks, the run itself, what it is compared with, and the output directory.

    OUT/run.toml       the run; `guidekit run OUT/run.toml --out OTHER` does it again
    OUT/result/        the samples; OUT/base/ and OUT/best_of_n/ those that they are compared with
    OUT/samples.csv    every sample with its numbers; and the formats of the domain
    OUT/summary.json   the table
    OUT/lineage.json   how the samples came about; OUT/report.html shows it
    OUT/run.log        warnings and counts
    OUT/checkpoint     while the run is unfinished; OUT/search/ has the evaluations of a search

Every stage that is done is kept, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import Reward, RewardWarning

from . import __version__, comparison, export, sources
from .citing import cite
from .config import Config
from .errors import CheckpointError
from .guides.base import Guide
from .guides.best_of_n import BestOfN
from .models.base import Model
from .process import Gaussian
from .progress import Watched, wanted
from .result import Result, load_result
from .run import Run
from .sampling import sample
from .search import Budget
from .search.core import Search
from .solvers import Solver
from .specs import Call, ConfigError, call, displayed, options_of

_FOLDERS = ("result", "base", "best_of_n", "search")
_FILES = (
    "run.toml", "samples.csv", "samples.smi", "samples.sdf", "samples.fasta", "grid.png", "summary.json",
    "lineage.json", "report.html", "run.log", "checkpoint",
)  # fmt: skip
_EXAMPLES: dict[str, Any] = {"molecules": ["CCO"], "dna": ["ACGT" * 50]}


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


@dataclass(frozen=True)
class Job:
    """A config with everything that it names. Making it calls no network."""

    config: Config
    model: Model
    domain: str | None
    parts: list[sources.Component]
    reward: Reward | None
    holdout: Reward | None
    guides: list[Guide]
    solver: Solver | None
    search: tuple[Callable[..., Any], dict[str, Any]] | None

    @property
    def row(self) -> str:
        """What the table calls it."""
        return "steered" if self.guides or self.search is not None else "unguided"

    @property
    def given(self) -> dict[str, Any]:
        """What all runs of the comparison share, for gk.sample and gk.search."""
        c = self.config
        return {
            "steps": c.steps, "cond": list(c.cond) or None, "solver": self.solver, "seed": c.seed,
            "batch_size": c.batch_size, "holdout": self.holdout,
        }  # fmt: skip


def run(
    config: Config,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    report: bool = False,
    progress: bool | None = None,
) -> Outcome:
    """Do what a config says.

    out         the output directory; None writes nothing
    overwrite   delete the other run that is there
    report      write report.html too
    progress    show bars; None shows them where somebody watches
    """
    config = config.rooted(Path.cwd())
    if out is not None:
        out = Path(out)
        _free(out, config, overwrite)
        if (out / "summary.json").exists() and not overwrite:
            return _finished(out, report)
    if report:
        from rewards.base import needs

        needs("jinja2", "report", "a report")
    job = prepare(config)
    if out is not None:
        _begun(out, config, overwrite)
    shown = wanted() if progress is None else progress
    before, Watched.shown = Watched.shown, shown
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcome = _done(job, out, shown, caught)
    finally:
        Watched.shown = before
    if out is not None and report:
        _report(out)
    return outcome


def prepare(config: Config) -> Job:
    """Everything that the config names; what is wrong with it is a ConfigError."""
    try:
        return _prepared(config)
    except (ValueError, TypeError, ImportError, RuntimeError, LookupError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def _prepared(config: Config) -> Job:
    model, domain = sources.model_of(config.model, _device(config.device))
    parts = sources.components(config.rewards)
    reward = sources.total(parts)
    guides = [sources.guide_of(text, reward) for text in config.guides]
    reward = reward or next((r for g in guides if (r := getattr(g, "reward", None)) is not None), None)
    judges = _holdout(config.holdout)
    domains = [c.domain for c in (*parts, *judges) if c.domain is not None]
    for component in (*parts, *judges):
        if None not in (component.domain, config.domain or domain) and component.domain != (config.domain or domain):
            raise ConfigError(
                f"the reward {component.name!r} scores {component.domain}, and the model {config.model!r} makes "
                f"{config.domain or domain}"
            )
    job = Job(
        config, model, config.domain or domain or (domains[0] if domains else None), parts, reward,
        judges[0].raw if judges else None, guides, None if config.solver is None else sources.solver_of(config.solver),
        _search(config, reward),
    )  # fmt: skip
    _checked(job)
    for component in (*parts, *judges):
        _tried(component, model)
    return job


def _device(name: str | None) -> str:
    there = torch.cuda.is_available()
    if name is not None and name.startswith("cuda") and not there:
        raise ConfigError(f"device = {name!r}: torch sees no GPU here; take cpu")
    try:
        return str(torch.device(name or ("cuda" if there else "cpu")))
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: cpu, cuda or cuda:1 is needed") from error


def _holdout(text: str | None) -> list[sources.Component]:
    if text is None:
        return []
    found = sources.components([text])
    if found[0].weight != 1:
        raise ConfigError(f"holdout = {text!r}: it takes no part in the run, and so it has no weight")
    return found


def _search(config: Config, reward: Reward | None) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    if config.search is None:
        return None
    if reward is None:
        raise ConfigError("a search needs a reward: name one")
    make, options = sources.search_of(config.search)
    if config.budget is None:
        return make, options
    return make, options | {"budget": call(Budget, Call("budget", (), options_of(config.budget)))}


def _checked(job: Job) -> None:
    """The checks of the engine, which come before the first network call."""
    if job.search is not None:
        make, options = job.search
        given: Any = job.given | {k: v for k, v in options.items() if k == "over"} | {"guides": job.guides}
        Search(job.model, job.config.n, job.reward, given, make.__name__, {})
    else:
        Run(job.model, job.config.n, **job.given, guides=job.guides, reward=job.reward)
    if job.config.domain is not None:
        text = isinstance(job.model.decode(_state(job.model)), list)
        if (job.domain in ("molecules", "dna")) != text and job.domain != "other":
            raise ConfigError(f"domain = {job.domain!r}: samples of the model are {'texts' if text else 'tensors'}")


def _state(model: Model) -> Tensor:
    """One state of zeros, or of the first token."""
    dtype = model.dtype if isinstance(model.process, Gaussian) else torch.long
    return torch.zeros(1, *model.shape, dtype=dtype, device=model.device)


def _tried(component: sources.Component, model: Model) -> None:
    """Score one sample, so that a package that is missing is told of before the run. Rewards of one's own are not."""
    if not component.own or component.domain is None:
        return
    example = _EXAMPLES.get(component.domain)
    if example is None:
        example = model.decode(_state(model))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RewardWarning)
        component.raw(example)


# the runs ------------------------------------------------------------------------------------------------------------


def _done(job: Job, out: Path | None, shown: bool, caught: list[warnings.WarningMessage]) -> Outcome:
    recorder, seen = _recorder(job) if out is not None and job.search is None else None, list[int]()
    watching = [] if recorder is None else [recorder, lambda population, step: seen.append(step.index)]
    told: list[str] = []
    result = _stage(out, "result", lambda file: _steered(job, out, file, shown, watching))
    told += _told(job.row, caught)
    if out is not None and recorder is not None and seen:  # nothing is seen of what was finished before
        recorder.save(out, result)
    base = best = None
    if job.config.compare:
        base = _stage(out, "base", lambda file: _plain(job, [], file, shown))
        told += _told("unguided", caught)
        if job.reward is not None:
            of = [BestOfN(job.reward, comparison.equal_cost(result, base))]
            best = _stage(out, "best_of_n", lambda file: _plain(job, of, file, shown))
            told += _told("best of N", caught)
    summary = _summary(job, result, base, best, told)
    if out is not None:
        _written(job, out, result, summary)
    return Outcome(result, summary, base, best, out)


def _told(row: str, caught: list[warnings.WarningMessage]) -> list[str]:
    """The warnings of a stage, each once; they are taken off the list."""
    texts = [f"{row}: {' '.join(str(w.message).split())}" for w in caught]
    caught.clear()
    return list(dict.fromkeys(texts))


def _stage(out: Path | None, name: str, make: Callable[[Path | None], Result]) -> Result:
    """A result, made or found; it is in its folder whole or not at all."""
    if out is None:
        return make(None)
    if (out / name).exists():
        return load_result(out / name)
    file, part = out / "checkpoint", out / f".{name}.part"
    result = make(file)
    shutil.rmtree(part, ignore_errors=True)
    result.save(part)
    part.rename(out / name)
    file.unlink(missing_ok=True)
    return result


def _recorder(job: Job) -> Any:
    from .report import Recorder

    return Recorder(job.model, every=max(1, job.config.steps // 12))


def _steered(job: Job, out: Path | None, file: Path | None, shown: bool, watching: Sequence[Any]) -> Result:
    """The run itself, as a search or with its guides."""
    if job.search is None:
        return _plain(job, job.guides, file, shown, watching)
    make, options = job.search
    folder = None if out is None else out / "search"
    given = job.given | options | {"guides": job.guides, "folder": folder, "progress": shown}
    return make(job.model, job.config.n, job.reward, **given)


def _plain(job: Job, guides: Sequence[Guide], file: Path | None, shown: bool, watching: Sequence[Any] = ()) -> Result:
    given = job.given | {"guides": guides, "reward": job.reward, "progress": shown}
    return sample(job.model, job.config.n, **given, callbacks=list(watching), checkpoint=file)


# what is told of them ------------------------------------------------------------------------------------------------


def _domain(job: Job, samples: Any) -> str:
    """Of the samples, where nothing else says it."""
    if job.domain is not None:
        return job.domain
    if isinstance(samples, Tensor):
        picture = samples.dim() == 4 and samples.shape[1] in (1, 3) and samples.is_floating_point()
        return "images" if picture and float(samples.min()) >= 0 and float(samples.max()) <= 1 else "other"
    text = isinstance(samples, list) and all(isinstance(s, str) for s in samples)
    letters = text and all(re.fullmatch("[ACGTN]{20,}", s) for s in samples)
    return "dna" if letters else "other"


def _scores(job: Job, result: Result) -> dict[str, Tensor]:
    """What each reward says by itself."""
    found, samples = {}, result.samples
    for c in job.parts:
        same = len(job.parts) == 1 and c.weight == 1 and c.raw.higher_is_better
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RewardWarning)
            scores = result.rewards if same and result.rewards is not None else c.raw(samples)
        found[c.name] = torch.where(scores.isfinite(), scores.double(), torch.nan).cpu()
    return found


def _summary(job: Job, result: Result, base: Result | None, best: Result | None, told: list[str]) -> dict[str, Any]:
    """The content of summary.json."""
    domain, c = _domain(job, result.samples), job.config
    names = [part.name for part in job.parts]
    listed = [("unguided", base), ("best of N", best), (job.row, result)]
    rows = [comparison.row(name, r, domain, _scores(job, r)) for name, r in listed if r is not None]
    columns = comparison.columns(domain, result.rewards is not None, names, job.holdout is not None)
    kept = [k for k in columns if any(r.get(k) is not None for r in rows)]
    return {
        "domain": domain,
        "model": displayed(c.model),
        "reward": "" if job.reward is None else job.reward.name,
        "holdout": None if job.holdout is None else job.holdout.name,
        "components": names,
        "guides": [displayed(text) for text in c.guides],
        "search": c.search,
        "best_of": None if best is None or base is None else comparison.equal_cost(result, base),
        "columns": kept,
        "rows": [{"name": r["name"], **{k: r.get(k) for k in kept}} for r in rows],
        "warnings": told,
        "version": __version__,
        "bibtex": cite(job.guides),
    }


def _written(job: Job, out: Path, result: Result, summary: dict[str, Any]) -> None:
    """The files beside the results; summary.json comes last and says that the run is finished."""
    columns = {name: scores.tolist() for name, scores in _scores(job, result).items()}
    export.write(out, result, summary["domain"], columns, job.config.cond or (None,))
    ess = ", ".join(f"{v:.1f}" for v in result.ess.tolist())
    lines = [
        f"guidekit {__version__}",
        f"samples {len(result)}, conditions {result.groups}, effective sample size {ess}",
        *(f"{row['name']}: {row['network rows']} network rows, {row['reward calls']} reward calls, {row['seconds']} s"
          for row in summary["rows"]),
        f"unscored {result.cost.unscored}",
        *(f"warning: {text}" for text in summary["warnings"]),
    ]  # fmt: skip
    (out / "run.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    part = out / ".summary.part"
    part.write_text(json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
    os.replace(part, out / "summary.json")


def _report(out: Path) -> None:
    from .report import write

    write(out)


# the folder ----------------------------------------------------------------------------------------------------------


def _free(out: Path, config: Config, overwrite: bool) -> None:
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
    was, now = (replace(c, batch_size=None) for c in (Config.load(file), config))
    if was != now:
        key = next(k for k in vars(now) if getattr(was, k) != getattr(now, k))
        raise ConfigError(
            f"{out} holds another run: {key} was {getattr(was, key)!r} and is {getattr(now, key)!r} now; give another "
            "folder, or --overwrite (overwrite=True) to delete that run"
        )


def _begun(out: Path, config: Config, overwrite: bool) -> None:
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
    for name in (*_FOLDERS, *(f".{name}.part" for name in _FOLDERS)):
        shutil.rmtree(out / name, ignore_errors=True)
    for file in (out / "images").glob("[0-9]*.png"):
        file.unlink()
    for name in reversed(_FILES):  # run.toml last: it says whose the folder is
        (out / name).unlink(missing_ok=True)


def _finished(out: Path, report: bool) -> Outcome:
    """A run that was done before."""
    if report and not (out / "report.html").exists():
        _report(out)
    return replace(load(out), new=False)


def load(out: Path) -> Outcome:
    """Read an output directory."""
    base, best = (load_result(out / name) if (out / name).exists() else None for name in _FOLDERS[1:3])
    return Outcome(load_result(out / "result"), summary_of(out), base, best, out)


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

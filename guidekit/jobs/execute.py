"""Execute a `Config`: checks, the run itself, the runs for comparison, and the output folder.

    OUT/run.toml       the run; `guidekit run OUT/run.toml --out OTHER` repeats it
    OUT/result/        the samples; OUT/base/ and OUT/best_of_n/ hold those of the comparison
    OUT/samples.csv    every sample with its scores; and the file formats of the domain
    OUT/summary.json   the table
    OUT/lineage.json   how the samples came about; OUT/report.html shows it
    OUT/run.log        warnings and counts
    OUT/checkpoint*    while the run is unfinished; OUT/search/ holds the evaluations of a search

Every finished stage is kept, so an interrupted run resumes where it stopped, and a search can be extended. Only one
run at a time works in the folder; of one on several processes (`ranks`) rank 0 writes.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import Reward, RewardWarning

from .. import __version__
from ..engine.guide import Guide
from ..engine.result import Result, load_result
from ..engine.sample import sample
from ..guides.best_of_n import BestOfN
from ..guides.cite import cite
from ..report import export, reconstructed, table as comparison
from .config import Config
from .folder import (
    Outcome,
    check_folder,
    is_continued,
    load,
    make_folder,
    owned,
    retitle,
    share_modes,
    write_summary,
)
from .job import Job, prepare
from .names import Component
from .ranks import Ranks, joined
from .specs import displayed, with_arrays
from .watched import Watched, wanted


def run(
    config: Config,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    report: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], Any] | None = None,
) -> Outcome:
    """Execute a run.

    out         the output folder; None writes nothing
    overwrite   delete another run from the folder
    report      write report.html too
    progress    show progress bars; None shows them on terminals and in notebooks
    tell        called with each remark about the run, before it starts
    """
    config, out = config.rooted(Path.cwd()), None if out is None else Path(out)
    with joined() as ranks:
        if not ranks.leads:
            return _follow(ranks, config, out)
        if out is None:
            return _run(ranks, config, None, False, report, progress, tell)
        check_folder(out, config, overwrite)
        with owned(out):
            check_folder(out, config, overwrite)  # another process may have been there in between
            if (out / "summary.json").exists() and not overwrite and not is_continued(out, config):
                return _load_finished(out, config.title, report)
            return _run(ranks, config, out, overwrite, report, progress, tell)


def _follow(ranks: Ranks, config: Config, out: Path | None) -> Outcome:
    """The share of a rank that does not lead: it writes nothing and has no summary."""
    job, made = prepare(config), dict[str, Result]()
    file = None if out is None else out / "checkpoint"
    watching = [lambda population, step: None] if _is_watched(job, out) else []  # all ranks gather for it, or none
    for stage, number in ranks.stages():
        if stage == "result":
            made[stage] = _run_steered(job, out, file, False, watching)
        else:
            made[stage] = _run_plain(job, _best_of(job, number) if number else job.kept, file, False)
    result = made["result"] if "result" in made or out is None else load_result(out / "result")
    return Outcome(result, {}, made.get("base"), made.get("best_of_n"))


def _run(
    ranks: Ranks,
    config: Config,
    out: Path | None,
    overwrite: bool,
    report: bool,
    progress: bool | None,
    tell: Callable[[str], Any] | None,
) -> Outcome:
    """Prepare everything, then execute the run."""
    if report:
        from rewards.base import needs

        needs("jinja2", "report", "a report")
    job = prepare(config)
    if tell is not None:
        for remark in job.remarks:
            tell(remark)
    if out is not None:
        make_folder(out, config, overwrite)
    shown = wanted() if progress is None else progress
    before, Watched.shown = Watched.shown, shown
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcome = _carry_out(ranks, job, out, shown, caught)
    finally:
        Watched.shown = before
    if out is not None and report:
        _write_report(out)
    return outcome


# the runs ------------------------------------------------------------------------------------------------------------


def _carry_out(ranks: Ranks, job: Job, out: Path | None, shown: bool, caught: list[warnings.WarningMessage]) -> Outcome:
    """The run, the runs for comparison, and all files about them."""
    recorder, seen = _make_recorder(job) if _is_watched(job, out) else None, list[int]()
    watching = [] if recorder is None else [recorder, lambda population, step: seen.append(step.index)]
    told = list(job.remarks)
    result = _load_or_make(ranks, out, "result", 0, lambda file: _run_steered(job, out, file, shown, watching))
    told += _take_warnings(job.row, caught)
    if out is not None and recorder is not None and seen:  # a stage that was finished before has not been seen
        recorder.save(out, result)
    base = best = None
    if job.config.compare:
        base = _load_or_make(ranks, out, "base", 0, lambda file: _run_plain(job, job.kept, file, shown))
        told += _take_warnings(job.base_row, caught)
        number = comparison.equal_cost(result, base)
        if job.reward is not None and number > 1:
            guides = _best_of(job, number)
            best = _load_or_make(ranks, out, "best_of_n", number, lambda file: _run_plain(job, guides, file, shown))
            told += _take_warnings("best of N", caught)
    ranks.end()
    summary = _summarise(job, result, base, best, told)
    if job.measured is not None:
        listed = reconstructed.found(result, job.measured.each, job.measured.names, job.measured.truth)
        summary["reconstructed"] = reconstructed.rows(listed)
        if out is not None:
            reconstructed.write(out, listed)
    if out is not None:
        _write_files(job, out, result, summary)
    return Outcome(result, summary, base, best, out)


def _is_watched(job: Job, out: Path | None) -> bool:
    """Whether the estimates on the way are recorded: of one run that is written."""
    return out is not None and job.search is None and not job.config.unique


def _best_of(job: Job, number: int) -> list[Guide]:
    """The guides of the comparison with best of N."""
    return [*job.kept, BestOfN(job.reward, number)]


def _take_warnings(row: str, caught: list[warnings.WarningMessage]) -> list[str]:
    """The distinct warnings of a stage; this empties the list."""
    texts = [f"{row}: {' '.join(str(w.message).split())}" for w in caught]
    caught.clear()
    return list(dict.fromkeys(texts))


def _load_or_make(
    ranks: Ranks, out: Path | None, name: str, number: int, make: Callable[[Path | None], Result]
) -> Result:
    """The result of a stage, whose folder is complete or does not exist."""
    if out is not None and (out / name).exists():
        return load_result(out / name)
    with ranks.stage(name, number):
        result = make(None if out is None else out / "checkpoint")
    if out is None:
        return result
    part = out / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    result.save(part)
    part.rename(out / name)
    for file in [out / "checkpoint", *out.glob("checkpoint.*")]:
        file.unlink(missing_ok=True)
    return result


def _make_recorder(job: Job) -> Any:
    from ..report import Recorder

    return Recorder(job.model, every=max(1, job.config.steps // 12))


def _run_steered(job: Job, out: Path | None, file: Path | None, shown: bool, watching: Sequence[Any]) -> Result:
    """The run itself, as a search or with its guides."""
    if job.search is None:
        return _run_plain(job, job.guides, file, shown, watching)
    make, options = job.search
    folder = None if out is None else out / "search"
    given = job.given | options | {"guides": job.guides, "folder": folder, "progress": shown, "world": "auto"}
    return make(job.model, job.config.n, job.reward, **given)


def _run_plain(
    job: Job, guides: Sequence[Guide], file: Path | None, shown: bool, watching: Sequence[Any] = ()
) -> Result:
    given = job.given | {"guides": guides, "reward": job.reward, "progress": shown, "unique": job.config.unique}
    given |= {"islands": job.islands}
    return sample(job.model, job.config.n, **given, callbacks=list(watching), checkpoint=file, world="auto")


# the summary ---------------------------------------------------------------------------------------------------------


def _find_domain(job: Job, samples: Any) -> str:
    """The domain of the samples, inferred from them if nothing else determines it."""
    if job.domain is not None:
        return job.domain
    if isinstance(samples, Tensor):
        picture = samples.dim() == 4 and samples.shape[1] in (1, 3) and samples.is_floating_point()
        return "images" if picture and float(samples.min()) >= 0 and float(samples.max()) <= 1 else "other"
    text = isinstance(samples, list) and all(isinstance(s, str) for s in samples)
    letters = text and all(re.fullmatch("[ACGTN]{20,}", s) for s in samples)
    return "dna" if letters else "other"


def score_parts(parts: Sequence[Component], result: Result) -> dict[str, Tensor]:
    """The scores of each reward on its own."""
    found, samples = {}, result.samples
    for c in parts:
        same = len(parts) == 1 and c.weight == 1 and c.raw.higher_is_better
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RewardWarning)
            scores = result.rewards if same and result.rewards is not None else c.raw(samples)
        found[c.name] = torch.where(scores.isfinite(), scores.double(), torch.nan).cpu()
    return found


def _summarise(job: Job, result: Result, base: Result | None, best: Result | None, told: list[str]) -> dict[str, Any]:
    """The content of summary.json."""
    domain, c = _find_domain(job, result.samples), job.config
    names = [part.name for part in job.parts]
    every = [(job.base_row, base), ("best of N", best), (job.row, result)]
    listed = [(name, r, score_parts(job.parts, r)) for name, r in every if r is not None]
    rows = [comparison.row(name, r, domain, scores) for name, r, scores in listed]
    constant = comparison.constant([scores for _, _, scores in listed])
    columns = comparison.columns(domain, result.rewards is not None, names, job.holdout is not None)
    kept = [k for k in columns if any(r.get(k) is not None for r in rows)]
    return {
        "title": c.title or "",
        "domain": domain,
        "model": displayed(c.model),
        "reward": "" if job.reward is None else job.reward.name,
        "holdout": None if job.holdout is None else job.holdout.name,
        "components": names,
        "weights": {part.name: part.weight for part in job.parts},
        "constant": list(constant),
        "guides": [displayed(text) for text in (*c.guides, *job.method)],
        "measure": "" if c.measure is None else with_arrays(displayed(c.measure), lambda path: Path(path).name),
        "search": c.search,
        "strength": result.strength,
        "best_of": None if best is None or base is None else comparison.equal_cost(result, base),
        "columns": kept,
        "better": {k: way for k, way in better(job.parts, job.holdout).items() if k in kept},
        "rows": [{"name": r["name"], **{k: r.get(k) for k in kept}} for r in rows],
        "warnings": told + _hints(job, constant, sum(len(r) for _, r, _ in listed)),
        "version": __version__,
        "bibtex": cite(job.guides),
    }


def better(parts: Sequence[Component], holdout: Reward | None = None) -> dict[str, str]:
    """Which direction of each column is better. A reward of weight 0 is only reported, so neither direction is."""
    found = dict(comparison.BETTER)
    if holdout is not None and not holdout.higher_is_better:
        found["holdout mean"] = "lower"
    counted = {p.name: p.raw.higher_is_better == (p.weight > 0) for p in parts if p.weight != 0}
    return found | {name: "higher" if up else "lower" for name, up in counted.items()}


def _hints(job: Job, constant: dict[str, float], count: int) -> list[str]:
    """Remarks on rewards that should steer but have the same value for all samples."""
    unguided = job.config.compare or job.row == "unguided"
    why = (
        "unguided ones included, so it steers nothing" if unguided else
        "so it steers nothing, unless guidance brought all of them there; --compare shows the unguided samples"
    )  # fmt: skip
    steering = [p.name for p in job.parts if p.weight != 0 and p.name in constant]
    return [f"the reward {name!r} is {constant[name]:.4g} for all {count} samples, {why}" for name in steering]


def _write_files(job: Job, out: Path, result: Result, summary: dict[str, Any]) -> None:
    """The files beside the results; summary.json comes last and marks the run as finished."""
    columns = {name: scores.tolist() for name, scores in score_parts(job.parts, result).items()}
    export.write(out, result, summary["domain"], columns, job.labels)
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
    share_modes(out)
    write_summary(out, summary)


def _write_report(out: Path) -> None:
    from ..report import write

    write(out)


def _load_finished(out: Path, title: str | None, report: bool) -> Outcome:
    """The outcome of a run that is already finished, with a new title if one is given."""
    renamed = title is not None and retitle(out, title)
    if report and (renamed or not (out / "report.html").exists()):
        _write_report(out)
    return replace(load(out), new=False)

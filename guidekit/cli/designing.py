"""What `guidekit design` does: the design loop of `gk.evolve`, from a file of leads to a folder with a report.

OUT/designs.csv     the best samples, with every component of the reward; and the file formats of the domain
OUT/calls.csv       every sample that was asked, with its reward: another run reads it as --known
OUT/result/         the samples, for `gk.load_result`
OUT/screening/      with --compare: as many samples that the model drew without looking at rewards
OUT/summary.json    the table, and the warnings; OUT/report.html shows them
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import Reward

from .. import __version__, search
from ..engine.result import Result
from ..guides.cite import cite
from ..guides.shared.sites import IUPAC
from ..jobs import execute, inputs, job, names
from ..jobs.config import Config, is_picture
from ..jobs.folder import owned, write_summary
from ..jobs.ranks import Ranks, joined
from ..jobs.specs import ConfigError, displayed
from ..models.base import Model
from ..report import export, table
from ..search import Budget, Proposal
from ..search.refine import evolve

Predicate = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Designing:
    """A design as it was asked for; `config` names the model, the rewards, the guides, the start and what is kept."""

    config: Config
    calls: int
    out: Path | None = None
    require: tuple[str, ...] = ()
    compare: bool = False
    dock: int = 0
    target: str | None = None
    report: bool = True
    options: dict[str, Any] = field(default_factory=dict)  # of `gk.evolve`
    tell: Callable[[str], Any] = print

    def run(self) -> list[dict[str, Any]]:
        """The best samples as rows of a table, with every component of the reward."""
        with joined() as ranks:
            try:
                task = self._prepared()
            except (ValueError, TypeError, ImportError, RuntimeError, LookupError) as error:
                raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error
            if not ranks.leads:
                return self._follow(ranks, task)
            if self.out is None:
                return self._carried_out(ranks, task)
            with owned(self.out):
                return self._carried_out(ranks, task)

    def _follow(self, ranks: Ranks, task: Task) -> list[dict[str, Any]]:
        """The share of a rank that does not lead: it writes nothing and has no table."""
        for stage, _ in ranks.stages():
            _STAGES[stage](self, ranks, task)
        return []

    def _prepared(self) -> Task:
        c = self.config
        if self.report and self.out is not None:
            from rewards.base import needs

            needs("jinja2", "report", "a report")
        model, domain = names.make_model(c.model, job.find_device(c.device), ahead=bool(c.guides))
        domain = c.domain or domain
        parts = names.make_components(c.rewards)
        reward = names.total(parts)
        if reward is None:
            raise ConfigError("a design needs a reward: give one with --reward")
        guards = names.make_components(self.require) if self.require else []
        for part in (*parts, *guards):
            job.check_domain(part, domain, c.model)
            job.try_once(part, model)
        domain = domain or next((p.domain for p in parts if p.domain is not None), None) or "other"
        if c.start is not None and domain == "other":
            raise ConfigError(f"--start {c.start}: what the file holds is known for bundled models; give --domain")
        guides = [names.make_guide(text, reward) for text in c.guides]
        checks: list[Predicate] = [_above_zero(part.raw) for part in guards]
        sources = None
        if c.keep is not None:
            guides = [inputs.kept(c, domain, model), *guides]
            checks += [holds] if (holds := _holding(c.keep, domain)) is not None else []
            sources = _SOURCES.get(domain)
        dock = _docking(self.dock, self.target, domain)
        start = c.n if c.start is None else inputs.read(Path(c.start), domain)
        told = (*self.require, *([c.keep] if c.keep is not None else []))
        require = Required(told, checks) if checks else None
        return Task(model, domain, parts, reward, guides, start, require, sources, dock)

    def _carried_out(self, ranks: Ranks, task: Task) -> list[dict[str, Any]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            with ranks.stage("design"):
                result = self._designed(ranks, task)
            screened = None
            if self.compare:
                with ranks.stage("screening"):
                    screened = self._screened(ranks, task)
            ranks.end()
        told = list(dict.fromkeys(" ".join(str(w.message).split()) for w in caught))
        for text in told:
            self.tell(text)
        sets = {"screening": screened, "designs": result} if screened is not None else {"designs": result}
        scored = {name: execute.score_parts(task.parts, r) for name, r in sets.items()}
        summary = self._summary(task, sets, scored, told)
        scores = {k: v.tolist() for k, v in scored["designs"].items()}
        if self.out is not None:
            for name, r in sets.items():
                r.save(self.out / _PLACES[name])
            self._write(task, result, scores, summary)
        if task.dock is not None:
            scores |= {task.dock.name: _docked(task.dock, result.samples, self.dock)}
            if self.out is not None:
                self._write(task, result, scores, summary)
        found = _rows(result, task.domain, scores, None if task.dock is None else task.dock.name)
        return [{k: None if v != v else v for k, v in row.items()} for row in found]

    def _designed(self, ranks: Ranks, task: Task) -> Result:
        """The result of the design itself."""
        return self._found(task, self.out, world=ranks.world)

    def _found(self, task: Task, folder: Path | None, **other: Any) -> Result:
        """The result of the design loop."""
        given = {"require": task.require, "proposals": task.sources, "content": _CONTENTS.get(task.domain)}
        given |= self.options | other
        try:
            return evolve(
                task.model, task.start, task.reward, n=self.config.n, budget=Budget(calls=self.calls),
                guides=task.guides, checkpoint=folder, batch_size=self.config.batch_size, seed=self.config.seed,
                cond=self.config.cond[0] if self.config.cond else None, **given,
            )  # fmt: skip
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error

    def _screened(self, ranks: Ranks, task: Task) -> Result:
        """As many calls for samples of the model alone, after the same start."""
        folder = None if self.out is None else self.out / "screening"
        alone: dict[str, Any] = {"proposals": [search.Fresh()], "surrogate": False, "world": ranks.world}
        return self._found(task, folder, **alone)

    def _write(self, task: Task, result: Result, scores: dict[str, list[float]], summary: dict[str, Any]) -> None:
        """The files of the folder, apart from those of the loop."""
        assert self.out is not None
        docked = task.dock.name if task.dock is not None and task.dock.name in scores else None
        rows = _rows(result, task.domain, scores, docked)
        export.rows(self.out / "designs.csv", rows)
        assert result.rewards is not None
        numbers = scores | {"reward": result.rewards.tolist()}
        order, samples = [row["row"] for row in rows], result.samples
        if task.domain == "molecules":
            export.molecules(self.out, samples, numbers, "designs", order)
        elif task.domain == "dna":
            export.fasta(self.out / "designs.fasta", samples, numbers, [None] * len(result))
        elif task.domain == "images":
            export.images(self.out, samples)
        write_summary(self.out, summary)
        if self.report:
            from ..report import write

            write(self.out)

    def _summary(
        self, task: Task, sets: dict[str, Result], scored: dict[str, dict[str, Tensor]], told: list[str]
    ) -> dict[str, Any]:
        """The content of summary.json."""
        parts, c = task.parts, self.config
        rows = [table.row(name, r, task.domain, scored[name]) for name, r in sets.items()]
        columns = table.columns(task.domain, True, [p.name for p in parts], False)
        kept = [k for k in columns if any(row.get(k) is not None for row in rows)]
        return {
            "title": c.title or "", "domain": task.domain, "model": displayed(c.model), "reward": task.reward.name,
            "holdout": None, "components": [p.name for p in parts], "weights": {p.name: p.weight for p in parts},
            "constant": list(table.constant(list(scored.values()))), "search": None, "best_of": None,
            "guides": [displayed(text) for text in c.guides], "columns": kept,
            "better": {k: way for k, way in execute.better(parts).items() if k in kept},
            "rows": [{"name": row["name"], **{k: row.get(k) for k in kept}} for row in rows], "warnings": told,
            "version": __version__, "bibtex": cite(task.guides),
        }  # fmt: skip


@dataclass(frozen=True)
class Required:
    """True of samples that pass all checks, which are known again by what was given for them."""

    told: tuple[str, ...]
    checks: list[Predicate]

    def __call__(self, samples: Any) -> Tensor:
        return torch.stack([check(samples) for check in self.checks]).all(0)

    def identity(self) -> tuple[str, ...]:
        return self.told


@dataclass(frozen=True)
class Task:
    """The objects that a design names."""

    model: Model
    domain: str
    parts: list[names.Component]
    reward: Reward
    guides: list[Any]
    start: Any
    require: Predicate | None
    sources: list[Proposal] | None
    dock: Reward | None


# Where a part is kept, its presence is required, so that proposals that do not know of it may try too.
_SOURCES: dict[str, list[Proposal]] = {
    "molecules": [search.GraphOperators(), search.Regrow(), search.Fresh()],
    "dna": [search.Crossover(), search.Regrow(), search.Fresh()],
}
_PLACES = {"designs": "result", "screening": "screening/result"}
_STAGES: dict[str, Callable[[Designing, Ranks, Task], Result]] = {
    "design": Designing._designed, "screening": Designing._screened
}  # fmt: skip
_CONTENTS = {"molecules": "smiles", "dna": "sequence"}


def _above_zero(reward: Reward) -> Predicate:
    """A predicate that is true where a reward is above 0."""
    return lambda samples: reward(samples).nan_to_num(0.0) > 0


def _holding(keep: str, domain: str) -> Predicate | None:
    """A predicate that is true of samples that hold what is kept; None where it is a picture."""
    if is_picture(keep):
        return None
    if domain == "molecules":
        from rewards.molecules import Part

        return _above_zero(Part(keep))
    sets = [set(IUPAC.get(letter, letter)) for letter in keep.upper()]
    holds = lambda text: len(text) == len(sets) and all(v in s for v, s in zip(text, sets, strict=True))  # noqa: E731
    return lambda samples: torch.tensor([holds(text) for text in samples])


def _docking(count: int, target: str | None, domain: str) -> Reward | None:
    """The reward of --dock-top; what it needs must be there before anything is spent."""
    if not count:
        if target is not None:
            raise ConfigError(f"--dock-target {target} says into what is docked: give --dock-top N as well")
        return None
    if domain != "molecules":
        raise ConfigError(f"--dock-top docks molecules, and the samples are {domain}")
    if target is None:
        from rewards.molecules.docking import targets

        raise ConfigError(f"--dock-top needs --dock-target: a receptor in PDBQT with a box, or {', '.join(targets())}")
    docking = names.make_components([f"docking:{target}"])[0].raw
    docking([])  # a missing package is an error here
    return docking


def _docked(docking: Reward, samples: Sequence[str], count: int) -> list[float]:
    """Energies of the first molecules; the others are not docked."""
    found = docking(list(samples[:count])).tolist()
    return [*found, *[float("nan")] * (len(samples) - len(found))]


def _rows(result: Result, domain: str, scores: dict[str, list[float]], docked: str | None) -> list[dict[str, Any]]:
    """One row for each sample, the best first; those that were docked come before all others, by energy."""
    assert result.rewards is not None
    about, texts = result.config["design"], export.texts(result.samples, domain)
    rows = [
        {"row": i, "sample": texts[i], "reward": float(result.rewards[i]), "proposal": about["proposals"][i]}
        | {name: values[i] for name, values in scores.items()}
        for i in range(len(result))
    ]
    if docked is None:
        return rows
    return sorted(rows, key=lambda row: (row[docked] != row[docked], row[docked] if row[docked] == row[docked] else 0))

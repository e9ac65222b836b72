"""The tasks of PMO (Gao et al., 2022, https://arxiv.org/abs/2206.12411) at a budget of calls, offline: what
`guidekit bench pmo` runs.

Every method gets the same first molecules, drawn from the model, and asks the reward for as many distinct molecules as
the budget has. The two numbers are PMO's: the mean reward of the ten best at the end, and the area under its curve
against calls. A run is a file of its calls, so that runs that were finished before are read and not made again, and
those of the design loop go on where they stopped.

    OUT/model.txt                   the model whose molecules all methods begin with
    OUT/runs/TASK/METHOD/SEED.csv   the calls of a run, in their order
    OUT/calls.csv                   all of them
    OUT/curve.csv                   the mean of the ten best every 100 calls, of each run
    OUT/table.csv, OUT/table.md     one row for each task, beside the published figures
"""

from __future__ import annotations

import csv
import heapq
import io
import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rewards import Reward
from rewards.molecules import DRD2, GSK3B, JNK3, QED, objective
from rewards.molecules.descriptors import canonical, parsed
from rewards.molecules.metrics import auc_top_k, top_k

from .. import random as addressed, search, zoo
from ..engine.sample import sample
from ..models.base import Model
from ..search.refine import evolve
from .specs import ConfigError, find

FIRST = 50  # molecules with which all methods begin
MODEL = "druglike"  # was ahead of "molecules" on most tasks; see docs/pmo.md
EVERY = 100  # calls between two points of PMO's curve
PUBLISHED = ("mol_ga", "genetic_gfn", "invirtuogen_no_prescreen")

_GUACAMOL = (
    "albuterol_similarity amlodipine_mpo celecoxib_rediscovery deco_hop fexofenadine_mpo isomers_c7h8n2o2 "
    "isomers_c9h10n2o2pf2cl median_1 median_2 mestranol_similarity osimertinib_mpo perindopril_mpo ranolazine_mpo "
    "scaffold_hop sitagliptin_mpo thiothixene_rediscovery troglitazone_rediscovery valsartan_smarts zaleplon_mpo"
)
TASKS: dict[str, Callable[[], Reward]] = {name: partial(objective, name) for name in _GUACAMOL.split()}
TASKS |= {"drd2": DRD2, "gsk3b": GSK3B, "jnk3": JNK3, "qed": QED}

EVOLVE: dict[str, dict[str, Any]] = {
    "graph operators": {"proposals": [search.GraphOperators()], "surrogate": False},
    "graph operators, surrogate": {"proposals": [search.GraphOperators()]},
    "evolve, no surrogate": {"surrogate": False},
    "evolve": {},
}
GA = {"mol_ga": math.inf, "mol_ga, at most 50 atoms": 50.0}  # heavy atoms of what it asks
METHODS = ("screening", *GA, *EVOLVE)


class Called(NamedTuple):
    """A molecule that was asked, and its reward."""

    sample: str
    value: float


@dataclass(frozen=True)
class Bench:
    """Tasks, methods and seeds, and the folder of their runs."""

    out: Path
    tasks: tuple[str, ...] = tuple(sorted(TASKS))
    methods: tuple[str, ...] = ()
    budget: int = 1000
    seeds: tuple[int, ...] = (0,)
    model: str = MODEL
    tell: Callable[[str], Any] = print

    def __post_init__(self) -> None:
        """Find the names that are meant, before anything runs."""
        given = self.methods or tuple(m for m in METHODS if m not in GA or find_spec("mol_ga") is not None)
        object.__setattr__(self, "tasks", tuple(find(name, list(TASKS), "task") for name in self.tasks))
        object.__setattr__(self, "methods", tuple(find(name, list(METHODS), "method") for name in given))
        if self.budget <= FIRST:
            raise ConfigError(f"--budget {self.budget}: all methods begin with {FIRST} molecules, so give more")
        if {*GA} & {*self.methods} and find_spec("mol_ga") is None:
            raise ConfigError("the method mol_ga is a package of its own: pip install mol-ga joblib")

    def run(self) -> list[dict[str, Any]]:
        """One row for each task, method and seed."""
        found, drawn = list[dict[str, Any]](), dict[int, list[str]]()
        model = zoo.load(self.model, ahead=not zoo.continues(self.model))  # nothing looks ahead, and it takes less time
        self.claim()
        for seed in self.seeds:
            for task in self.tasks:
                for method in self.methods:
                    calls = read(self.file(task, method, seed))
                    if len(calls) < self.budget:
                        count = self.budget if "screening" in self.methods else FIRST
                        first = drawn.setdefault(seed, molecules(model, count, seed))
                        calls = self.asked(model, task, method, seed, first)
                    found.append({"task": task, "method": method, "seed": seed} | measured(calls, self.budget))
                    self.tell("{task}, {method}, seed {seed}: top-10 {top10:.3f}, area {area:.3f}".format(**found[-1]))
        self.write(found)
        return found

    def claim(self) -> None:
        """Say in the folder which model its runs begin with; those of another model would not be at equal terms."""
        file = self.out / "model.txt"
        before = file.read_text(encoding="utf-8").strip() if file.exists() else self.model
        if before != self.model:
            raise ConfigError(
                f"--model {self.model}: the runs in {self.out} begin with molecules of {before}; give --model {before} "
                "or another folder as --out"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        file.write_text(self.model + "\n", encoding="utf-8")

    def file(self, task: str, method: str, seed: int) -> Path:
        return self.out / "runs" / task / method / f"{seed}.csv"

    def asked(self, model: Model, task: str, method: str, seed: int, drawn: list[str]) -> list[Called]:
        """The calls of a run, which are also written."""
        file, reward = self.file(task, method, seed), TASKS[task]()
        file.parent.mkdir(parents=True, exist_ok=True)
        if method == "screening":
            calls = [Called(s, v) for s, v in zip(drawn, reward(drawn[: self.budget]).tolist(), strict=False)]
        elif method in GA:
            calls = by_mol_ga(reward, drawn[:FIRST], self.budget, seed, GA[method])
        else:
            calls = evolved(model, reward, drawn[:FIRST], self.budget, seed, file.with_suffix(""), **EVOLVE[method])
        part = file.with_suffix(".part")
        _write(part, [call._asdict() for call in calls])
        part.replace(file)
        return calls

    def write(self, found: list[dict[str, Any]]) -> None:
        """The files of all runs."""
        names = [{k: run[k] for k in ("task", "method", "seed")} for run in found]
        runs = [(row, read(self.file(**row))[: self.budget]) for row in names]
        _write(self.out / "calls.csv", [row | call._asdict() for row, calls in runs for call in calls])
        _write(self.out / "curve.csv", [row | point for row, calls in runs for point in points(calls)])
        _write(self.out / "table.csv", found)
        (self.out / "table.md").write_text("\n".join(lines(found, self.budget)) + "\n", encoding="utf-8")


# the methods ---------------------------------------------------------------------------------------------------------


def molecules(model: Model, count: int, seed: int) -> list[str]:
    """Distinct molecules of the model."""
    found: dict[str, None] = {}
    part = 0
    while len(found) < count:
        key = int(addressed.fold(addressed.fold(addressed.key(seed), "benchmark"), part))
        for smiles in sample(model, 100, steps=model.shape[0], seed=key, batch_size=100).samples:
            if (name := canonical(smiles)) is not None:
                found.setdefault(name)
        part += 1
    return list(found)[:count]


def evolved(
    model: Model, reward: Reward, first: list[str], calls: int, seed: int, folder: Path, **options: Any
) -> list[Called]:
    """The calls of a design loop that begins with these molecules."""
    budget = search.Budget(calls=calls)
    given = {"budget": budget, "n": 10, "seed": seed, "checkpoint": folder, "content": "smiles"} | options
    evolve(model, first, reward, population=len(first), **given)
    with (folder / "calls.csv").open(encoding="utf-8", newline="") as file:
        return [Called(row["sample"], float(row["value"])) for row in csv.DictReader(file)]


class _Spent(Exception):
    """All calls of the budget were made."""


def by_mol_ga(reward: Reward, first: list[str], calls: int, seed: int, atoms: float = math.inf) -> list[Called]:
    """The calls of mol_ga (Tripp and Hernandez-Lobato, 2023, https://arxiv.org/abs/2310.09267) with its own settings,
    50 children a generation. Molecules of more heavy atoms than `atoms` count 0, and are not asked."""
    from mol_ga import default_ga  # type: ignore[import-not-found]

    found: dict[str, float] = {}

    def score(smiles: list[str]) -> list[float]:
        small = [s for s in smiles if (mol := parsed(s)) is None or mol.GetNumHeavyAtoms() <= atoms]
        values = dict(zip(small, reward(small).nan_to_num(0.0).tolist(), strict=True)) if small else {}
        for text, value in values.items():
            found.setdefault(canonical(text) or text, value)
        if len(found) >= calls:
            raise _Spent
        return [values.get(s, 0.0) for s in smiles]

    generations = 10 * (calls - len(first)) // 50  # children that are known already, or too large, cost nothing
    with suppress(_Spent):
        default_ga(first, score, generations, 50, rng=random.Random(seed))
    return [Called(text, value) for text, value in found.items()][:calls]


# the numbers ---------------------------------------------------------------------------------------------------------


def measured(calls: Sequence[Called], budget: int) -> dict[str, float]:
    """PMO's numbers: the mean of the ten best at the end, the area under its curve, and the best; NaN counts as 0."""
    values = [(call.sample, call.value if call.value == call.value else 0.0) for call in calls[:budget]]
    numbers = [value for _, value in values]
    area = auc_top_k(values, 10, budget, min(EVERY, budget))
    return {"calls": len(values), "top10": top_k(numbers, 10), "area": area, "best": max(numbers)}


def curve(values: Iterable[float]) -> list[float]:
    """The mean of the ten best after each call."""
    top, found = list[float](), list[float]()
    for value in values:
        top = heapq.nlargest(10, [*top, value if value == value else 0.0])
        found.append(mean(top))
    return found


def points(calls: Sequence[Called]) -> list[dict[str, float]]:
    """The curve every 100 calls, and at the end."""
    heights = curve(call.value for call in calls)
    return [{"calls": n, "top10": heights[n - 1]} for n in sorted({*range(EVERY, len(heights), EVERY), len(heights)})]


def published() -> dict[str, dict[str, float]]:
    """The published areas at 10,000 calls, by task and method."""
    text = (files("guidekit.jobs") / "pmo_published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(io.StringIO(text))
    return {row.pop("task"): {k: float(v) for k, v in row.items()} for row in rows}


def lines(found: Sequence[dict[str, Any]], budget: int) -> list[str]:
    """The table: top-10 / area of each method, means over seeds, and the published areas; the sum if all tasks ran."""
    tasks, methods = (list(dict.fromkeys(row[k] for row in found)) for k in ("task", "method"))
    theirs = published()
    cells = [[f"{budget:,} calls, top-10 / area", *methods, *(f"{m}, area at 10,000" for m in PUBLISHED)]]
    cells.append(["---"] * len(cells[0]))
    for task in tasks:
        own = [_cell([r for r in found if (r["task"], r["method"]) == (task, m)]) for m in methods]
        cells.append([task, *own, *(f"{theirs[task][m]:.3f}" for m in PUBLISHED)])
    if set(tasks) == set(TASKS):
        sums = [sum(_mean(found, task, m, "area") for task in tasks) for m in methods]
        cells.append(["sum of areas", *(f"{s:.3f}" for s in sums), *(f"{theirs['sum'][m]:.3f}" for m in PUBLISHED)])
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(rows: Sequence[dict[str, Any]]) -> str:
    return f"{mean(r['top10'] for r in rows):.3f} / {mean(r['area'] for r in rows):.3f}" if rows else ""


def _mean(found: Sequence[dict[str, Any]], task: str, method: str, key: str) -> float:
    return mean(r[key] for r in found if (r["task"], r["method"]) == (task, method))


# files ---------------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[Called]:
    """The calls of a run; none if it was not finished."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as text:
        return [Called(row["sample"], float(row["value"])) for row in csv.DictReader(text)]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

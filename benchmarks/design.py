"""Molecules found by a number of reward calls: the design loop, its parts alone, and what it has to beat.

    python -m benchmarks.design [--tasks osimertinib_mpo perindopril_mpo] [--calls 1000] [--seeds 0 1] [--methods ...]

Every method gets the same first molecules, a tenth of the calls, drawn from the bundled model, and asks the reward for
as many distinct molecules as the budget has. "screening" draws them all from the model. "mol_ga" is the genetic
algorithm of that name (pip install mol-ga), which runs if it is installed. Two numbers are measured, as usual: the mean
reward of the ten best at the end, and its mean over all calls (area under the curve of the ten best so far). Writes
benchmarks/results/design.json, one row for each task, method, budget and seed; rows that are there are kept, so that a
longer run adds to them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import guidekit as gk
from guidekit.jobs import pmo
from rewards.molecules import objective

ROOT = Path(__file__).parent.parent
S = gk.search
TASKS = ("osimertinib_mpo", "perindopril_mpo", "zaleplon_mpo")
EVOLVE: dict[str, dict[str, Any]] = {
    "graph operators": {"proposals": [S.GraphOperators()], "surrogate": False},
    "graph operators, surrogate": {"proposals": [S.GraphOperators()]},
    "model, surrogate": {"proposals": [S.Regrow(), S.Fresh()]},
    "all proposals": {"surrogate": False},
    "all proposals, surrogate": {},
}
METHODS = ("screening", "mol_ga", *EVOLVE)


def evolved(model: gk.Model, task: str, first: list[str], calls: int, seed: int, **options: Any) -> list[float]:
    """The rewards of all calls of a design loop, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return [c.value for c in pmo.evolved(model, objective(task), first, calls, seed, Path(folder), **options)]


def measured(values: Sequence[float]) -> dict[str, float]:
    """The mean of the ten best, and its mean over all calls."""
    curve = pmo.curve(values)
    best = max(value for value in values if value == value)
    return {"top10": curve[-1], "area": mean(curve), "best": best, "calls": len(curve)}


def run(model: gk.Model, method: str, task: str, drawn: list[str], calls: int, seed: int) -> dict[str, Any]:
    first, began = drawn[: calls // 10], time.perf_counter()
    if method == "screening":
        values = objective(task)(drawn[:calls]).tolist()
    elif method == "mol_ga":
        values = [c.value for c in pmo.by_mol_ga(objective(task), first, calls, seed)]
    else:
        values = evolved(model, task, first, calls, seed, **EVOLVE[method])
    row = {"task": task, "method": method, "budget": calls, "seed": seed}
    return row | measured(values) | {"seconds": round(time.perf_counter() - began, 1)}


def lines(rows: list[dict[str, Any]], calls: int) -> list[str]:
    """The table of docs/search.md: top ten at the end / area, means over seeds, and how many seeds there are."""
    tasks = list(dict.fromkeys(r["task"] for r in rows if r["budget"] == calls))
    cells = [[f"{calls} calls", *tasks], ["---"] * (len(tasks) + 1)]
    for method in METHODS:
        own = [[r for r in rows if (r["task"], r["method"], r["budget"]) == (t, method, calls)] for t in tasks]
        if any(own):
            cells.append([method, *map(_cell, own)])
    return ["| " + " | ".join(row) + " |" for row in cells]


def _cell(own: list[dict[str, Any]]) -> str:
    if not own:
        return ""
    return f"{mean(r['top10'] for r in own):.3f} / {mean(r['area'] for r in own):.3f} ({len(own)})"


def main(arguments: list[str] | None = None, load: Callable[[], gk.Model] = lambda: gk.zoo.load("molecules")) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "design.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", gk.CollapseWarning)
    text: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"rows": []}
    text["command"] = "python -m benchmarks.design"
    model = load()
    methods = [m for m in args.methods if m != "mol_ga" or find_spec("mol_ga") is not None]
    for seed in args.seeds:
        drawn = pmo.molecules(model, args.calls if "screening" in methods else args.calls // 10, seed)
        for task in args.tasks:
            for method in methods:
                row = run(model, method, task, drawn, args.calls, seed)
                same = {k: row[k] for k in ("task", "method", "budget", "seed")}
                text["rows"] = [r for r in text["rows"] if {k: r[k] for k in same} != same] + [row]
                args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
                print(json.dumps(row), flush=True)
    print("\n".join(lines(text["rows"], args.calls)))


if __name__ == "__main__":
    main()

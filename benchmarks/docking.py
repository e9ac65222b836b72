"""The design loop where a call is a docking: against mol_ga and screening, with as many calls.

    python -m benchmarks.docking [--targets F2 ...] [--calls 500] [--seeds 0 ...] [--methods "evolve; mol_ga; screening"]

The reward is dockstring's (Garcia-Ortegon et al., 2022, https://arxiv.org/abs/2110.15486), with its sign changed:

    10 (QED - 1) - energy of the best pose in kcal/mol, by AutoDock Vina, one search for each molecule.

All methods begin with the same 50 molecules. Calls are written to out/docking, where runs that were finished before are
not made again, and the table to benchmarks/results/docking.csv:

    top10, area, best   the mean of the ten best at the end, the mean of that over the calls, and the best
    again               the ten best, docked anew by eight searches from another seed, which no method has seen
    qed                 the mean QED of the ten best
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from guidekit import zoo
from guidekit.jobs import pmo
from rewards import Reward
from rewards.molecules import QED, Docking

OUT = Path(__file__).parent / "results" / "docking.csv"
METHODS = ("evolve", "mol_ga", "screening")


def objective(target: str, **options: Any) -> Reward:
    """Penalised docking, higher is better. A batch is docked by one process."""
    return 10 * (QED() - 1) - Docking(target, processes=1, **options)


def called(folder: Path, target: str, method: str, seed: int, calls: int) -> list[pmo.Called]:
    """The calls of a run, from its file if it is there."""
    file = folder / target / method / f"{seed}.csv"
    if len(found := pmo.read(file)) >= calls:
        return found[:calls]
    file.parent.mkdir(parents=True, exist_ok=True)
    model, reward = zoo.load(pmo.MODEL, ahead=False), objective(target)
    first = pmo.molecules(model, calls if method == "screening" else pmo.FIRST, seed)
    if method == "screening":
        found = [pmo.Called(s, v) for s, v in zip(first, reward(first).tolist(), strict=True)]
    elif method == "mol_ga":
        found = pmo.by_mol_ga(reward, first, calls, seed)
    else:
        found = pmo.evolved(model, reward, first, calls, seed, file.with_suffix(""))
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([("sample", "value"), *found])
    return found


def row(folder: Path, target: str, method: str, seed: int, calls: int) -> dict[str, Any]:
    found = called(folder, target, method, seed, calls)
    best = [c.sample for c in sorted(found, key=lambda c: -c.value if c.value == c.value else 0.0)[:10]]
    again = objective(target, exhaustiveness=8, seed=1)(best)
    numbers = pmo.measured(found, calls) | {"again": float(again.nanmean()), "qed": mean(QED()(best).tolist())}
    own = {"target": target, "method": method, "seed": seed}
    return own | {k: round(v, 4) if isinstance(v, float) else v for k, v in numbers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["F2"])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", default="; ".join(METHODS))
    parser.add_argument("--folder", type=Path, default=Path("out/docking"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row(args.folder, target, method, seed, args.calls)
        for target in args.targets for seed in args.seeds for method in args.methods.split("; ")
    ]  # fmt: skip
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()

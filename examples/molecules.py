"""Design molecules with several objectives at once: drug-likeness, ease of synthesis, a logP near 2.5, no alerts.

    python examples/molecules.py --n 64 --out out/molecules
    python examples/molecules.py --dock EGFR --top 8        # and dock the best with AutoDock Vina: guidekit[docking]

The objectives are brought to (0, 1) and multiplied, so that a gain in one cannot make up for the loss of another. The
steered samples are compared with the best of as many candidates.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import guidekit as gk
from rewards import Cached, Reward, geometric_mean
from rewards.molecules import QED, SA, Alerts, Docking, LogP, metrics
from rewards.molecules.descriptors import canonical
from rewards.transforms import DoubleSigmoid, ReverseSigmoid


def objectives() -> Reward:
    easy, soluble = SA().transformed(ReverseSigmoid(2.0, 4.0)), LogP().transformed(DoubleSigmoid(1.0, 4.0))
    harmless = Alerts("BRENK").transformed(ReverseSigmoid(0.0, 2.0))
    return geometric_mean([QED(), easy, soluble, harmless], [2.0, 1.0, 1.0, 0.5])


def docking(target: str) -> Docking:
    """The docking score of a target; a wrong name or a missing package is an error now, and not after the sampling."""
    try:
        found = Docking(target)
        found([])
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return found


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--dock", type=docking, help="a target like EGFR; all are in docking.targets()")
    parser.add_argument("--top", type=int, default=8, help="molecules to dock")
    parser.add_argument("--out", type=Path, default=Path("out/molecules"))
    args = parser.parse_args(arguments)
    model, reward = gk.zoo.load("molecules"), Cached(objectives())
    args.out.mkdir(parents=True, exist_ok=True)
    runs = {
        "unguided": [],
        "best of N": [gk.BestOfN(reward, args.candidates)],
        "SVDD": [gk.SVDD(reward, 0.0, args.candidates)],
    }
    for name, guides in runs.items():
        result = gk.sample(model, args.n, guides=guides, seed=1)
        own = metrics.summary(result.samples) | {
            "reward": float(reward(result.samples).nanmean()),
            "diversity": metrics.internal_diversity(result.samples),
            "rows": result.cost.network_rows,
        }
        shown = ("reward", "QED", "SA", "logP", "uniqueness", "diversity", "rows")
        print(f"{name:10s}", *(f"{k} {own[k]:.3f}" for k in shown))
    scores = reward(result.samples)
    order = scores.nan_to_num(-1.0).argsort(descending=True)[: args.top].tolist()
    best = [canonical(result.samples[i]) or result.samples[i] for i in order]
    energies = args.dock(best).tolist() if args.dock else [None] * len(best)
    with open(args.out / "best.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["smiles", "reward", "docking energy"])
        writer.writerows(zip(best, scores[order].tolist(), energies, strict=True))
    print(f"the best {len(best)} are in {args.out / 'best.csv'}")


if __name__ == "__main__":
    main()

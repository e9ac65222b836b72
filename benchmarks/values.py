"""What learned values explain of the reward to come, and what SVDD reaches by completions in place of the mode.

    python -m benchmarks.values explained [--n 128] [--only NAME ...]
    python -m benchmarks.values steering [--n 16] [--seeds 0 1] [--only NAME ...]

`explained`: over n new rollouts of a bundled model, the share of the reward's variance that its bundled value and the
default look-ahead explain at each time, and the share that can be explained (`gk.values.explained`). `steering`: greedy
SVDD with 4 candidates on DNA, in 20 steps, towards HepG2, by the default look-ahead, by the mean of 8 completions of
each candidate, and by 8 completions that its parent's prediction makes. Of one time a corrected value puts candidates
into the same order as the completions that it corrects. An independent classifier judges; `kmers` is the correlation
of 3-mers with 64 unguided samples. Written to benchmarks/results/values.json, in which other rows stay.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import guidekit as gk
from guidekit.zoo.values import TASKS
from rewards.dna import CellType, kmer_correlation

OUT = Path(__file__).parent / "results" / "values.json"
STEPS, ALPHA = 20, 4.0


def explained(name: str, n: int) -> dict[str, Any]:
    """The explained variance of a bundled value by time."""
    task, model = TASKS[name], gk.zoo.load(TASKS[name].model)
    reward = task.reward()
    values = gk.zoo.value(name), gk.values.Tweedie(reward)
    rows = gk.values.explained(model, reward, *values, n=n, steps=task.steps, batch_size=128, seed=100)
    return {
        "n": n,
        "rows": [
            {"t": r.t, "value": r.explained[0], "default": r.explained[1], "possible": r.possible, "noise": r.noise}
            for r in rows
        ],
    }


def look(name: str, reward: Any) -> gk.values.Value:
    """The look-ahead of a row of the table."""
    if name == "default":
        return gk.values.Tweedie(reward)
    return gk.values.Rollout(reward, k=8, alpha=ALPHA, shared=True, parent=name == "8 completions by the parent")


def steering(name: str, n: int, seed: int) -> dict[str, Any]:
    """What greedy SVDD reaches with a look-ahead, or no guide at all."""
    model, reward, judge = gk.zoo.load("dna"), CellType("HepG2"), CellType("HepG2", "dna-judge")
    guides = [] if name == "unguided" else [gk.SVDD(reward, candidates=4, value=look(name, reward))]
    began = time.process_time()
    result = gk.sample(model, n, steps=STEPS, guides=guides, reward=reward, seed=seed, batch_size=128)
    seconds = time.process_time() - began
    others = gk.sample(model, 64, steps=STEPS, seed=1000, batch_size=128).samples
    return {
        "n": n,
        "seed": seed,
        "guide": float(reward(result.samples).mean()),
        "held_out": float(judge(result.samples).mean()),
        "kmers": kmer_correlation(result.samples, others),
        "rows": result.cost.network_rows / n,
        "reward_calls": result.cost.reward_calls / n,
        "cpu_seconds": seconds / n,
    }


LOOKS = ("unguided", "default", "8 completions", "8 completions by the parent")


def kept(part: str, name: str, row: Any) -> None:
    """Write a row into the file, whose others stay."""
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    found.setdefault(part, {})[name] = row
    OUT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["explained", "steering"])
    parser.add_argument("--n", type=int, default=0, help="rollouts, or samples of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", metavar="NAME")
    args = parser.parse_args()
    if args.part == "explained":
        for name in args.only or ("dna-value", "molecules-value"):
            kept("explained", name, explained(name, args.n or 128))
    else:
        for name in args.only or LOOKS:
            for seed in args.seeds:
                kept("steering", f"{name}, seed {seed}", steering(name, args.n or 16, seed))


if __name__ == "__main__":
    main()

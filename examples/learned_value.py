"""A look-ahead that is learned: Lightning trains the soft value of a reward on rollouts, and SVDD decides by it.

    python examples/learned_value.py --folder out/value

The value says of a noisy state what reward is to come, so choosing among candidates costs no evaluation of the model
and no call of the reward. Training goes on where it was stopped when the command is repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import guidekit as gk
from rewards.dna import GC, CellType


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward", choices=["GC", "HepG2"], default="GC")
    parser.add_argument("--rollouts", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("out/value"))
    args = parser.parse_args(arguments)
    model, reward = gk.zoo.load("dna"), GC() if args.reward == "GC" else CellType("HepG2")
    alpha = 0.02 if args.reward == "GC" else 1.0
    value = gk.values.fit(
        model, reward, alpha=alpha, rollouts=args.rollouts, steps=args.steps, epochs=args.epochs, folder=args.folder,
        progress=True,
    )  # fmt: skip
    print(value.calibration)
    runs = {
        "unguided": [],
        "SVDD, clean estimate": [gk.SVDD(reward, candidates=8)],
        "SVDD, learned value": [gk.SVDD(reward, candidates=8, value=value)],
    }
    for name, guides in runs.items():
        result = gk.sample(model, args.n, steps=args.steps, guides=guides)
        mean, cost = reward(result.samples).mean(), result.cost
        print(f"{name:22s} reward {mean:.3f}   {cost.network_rows} rows, {cost.reward_calls} calls")


if __name__ == "__main__":
    main()

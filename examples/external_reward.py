"""A reward in a program of your own, whatever it is written in: samples in on standard input, JSON scores out.

    python examples/external_reward.py

Here the program is a few lines of Python that count CG pairs. Scores are cached in a file, so that a sample is never
scored twice, and a program that fails or hangs costs its samples only: they are counted, and have no score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import guidekit as gk
from rewards import Cached, from_command

PROGRAM = """
import json, sys
sequences = sys.stdin.read().split()
print(json.dumps([s.count("CG") for s in sequences]))
"""


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("out/external"))
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    program = args.out / "count_cg.py"
    program.write_text(PROGRAM, encoding="utf-8")
    reward = Cached(
        from_command([sys.executable, str(program)], name="CG pairs", timeout=60), args.out / "scores.sqlite"
    )
    model = gk.zoo.load("dna")
    plain = gk.sample(model, args.n, steps=args.steps, reward=reward)
    steered = gk.sample(model, args.n, steps=args.steps, guides=[gk.SVDD(reward, candidates=4)])
    for name, result in (("unguided", plain), ("SVDD", steered)):
        mean, cost = reward(result.samples).mean(), result.cost
        print(f"{name:10s} CG pairs {mean:.1f}   scored {cost.reward_calls}, failed {cost.unscored}")
    print(steered.best(1).samples[0])


if __name__ == "__main__":
    main()

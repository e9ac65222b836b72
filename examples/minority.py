"""Rare images: minority guidance by a classifier of noisy images, self-guided, and Boost-and-Skip, with their scores.

    python examples/minority.py --n 64

The minority score says how much denoising changes an image, so the higher the rarer; the judge says whether it is still
a picture of its class.
"""

from __future__ import annotations

import argparse

import torch

import guidekit as gk


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cond", default="bag")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args(arguments)
    model, judge = gk.zoo.load("fashion"), gk.zoo.network("fashion-judge")
    own = gk.zoo.card("fashion")["classes"].index(args.cond)
    rare = gk.zoo.network("fashion-minority")
    runs = {
        "unguided": [],
        "minority guidance, rarest bin": [gk.MinorityGuidance(rare, 1.0)],
        "minority guidance, commonest bin": [gk.MinorityGuidance(rare, 1.0, bin=0)],
        "self-guided": [gk.SelfGuidedMinority(0.5)],
        "boost and skip": [gk.BoostAndSkip(1.5, 4)],
    }
    for name, guides in runs.items():
        result = gk.sample(model, args.n, steps=args.steps, guides=guides, cond=args.cond)
        scores = gk.minority_score(model, result.x, noises=4, cond=args.cond)
        with torch.no_grad():
            kept = (judge(result.samples).argmax(1) == own).double().mean()
        print(f"{name:34s} minority score {scores.mean():7.2f}   judged {args.cond} {kept:.2f}")


if __name__ == "__main__":
    main()

"""Thousands of particles: Feynman-Kac steering of DNA on an accelerator where there is one, else on the processor.

    python examples/particles.py --n 4096 --batch-size 1024 --checkpoint out/particles.ckpt

The reward runs on the device too. `batch_size` bounds the memory of one forward pass; a killed run continues where the
same command is repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import guidekit as gk
from rewards.dna import CellType


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="K562")
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, reward, judge = gk.zoo.load("dna", device), CellType(args.cell), CellType(args.cell, "dna-judge")
    options = {"steps": args.steps, "batch_size": args.batch_size, "progress": True}
    plain = gk.sample(model, min(args.n, 256), **options)
    steering = gk.FKSteering(reward, args.alpha, every=5)
    result = gk.sample(model, args.n, guides=[steering], checkpoint=args.checkpoint, **options)
    print(f"{args.n} particles on {device}: {result.cost.network_rows / result.cost.seconds:.0f} rows a second")
    print(f"log Z {result.log_z.item():.2f} +- {result.log_z_error.item():.2f}, ESS {result.ess.item():.0f}")
    print(f"distinct ancestors at the start: {result.trace['distinct'][-1].item():.0f}")
    for name, samples in (("unguided", plain.samples), ("steered", result.resample(seed=0).samples[:256])):
        print(f"{name:10s} guiding oracle {reward(samples).mean():.2f}   held-out oracle {judge(samples).mean():.2f}")


if __name__ == "__main__":
    main()

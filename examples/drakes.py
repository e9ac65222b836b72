"""The enhancers of DRAKES (Wang et al., 2024) with their authors' files: activity in HepG2, without any training.

    python examples/drakes.py --model mdlm.ckpt --oracle reward_oracle_ft.ckpt --judge reward_oracle_eval.ckpt

The model draws 200 base pairs. The oracle guides, and the judge, which was trained on other chromosomes, takes no part.
Files that end in .ckpt are read by gReLU (pip install grelu), which runs code that lies in them: take them from their
authors only. FILE.py:NAME is a function of yours that returns a network: one-hot DNA (rows, 4, 200) -> (rows, cells).
"""

from __future__ import annotations

import argparse
import runpy

import torch
from torch import Tensor, nn

import guidekit as gk
from guidekit.external.dnacnn import LETTERS
from rewards.base import Reward
from rewards.dna import kmer_correlation, uniqueness

CELLS = ("HepG2", "K562", "SKNSH")  # the outputs of the oracles


class Activity(Reward):
    """What a network predicts for one cell."""

    def __init__(self, net: nn.Module, cell: str):
        self.net, self.cell, self.name = net.eval(), CELLS.index(cell), f"activity in {cell}"

    def score(self, samples: list[str]) -> Tensor:
        letters = torch.tensor([[LETTERS.index(v) for v in s] for s in samples])
        with torch.no_grad():
            return self.net(nn.functional.one_hot(letters, 4).mT.float()).flatten(1)[:, self.cell]


def oracle(file: str, cell: str) -> Activity:
    if not file.endswith(".ckpt"):
        path, name = file.rsplit(":", 1)
        return Activity(runpy.run_path(path)[name](), cell)
    from grelu.lightning import LightningModel  # type: ignore[import-not-found]

    return Activity(LightningModel.load_from_checkpoint(file, map_location="cpu"), cell)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--oracle", "--judge"):
        parser.add_argument(name, required=True)
    parser.add_argument("--cell", default="HepG2", choices=CELLS)
    parser.add_argument("--n", type=int, default=640)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--alpha", type=float, default=0.5)
    args = parser.parse_args(arguments)
    model = gk.from_checkpoint(args.model, "drakes")
    reward, judge = oracle(args.oracle, args.cell), oracle(args.judge, args.cell)
    methods = {
        "unguided": [],
        f"best of {args.candidates}": [gk.BestOfN(reward, args.candidates)],
        "SVDD": [gk.SVDD(reward, candidates=args.candidates)],
        "FK steering": [gk.FKSteering(reward, args.alpha), gk.Resample()],
    }
    plain: list[str] = []
    for name, guides in methods.items():
        result = gk.sample(model, args.n, steps=args.steps, guides=guides, reward=reward, holdout=judge,
                           batch_size=640, progress=True)  # fmt: skip
        plain = plain or result.samples
        assert result.rewards is not None and result.holdout is not None
        print(f"{name:12}  oracle {float(result.rewards.median()):6.3f}  judge {float(result.holdout.median()):6.3f}  "
              f"3-mers as unguided {kmer_correlation(result.samples, plain, 3):.3f}  unique "
              f"{uniqueness(result.samples):.2f}  network rows {result.cost.network_rows:,}")  # fmt: skip


if __name__ == "__main__":
    main()

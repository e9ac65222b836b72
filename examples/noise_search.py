"""Search for noise that becomes what a classifier asks for: several optimisers beside best-of-N, at the same rows.

    python examples/noise_search.py --label sneaker --out out/noise_search

The model draws garments of any kind, and the reward is how much the classifier prefers the label to its best rival. The
judge is another classifier, which no search has asked. With --pycma also an optimiser of another library, by
`gk.search.Each`: one CMA-ES for each image (pip install cma).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from rewards.base import needs
from rewards.images import Classifier

S = gk.search


def pycma(size: int, seed: int, candidates: int) -> Any:
    """pycma's CMA-ES with a diagonal covariance; it has ask and tell."""
    options = {"seed": max(1, seed), "popsize": candidates, "CMA_diagonal": True, "verbose": -9}
    return importlib.import_module("cma").CMAEvolutionStrategy([0.0] * size, 1.0, options)


def strategies(k: int, other: bool) -> dict[str, Any]:
    """What asks for the noises, k for each image in a round."""
    own = {"random": S.Random(k), "subspace": S.Subspace(k, dims=k), "CMA-ES": S.CMA(k)}
    return own | ({"pycma": S.Each(partial(pycma, candidates=k))} if other else {})


def picture(rows: dict[str, torch.Tensor], file: Path) -> None:
    """One row of images for each method."""
    pyplot = needs("matplotlib.pyplot", "report", "the image grid")
    figure, axes = pyplot.subplots(len(rows), 1, figsize=(8, 1.4 * len(rows)), squeeze=False, layout="tight")
    for axis, (name, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(torch.cat(list(images[:10, 0]), 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(name, fontsize=8, loc="left")
        axis.axis("off")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    classes = gk.zoo.card("fashion-classifier")["classes"]
    parser.add_argument("--label", default="sneaker", choices=classes)
    for name, usual in (("n", 10), ("rounds", 8), ("candidates", 8), ("steps", 6)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--pycma", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("out/noise_search"))
    args = parser.parse_args(arguments)
    if args.pycma and importlib.util.find_spec("cma") is None:
        parser.error("--pycma needs another library: pip install cma")
    reward, judge = (
        Classifier(gk.zoo.network(name), classes.index(args.label), mode="margin")
        for name in ("fashion-classifier", "fashion-judge")
    )
    model, options = gk.zoo.load("fashion"), {"steps": args.steps, "solver": gk.solvers.DDIM(), "holdout": judge}
    results = {"plain": gk.sample(model, args.n, reward=reward, **options)}
    for name, strategy in strategies(args.candidates, args.pycma).items():
        results[name] = S.run(model, args.n, reward, strategy, rounds=args.rounds, progress=True, **options)
    for name, r in results.items():
        row = r.summary()[0]
        print(f"{name:10} reward {row['reward']:7.2f}   judge {row['holdout']:7.2f}   rows {r.cost.network_rows}")
    args.out.mkdir(parents=True, exist_ok=True)
    picture({name: r.samples for name, r in results.items()}, args.out / "grid.png")


if __name__ == "__main__":
    main()

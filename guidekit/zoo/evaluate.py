"""Measure the bundled models on held-out data and write the figures to their cards:

    python -m guidekit.zoo.evaluate fashion --n 2000

Every figure stands beside the same one for real data, with the number of samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guides import CFG
from ..sampling import sample
from . import WEIGHTS, card, data, load, network

Figures = dict[str, Any]


def _in_parts(f: Callable[[Tensor], Tensor], x: Tensor, size: int = 1000) -> Tensor:
    with torch.no_grad():
        return torch.cat([f(part) for part in x.split(size)])


def classifier(name: str, n: int, steps: int) -> Figures:
    """Accuracy on the test set."""
    if name.startswith("dna"):
        texts, y = data.dna("test")
        x = torch.nn.functional.one_hot(data.encoded(texts), 4).float().mT
    else:
        x, y = data.fashion("test")
    correct = _in_parts(network(name), x).argmax(1) == y
    return {"test accuracy": round(float(correct.float().mean()), 4), "test samples": len(y)}


def fashion(name: str, n: int, steps: int) -> Figures:
    """Accuracy of conditional samples by the classifier, and Frechet distances on the features of the judge."""
    from rewards.images import frechet_distance

    model, guess, judge = load(name), network("fashion-classifier"), network("fashion-judge")
    x, y = data.fashion("test")
    half = len(x) // 2
    features = _in_parts(judge.features, x)  # type: ignore[operator,arg-type]
    between = frechet_distance(features[:half], features[half:])
    found: Figures = {
        "samples": n, "steps": steps,
        "accuracy of real images": round(float((_in_parts(guess, x).argmax(1) == y).float().mean()), 4),
        "Frechet distance of two real halves": round(float(between), 4),
    }  # fmt: skip
    for title, guides in (("", []), (", CFG 2", [CFG(2.0)])):
        result = sample(model, n // 10, steps=steps, guides=guides, cond=list(range(10)), batch_size=500, progress=True)
        images: Tensor = result.samples
        right = _in_parts(guess, images).argmax(1) == result.group
        found[f"accuracy{title}"] = round(float(right.float().mean()), 4)
        own = _in_parts(judge.features, images)  # type: ignore[operator,arg-type]
        found[f"Frechet distance{title}"] = round(float(frechet_distance(own, features)), 4)
    return found


def dna(name: str, n: int, steps: int) -> Figures:
    """k-mers against held-out sequences, cell types by the judge, and distances to the training set."""
    from rewards.dna import kmer_correlation, nearest_edit_distance, uniqueness

    model, judge = load(name), network("dna-judge")
    real, labels = data.dna("test")
    known = data.dna("training")[0]

    def types(texts: list[str]) -> Tensor:
        x = torch.nn.functional.one_hot(data.encoded(texts), 4).float().mT
        return _in_parts(judge, x).argmax(1)

    found: Figures = {
        "samples": n, "steps": steps,
        "cell type of real sequences": round(float((types(real) == labels).float().mean()), 4),
        "3-mer correlation of two real halves": round(kmer_correlation(real[::2], real[1::2], 3), 4),
        "6-mer correlation of two real halves": round(kmer_correlation(real[::2], real[1::2], 6), 4),
    }  # fmt: skip
    for title, guides in (("", []), (", CFG 2", [CFG(2.0)])):
        options = {"steps": steps, "cond": list(range(4)), "batch_size": 500, "progress": True}
        result = sample(model, n // 4, guides=guides, **options)
        own: list[str] = result.samples
        found[f"3-mer correlation{title}"] = round(kmer_correlation(own, real, 3), 4)
        found[f"6-mer correlation{title}"] = round(kmer_correlation(own, real, 6), 4)
        found[f"cell type{title}"] = round(float((types(own) == result.group).float().mean()), 4)
        found[f"unique{title}"] = round(uniqueness(own), 4)
        if not title:
            near = nearest_edit_distance(own[:100], known)
            found["least edit distance of 100 to the training set"] = int(min(near))
    return found


def evaluate(name: str, n: int, steps: int, weights: Path = WEIGHTS) -> Figures:
    """Measure an entry and write the figures to its card."""
    own = card(name)
    measure = {"classifier": classifier, "image model": fashion, "DNA model": dna}[own["kind"]]
    own["metrics"] = measure(name, n, steps)
    (weights / f"{name}.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    return own["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--n", type=int, default=2000, help="samples of a model")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.name, args.n, args.steps), indent=1))


if __name__ == "__main__":
    main()

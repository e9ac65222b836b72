"""How well inversion brings samples of the bundled models back, and what an edit keeps of them.

    python -m benchmarks.editing

For each method: samples of one class are inverted at their own condition and sampled again at it (the error that is
left) and at another one (the edit). An edit is judged by the share of samples that the other class' classifier or
oracle accepts, and by what it keeps: for images the root mean square distance to the source, for DNA the share of equal
letters; new samples of the other class stand beside it. Written to benchmarks/results/editing.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

import guidekit as gk
from guidekit.zoo.data import CLASSES
from rewards.dna import CellType
from rewards.images import Classifier

OUT = Path(__file__).parent / "results" / "editing.json"


def images(n: int, steps: int) -> list[dict[str, Any]]:
    """Sandals made into bags."""
    model, target = gk.zoo.load("fashion"), "bag"
    judge = Classifier(gk.zoo.network("fashion-judge"), CLASSES.index(target), mode="margin")
    source = gk.sample(model, n, steps=50, cond="sandal", seed=1).x

    def row(name: str, again: Tensor | None, edited: Tensor) -> dict[str, Any]:
        error = None if again is None else _distance(model, again, source)
        share = float((judge(model.decode(edited)) > 0).double().mean())
        return {"method": name, "error": error, "edited": share, "distance": _distance(model, edited, source)}

    rows = []
    for method in ("ddim", "fixed_point", "renoise", "chain", "edit_friendly"):
        noise = gk.invert(model, source, cond="sandal", method=method, steps=steps)
        solver = gk.solvers.DDIM() if method in ("ddim", "fixed_point", "renoise") else gk.solvers.DDPM()
        options = {"noise": noise, "steps": steps, "solver": solver}
        again, edited = (gk.sample(model, n, cond=c, **options).x for c in ("sandal", target))
        rows.append(row(method, again, edited))
    return [*rows, row("new samples", None, gk.sample(model, n, steps=steps, cond=target, seed=2).x)]


def dna(n: int, steps: int) -> list[dict[str, Any]]:
    """Sequences of K562 made into those of HepG2."""
    model, judge = gk.zoo.load("dna"), CellType("HepG2", "dna-judge")
    source = gk.sample(model, n, steps=50, cond="K562", seed=1).samples
    noise = gk.invert(model, source, cond="K562", steps=steps)
    rows = []
    own: dict[str, dict[str, Any]] = {"chain": {"noise": noise}, "new samples": {"seed": 2}}
    for name, options in own.items():
        again = gk.sample(model, n, steps=steps, cond="K562", **options).samples if name == "chain" else None
        edited = gk.sample(model, n, steps=steps, cond="HepG2", **options).samples
        rows.append(
            {
                "method": name,
                "error": None if again is None else 1 - _equal(again, source),
                "edited": float((judge(edited) > 0).double().mean()),
                "kept": _equal(edited, source),
            }
        )
    return rows


def _distance(model: gk.Model, x: Tensor, source: Tensor) -> float:
    return float((model.decode(x) - model.decode(source)).square().mean().sqrt())


def _equal(samples: list[str], source: list[str]) -> float:
    pairs = [a == b for x, y in zip(samples, source, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    found = {"n": args.n, "steps": args.steps, "images": images(args.n, args.steps), "dna": dna(args.n, args.steps)}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    for domain in ("images", "dna"):
        for line in found[domain]:
            print(domain, *(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in line.items()))


if __name__ == "__main__":
    main()

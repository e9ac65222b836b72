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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

import guidekit as gk
from guidekit.edits.invert import METHODS
from guidekit.zoo.data import CLASSES
from rewards.dna import CellType
from rewards.images import Classifier

Row = Callable[[str, Tensor | None, Tensor], dict[str, Any]]
OUT = Path(__file__).parent / "results" / "editing.json"


def images(n: int, steps: int) -> list[dict[str, Any]]:
    """Sandals made into bags."""
    model, target = gk.zoo.load("fashion"), "bag"
    judge = Classifier(gk.zoo.network("fashion-judge"), CLASSES.index(target), mode="margin")
    source = gk.sample(model, n, steps=50, cond="sandal", seed=1).x

    def row(name: str, again: Tensor | None, edited: Tensor) -> dict[str, Any]:
        error = None if again is None else _distance(model, again, source)
        share = float((judge(model.decode(edited)) > 0).double().mean())
        kept = _distance(model, edited, source)
        return {"method": name, "steps": steps, "error": error, "edited": share, "distance": kept}

    rows = []
    if steps < 10:
        return [*_few(model, source, target, steps, row), row("new samples", None, _fresh(model, n, steps, target))]
    for method, solver in METHODS.items():
        noise = gk.invert(model, source, cond="sandal", method=method, steps=steps)
        options = {"noise": noise, "steps": steps, "solver": solver()}
        again, edited = (gk.sample(model, n, cond=c, **options).x for c in ("sandal", target))
        rows.append(row(method, again, edited))
    return [*rows, row("new samples", None, _fresh(model, n, steps, target))]


def _fresh(model: gk.Model, n: int, steps: int, target: str) -> Tensor:
    return gk.sample(model, n, steps=steps, cond=target, seed=2).x


def _few(model: gk.Model, source: Tensor, target: str, steps: int, row: Row) -> list[dict[str, Any]]:
    """Edits in a few steps, with TurboEdit's shift and pseudo-guidance of weight w."""
    rows = []
    for shift, w in ((0.0, 1.0), (0.2, 1.0), (0.0, 1.5), (0.2, 1.5)):
        noise = gk.invert(model, source, cond="sandal", method="edit_friendly", steps=steps, shift=shift)
        guides = [gk.Compose("sandal", 1 - w, own=w)]
        own = {"noise": noise, "steps": steps, "guides": guides}
        again, edited = (gk.sample(model, len(source), cond=c, **own).x for c in ("sandal", target))
        rows.append(row(f"shift {shift:g}, w {w:g}", again, edited))
    return rows


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
    parser.add_argument("--few", type=int, default=4, help="steps of the edits in a few steps")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    found = {"n": args.n, "steps": args.steps, "images": images(args.n, args.steps), "dna": dna(args.n, args.steps)}
    found["few"] = images(args.n, args.few)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    for domain in ("images", "dna", "few"):
        for line in found[domain]:
            print(domain, *(f"{k} {v:.3g}" if isinstance(v, float) else v for k, v in line.items()))


if __name__ == "__main__":
    main()

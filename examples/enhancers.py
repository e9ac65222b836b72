"""Design DNA that one cell type opens: steering by an oracle, judged by another one that it has never asked.

    python examples/enhancers.py --cell HepG2 --out out/enhancers

All methods have the same network rows: best-of-4 draws four times as many samples, SVDD four children of each particle,
and Feynman-Kac steering runs four times as many particles as it returns. Only SVDD that completes children by their
parent's prediction has a quarter of them. The judge is another network, trained apart.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch

import guidekit as gk
from rewards.dna import CellType, edit_distance_diversity, kmer_correlation, uniqueness

K = 4  # rows of each method over those of the unguided model


def methods(reward, n: int, alpha: float) -> dict[str, tuple[int, list[gk.Guide]]]:
    """Samples to draw and guides."""
    return {
        "unguided": (n, []),
        f"best of {K}": (n, [gk.BestOfN(reward, K)]),
        "SVDD": (n, [gk.SVDD(reward, 0.0, K)]),
        "SVDD by the parent": (n, [gk.SVDD(reward, 0.0, K, value="parent")]),
        "SVDD, weighted": (n, [gk.SVDD(reward, alpha, K), gk.Resample()]),
        "FK steering": (K * n, [gk.FKSteering(reward, alpha)]),
    }


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", default="HepG2")
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("out/enhancers"))
    args = parser.parse_args(arguments)
    model, reward, judge = gk.zoo.load("dna"), CellType(args.cell), CellType(args.cell, "dna-judge")
    args.out.mkdir(parents=True, exist_ok=True)
    rows, plain = [], []
    for name, (n, guides) in methods(reward, args.n, args.alpha).items():
        result = gk.sample(model, n, steps=args.steps, guides=guides, reward=reward, batch_size=500, progress=True)
        if len(result) > args.n:
            result = result.resample(seed=0)
        samples = result.samples[: args.n]
        plain = plain or samples
        rows.append({
            "method": name,
            "guiding oracle": round(float(reward(samples).mean()), 3),
            "held-out oracle": round(float(judge(samples).mean()), 3),
            "unique": round(uniqueness(samples), 3),
            "edit distance": round(edit_distance_diversity(samples), 3),
            "3-mers as unguided": round(kmer_correlation(samples, plain, 3), 3),
            "network rows": result.cost.network_rows,
            "reward calls": result.cost.reward_calls,
        })  # fmt: skip
        text = "".join(f">{name} {i}\n{s}\n" for i, s in enumerate(samples))
        (args.out / f"{name.replace(' ', '-').replace(',', '')}.fasta").write_text(text, encoding="utf-8")
        print("  ".join(f"{k} {v}" for k, v in rows[-1].items()))
    with open(args.out / "table.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"sequences and table in {args.out}")


if __name__ == "__main__":
    with torch.no_grad():
        main()

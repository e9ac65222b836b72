"""What rewards cost: molecules a second, workers against one process, the wrapper against the bare call, sequences.

    python benchmarks/reward_costs.py --out benchmarks/results/rewards.json

Figures are medians of several runs; read the ratios, which are of one run on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import QED as rdkit_qed

from guidekit.zoo import data
from rewards import Cached, Pooled, Reward, dna, molecules

COUNT = 4000


def seconds(call: Callable[[], Any], runs: int = 3) -> float:
    """The median time of a call."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)


def fresh(reward: Reward, smiles: list[str]) -> Callable[[], Any]:
    """A call that finds no molecule parsed already."""

    def call() -> Any:
        molecules.descriptors._parsed.cache_clear()
        return reward(smiles)

    return call


def of_molecules(smiles: list[str]) -> dict[str, Any]:
    rewards = [
        molecules.QED(), molecules.SA(), molecules.NPLikeness(), molecules.LogP(), molecules.TPSA(), molecules.MolWt(),
        molecules.Similarity(smiles[0]), molecules.Alerts("BRENK"), molecules.Lipinski(), molecules.Scaffold(smiles[0]),
    ]  # fmt: skip
    part = smiles[:1000]
    for reward in rewards:
        reward(part[:2])  # tables that are read once
    return {r.name: round(len(part) / seconds(fresh(r, part))) for r in rewards}


def of_wrapper(smiles: list[str]) -> dict[str, float]:
    """QED of this package against RDKit's own functions in a loop."""
    part = smiles[:1000]
    ratios = []
    for _ in range(7):
        bare = seconds(lambda: [rdkit_qed.qed(Chem.MolFromSmiles(s)) for s in part], 1)
        ratios.append(seconds(fresh(molecules.QED(), part), 1) / bare)
    return {"QED over the bare call": round(median(ratios), 3)}


def of_workers(smiles: list[str]) -> dict[str, float]:
    """Two processes against one, QED on 4,000 molecules; the pool has been started."""
    reward = molecules.QED()
    with Pooled(reward, 2, 64) as pooled:
        pooled(smiles[:256])
        ratios = [seconds(fresh(reward, smiles), 1) / seconds(lambda: pooled(smiles), 1) for _ in range(3)]
    return {"serial over two processes": round(median(ratios), 2)}


def of_cache(smiles: list[str]) -> dict[str, float]:
    cached = Cached(molecules.QED())
    cached(smiles[:1000])
    return {"ms a molecule, found": round(seconds(lambda: cached(smiles[:1000])), 4)}


def of_sequences() -> dict[str, float]:
    rng = np.random.default_rng(0)
    texts = ["".join(row) for row in rng.choice(list("ACGT"), (10_000, 200))]
    gc, kmer = dna.GC(), dna.Kmer("TATA")
    return {"GC and a 4-mer, 10,000 x 200 bp, seconds": round(seconds(lambda: (gc(texts), kmer(texts)), 5), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rewards.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    smiles = data.molecules("test")[:COUNT]
    found = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        "molecules a second": of_molecules(smiles),
        "wrapper": of_wrapper(smiles),
        "workers": of_workers(smiles),
        "cache": of_cache(smiles),
        "sequences": of_sequences(),
    }
    text = json.dumps(found, indent=1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

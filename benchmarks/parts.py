"""Molecules around a part that stays: the tasks of SAFE's benchmark, by the bundled model of fragments.

    python -m benchmarks.parts [--n 100] [--seeds 1] [--steered] [--tasks linker_design ...]

benchmarks/data/fragments.csv holds ten drugs with the parts to keep, as distributed with GenMol (Apache-2.0) after
SAFE's benchmark: two ends to link, a motif to extend, a scaffold to decorate and a structure to grow. The last one has
no open bonds, so each ten samples open one or two others of its hydrogens. n samples for each drug and task, without
steering or with SVDD (4 candidates) for quality. Written to benchmarks/results/parts.json, each task when it is done:

    validity     share of molecules
    unique       share of different ones among these
    quality      share of all samples that are different molecules with QED >= .6 and SA <= 4
    diversity    mean Tanimoto distance between the molecules of a drug
    distance     mean Tanimoto distance to the drug

With several seeds, "deviation" has the standard deviations of these means over seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rdkit import Chem

import guidekit as gk
from rewards.molecules import QED, SA, Similarity, Substructure
from rewards.molecules.metrics import internal_diversity
from rewards.transforms import Clip

FOLDER = Path(__file__).parent
TASKS = ("linker_design", "motif_extension", "scaffold_decoration", "superstructure_generation")
OUT = FOLDER / "results" / "parts.json"
MODEL = "druglike"


def opened(part: str, rng: np.random.Generator) -> str:
    """The part with dummy atoms in place of one or two of its hydrogens."""
    mol = Chem.MolFromSmiles(part)
    places = [a.GetIdx() for a in mol.GetAtoms() for _ in range(a.GetTotalNumHs())]
    grown = Chem.RWMol(mol)
    for a in sorted(set(rng.permutation(places)[: rng.integers(1, 3)].tolist())):
        atom = grown.GetAtomWithIdx(a)
        if atom.GetNumExplicitHs():
            atom.SetNumExplicitHs(atom.GetNumExplicitHs() - 1)
        grown.AddBond(a, grown.AddAtom(Chem.Atom(0)), Chem.BondType.SINGLE)
    return Chem.MolToSmiles(grown.GetMol())


def parts(row: dict[str, str], task: str, n: int, rng: np.random.Generator) -> list[str]:
    """The parts to keep, each for its share of n samples."""
    return [row[task]] if "*" in row[task] else [opened(row[task], rng) for _ in range(max(1, n // 10))]


def quality() -> Any:
    """One where QED >= .6 and SA <= 4, and falling with the distance from there."""
    return QED().transformed(Clip(0.0, 0.6)) / 0.6 - SA().transformed(Clip(4.0, 10.0)) / 4.0


def drawn(model: Any, kept: list[str], n: int, steered: bool, seed: int) -> list[str]:
    """n samples that hold one of these parts; all empty where the model has no room for it."""
    try:
        template = torch.stack([model.template(part) for part in kept])
    except ValueError as error:
        print(error, flush=True)
        return [""] * n
    guides = [gk.Keep(template=template), *([gk.SVDD(quality(), candidates=4)] if steered else [])]
    each = -(-n // len(kept))
    return gk.sample(model, each, steps=model.length, guides=guides, cond=[None] * len(kept), seed=seed).samples[:n]


def judged(samples: list[str], drug: str, kept: str) -> dict[str, float]:
    different = sorted({s for s in samples if s})
    good = (QED()(different) >= 0.6) & (SA()(different) <= 4) if different else torch.zeros(0)
    whole = Substructure(kept)(different) if different else torch.zeros(0)
    valid = sum(map(bool, samples))
    return {
        "validity": valid / len(samples), "unique": len(different) / max(valid, 1),
        "quality": float(good.sum()) / len(samples),
        "diversity": internal_diversity(different) if len(different) > 1 else 0.0,
        "distance": float(1 - Similarity(drug)(different).mean()) if different else 1.0,
        "retained": float((whole > 0).double().mean()) if different else 1.0,
    }  # fmt: skip


def measured(task: str, n: int, seeds: int, steered: bool) -> dict[str, Any]:
    """Means over drugs and seeds."""
    model, rows = gk.zoo.load(MODEL, ahead=steered), list[list[dict[str, float]]]()
    with (FOLDER / "data" / "fragments.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    for seed in range(seeds):
        rows.append([])
        for row in table:
            kept = parts(row, task, n, np.random.default_rng(seed))
            samples = drawn(model, kept, n, steered, seed)
            rows[-1].append(judged(samples, row["smiles"], query(row[task])))
            print(task, row["name"], rows[-1][-1], flush=True)
    return {"n": n, "seeds": seeds, **summed(rows)}


def summed(rows: list[list[dict[str, float]]]) -> dict[str, Any]:
    """The mean over seeds of the means over drugs, and with several seeds the standard deviation of these; of rows by
    seed and drug."""
    each = {k: [mean(row[k] for row in own) for own in rows] for k in rows[0][0]}
    found: dict[str, Any] = {k: round(mean(v), 4) for k, v in each.items()}
    return found | ({"deviation": {k: round(stdev(v), 4) for k, v in each.items()}} if len(rows) > 1 else {})


def query(part: str) -> str:
    """A SMARTS that every molecule with the part matches; a centre may be written the other way round when it grows."""
    mol = Chem.MolFromSmiles(part)
    Chem.RemoveStereochemistry(mol)
    for atom in mol.GetAtoms():
        atom.SetIsotope(0)
    smarts = Chem.MolToSmarts(Chem.DeleteSubstructs(mol, Chem.MolFromSmarts("[#0]")))
    return re.sub(r"(\[#\d+)H\d?", r"\1", smarts)  # a hydrogen may be what was replaced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steered", action="store_true", help="with SVDD, beside what is stored of the other")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    found = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    found["model"] = gk.zoo.card(MODEL)["training"]
    own = found.setdefault("SVDD" if args.steered else "unsteered", {})
    for task in args.tasks:
        own[task] = measured(task, args.n, args.seeds, args.steered)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

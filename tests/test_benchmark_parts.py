"""The table of docs/molecules.md is that of the stored results."""

import csv
import json
import re
from pathlib import Path

import numpy as np
from rdkit import Chem

import guidekit as gk
from benchmarks import parts

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "parts.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "molecules.md").read_text(encoding="utf-8")
NAMES = dict(
    zip(
        parts.TASKS,
        ("linker between two ends", "motif extension", "scaffold decoration", "superstructure"),
        strict=True,
    )
)


def test_the_page_says_what_was_measured():
    own = {name: FOUND[name]["linker_design"]["n"] for name in ("unsteered", "SVDD")}
    assert all(FOUND[name][task]["n"] == n for name, n in own.items() for task in NAMES)
    assert re.search(rf"\b{own['unsteered']}\s+samples for each drug and task, {own['SVDD']}\s+with SVDD", PAGE)
    for task, name in NAMES.items():
        line = re.search(rf"^\| {name} \|(.*)\|$", PAGE, re.M)
        assert line is not None, name
        quality, steered, _, shares, distance = (cell.strip() for cell in line[1].split("|"))
        plain, svdd = FOUND["unsteered"][task], FOUND["SVDD"][task]
        assert quality == f"{100 * plain['quality']:.1f} %" and steered == f"{100 * svdd['quality']:.1f} %"
        assert shares == f"{100 * plain['validity']:.1f} %, {100 * plain['unique']:.1f} %"
        assert distance == f"{plain['distance']:.2f}" and plain["retained"] == svdd["retained"] == 1
    later = FOUND["SVDD, later"]["scaffold_decoration"]
    assert later["validity"] == later["retained"] == 1 and later["n"] == 100
    assert f"{100 * later['unique']:.1f} % differ, and the quality is {100 * later['quality']:.1f} %" in PAGE


def test_a_structure_is_opened_at_one_or_two_of_its_hydrogens():
    whole = Chem.MolFromSmiles("c1ccc2[nH]ccc2c1")
    for seed in range(20):
        opened = Chem.MolFromSmiles(parts.opened("c1ccc2[nH]ccc2c1", np.random.default_rng(seed)))
        ends = [a for a in opened.GetAtoms() if not a.GetAtomicNum()]
        assert 1 <= len(ends) <= 2 and opened.HasSubstructMatch(whole)
        assert opened.GetNumAtoms() == whole.GetNumAtoms() + len(ends)


def test_every_part_of_the_table_fits_the_model_also_scaffolds_with_six_open_bonds():
    model = gk.zoo.load(parts.MODEL)
    with (parts.FOLDER / "data" / "fragments.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    given = [row[task] for row in table for task in parts.TASKS if "*" in row[task]]
    assert len(given) == 30 and max(part.count("*") for part in given) == 6
    for part in given:
        kept = model.template(part).sum(1) == 1
        assert 0 < kept.sum() < model.length and kept[: int(kept.sum())].all()


def test_the_deviation_is_that_of_the_means_over_drugs():
    rows = [[{"quality": 0.1}, {"quality": 0.5}], [{"quality": 0.4}, {"quality": 0.4}]]  # two seeds, two drugs
    assert parts.summed(rows) == {"quality": 0.35, "deviation": {"quality": round(0.1 / 2**0.5, 4)}}
    assert parts.summed(rows[:1]) == {"quality": 0.3}

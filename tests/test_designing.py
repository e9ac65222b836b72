"""`guidekit design`: from a file of leads to a folder with the best samples."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from rdkit import Chem
from typer.testing import CliRunner, Result as Answer

import guidekit as gk
from guidekit.cli.app import app
from rewards.molecules import QED, SA, Part
from rewards.molecules.descriptors import canonical

MINE = """
import torch
import guidekit as gk

LETTERS = "CNOS"

def chains():
    flat = lambda x, t, cond: torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(*x.shape, 4)
    spelled = lambda x: ["".join(LETTERS[v] for v in row) for row in x.tolist()]
    return gk.MaskedModel(flat, 4, 7, decode=spelled)

def words():
    flat = lambda x, t, cond: torch.zeros(*x.shape, 4)
    spelled = lambda x: ["".join("ACGT"[v] for v in row) for row in x.tolist()]
    read = lambda texts: torch.tensor([["ACGT".index(c) for c in text] for text in texts])
    return gk.MaskedModel(flat, 4, 8, decode=spelled, read=read)

def fails(samples):
    return [float("nan") if i % 10 else 1.0 for i in range(len(samples))]
"""
LOOP = ("--budget", "36", "--population", "16", "-n", "4", "-o", "out")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(*args: str) -> Answer:
    return CliRunner().invoke(app, ["design", *args], prog_name="guidekit")


def table(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_design_of_molecules_has_its_files_and_the_next_one_reads_its_calls():
    Path("leads.smi").write_text("OCCO glycol\nCC(C)N amine\n")
    chains = ("mine.py:chains", "--domain", "molecules", "-r", "qed", "-r", "sa:0.5", "--require", "mol_wt")
    answer = ask(*chains, "--start", "leads.smi", "--compare", *LOOP)
    assert answer.exit_code == 0, answer.output
    rows, calls, others = table("out/designs.csv"), table("out/calls.csv"), table("out/screening/calls.csv")
    assert list(rows[0]) == ["row", "sample", "reward", "proposal", "QED", "SA"]
    for row in rows:
        smiles = row["sample"]
        assert smiles == canonical(smiles)
        assert float(row["QED"]) == pytest.approx(float(QED()([smiles])))
        assert float(row["SA"]) == pytest.approx(float(SA()([smiles])))
        assert float(row["reward"]) == pytest.approx(float(row["QED"]) + 0.5 * (10 - float(row["SA"])) / 9)
    best = sorted((float(c["value"]) for c in calls), reverse=True)[:4]
    assert [float(row["reward"]) for row in rows] == pytest.approx(best)
    assert len(calls) == len({c["sample"] for c in calls}) == len(others) == 36
    assert {c["proposal"] for c in others} == {"start", "Fresh"} < {c["proposal"] for c in calls}
    assert [c["sample"] for c in calls[:2]] == ["OCCO", "CC(C)N"] == [c["sample"] for c in others[:2]]
    mols = [m.GetPropsAsDict() for m in Chem.SDMolSupplier("out/designs.sdf")]
    assert [m["SMILES"] for m in mols] == [row["sample"] for row in rows]
    assert [m["SA"] for m in mols] == pytest.approx([float(row["SA"]) for row in rows], rel=1e-5)
    assert gk.load_result("out/result").samples == [row["sample"] for row in rows]
    summary = json.loads(Path("out/summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["screening", "designs"]
    assert summary["rows"][1]["mean"] == pytest.approx(sum(best) / 4)
    page = Path("out/report.html").read_text()
    for words in ("The best 4 samples of 36 reward calls", "The best rewards so far against calls", "by screening",
                  "Share of each proposal in the calls so far", "structure of"):  # fmt: skip
        assert words in page, words
    known = ask(*chains, "--known", "out/calls.csv", "--budget", "8", "--population", "36", "-n", "4",
                "-o", "more", "--no-report")  # fmt: skip
    assert known.exit_code == 0, known.output
    assert not {c["sample"] for c in table("more/calls.csv")} & {c["sample"] for c in calls}
    assert not Path("more/report.html").exists()


def test_the_same_command_resumes_and_a_larger_budget_goes_on():
    first = ask("mine.py:words", "--domain", "dna", "-r", "gc", *LOOP, "--json")
    calls = Path("out/calls.csv").read_text()
    again = ask("mine.py:words", "--domain", "dna", "-r", "gc", *LOOP, "--json")
    assert json.loads(first.stdout) == json.loads(again.stdout) and Path("out/calls.csv").read_text() == calls
    more = ask("mine.py:words", "--domain", "dna", "-r", "gc", *LOOP, "--budget", "60")
    assert more.exit_code == 0, more.output
    text = Path("out/calls.csv").read_text()
    assert text.startswith(calls) and calls.count("\n") < text.count("\n") <= 61  # informed moves spend calls too
    assert "report.html" in more.stderr
    head, sequence = Path("out/designs.fasta").read_text().split("\n")[:2]
    assert head == ">00000 GC=1 reward=1" and sequence == table("out/designs.csv")[0]["sample"]


def test_kept_letters_are_in_everything_that_is_asked():
    answer = ask("mine.py:words", "--domain", "dna", "-r", "gc", "--keep", "NNATRNNN", *LOOP, "--no-report")
    assert answer.exit_code == 0, answer.output
    calls = table("out/calls.csv")
    assert all(c["sample"][2:4] == "AT" and c["sample"][4] in "AG" for c in calls) and len(calls) == 36
    assert "Crossover" in {c["proposal"] for c in calls}


@pytest.mark.slow
def test_a_kept_part_is_in_every_molecule_and_goes_on_at_its_open_bond_alone():
    part = "[*:1]c1ccc2[nH]ccc2c1"
    Path("leads.smi").write_text("CCc1ccc2[nH]ccc2c1\nCCO\n")
    answer = ask("druglike", "-r", "qed", "--keep", part, "--start", "leads.smi", "--budget", "24", "--population",
                 "12", "-n", "3", "-o", "out", "--no-report")  # fmt: skip
    assert answer.exit_code == 0, answer.output
    calls = [c["sample"] for c in table("out/calls.csv")]
    assert Part(part)(calls).tolist() == [1.0] * 24
    assert calls[0] == canonical("CCc1ccc2[nH]ccc2c1") and "CCO" not in calls
    assert {"GraphOperators", "Regrow"} <= {c["proposal"] for c in table("out/calls.csv")}


def test_an_oracle_that_fails_on_most_samples_is_told_and_the_loop_goes_on():
    answer = ask("mine.py:words", "--domain", "dna", "-r", "mine.py:fails", *LOOP, "--json")
    assert answer.exit_code == 0, answer.output
    assert "the reward scored" in answer.stderr and "of 36 samples only" in answer.stderr
    assert len(table("out/calls.csv")) == 36
    assert any(row["reward"] is None for row in json.loads(answer.stdout)) or len(json.loads(answer.stdout)) == 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--dock-top", "3"), "--dock-top needs --dock-target"),
        (("--dock-top", "3", "--dock-target", "NOPE"), "a path to a .pdbqt file, or one of"),
        (("--dock-target", "EGFR"), "give --dock-top N as well"),
        (("--keep", "[*:1]c1ccc"), "[*:1]c1ccc"),
        (("--start", "none.smi"), "no such file"),
        (("--domain", "dna", "--dock-top", "3", "--dock-target", "EGFR"), "--dock-top docks molecules"),
        (("--known", "leads.csv"), "leads.csv"),
        (("--budget", "10"), "Budget(calls=10) is below the population of 50"),
    ],
)
def test_what_is_wrong_with_a_design_is_said_before_the_first_call(args, said):
    Path("leads.csv").write_text("a,b\n1,2\n")
    answer = ask("mine.py:chains", "--domain", "molecules", "-r", "mine.py:fails", *args, "-o", "out")
    assert answer.exit_code == 2 and said in answer.stderr, answer.output
    assert not Path("out/calls.csv").exists() and "Traceback" not in answer.output


def test_a_folder_is_not_continued_under_another_requirement():
    given = ("mine.py:chains", "--domain", "molecules", "-r", "qed", *LOOP, "--require")
    assert ask(*given, "mol_wt.left_step(400)").exit_code == 0
    answer = ask(*given, "mol_wt.left_step(60)")
    assert answer.exit_code != 0 and "mol_wt.left_step(60)" in answer.stderr, answer.output


def test_docking_that_is_not_installed_is_said_before_the_first_call(monkeypatch):
    monkeypatch.setitem(sys.modules, "vina", None)
    answer = ask("mine.py:chains", "--domain", "molecules", "-r", "qed", "--dock-top", "2", "--dock-target", "CA2")
    assert answer.exit_code == 2 and "pip install 'guidekit[docking]'" in answer.stderr


@pytest.mark.slow
def test_the_best_are_docked_and_come_first_by_their_energy():
    pytest.importorskip("vina")
    docked = ("--dock-top", "3", "--dock-target", "CA2")
    answer = ask("mine.py:chains", "--domain", "molecules", "-r", "qed", *docked, *LOOP)
    assert answer.exit_code == 0, answer.output
    rows = table("out/designs.csv")
    energies = [row["docking to CA2"] for row in rows]
    assert sorted(map(float, energies[:3])) == list(map(float, energies[:3])) and energies[3] == ""
    assert sorted(row["row"] for row in rows[:3]) == ["0", "1", "2"]
    mols = [m.GetPropsAsDict() for m in Chem.SDMolSupplier("out/designs.sdf")]
    assert [m["SMILES"] for m in mols] == [row["sample"] for row in rows]
    assert mols[0]["docking to CA2"] == pytest.approx(float(energies[0]), rel=1e-4) and "docking to CA2" not in mols[3]


def test_evaluate_lists_the_best_samples_with_their_scores():
    Path("a.csv").write_text("smiles,name\nCCO,a\nc1ccccc1O,b\nOCC,c\nC1CC,d\nCCN(CC)CC,e\n")
    answer = CliRunner().invoke(
        app, ["evaluate", "a.csv", "--domain", "molecules", "-r", "qed", "-r", "sa:0.5", "--top", "2", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    best = json.loads(answer.stdout)["top"]
    smiles = ["CCO", "Oc1ccccc1", "CCN(CC)CC"]
    totals = (QED()(smiles) + 0.5 * (10 - SA()(smiles)) / 9).tolist()
    order = sorted(range(3), key=lambda i: -totals[i])[:2]
    assert [row["sample"] for row in best] == [smiles[i] for i in order]
    assert [row["reward"] for row in best] == pytest.approx([totals[i] for i in order])
    assert best[0]["SA"] == pytest.approx(float(SA()([best[0]["sample"]])))
    text = CliRunner().invoke(app, ["evaluate", "a.csv", "--domain", "molecules", "-r", "qed", "--top", "9"]).stdout
    assert text.count("CCO") == 1 and "C1CC" not in text
    refused = CliRunner().invoke(app, ["evaluate", "a.csv", "--domain", "molecules", "--top", "2"])
    assert refused.exit_code == 2 and "--reward" in refused.stderr


def test_a_part_counts_only_where_it_goes_on_at_its_open_bonds():
    indole = Part("[*:1]c1ccc2[nH]ccc2c1")
    assert indole(["Cc1ccc2[nH]ccc2c1", "Cc1ccc2n(C)ccc2c1", "c1ccc2[nH]ccc2c1", "CC"]).tolist() == [1, 0, 0, 0]
    ends = Part("[*:1]N1CCCC1.[1*]c1ccc2c(c1)OCCO2")
    assert ends(["C1CCCN1CCc1ccc2c(c1)OCCO2", "C1CC(C)CN1CCc1ccc2c(c1)OCCO2"]).tolist() == [1, 0]
    assert Part("C[C@H](N)C(=O)[*:1]")(["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]).tolist() == [1, 0]


def test_the_pages_say_what_the_stored_runs_found():
    from benchmarks.front_door import COMMANDS, lines

    root = Path(__file__).parent.parent
    found = json.loads((root / "benchmarks" / "results" / "front_door.json").read_text(encoding="utf-8"))
    pages = {name: (root / name).read_text(encoding="utf-8") for name in ("README.md", "docs/molecules.md", "Makefile")}
    ours, theirs = (f"{found['demo']['last'][k]['top10']:.3f}" for k in ("designs", "screening"))
    plain = {name: " ".join(text.replace("\\\n", " ").split()) for name, text in pages.items()}
    for name in ("README.md", "docs/molecules.md"):
        assert f"{ours}" in plain[name] and theirs in plain[name]
    for name in ("docs/molecules.md", "Makefile"):
        assert COMMANDS["demo"] in plain[name]
    page = (root / "docs" / "improve_a_lead.md").read_text(encoding="utf-8")
    assert "\n".join(lines(found["lead"])) in page and f"{found['lead']['processor seconds']} s of processor" in page
    assert COMMANDS["lead"] in " ".join(page.replace("\\\n", " ").split())

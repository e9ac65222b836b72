"""The tasks of PMO: the activity models, and `guidekit bench pmo`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result as Answer

import guidekit as gk
from guidekit.cli.app import app
from guidekit.jobs import pmo
from guidekit.jobs.specs import ConfigError
from rewards.molecules import DRD2, GSK3B, JNK3, objective, oracles
from rewards.molecules.descriptors import parsed
from rewards.molecules.metrics import auc_top_k

ROOT = Path(__file__).parent.parent
SAID = json.loads((ROOT / "tests" / "data" / "oracles.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("reward", "most"), [(GSK3B(), 1e-12), (JNK3(), 1e-12), (DRD2(), 2.5e-3)])
def test_the_activity_models_say_what_the_original_ones_say(reward, most):
    said = SAID[reward.name.lower()]
    found = reward([*said, "C1CC"])
    torch.testing.assert_close(found[:-1], torch.tensor(list(said.values()), dtype=torch.float64), atol=most, rtol=0)
    assert len(said) > 40 and found[-1].isnan() and max(said.values()) > 0.6


def test_the_decision_of_the_support_vector_machine_is_the_original_one():
    m = oracles.arrays("drd2")
    for smiles, said in SAID["drd2 decision"].items():
        p = float(DRD2().of(parsed(smiles)))
        f = (np.log(p / (1 - p)) - m["sigmoid"][1]) / m["sigmoid"][0]
        assert -f == pytest.approx(said, abs=1e-6), smiles


def test_fingerprints_are_those_of_the_models():
    from rdkit.Chem import rdMolDescriptors as old

    for smiles in list(SAID["drd2"])[:8]:
        mol = parsed(smiles)
        counts = np.zeros(2048, int)
        for number, count in (
            old.GetMorganFingerprint(mol, 3, useCounts=True, useFeatures=True).GetNonzeroElements().items()
        ):
            counts[number % 2048] += count
        assert (counts == oracles.counts(mol)).all()
        assert (np.array(old.GetMorganFingerprintAsBitVect(mol, 2, nBits=2048)) == oracles.bits(mol)).all()


def test_the_tasks_are_the_23_that_have_published_figures():
    theirs = pmo.published()
    assert len(pmo.TASKS) == 23 and {*pmo.TASKS, "sum"} == set(theirs)
    for method in pmo.PUBLISHED:
        assert sum(theirs[task][method] for task in pmo.TASKS) == pytest.approx(theirs["sum"][method], abs=0.02)


def test_the_two_numbers_are_those_of_pmo():
    values = [0.1, 0.9, float("nan"), *[0.2] * 20, 0.8]
    calls = [pmo.Called("C" * (i + 1), v) for i, v in enumerate(values)]
    found = pmo.measured(calls, 24)
    assert found["top10"] == pytest.approx((0.9 + 0.8 + 8 * 0.2) / 10) and found["best"] == 0.9
    known = [(c.sample, 0.0 if c.value != c.value else c.value) for c in calls]
    assert found["area"] == auc_top_k(known, 10, 24, 24)
    assert pmo.curve([0.5, 0.1, float("nan")]) == pytest.approx([0.5, 0.3, 0.2])
    many = pmo.points([pmo.Called("C", float(i >= 150)) for i in range(230)])
    assert [(p["calls"], p["top10"]) for p in many] == [(100, 0), (200, 1), (230, 1)]


def chains(name: str, ahead: bool = True) -> gk.MaskedModel:
    """A model of chains of carbon, nitrogen and oxygen."""
    flat = lambda x, t, cond: torch.tensor([1.0, 0.0, 0.0]).expand(*x.shape, 3)  # noqa: E731
    return gk.MaskedModel(flat, 3, 7, decode=lambda x: ["".join("CNO"[v] for v in row) for row in x.tolist()])


def table(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def ask(*args: str) -> Answer:
    return CliRunner().invoke(app, ["bench", *args], prog_name="guidekit")


def test_a_bench_is_written_and_only_what_is_missing_is_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pmo.zoo, "load", chains)
    given = ("pmo", "--tasks", "qed,isomers_c7h8n2o2", "--methods", "screening; graph operators", "-o", "out")
    first = ask(*given, "--budget", "60")
    assert first.exit_code == 0, first.output
    assert "| qed |" in first.stdout and "| 0.941 | 0.942 | 0.942 |" in first.stdout
    assert "sum of areas" not in first.stdout
    rows, calls = table("out/table.csv"), table("out/calls.csv")
    assert len(rows) == 4 and len(calls) == 4 * 60
    own = [c for c in calls if (c["task"], c["method"]) == ("isomers_c7h8n2o2", "graph operators")]
    assert len({c["sample"] for c in own}) == 60
    values = objective("isomers_c7h8n2o2")([c["sample"] for c in own]).tolist()
    assert [float(c["value"]) for c in own] == pytest.approx(values)
    screened = [c for c in calls if (c["task"], c["method"]) == ("isomers_c7h8n2o2", "screening")]
    assert [c["sample"] for c in own[: pmo.FIRST]] == [c["sample"] for c in screened[: pmo.FIRST]]
    heights = [row for row in table("out/curve.csv") if row["method"] == "screening"]
    last = {row["task"]: float(row["top10"]) for row in rows if row["method"] == "screening"}
    assert {row["task"]: float(row["top10"]) for row in heights} == pytest.approx(last)
    assert {row["calls"] for row in heights} == {"60"} and len(heights) == len(last) == 2
    monkeypatch.setattr(pmo.Bench, "asked", lambda *a: pytest.fail("a finished run is made again"))
    again = ask(*given, "--budget", "60")
    assert again.exit_code == 0 and again.stdout == first.stdout
    other = ask(*given, "--budget", "60", "--model", "molecules")
    assert other.exit_code == 2 and "begin with molecules of druglike; give --model druglike" in other.stderr


def test_what_is_wrong_with_a_bench_is_said_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for args, said in [
        (("--tasks", "qeed"), "did you mean 'qed'"),
        (("--methods", "evolv"), "did you mean 'evolve'"),
        (("--seeds", "a"), "whole numbers"),
        (("--methods", "mol_ga"), "pip install mol-ga"),
    ]:
        monkeypatch.setattr(pmo, "find_spec", lambda name: None)
        answer = ask("pmo", *args, "-o", "out")
        assert answer.exit_code == 2 and said in answer.stderr, answer.output
    with pytest.raises(ConfigError, match="all methods begin with 50"):
        pmo.Bench(Path("out"), budget=50)
    assert not Path("out").exists()


def test_bench_with_a_model_is_the_cost_of_guides():
    assert "--repeats" in ask("guides", "--help").stdout and "pmo" in ask("--help").stdout
    assert "there is no model 'nothing_like'" in ask("nothing_like").stderr


def stored(name: str) -> list[dict]:
    with (ROOT / "benchmarks" / "results" / name).open(encoding="utf-8", newline="") as file:
        return [row | {k: float(row[k]) for k in ("top10", "area")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["pmo.csv", "pmo_2000.csv"])
def test_the_table_of_the_page_is_that_of_the_stored_runs(name):
    rows = [row for row in stored(name) if "at most" not in row["method"]]
    page = (ROOT / "docs" / "pmo.md").read_text(encoding="utf-8")
    for budget in dict.fromkeys(int(row["calls"]) for row in rows):
        own = [row for row in rows if int(row["calls"]) == budget]
        assert "\n".join(pmo.lines(own, budget)) in page
        tasks = list(dict.fromkeys(row["task"] for row in own))
        given = "" if set(tasks) == set(pmo.TASKS) else f" --tasks {','.join(tasks)}"
        assert f"--budget {budget}{given}" in page


def test_the_page_says_how_the_same_runs_stood_after_half_of_the_calls_and_what_a_limit_of_size_does():
    page, sums = (ROOT / "docs" / "pmo.md").read_text(encoding="utf-8"), {}
    for calls in (1000, 2000):
        area = {(row["task"], row["method"]): row["area"] for row in stored(f"pmo_{calls}.csv")}
        sums[calls] = [f"{sum(area[task, m] for task in pmo.TASKS):.2f}" for m in ("evolve", "mol_ga")]
        ahead = sum(area[task, "evolve"] > area[task, "mol_ga"] for task in pmo.TASKS)
        assert f"larger area on {ahead}" in page
    assert f"{sums[2000][0]} against {sums[2000][1]}" in page and f"{sums[1000][0]} and {sums[1000][1]}" in page
    limited = [row for row in stored("pmo_2000.csv") if row["method"] == "mol_ga, at most 50 atoms"]
    cells = [
        f"{row['top10']:.3f} / {row['area']:.3f}" for row in sorted(limited, key=lambda row: row["task"] != "jnk3")
    ]
    assert len(cells) == 2 and " and ".join(cells) in page


def test_the_models_are_compared_on_the_page_as_they_are_stored_and_the_better_one_is_the_default():
    with (ROOT / "benchmarks" / "results" / "pmo_models.csv").open(encoding="utf-8", newline="") as file:
        area = {(row["task"], row["model"]): (float(row["top10"]), float(row["area"])) for row in csv.DictReader(file)}
    page, models = (ROOT / "docs" / "pmo.md").read_text(encoding="utf-8"), ("molecules", "druglike")
    tasks = dict.fromkeys(task for task, _ in area)
    for task in tasks:
        cells = ("{:.3f} / {:.3f}".format(*area[task, m]) for m in models)
        assert f"| {task} | {' | '.join(cells)} |" in page
    assert max(models, key=lambda m: sum(area[task, m][1] for task in tasks)) == pmo.MODEL


def test_the_kappas_are_compared_on_the_page_as_they_are_stored():
    with (ROOT / "benchmarks" / "results" / "pmo_kappa.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    page = (ROOT / "docs" / "pmo.md").read_text(encoding="utf-8")
    for i in range(0, len(rows), 3):
        cells = (f"{float(row['top10']):.3f} / {float(row['area']):.3f}" for row in rows[i : i + 3])
        assert f"| {rows[i]['task']}, {rows[i]['seed']} | {' | '.join(cells)} |" in page
    with (ROOT / "benchmarks" / "results" / "pmo_kappa_1000.csv").open(encoding="utf-8", newline="") as file:
        more = list(csv.DictReader(file))
    for greedy, free in zip(more[::2], more[1::2], strict=True):
        cells = (f"{float(row['top10']):.3f} / {float(row['area']):.3f}" for row in (greedy, free))
        assert f"| {greedy['task']} | {' | '.join(cells)} |" in page
    areas = {(row["task"], row["seed"], row["kappa"]): float(row["area"]) for row in rows}
    assert all(areas[task, seed, "1"] > area for (task, seed, kappa), area in areas.items() if kappa == "0.3")


def test_mol_ga_with_a_limit_asks_no_larger_molecule():
    pytest.importorskip("mol_ga")
    asked: list[str] = []

    def size(smiles: list[str]) -> torch.Tensor:
        asked.extend(smiles)
        return torch.tensor([float(parsed(s).GetNumHeavyAtoms()) for s in smiles])

    first = ["CCOCCNCC", "CCNCCOCC", "CC(C)CCOC", "CCCCCCO", "CCOC(C)=O", "CCNC(C)=O"]
    calls = pmo.by_mol_ga(size, first, 80, 0, atoms=10)
    assert len(calls) == 80 and max(parsed(s).GetNumHeavyAtoms() for s in asked) == 10
    assert max(parsed(c.sample).GetNumHeavyAtoms() for c in pmo.by_mol_ga(size, first, 80, 0)) > 10

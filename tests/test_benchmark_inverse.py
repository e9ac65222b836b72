"""The tables of docs/inverse.md are those of the stored run."""

import json
from pathlib import Path

from benchmarks.inverse import METHODS, table

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "inverse.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "inverse.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_that_were_measured():
    for part in ("mixture", "coverage", "pictures", "populations", "DDRM", "MMPS"):
        assert table(FOUND, part) in PAGE
    settings = FOUND["settings"]
    for number in (
        settings["measurements"],
        settings["n"],
        settings["steps"],
        settings["images"],
        settings["image_steps"],
    ):
        assert f" {number} " in PAGE


def test_every_method_of_the_benchmark_is_in_the_tables_at_equal_rows():
    for part in ("mixture", "pictures"):
        own = [row for row in FOUND[part] if row["method"] in METHODS]
        problems = {row["problem"] for row in own}
        assert {(row["problem"], row["method"]) for row in own} == {(p, m) for p in problems for m in METHODS}
        rows = [row["rows"] for row in own]
        assert 0.95 * max(rows) < min(rows)  # STSL takes one row, and not two, in pure noise


def test_samplers_of_other_packages_have_as_many_network_evaluations_in_the_test_of_coverage():
    peers = [row for row in FOUND["coverage"] if row["method"] not in METHODS]
    settings = FOUND["settings"]
    assert {row["method"].split()[0] for row in peers} == {"azula", "deepinv"} and len(peers) == 11
    assert {row["rows"] for row in peers} == {settings["simulations"] * settings["n"] * settings["steps"]}


def test_the_page_says_who_passes_the_test_of_coverage_of_ours_and_of_others():
    p = {row["method"]: row["p"] for row in FOUND["coverage"]}
    passed = {name for name in p if p[name] > 0.05}
    weighted = {"FKSteering", "TDS", "DAS", "TDS, unit", "TDS, tweedie"}
    assert passed & set(METHODS) == weighted | {"PiGDM", "TMPD"}
    assert passed - set(METHODS) == {"deepinv PiGDM", "azula TMPD", "azula MMPS", "azula TDS"}
    near = {name for name in p if 0.005 < p[name] <= 0.05}
    assert near == {"deepinv DiffPIR", "deepinv MomentMatching", "azula JFPS"}
    assert "deepinv's `PiGDM`, azula's `TMPD` and `MMPS`, and azula's `TDS`" in " ".join(PAGE.split())


def test_tmpd_and_the_same_method_of_azula_are_level_on_more_images():
    rows = {(row["problem"], row["method"]): row for row in FOUND["MMPS"]}
    assert len(rows) == 6 and (FOUND["settings"]["more_images"], FOUND["settings"]["seeds"]) == (12, 4)
    for problem in ("blur", "down-sampling", "inpainting"):
        own = rows[problem, "TMPD"]
        assert abs(own["farther"]) < 2 * own["width"] and abs(own["gain"]) < 2 * own["error"]
    assert "no difference is as large as two of its standard errors" in " ".join(PAGE.split())

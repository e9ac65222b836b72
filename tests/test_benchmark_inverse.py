"""The tables of docs/inverse.md are those of the stored run."""

import json
from pathlib import Path

from benchmarks.inverse import METHODS, table

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "inverse.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "inverse.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_that_were_measured():
    for part in ("mixture", "coverage", "pictures", "populations", "DDRM"):
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

"""The steering benchmark compares like with like, and its page shows its results. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmark_steering", ROOT / "benchmarks" / "steering.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look theirs up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks" / "results" / "steering.json").read_text())


@pytest.mark.parametrize("kind", ["image_base", "string_base"])
@pytest.mark.usefixtures("every_row")
def test_both_sides_take_the_rows_that_the_benchmark_says(bench, kind):
    n, s, m = 6, 5, 3
    base = getattr(bench, kind)(s)
    start_and_children, parents = n + n * m * (s - 1), n * s
    for alpha in (0.0, 1.0):
        row = bench.svdd_case(base, n, alpha, m).described()
        assert row["guidekit"]["network_rows"] == start_and_children
        assert row["plain"]["network_rows"] == parents + n * m * (s - 1)
        assert (row["guidekit"]["network_calls"], row["plain"]["network_calls"]) == (s, 2 * s - 1)
    row, lagged = (bench.fk_case(base, n, 1.0, late).described() for late in (False, True))
    assert (row["guidekit"]["network_rows"], row["plain"]["network_rows"]) == (n * s, n * (2 * s - 1))
    assert lagged["plain"]["network_rows"] == n * s
    assert row["plain"]["reward_calls"] == n * s >= row["guidekit"]["reward_calls"]


def test_the_plain_loops_have_the_laws_of_the_guides(bench):
    """40 runs each; differences within 4 standard errors, 1 in 5,000 by chance; log Z within 4 of the chain's own."""
    base = bench.mixture_base(5)
    chain = bench.by_weighing(base, 2.0, 50_000)
    cases = [bench.svdd_case(base, 128, 2.0, 3), bench.svdd_case(base, 128, 0.0, 3)]
    for case in [*cases, bench.fk_case(base, 128, 2.0), bench.fk_case(base, 128, 2.0, lagged=True)]:
        law = bench.compare(case, 40)["law"]
        assert all(abs(law[k]["difference_in_errors"]) < 4 for k in ("mean", "sd")), (case.method, law)
        if case.alpha:
            for side in ("guidekit", "plain"):
                found = law["log_z"][side]
                low = 40 * found["error"] ** 2 / 2  # E[log Z^] is that much below log Z
                assert abs(found["mean"] + low - chain["log_z"]) < 4 * found["error"] + 4 * chain["log_z_error"]


def test_the_page_shows_the_tables_of_the_results(bench, results):
    page = (ROOT / "docs" / "steering.md").read_text(encoding="utf-8")
    for line in [*bench.law_table(results), *bench.cost_table(results)]:
        assert f"| {' | '.join(line)} |" in page


def test_the_results_are_of_one_law(results):
    """36 differences of some 15 to 40 runs; a t of 4 with 14 degrees of freedom is 1 in 760."""
    for kind in ("mixture", "images", "strings"):
        for row in results[kind]["methods"]:
            for name in {"mean", "sd", "log_z"} & set(row["law"]):
                assert abs(row["law"][name]["difference_in_errors"]) < 4, (kind, row["method"], name)

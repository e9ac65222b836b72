"""The search benchmark gives every method the rows that it says, and its page shows its results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

import guidekit as gk

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(ROOT / "benchmarks" / "search.py"))


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_no_method_takes_more_rows_than_the_budget(bench):
    problem = bench["mixture"]()
    plain = problem.reward(gk.sample(problem.base, 2000, steps=problem.steps).samples).mean()
    problem = bench["replace"](problem, n=2)
    for name, method in bench["METHODS"].items():
        result, samples = method(problem, 8, 0)
        rows = result.cost.network_rows / problem.n / problem.steps
        assert 4 <= rows <= 8, name
        assert len(samples) == problem.n
        assert problem.reward(samples).mean() > plain, name


def test_the_page_shows_the_results(bench):
    text = json.loads((ROOT / "benchmarks" / "results" / "search.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    assert set(text["unguided"]) == set(bench["PROBLEMS"])
    for problem in bench["PROBLEMS"]:
        assert "\n".join(bench["lines"](text, problem)) in page

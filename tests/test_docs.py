"""What the documents show runs: code blocks, doctests, the skeleton and the demo."""

from __future__ import annotations

import csv
import doctest
import importlib
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch

import guidekit as gk
import rewards

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "guidekit" / "SKILL.md", *sorted((ROOT / "docs").glob("*.md"))]
DOMAINS = ("molecules", "dna", "images")
MODULES = [m.name for package in (gk, rewards) for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, each behind as many empty lines as it has lines above it, for the tracebacks."""
    text = page.read_text(encoding="utf-8")
    return [
        "\n" * text.count("\n", 0, m.start(1)) + m[1] for m in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


LONG = ("molecules.md", "dna.md", "edit.md", "constraints.md")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name in LONG else [], id=page.name) for page in PAGES],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{page.stem}")  # a real module, for dataclasses look theirs up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of networks without training
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), module.__dict__)


def test_pages_have_code_and_every_fence_is_closed():
    assert sum(len(blocks(page)) for page in PAGES) > 10
    assert not [p.name for p in PAGES if p.read_text(encoding="utf-8").count("\n```") % 2]


def test_the_skill_of_the_wheel_is_short_and_names_what_there_is():
    text = (ROOT / "guidekit" / "SKILL.md").read_text(encoding="utf-8")
    assert text.startswith("---\nname: guidekit\ndescription: ") and len(text.splitlines()) < 100
    for name in set(re.findall(r"\bgk((?:\.\w+)+)\(", text)):
        found = gk
        for part in name[1:].split("."):
            found = getattr(found, part)
        assert callable(found)


def test_links_between_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("name", ["guidekit", "rewards", *MODULES])
def test_the_examples_in_docstrings_give_what_they_say(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_docstrings_have_examples():
    found = [t for name in MODULES for t in doctest.DocTestFinder().find(importlib.import_module(name))]
    assert sum(len(t.examples) for t in found) > 10


def skeleton():
    return runpy.run_path(str(ROOT / "skeletons" / "guide.py"))["Pull"]


def test_the_skeleton_is_a_working_guide():
    """Pulled towards 1 and weighed: towards the reward, and log Z of a reward of zero is zero."""
    pull, base = skeleton(), gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 1.0], [0.4, 0.4])
    plain = gk.sample(base, 200, steps=20)
    guides = [pull(1.0, scale=lambda t: 0.3 * (1 - t), bound=1.2, reward=lambda x: x[:, 0], alpha=0.5, k=2)]
    guided = gk.sample(base, 200, steps=20, guides=guides)
    assert guided.weights @ guided.x[:, 0].double() > plain.x.mean() + 0.5
    assert guided.x.abs().max() <= 1.2
    assert guided.cost.network_rows == 200 + 2 * 200 * 19
    assert float(gk.sample(base, 50, steps=20, guides=[pull(1.0, reward=lambda x: 0 * x[:, 0])]).log_z) == 0


def test_the_skeleton_does_nothing_when_idle():
    base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 1.0], [0.4, 0.4])
    idle = gk.sample(base, 50, steps=10, guides=[skeleton()(1.0, scale=0.0)])
    assert torch.equal(idle.x, gk.sample(base, 50, steps=10).x)


def test_the_skeleton_refuses_what_it_cannot_serve():
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(gk.analytic.TokenTable(torch.zeros(2, 2)), 4, guides=[skeleton()(1.0)])


def test_the_demo_comes_near_the_exact_target(tmp_path: Path):
    demo = runpy.run_path(str(ROOT / "examples" / "mixture.py"))
    demo["main"](["--out", str(tmp_path / "demo"), "--n", "400", "--steps", "30"])
    with open(tmp_path / "demo" / "table.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["unguided", "best of 4", "steered"]
    exact = float(rows["steered"]["exact_mean"])
    away = {name: abs(float(row["mean_reward"]) - exact) for name, row in rows.items()}
    assert away["steered"] < away["best of 4"] < away["unguided"]
    assert rows["steered"]["network_rows"] == rows["unguided"]["network_rows"] == str(400 * 30)
    assert (tmp_path / "demo" / "mixture.png").stat().st_size > 10_000
    assert len(gk.load_result(tmp_path / "demo" / "steered")) == 400


def test_the_page_of_results_and_the_table_of_the_readme_are_those_of_the_stored_run():
    module = runpy.run_path(str(ROOT / "benchmarks" / "zoo.py"))
    page = module["page"](json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text(encoding="utf-8")))
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == page
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Does it pay?")[1].split("## ")[0]
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and all(row in page.splitlines() for row in rows)


def test_the_table_beside_diffusers_is_that_of_the_stored_run():
    found = json.loads((ROOT / "benchmarks" / "results" / "diffusers.json").read_text(encoding="utf-8"))
    lines = runpy.run_path(str(ROOT / "benchmarks" / "diffusers_peer.py"))["lines"](found["results"])
    assert len(lines) == 3
    assert "\n".join(lines) in (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")


def test_the_table_of_token_solvers_is_that_of_the_stored_run():
    found = json.loads((ROOT / "benchmarks" / "results" / "tokens.json").read_text(encoding="utf-8"))
    lines = runpy.run_path(str(ROOT / "benchmarks" / "tokens.py"))["lines"](found)
    assert len(lines) == 18
    assert "\n".join(lines) in (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")


def test_the_table_of_informed_moves_is_that_of_the_stored_run():
    found = json.loads((ROOT / "benchmarks" / "results" / "informed.json").read_text(encoding="utf-8"))
    lines = runpy.run_path(str(ROOT / "benchmarks" / "informed.py"))["lines"](found)
    assert len(lines) == 2 + len(found["rows"]) >= 7
    assert "\n".join(lines) in (ROOT / "docs" / "dna.md").read_text(encoding="utf-8")


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module: those of `__all__`, or else what it defines itself; those of public modules too."""
    own = [name for name, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    found: dict[str, Any] = {}
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            found |= public(value)
        elif not name.startswith("_"):
            found[f"{module.__name__}.{name}"] = value
    return found


def described(name: str, value: Any) -> bool:
    """Whether a member of a class is a public method or property with a docstring."""
    method = isinstance(value, (FunctionType, property, staticmethod, classmethod))
    return method and not name.startswith("_") and bool(value.__doc__)


def path(value: Any) -> str:
    """Where a class or function is defined."""
    return f"{value.__module__}.{value.__qualname__}"


PUBLIC = {
    name: value
    for module in ("guidekit", "guidekit.report", "rewards", *(f"rewards.{part}" for part in ("transforms", *DOMAINS)))
    for name, value in public(importlib.import_module(module)).items()
    if isinstance(value, type) or callable(value)
}
HOOKED = (gk.Guide, gk.Run, gk.Population, gk.View, gk.Step, gk.Result)


def test_the_reference_has_every_public_name():
    shown = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.M))
    assert {path(owner) for owner in HOOKED} <= shown
    missing = [name for name, value in PUBLIC.items() if not {path(value), value.__module__} & shown]
    assert not missing, f"docs/reference.md lacks {', '.join(missing)}"


def test_the_reference_shows_nothing_that_is_not_there():
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.M):
        module, _, last = name.rpartition(".")
        assert name in MODULES or hasattr(importlib.import_module(module), last), name


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best of 4" in (tmp_path / "site" / "results.html").read_text(encoding="utf-8")
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'id="([\w.]+)"', reference))
    helpers = ("check_", "blocked")  # of rewards.molecules.descriptors, which the page leaves out
    names = {path(v) for v in PUBLIC.values() if not v.__name__.startswith(helpers)}
    hooks = {f"{path(owner)}.{name}" for owner in HOOKED for name, v in vars(owner).items() if described(name, v)}
    missing = sorted((names | hooks) - shown)
    assert not missing, f"without a docstring, or not on the page: {', '.join(missing)}"

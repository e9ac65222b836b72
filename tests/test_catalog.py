"""The catalogue, the page made of it and the picture of all guides, held against the classes."""

from __future__ import annotations

import inspect
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import guidekit as gk
from guidekit import guides
from guidekit.guides import catalog

from .conformance.cases import CASES, GAUSSIAN, Case
from .problems import PROBLEMS, STEPS, attending

ROOT = Path(__file__).parent.parent
BEAMS = {"DSearch": "BeamSearch"}  # a function that makes one
KINDS = {"Gaussian": "vp-1d", "masked": "masked", "uniform": "uniform"}
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def name_of(case: Case) -> str:
    """Of the catalogue."""
    if case.name.startswith("DSearch"):
        return "DSearch"
    kind = type(case.make(case.on(case.processes[0]))).__name__
    return {"Corrector": "FKC", "Controlled": "DriftLite"}.get(kind, kind)


FIRST: dict[str, Case] = {}
for each in CASES:
    FIRST.setdefault(name_of(each), each)


def test_the_page_is_what_the_catalogue_writes():
    assert (ROOT / "docs" / "guides.md").read_text(encoding="utf-8") == catalog.table()


def test_every_guide_is_listed_and_has_its_laws_tested():
    classes = {n for n, o in vars(guides).items() if inspect.isclass(o) and issubclass(o, gk.Guide)}
    assert all(getattr(gk, name) is getattr(guides, name) for name in catalog.GUIDES)
    assert set(catalog.GUIDES) == (classes - {"Guide"}) | {"FKC", "DriftLite", "DSearch"} == set(FIRST)


@pytest.mark.parametrize("name", catalog.GUIDES)
def test_a_guide_serves_the_processes_listed_and_refuses_the_others(name: str):
    case, entry = FIRST[name], catalog.GUIDES[name]
    served = {c for case in CASES if name_of(case) in (name, BEAMS.get(name)) for c in case.processes}
    assert {"Gaussian" if problem in GAUSSIAN else problem for problem in served} == set(entry.kinds)
    for kind, problem in KINDS.items():
        if kind not in entry.kinds:
            guide = case.make(case.on(case.processes[0]))
            with pytest.raises(ValueError, match=r"token|Gaussian|masked|uniform"):
                gk.Run(attending(PROBLEMS[problem]).model, 4, steps=STEPS, guides=[guide])


@pytest.mark.parametrize("name", [name for name, entry in catalog.GUIDES.items() if entry.rows[0] in "012"])
@pytest.mark.usefixtures("every_row")
def test_rows_are_as_many_as_listed(name: str):
    case, entry = FIRST[name], catalog.GUIDES[name]
    if any(word in entry.rows for word in ("each", "acts", "every")):
        return  # of what the user gives, and of parts of a run: the case itself says
    problem = case.on(case.processes[0])
    cost = gk.sample(problem.model, 4, steps=STEPS, cond=problem.cond, guides=[case.make(problem)]).cost
    assert cost.network_rows == 4 * STEPS * (1 + int(entry.rows.split(",")[0]))


@pytest.mark.parametrize("name", catalog.GUIDES)
def test_what_it_changes_is_what_its_class_overrides(name: str):
    case, entry = FIRST[name], catalog.GUIDES[name]
    guide = case.make(case.on(case.processes[0])).bind(case.on(case.processes[0]).model)
    hooks = {
        "weights": "log_weight",
        "selection": "select",
        "noise": "noise",
        "start": "begin",
        "condition": "condition",
        "kernel": "propose",
    }
    if entry.changes == "target":
        assert guide.tilts and not guide.steer
    elif entry.changes in hooks:
        assert guide.has(hooks[entry.changes])
        assert not guide.tilts or guide.steer
    assert ("backward pass" in entry.rows) == (guide.grad is True)


@pytest.mark.parametrize("name", [name for name, entry in catalog.GUIDES.items() if entry.changes == "target"])
def test_every_target_can_be_made_a_proposal(name: str):
    """steer=True is taken, or refused with a reason."""
    case = FIRST[name]
    problem = case.on("vp-1d" if "vp-1d" in case.processes else case.processes[0])
    guide = replace(case.make(problem), steer=True)
    refused = {"FKC": "FKC is a path from noise to data: it takes no steer", "TopP": "leaves out tokens of the target"}
    refused["DriftLite"] = refused["FKC"]
    refused |= {"Typical": "leaves out tokens of the target", "EDLM": "one clean sequence is taken"}
    refused |= dict.fromkeys(("DiffPIR", "DAPS", "ReSample"), "makes moves of its own")
    if name in refused:
        with pytest.raises(ValueError, match=refused[name]):
            gk.Run(problem.model, 4, steps=STEPS, guides=[guide])
        return
    plain = gk.sample(problem.model, 64, steps=STEPS, cond=problem.cond)
    result = gk.sample(problem.model, 64, steps=STEPS, cond=problem.cond, guides=[guide])
    assert not torch.equal(result.x, plain.x)
    assert result.log_weights.isfinite().all() and result.log_weights.std() > 0


@pytest.mark.parametrize("name", catalog.GUIDES)
def test_every_guide_is_cited(name: str):
    case = FIRST[name]
    text = gk.cite(case.make(case.on(case.processes[0])))
    assert text.startswith("@misc{") and text.count("{") == text.count("}")
    for field in ("author", "title", "year"):
        assert f"  {field} = {{" in text
    assert "arXiv" in text or name in ("LGD", "PiGDM")


@pytest.mark.slow
def test_every_guide_is_in_the_picture(tmp_path: Path, monkeypatch, capsys):
    file = tmp_path / "guides.png"
    options = ["--out", str(file), "--n", "8", "--steps", "12", "--train", "30"]
    monkeypatch.setattr(sys, "argv", ["guides.py", *options])
    main = runpy.run_path(str(ROOT / "benchmarks" / "gallery.py"))
    assert list(main["panels"](2))[4:] == list(catalog.GUIDES)
    main["main"]()
    assert file.read_bytes()[:4] == b"\x89PNG" and "panels" in capsys.readouterr().out

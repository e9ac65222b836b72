"""The page of solvers has the numbers of the stored run of benchmarks/solvers.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "solvers.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
SHOWN = {  # on the page: in the stored run
    "`DDIM()`": "DDIM, uniform",
    "`DPMpp(2)`": "DPMpp(2), uniform",
    '`DPMpp(2, times="log_snr")`': "DPMpp(2), log_snr",
    '`UniPC(3, times="log_snr")`': "UniPC(3), log_snr",
    "`DEIS(3)`": "DEIS(3), uniform",
    "diffusers, DPM-Solver++ 2M": "diffusers DPM-Solver++ 2M",
    "diffusers, DPM-Solver++ 2M on Karras' levels": "diffusers DPM-Solver++ 2M, Karras",
    "diffusers, UniPC": "diffusers UniPC",
    "diffusers, DEIS": "diffusers DEIS",
    "`fit(model, DPMpp(2), steps)`": "fitted both",
}
NOISY = ("DDPM", "DDIM(0.5)", "SDEDPMpp(2)", "ERSDE(2)", "ERSDE(3)", "SASolver(1)", "CPS(0.5)")


def errors(panel: str, solver: str) -> dict[int, float]:
    return {row["calls"]: row["error"] for row in FOUND[panel] if row["solver"] == solver}


def line(name: str, panel: str, solver: str, calls: tuple[int, ...]) -> str:
    found = errors(panel, solver)
    return f"| {name} | {' | '.join(f'{found[n]:.3f}' if n in found else '' for n in calls)} |"


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("panel", ["fashion", "2-D", "64-D"])
def test_the_table_of_errors_is_that_of_the_stored_run(name: str, panel: str):
    assert line(name, panel, SHOWN[name], (5, 8, 12, 20)) in PAGE


@pytest.mark.parametrize("solver", NOISY)
def test_the_table_of_stochastic_solvers_is_that_of_the_stored_run(solver: str):
    assert line(f"`{solver}`", "law", solver, (5, 8, 12, 20, 35, 50)) in PAGE


@pytest.mark.parametrize("calls", [5, 8, 12])
def test_a_fitted_table_has_at_most_half_of_the_error_of_every_other_solver_on_images(calls: int):
    others = {row["solver"]: row["error"] for row in FOUND["fashion"] if row["calls"] == calls}
    fitted = others.pop("fitted both")
    assert len(others) == 9 and fitted <= min(others.values()) / 2

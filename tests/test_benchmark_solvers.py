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
    "`UniPC(2)`": "UniPC(2), uniform",
    '`UniPC(3, times="log_snr")`': "UniPC(3), log_snr",
    "`DEIS(3)`": "DEIS(3), uniform",
    "`UCGM()`": "UCGM, uniform",
    "`GHVB(2)`": "GHVB(2), uniform",
    "`HeavyBall(DPMpp(2))`": "HeavyBall(2), uniform",
    "`DualFast(DDIM())`": "DualFast(1), uniform",
    "`DualFast(DPMpp(2))`": "DualFast(2), uniform",
    "`BELM()`": "BELM, uniform",
    "`BDIA()`": "BDIA, uniform",
    "diffusers, DPM-Solver++ 2M": "diffusers DPM-Solver++ 2M",
    "diffusers, DPM-Solver++ 2M on Karras' levels": "diffusers DPM-Solver++ 2M, Karras",
    "diffusers, UniPC": "diffusers UniPC",
    "diffusers, DEIS": "diffusers DEIS",
    '`DPMv3(statistics(model), times="log_snr")`': "DPMv3(2), log_snr",
    '`compensated(model, steps, times="log_snr")`': "DCSolver(2), log_snr",
    '`searched(model, steps, times="log_snr")`': "USF, log_snr",
    "`fit(model, DPMpp(2), steps)`": "fitted both",
}
NOISY = (
    "DDPM", "DDIM(0.5)", "SDEDPMpp(2)", "ERSDE(2)", "ERSDE(3)", "SASolver(1)", "CPS(0.5)", "AcceleratedDDPM",
    "UCGM(0.1, 0.3)", "AnalyticDPM", "Churn", "Langevin",
)  # fmt: skip
STEPS = ("DCSolver(2)", "USF")  # fitted to a number of steps


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
def test_a_fitted_table_has_at_most_half_of_the_error_of_every_solver_that_is_not_fitted_on_images(calls: int):
    others = {row["solver"]: row["error"] for row in FOUND["fashion"] if row["calls"] == calls}
    fitted = others.pop("fitted both")
    assert fitted < min(others.values())
    others = {name: error for name, error in others.items() if not name.startswith(STEPS)}
    assert len(others) >= 12 and fitted <= min(others.values()) / 2


def test_what_is_measured_or_fitted_is_ahead_of_what_is_not_on_images_at_eight_calls():
    error = {row["solver"]: row["error"] for row in FOUND["fashion"] if row["calls"] == 8}
    measured = [error.pop(f"{name}, log_snr") for name in ("USF", "DCSolver(2)", "DPMv3(2)")]
    plain = {k: v for k, v in error.items() if not k.startswith(("fitted", "USF", "DCSolver", "DPMv3"))}
    assert len(plain) >= 10 and max(measured) < min(plain.values())


@pytest.mark.parametrize("calls", [8, 12, 20, 35, 50])
def test_the_accelerated_ddpm_has_about_half_of_the_error_of_ddpm_or_less(calls: int):
    assert errors("law", "AcceleratedDDPM")[calls] < 0.55 * errors("law", "DDPM")[calls]


@pytest.mark.parametrize("calls", [5, 8, 12, 20])
def test_the_best_variance_leaves_a_quarter_of_the_error_of_ddpm_or_less(calls: int):
    assert errors("law", "AnalyticDPM")[calls] < 0.25 * errors("law", "DDPM")[calls]


def test_the_errors_of_many_calls_are_those_of_the_stored_run():
    fitted, theirs = (errors("64-D", k) for k in ("fitted coefficients", "diffusers UniPC"))
    words = " ".join(PAGE.split())
    assert f"{fitted[35]:.4f} at 35 calls and {fitted[50]:.4f} at 50" in words
    assert f"has {theirs[35]:.4f} and {theirs[50]:.4f}" in words


@pytest.mark.parametrize("panel", ["fashion", "2-D", "64-D"])
def test_no_peer_is_ahead_at_any_number_of_calls(panel: str):
    for calls in {row["calls"] for row in FOUND[panel]}:
        found = {row["solver"]: row["error"] for row in FOUND[panel] if row["calls"] == calls}
        peers = [error for name, error in found.items() if name.startswith("diffusers")]
        ours = [error for name, error in found.items() if not name.startswith("diffusers")]
        assert len(peers) == 4 and min(ours) < min(peers)
        fitted = [error for name, error in found.items() if name.startswith("fitted")]
        assert min(fitted, default=0.0) < min(peers)


def test_what_the_page_says_of_belm_and_dualfast():
    for calls in (8, 12, 20):
        assert errors("2-D", "BELM, uniform")[calls] < errors("2-D", "UniPC(2), uniform")[calls] / 2
    for own, base in (("DualFast(1)", "DDIM"), ("DualFast(2)", "DPMpp(2)")):
        found, plain = (errors("fashion", f"{name}, uniform") for name in (own, base))
        assert all(0.95 < found[calls] / plain[calls] < 0.99 for calls in (5, 8, 12, 20))
    assert errors("2-D", "DualFast(2), uniform")[12] > errors("2-D", "DPMpp(2), uniform")[12]

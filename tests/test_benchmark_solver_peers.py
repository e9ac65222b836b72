"""The page of solvers has the numbers of the stored run of benchmarks/solver_peers.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOUND = json.loads((ROOT / "benchmarks" / "results" / "solver_peers.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "solvers.md").read_text(encoding="utf-8")
FITTED = "fit(model, DPMpp(2), steps)"
NAMES = list(dict.fromkeys(row["solver"] for row in FOUND["fashion"]))[1:]


def shown(name: str) -> str:
    peer = name.startswith(("azula ", "diffusers "))
    return name.replace(" ", ", ", 1) if peer else f"`{name}`"


def cells(name: str, panel: str, what: str, calls: tuple[int, ...]) -> list[str]:
    found = {row["calls"]: row[what] for row in FOUND[panel] if row["solver"] == name}
    return [f"{found[n]:.3f}" if what == "error" else f"{found[n]:.1f}" for n in calls]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_peers_is_that_of_the_stored_run(name: str):
    errors, distances = (cells(name, "fashion", what, (5, 8)) for what in ("error", "frechet"))
    mixtures = cells(name, "2-D", "error", (8, 20)) + cells(name, "64-D", "error", (8, 20))
    assert f"| {shown(name)} | {' | '.join([*errors, *distances, *mixtures])} |" in PAGE


@pytest.mark.parametrize(
    "panel, calls", [("fashion", 5), ("fashion", 8), ("2-D", 8), ("2-D", 20), ("64-D", 8), ("64-D", 20)]
)
def test_no_peer_is_ahead_of_a_fitted_table(panel: str, calls: int):
    error = {row["solver"]: row["error"] for row in FOUND[panel] if row["calls"] == calls}
    assert any(name.startswith("azula") for name in error) and any(name.startswith("diffusers") for name in error)
    assert error.pop(FITTED) < min(error.values())


def test_the_images_of_a_fitted_table_are_as_near_to_the_fine_solution_as_itself():
    distance = {(row["solver"], row["calls"]): row["frechet"] for row in FOUND["fashion"]}
    fine = distance["fine", 30]
    assert f"of {fine:.1f}, as so few images are" in PAGE
    assert all(abs(distance[FITTED, calls] - fine) < 0.5 for calls in (5, 8))
    assert distance[FITTED, 5] == min(v for (_, calls), v in distance.items() if calls == 5)


def test_at_8_calls_on_images_its_error_is_at_most_half_of_that_of_second_order_steps():
    error = {row["solver"]: row["error"] for row in FOUND["fashion"] if row["calls"] == 8}
    assert error[FITTED] <= error["DPMpp(2)"] / 2

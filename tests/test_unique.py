"""Populations without copies: the draw by exact sums, and the weights of merged runs by enumeration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import guidekit as gk
from guidekit import random
from guidekit.cli.app import app
from guidekit.engine.unique import thinned

THREE = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
TABLE = gk.analytic.TokenTable(0.5 * torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))


def test_the_draw_is_unbiased_has_no_copies_and_keeps_what_is_heavy():
    """4 of 7 places: with W_1 = .43 and W_6 = .23 above c; the mean over 4,000 draws within 4.5 standard errors."""
    w = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    w[3] = 0.0
    w = w / w.sum()
    keys = random.fold(random.key([5]), torch.arange(4000))
    place, log_w = thinned(w.log().expand(4000, -1), 4, keys)
    assert (place.sort(1).values.diff(dim=1) > 0).all() and not (place == 3).any()
    assert torch.allclose(log_w.exp().sum(1), torch.ones(4000, dtype=torch.float64), atol=1e-9)
    found = torch.zeros(4000, 7, dtype=torch.float64).scatter_add(1, place, log_w.exp())
    c = log_w.exp().amin()
    assert ((found.mean(0) - w).abs() <= 4.5 * found.std(0) / 4000**0.5 + 1e-9).all()
    assert torch.allclose(found[:, w >= c], w[w >= c].expand(4000, -1)) and 1 <= int((w >= c).sum()) < 4
    assert float((w / c).clamp(max=1).sum()) == pytest.approx(4)


def test_weights_of_merged_runs_are_right():
    """Two distinct samples of three letters, in 500 groups with runs of their own. Sums over runs have the expectation
    E[R] p (Wald), so their ratio is p; a run of two that differ has equal weights, one of two that agree goes on."""
    base, G = gk.analytic.TokenTable(THREE.log()), 500
    found = gk.sample(base, 2, steps=1, cond=[None] * G, seed=list(range(G)), unique=True)
    x, w = found.x.view(G, 2), found.weights.view(G, 2)
    runs = torch.tensor(found.config["unique"]["runs"], dtype=torch.float64)
    assert (x[:, 0] != x[:, 1]).all() and torch.allclose(w[runs == 1], torch.tensor(0.5, dtype=torch.float64))
    alike = float(THREE.square().sum())
    assert float((runs > 1).double().mean()) == pytest.approx(alike, abs=4.5 * (alike * (1 - alike) / G) ** 0.5)
    share = torch.zeros(G, 3, dtype=torch.float64).scatter_add(1, x, w)
    error = ((share - THREE) * runs[:, None] / runs.mean()).std(0) / G**0.5
    assert (((share * runs[:, None]).sum(0) / runs.sum() - THREE).abs() < 4.5 * error).all()


def test_of_weighted_runs_every_weighted_mean_stays_as_it_is():
    """9 states, 20 particles: all of them are found, each with the sum of its copies' weights in all runs, and log Z
    is that of the runs joined."""
    reward = lambda x: x[:, 0].double() - 0.5 * x[:, 1].double()  # noqa: E731
    run: dict[str, Any] = {"steps": 2, "guides": [gk.FKSteering(reward, 0.7)], "seed": 1}
    with pytest.warns(UserWarning, match="9 distinct samples instead of 20"):
        found = gk.sample(TABLE, 20, unique=True, **run)
    again = random.fold(random.fold(random.key([1]), "unique"), torch.arange(1, found.config["unique"]["runs"][0]))
    parts = [gk.sample(TABLE, 20, **run | {"seed": seed}) for seed in (1, *map(int, again))]
    whole = gk.join(parts)
    assert len(found) == 9 == len(found.x.unique(dim=0)) and found.cost.network_rows == whole.cost.network_rows
    for state, weight in zip(found.x, found.weights, strict=True):
        assert float(weight) == pytest.approx(float(whole.weights[(whole.x == state).all(1)].sum()))
    assert float(found.log_z) == pytest.approx(float(whole.log_z))
    assert float(found.log_z_error) == pytest.approx(float(whole.log_z_error))


def test_where_all_differ_nothing_changes_and_noise_is_refused():
    base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    plain, found = (gk.sample(base, 6, steps=3, unique=unique) for unique in (False, True))
    assert torch.equal(plain.x, found.x) and torch.equal(plain.log_weights, found.log_weights)
    with pytest.raises(ValueError, match="further runs from other noise"):
        gk.sample(base, 6, steps=3, unique=True, noise=torch.zeros(6, 1))


def test_a_run_with_further_runs_resumes_to_the_same_bytes(tmp_path: Path):
    first, second = (gk.sample(TABLE, 8, steps=2, unique=True, checkpoint=tmp_path / "run", seed=4) for _ in range(2))
    plain = gk.sample(TABLE, 8, steps=2, unique=True, seed=4)
    assert plain.config["unique"]["runs"][0] > 1 and (tmp_path / "run.unique1").exists()
    for other in (second, plain):
        assert torch.equal(first.x, other.x) and torch.equal(first.log_weights, other.log_weights)


def test_on_the_command_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\nimport guidekit as gk\n\n\ndef load():\n"
        "    return gk.analytic.TokenTable(torch.tensor([0.6, 0.3, 0.1]).log())\n"
    )
    out = tmp_path / "out"
    command = [
        "sample",
        f"{tmp_path}/mine.py:load",
        "-n",
        "3",
        "--steps",
        "1",
        "--unique",
        "--no-report",
        "-o",
        str(out),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(gk.load_result(out / "result").x.flatten().tolist()) == [0, 1, 2]
    assert not list(out.glob("checkpoint*")) and gk.Config.load(out / "run.toml").unique

"""Replica exchange: from unguided samples to the tilted law, by enumeration, and the law that a sweep leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import guidekit as gk

from .problems import chain_of_tokens

LOGITS = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
TABLE = gk.analytic.TokenTable(LOGITS)
STEPS = 3


def reward(x: torch.Tensor) -> torch.Tensor:
    return 0.8 * x[:, 0].double() - 0.7 * (x[:, 2].double() - 1) ** 2 + 0.3 * (x[:, 1] == 0)


def deviation(x: torch.Tensor, alpha: float) -> float:
    """The largest error of a share of states, in standard errors."""
    w = chain_of_tokens(LOGITS.flatten().softmax(0).numpy(), False, STEPS)
    w = w * np.exp(reward(TABLE.states).numpy() / alpha)
    p = w / w.sum()
    found = np.array([float((x == s).all(1).double().mean()) for s in TABLE.states])
    return float(np.abs((found - p) / np.sqrt(p * (1 - p) / len(x))).max())


def test_the_coldest_replica_reaches_the_tilted_law():
    options: dict[str, Any] = {"alphas": [0.4, 1.0], "share": 0.4, "steps": STEPS, "seed": 2}
    found = gk.search.replica_exchange(TABLE, 500, reward, sweeps=25, **options)
    early = gk.search.replica_exchange(TABLE, 500, reward, sweeps=1, **options)
    assert deviation(found.x, 0.4) < 4.5 < deviation(early.x, 0.4)
    assert len(found) == 500 and not found.log_weights.any()
    again = gk.sample(TABLE, 500, steps=STEPS, noise=found.noise)
    assert torch.equal(again.x, found.x)


def test_exchanges_alone_and_moves_alone_have_the_right_law():
    """Without moves of the cold replica (share near 0) it is fed by exchanges with the model; with one temperature and
    the model far away it moves by itself. A mean in closed form: of N(0, 1), tilted by x/alpha, 1/alpha."""
    base, first = gk.analytic.GaussianMixture([1.0], [0.0], [1.0]).exact(), lambda x: x[:, 0]
    for share, sweeps in ((1e-9, 40), (0.3, 40)):
        found = gk.search.replica_exchange(base, 400, first, alphas=[1.0, 2.0], sweeps=sweeps, share=share, steps=2)
        assert abs(float(found.x.mean()) - 1.0) < 4.5 * float(found.x.std()) / 20
        assert float(found.x.std()) == pytest.approx(1.0, abs=4.5 / 800**0.5)
    rows = found.trace
    assert all(row["accepted"][-1] == 1.0 for row in rows)  # the model draws anew each time
    assert rows[0]["exchanged"][0] != rows[0]["exchanged"][0] and 0 < rows[1]["exchanged"][0] < 1
    assert found.cost.network_rows == 41 * 3 * 400 * 2


def test_what_is_wrong_is_said_before_the_first_call():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("that rise", {"alphas": [1.0, 0.5]}),
        ("that rise", {"alphas": []}),
        ("share=0", {"alphas": [1.0], "share": 0}),
        ("one condition at a time", {"alphas": [1.0], "cond": [1, 2]}),
        ("are independent runs", {"alphas": [1.0], "guides": [gk.FKSteering(reward, 1.0)]}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.replica_exchange(model, 4, reward, steps=2, **options)
    assert not calls

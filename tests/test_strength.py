"""The temperature that a budget allows, against closed forms and enumeration."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import guidekit as gk

BASE = gk.analytic.GaussianMixture([1.0], [0.7], [1.5])
first = lambda x: x[:, 0]  # noqa: E731


def test_of_a_gaussian_and_a_linear_reward_it_is_the_closed_form():
    """KL = (std/alpha)^2/2, ESS/n -> exp(-(std/alpha)^2), E[r] = mean + std^2/alpha. Six runs of 2000 samples; the
    tolerance is 4.5 standard errors of their mean, measured between the runs."""
    for limit, alpha in (({"kl": 0.5}, 1.5), ({"ess": 0.5}, 1.5 / math.log(2) ** 0.5)):
        runs = [gk.search.strength(BASE.exact(), first, n=2000, steps=4, seed=i, **limit) for i in range(6)]
        found = torch.tensor([[s.alpha, s.reward, s.kl, s.ess] for s in runs], dtype=torch.float64)
        error = 4.5 * found.std(0) / 6**0.5
        truth = torch.tensor([alpha, 0.7 + 1.5**2 / alpha, 0.5 * (1.5 / alpha) ** 2, math.exp(-((1.5 / alpha) ** 2))])
        assert ((found.mean(0) - truth).abs() < error + 0.01).all()
        assert float(error[0]) < 0.12 * alpha
        assert runs[0].before == pytest.approx(float(runs[0].pilot.rewards.mean()))  # type: ignore[union-attr]


def test_samples_steered_at_this_temperature_are_as_far_from_the_model_as_allowed():
    """By enumeration of a table, whose tilted law has a KL that can be summed."""
    table = gk.analytic.TokenTable(
        torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    reward = lambda x: 0.7 * x[:, 0].double() - 0.4 * (x[:, 1] == 2)  # noqa: E731
    found = gk.search.strength(table, reward, kl=0.25, n=4000, steps=9)
    p, r = table.log_probs(table.states), reward(table.states)
    q = (p + r / found.alpha).log_softmax(0)
    assert float((q.exp() * (q - p)).sum()) == pytest.approx(0.25, abs=0.04)  # 4,000 samples: about 0.01
    assert found.kl == pytest.approx(0.25, abs=1e-6)
    assert found.reward == pytest.approx(float(q.exp() @ r), abs=0.05)
    steered = gk.sample(table, 2000, steps=9, guides=[gk.FKSteering(reward, found.alpha)])
    assert float(steered.weights @ steered.rewards) == pytest.approx(found.reward, abs=0.08)  # type: ignore[operator]


def test_a_pilot_run_resumes_and_its_cost_is_counted(tmp_path: Path):
    options = {"kl": 0.3, "n": 200, "steps": 5, "checkpoint": tmp_path / "pilot.safetensors"}
    one, two = (gk.search.strength(BASE, first, **options) for _ in range(2))
    assert one.alpha == two.alpha and one.pilot.cost.network_rows == 1000 and one.pilot.cost.reward_calls == 200


def test_what_cannot_be_told_is_an_error_before_the_run():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("either kl=", {}),
        ("either kl=", {"kl": 1.0, "ess": 0.5}),
        ("kl=-1", {"kl": -1}),
        ("ess=1.5", {"ess": 1.5}),
        ("at least 549 are needed", {"kl": 4.005}),
        ("at least 1000 are needed", {"ess": 0.01}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.strength(model, first, **options)
    assert not calls
    with pytest.raises(gk.RewardError, match="the same for all 256"):
        gk.search.strength(BASE, lambda x: x[:, 0] * 0, kl=1.0, steps=2)
    with pytest.raises(ValueError, match="no temperature reaches this limit"):
        gk.search.strength(BASE, lambda x: (x[:, 0] > 0).double(), kl=2.0, steps=2)
    with pytest.raises(ValueError, match="the pilot run has weights"):
        gk.search.strength(BASE, first, kl=1.0, steps=4, guides=[gk.FKSteering(first, 1.0, ess=0.0)])

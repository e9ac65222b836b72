"""A bank of samples as a look-ahead: exact where the bank is the whole law, and in the limit of a large one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk

made = torch.Generator().manual_seed(5)
TABLE = torch.randn(3, 3, 3, generator=made, dtype=torch.float64)
first = lambda x: x[:, 0]  # noqa: E731
reward = lambda x: 0.7 * x[:, 0].double() - 0.9 * (x[:, 1] == 2) + 0.5 * (x[:, 2] == x[:, 0])  # noqa: E731


def looked(value: gk.values.Bank, model: gk.Model, x: Tensor, t: float) -> Tensor:
    view: Any = SimpleNamespace(model=model, x=x, t=t)
    return value(view)


@pytest.mark.parametrize("noising", ["masked", "uniform"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_value_is_exact_if_the_bank_is_the_law(noising: str, weighted: bool):
    """All sequences with their probabilities as weights, or each as often as it occurs in 40,000 samples."""
    model, alpha, t = gk.analytic.TokenTable(TABLE, noising), 0.6, 0.7
    x = torch.tensor([[3, 2, 3], [0, 3, 1], [3, 3, 3], [2, 1, 3]])
    x = x if noising == "masked" else x % 3
    truth = (model.posterior(x, t) + reward(model.states) / alpha).logsumexp(1) * alpha
    if weighted:
        value = gk.values.Bank(model.states, reward(model.states), model.log_probs(model.states), alpha)
        assert torch.allclose(looked(value, model, x, t), truth, atol=1e-9)
        return
    some = model.states[torch.multinomial(model.log_probs(model.states).exp(), 40_000, True, generator=made)]
    value = gk.values.Bank(some, reward(some)).at(alpha)
    assert torch.allclose(looked(value, model, x, t), truth, atol=0.05)  # at least 800 of them agree with each row


def test_of_a_gaussian_it_tends_to_the_closed_form():
    """p = N(.7, 1.5^2), x_t = a x_0 + s z: the posterior is N(m, v), and V = m + v/(2 alpha) for r = x."""
    base, alpha, t = gk.analytic.GaussianMixture([1.0], [0.7], [1.5]), 0.8, 0.6
    a, s = base.process.scales(t)
    v = 1 / (1 / 1.5**2 + (a / s) ** 2)
    x = torch.tensor([[-1.0], [0.3], [2.0]])
    m = v * (0.7 / 1.5**2 + a * x[:, 0] / s**2)
    some = base.exact_sample(200_000, seed=1)
    value = gk.values.Bank(some, first(some)).at(alpha)
    assert torch.allclose(looked(value, base, x, t), (m + v / (2 * alpha)).double(), atol=0.05)


def test_steering_with_a_bank_is_exact_and_costs_nothing_for_children():
    model, alpha = gk.analytic.TokenTable(TABLE), 0.6
    plain = gk.sample(model, 300, steps=6, reward=reward, seed=7)
    value = gk.values.Bank(plain.x, plain.rewards)  # type: ignore[arg-type]
    p = (model.log_probs(model.states) + reward(model.states) / alpha).logsumexp(0)
    for guide in (gk.FKSteering(reward, alpha, value=value), gk.SVDD(reward, alpha, 3, value=value)):
        runs = [gk.sample(model, 500, steps=12, guides=[guide], seed=i) for i in range(8)]
        log_z = torch.tensor([float(r.log_z) for r in runs])
        assert abs(float(log_z.mean() - p)) < 4.5 * float(log_z.std()) / 8**0.5 + 0.03  # of twelve steps
        assert all(r.cost.network_rows <= 500 * 12 for r in runs)


def test_what_no_sample_explains_is_unknown():
    model = gk.analytic.TokenTable(TABLE)
    value = gk.values.Bank(torch.tensor([[0, 1, 2], [0, 2, 2]]), torch.tensor([1.0, torch.nan])).at(1.0)
    found = looked(value, model, torch.tensor([[0, 1, 3], [3, 3, 2], [1, 3, 3], [0, 2, 3]]), 0.5)
    assert found[0] == pytest.approx(1.0) and found[1] == pytest.approx(1 - 0.6931, abs=1e-3)
    assert not found[2:].isfinite().any()
    wrongs: tuple[dict[str, Any], ...] = ({"rewards": torch.zeros(3)}, {"alpha": 0.0}, {"log_weights": torch.zeros(1)})
    for wrong in wrongs:
        with pytest.raises(ValueError, match="Bank"):
            gk.values.Bank(**{"x": torch.zeros(2, 3), "rewards": torch.zeros(2), **wrong})
    with pytest.raises(ValueError, match=r"Bank of states of shape \(2,\)"):
        gk.sample(
            model, 4, guides=[gk.FKSteering(reward, 1.0, value=gk.values.Bank(torch.zeros(4, 2), torch.zeros(4)))]
        )

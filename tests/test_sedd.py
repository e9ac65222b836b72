"""Networks of concrete scores as base models: with exact scores they are the exact models, and SEDD's own sampler."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

import guidekit as gk
from guidekit.integrations.sedd import Scores, from_sedd
from guidekit.solvers import Move

V, L = 3, 3
TABLE = torch.randn((V,) * L, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5
BOTH = pytest.mark.parametrize("noise", ["absorbing", "uniform"])


def noised(noise: str, t: float) -> tuple[np.ndarray, np.ndarray]:
    """All states, and p_t of each, by the forward process from the table."""
    symbols = V if noise == "uniform" else V + 1
    q = (1 - t) * np.eye(V, symbols) + (t / V if noise == "uniform" else t * np.eye(symbols)[[V] * V])
    p = TABLE.flatten().softmax(0).numpy().reshape((V,) * L)
    for _ in range(L):
        p = np.tensordot(p, q, (0, 0))
    return np.array(list(product(range(symbols), repeat=L))), p.flatten()


def score(noise: str, count: list[float] | None = None) -> Any:
    """The exact network: ratios of p_t, of the states that differ at one position."""

    def net(x: Tensor, sigma: Tensor) -> Tensor:
        states, p = noised(noise, 1 - float((-sigma[0]).exp()))
        symbols = int(states.max()) + 1
        place = symbols ** torch.arange(L - 1, -1, -1)
        own = (x * place).sum(1)
        if count is not None:
            count.append(float(sigma[0]))
        there = own[:, None, None] + (torch.arange(symbols) - x[..., None]) * place[:, None]
        with np.errstate(divide="ignore"):
            log_p = torch.as_tensor(np.log(p))
        return (log_p[there] - log_p[own][:, None, None]).nan_to_num(0.0)

    return net


def exact(noise: str) -> gk.analytic.TokenTable:
    return gk.analytic.TokenTable(TABLE, "uniform" if noise == "uniform" else "masked")


@BOTH
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_predictions_are_the_exact_posterior(noise: str, t: float):
    model = from_sedd(score(noise), V, L, noise, dtype=torch.float64)
    x = torch.as_tensor(noised(noise, t)[0])
    found, expected = (m(x, t, None).exp() for m in (model, exact(noise)))
    open = (x == V) if noise == "absorbing" else torch.ones_like(x, dtype=torch.bool)
    torch.testing.assert_close(found[open], expected[open], atol=1e-9, rtol=1e-8)


@BOTH
def test_runs_and_log_z_are_those_of_the_exact_model(noise: str):
    models = from_sedd(score(noise), V, L, noise, dtype=torch.float64), exact(noise)
    guides = [gk.FKSteering(lambda x: (x == 1).sum(1).double() - 1.0 * (x[:, 0] == 2), 0.7)]
    a, b = (gk.sample(m, 300, steps=6, guides=guides, seed=2) for m in models)
    if noise == "absorbing":
        assert torch.equal(a.x, b.x)
        torch.testing.assert_close(a.log_z, b.log_z)
    else:  # scores at t = 1 are those at 0.999, and so some rows differ in the first step
        assert (a.x == b.x).double().mean() > 0.95 and abs(float(a.log_z - b.log_z)) < 0.05


@BOTH
def test_the_ancestral_kernel_is_tweedie_tau_leaping(noise: str):
    """exp(-h Q) score, times exp(h Q) from each token to that of x_t, with h the noise of the step (theorem 4.2)."""
    t, s = 0.7, 0.4
    step = np.log((1 - s) / (1 - t))
    symbols = V if noise == "uniform" else V + 1
    rates = np.full((V, V), 1 / V) - np.eye(V) if noise == "uniform" else np.zeros((V + 1, V + 1))
    if noise == "absorbing":
        rates[range(V), range(V)], rates[:V, V] = -1, 1  # from the row to the column
    x = torch.as_tensor(noised(noise, t)[0])
    model = from_sedd(score(noise), V, L, noise, dtype=torch.float64)
    process: Any = model.process
    found = process.kernel(x, (model(x, t, None),), Move(t, s)).log_probs.exp().numpy()
    ratios = score(noise)(x, torch.full((len(x),), -np.log(1 - t), dtype=torch.float64)).exp().numpy()
    back, onward = expm(-step * rates), expm(step * rates)
    for row in range(len(x)):
        for i in range(L):
            own = int(x[row, i])
            if noise == "absorbing" and own < V:
                continue  # a token stays
            expected = (ratios[row, i] @ back) * onward[:, own]
            np.testing.assert_allclose(found[row, i], expected[:symbols], atol=1e-8)


def test_the_network_is_told_the_total_noise_and_its_condition():
    told: list[float] = []
    gk.sample(from_sedd(score("absorbing", told), V, L, dtype=torch.float64), 2, steps=[1.0, 0.5, 0.0])
    assert told == pytest.approx([np.log(1000), np.log(2)])
    with_cond = Scores(lambda x, sigma, cond: cond[:, None, None].expand(*x.shape, V + 1), False)
    assert (
        with_cond(torch.full((2, L), V), torch.ones(2), torch.tensor([3.0, 4.0]))[:, 0, 0] == torch.tensor([3.0, 4.0])
    ).all()
    with pytest.raises(ValueError, match="noise='gauss': there is 'absorbing' and 'uniform'"):
        from_sedd(lambda x, t: x, V, L, "gauss")


def test_learned_scores_that_no_law_has_give_predictions_all_the_same():
    def wild(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.randn(*x.shape, V, generator=torch.Generator().manual_seed(0)) * 6

    x = torch.randint(0, V, (50, L))
    for t in (0.01, 0.5, 1.0):
        p = from_sedd(wild, V, L, "uniform")(x, t, None).exp()
        torch.testing.assert_close(p.sum(-1), torch.ones(50, L))

"""`model.log_prob`: against the density of mixtures, the probabilities of tables, and enumerations."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.models.base import Model

SCHEDULES = {"cosine": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
TABLE = torch.randn((3,) * 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
CLASSES = torch.stack([TABLE, TABLE + 1.5 * (torch.arange(3).double() == 2)[:, None, None, None]])


def mixture(name: str, labels: Any = None) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([0.5, 0.3, 0.2], MEANS, [0.5, 0.4, 0.6], SCHEDULES[name], labels)


def wide(model: Any, n: int) -> torch.Tensor:
    """Samples, and places where there are hardly any."""
    return torch.cat([model.exact_sample(n), torch.tensor([[3.0, -3.0], [0.0, 0.0]], dtype=torch.float64)])


# Gaussian ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_density_of_the_flow_is_that_of_the_mixture(name: str):
    model = mixture(name)
    x = wide(model, 20)
    found, error = Model.log_prob(model, x, steps=60, errors=True)
    off = (found - model.log_prob(x)).abs()
    assert found.dtype == torch.float64 and not error.any()
    assert off.median() < 3e-3 and off.max() < 0.02  # runs start from N(0, sigma^2), in which a little data is missing


def test_any_parameterisation_and_condition_has_its_density():
    """A network that returns the flow z - x_0, in float32, for two conditions."""
    exact = mixture("flow", labels=[0, 1, 0])

    def net(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        d = exact(x.double(), float(t[0]), cond)
        return ((x - d) / t.view(-1, 1)).float()

    model = gk.GaussianModel(net, (2,), gk.schedules.Flow(), predicts="flow", null=-1)
    noise = 0.4 * torch.randn(8, 2, generator=torch.Generator().manual_seed(1)).double()
    x = (MEANS[[0, 0, 0, 0, 1, 1, 1, 1]] + noise).float()
    for given in (None, [0, 1]):
        found = model.log_prob(x, given, steps=60)
        conds = given if isinstance(given, list) else [given]
        wanted = torch.cat([exact.log_prob(v, c) for v, c in zip(x.double().chunk(len(conds)), conds, strict=True)])
        assert (found - wanted).abs().max() < 0.02
    parts = model.log_prob(x, [0, 1], steps=8, batch_size=3)
    assert torch.allclose(parts, model.log_prob(x, [0, 1], steps=8), atol=1e-4)


def test_random_signs_estimate_the_density_without_bias_and_know_their_error():
    model = mixture("cosine")
    x = wide(model, 30)
    exact = Model.log_prob(model, x, steps=8)
    found, error = Model.log_prob(model, x, steps=8, draws=24, errors=True)
    score = (found - exact) / error
    assert (error > 0).all() and score.abs().max() < 4.5 and 0.6 < float(score.std()) < 1.5
    alone = Model.log_prob(model, x[:3], steps=8, draws=24)
    assert torch.allclose(alone, found[:3], atol=1e-9)  # by address
    assert not torch.allclose(Model.log_prob(model, x[:3], steps=8, draws=24, seed=1), alone, atol=1e-6)


# tokens --------------------------------------------------------------------------------------------------------------


def test_of_ordered_tokens_it_is_the_probability():
    model = gk.analytic.TokenTable(TABLE, "ordered", CLASSES)
    x = model.states
    for cond in (None, 0, 1):
        found, error = model.log_prob(x, cond, errors=True)
        assert torch.allclose(found, model.log_probs(x, cond), atol=1e-5) and not error.any()
    both = model.log_prob(torch.cat([x, x]), [0, 1], batch_size=50)
    assert torch.allclose(both, torch.cat([model.log_probs(x, 0), model.log_probs(x, 1)]), atol=1e-5)


def test_what_follows_the_end_of_a_text_counts_nothing_and_must_be_the_end():
    logits = torch.tensor([0.5, 0.2, -0.3])
    model = gk.MaskedModel(lambda x, t, cond: logits.expand(*x.shape, 3), 3, 4, ordered=True, end=0)
    log_p = logits.double().log_softmax(-1)
    x = torch.tensor([[1, 2, 0, 0], [0, 0, 0, 0], [2, 2, 1, 1], [1, 0, 2, 0]])
    wanted = [log_p[1] + log_p[2] + log_p[0], log_p[0], 2 * (log_p[2] + log_p[1]), torch.tensor(-torch.inf)]
    assert torch.allclose(model.log_prob(x), torch.stack(wanted).double(), atol=1e-6)


@pytest.mark.parametrize("cond", [None, 1])
def test_the_bound_of_masked_tokens_is_met_by_a_network_whose_conditionals_are_those_of_one_law(cond: Any):
    model = gk.analytic.TokenTable(TABLE, "masked", CLASSES)
    x, wanted = model.states, model.log_probs(model.states, cond)
    found, error = model.log_prob(x, cond, draws=256, errors=True)
    assert ((found - wanted).abs() < 5 * error + 1e-6).all()
    assert abs(float((found - wanted).mean())) < 0.03 and float(error.max()) < 0.4
    assert torch.allclose(model.log_prob(x[5:9], cond, draws=256)[0], found[5], atol=5 * float(error.max()))


def chain_bound(model: Any, x: tuple[int, ...], steps: int) -> float:
    """-sum_j E KL of the uniform chain, by enumeration of x_t."""
    V, L, total = model.vocab_size, len(x), 0.0
    eye = np.eye(V)
    for j in range(steps, 0, -1):
        t, s = j / steps, (j - 1) / steps
        from_0, to_s = (1 - t) * eye + t / V, (1 - s) * eye + s / V
        g = (1 - t) / (1 - s)
        step = g * eye + (1 - g) / V  # q(x_t | x_s)
        for x_t in product(range(V), repeat=L):
            chance = np.prod([from_0[a, b] for a, b in zip(x, x_t, strict=True)])
            p = model(torch.tensor([x_t]), t, None)[0].double().softmax(-1).numpy()
            for i in range(L):
                each = to_s * step[:, x_t[i]] / from_0[:, x_t[i]][:, None]  # q(x_s | x_t, x_0 = w), in row w
                q, own = each[x[i]], p[i] @ each
                some = q > 0
                total -= chance * (q[some] * np.log(q[some] / own[some])).sum()
    return total


def test_the_bound_of_uniform_tokens_is_that_of_its_chain():
    model = gk.analytic.TokenTable(torch.tensor([[0.4, 0.1], [0.2, 0.3]]).double().log(), "uniform")
    x = model.states
    found, error = model.log_prob(x, steps=3, draws=900, errors=True)
    wanted = torch.tensor([chain_bound(model, tuple(v), 3) for v in x.tolist()])
    assert ((found - wanted).abs() < 4.5 * error).all() and float(error.max()) < 0.1
    fine = torch.tensor([chain_bound(model, tuple(v), 60) for v in x.tolist()])
    far = [float((model.log_probs(x).exp() * (model.log_probs(x) - bound)).sum()) for bound in (wanted, fine)]
    assert far[0] > 4 * far[1] > 0  # from the law of the table on average, and less so in more moves


# use -----------------------------------------------------------------------------------------------------------------


def test_samples_are_read_and_it_is_a_reward():
    model = gk.MaskedModel(
        lambda x, t, cond: torch.tensor([1.0, 0.0]).expand(*x.shape, 2), 2, 3, ordered=True,
        decode=lambda x: ["".join("ab"[v] for v in row) for row in x.tolist()],
        read=lambda samples: torch.tensor([["ab".index(c) for c in s] for s in samples]),
    )  # fmt: skip
    p = torch.tensor([1.0, 0.0]).double().log_softmax(-1)
    wanted = torch.stack([3 * p[0], 2 * p[0] + p[1]])
    assert torch.allclose(model.log_prob(["aaa", "aba"]), wanted, atol=1e-6)
    assert torch.equal(model.log_prob("aba"), model.log_prob(["aba"]))
    result = gk.sample(model, 4, steps=3, reward=lambda samples: model.log_prob(samples))
    assert result.rewards is not None and torch.allclose(result.rewards, model.log_prob(result.x))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": 0}, "steps=0: a number of at least 1"),
        ({"draws": 1.5}, "draws=1.5: a number of at least 1"),
        ({"batch_size": True}, "batch_size=True"),
        ({"cond": [None, None, None]}, "4 samples for 3 conditions"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_the_first_network_call(options: Any, why: str):
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (2,), predicts="clean")
    with pytest.raises(ValueError, match=why):
        model.log_prob(torch.zeros(4, 2), **options)
    assert not calls


def test_a_model_with_lengths_is_refused():
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 3), 3, 4, end=0, lengths=[0.25] * 4)
    with pytest.raises(ValueError, match="knows no model with lengths="):
        model.log_prob(torch.zeros(2, 4, dtype=torch.long))


def test_a_network_through_which_no_gradient_passes_has_no_density():
    model = gk.GaussianModel(lambda x, t, cond: x.detach(), (2,), predicts="clean")
    with pytest.raises(ValueError, match="no gradient passes through the network"):
        model.log_prob(torch.zeros(4, 2))

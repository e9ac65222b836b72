"""TaylorSMC: weights without variance where its expansion is exact, and the tilted law where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import guidekit as gk

V, L, ALPHA = 3, 3, 0.6
made = torch.Generator().manual_seed(8)
LETTER = torch.randn(L, V, generator=made, dtype=torch.float64)
MARGINAL = torch.randn(L, V, generator=made, dtype=torch.float64).log_softmax(-1)
PAIR = torch.randn(V, V, generator=made, dtype=torch.float64)
noisings = pytest.mark.parametrize("noising", ["masked", "ordered", "uniform"])


def linear(x: Tensor) -> Tensor:
    hot = x.double() if x.dim() == 3 else torch.nn.functional.one_hot(x, V).double()
    return (hot * LETTER).sum((1, 2))


def curved(x: Tensor) -> Tensor:
    hot = x.double() if x.dim() == 3 else torch.nn.functional.one_hot(x, V).double()
    return linear(x) + torch.einsum("ria,rib,ab->r", hot[:, :-1], hot[:, 1:], PAIR)


def independent(noising: str) -> gk.analytic.TokenTable:
    a, b, c = MARGINAL
    return gk.analytic.TokenTable(a[:, None, None] + b[:, None] + c, noising)


def dependent(noising: str) -> gk.analytic.TokenTable:
    return gk.analytic.TokenTable(torch.randn(V, V, V, generator=made.manual_seed(2), dtype=torch.float64), noising)


@noisings
def test_of_independent_tokens_and_a_linear_reward_every_weight_is_z(noising: str):
    model = independent(noising)
    found = gk.sample(model, 400, steps=6, guides=[gk.TaylorSMC(linear, ALPHA)])
    log_z = float((MARGINAL + LETTER / ALPHA).logsumexp(-1).sum())
    assert (found.log_weights - log_z).abs().max() < 1e-9
    # and the samples themselves are of the tilted law: frequencies within 4.5 standard errors
    p = (MARGINAL + LETTER / ALPHA).softmax(-1)
    share = torch.nn.functional.one_hot(found.x, V).double().mean(0)
    assert ((share - p).abs() < 4.5 * (p * (1 - p) / 400).sqrt() + 1e-9).all()


@noisings
def test_half_of_the_bend_leaves_the_target_and_costs_variance(noising: str):
    model = independent(noising)
    found = gk.sample(model, 4000, steps=6, guides=[gk.TaylorSMC(linear, ALPHA, scale=0.5, ess=0.0)])
    log_z = float((MARGINAL + LETTER / ALPHA).logsumexp(-1).sum())
    assert found.log_weights.std() > 0.1
    assert abs(float(found.log_z) - log_z) < 4.5 * float(found.log_weights.exp().std()) / 4000**0.5 / math.exp(log_z)


@noisings
def test_the_look_ahead_is_worth_more_particles_than_that_of_the_mode(noising: str):
    """With a curved reward and dependent tokens the expansion is rough: exact by its weights, and with a larger
    effective sample size than Feynman-Kac steering, both without resampling."""
    model, n = dependent(noising), 4000
    p = (model.log_probs(model.states) + curved(model.states) / ALPHA).softmax(0)
    taylor, fk = (
        gk.sample(model, n, steps=12, guides=[guide], seed=4)
        for guide in (gk.TaylorSMC(curved, ALPHA, ess=0.0), gk.FKSteering(curved, ALPHA, ess=0.0))
    )
    assert taylor.ess > 1.5 * fk.ess
    place = V ** torch.arange(L - 1, -1, -1)
    share = torch.zeros(V**L, dtype=torch.float64).index_add(0, (taylor.x * place).sum(1), taylor.weights)
    error = (p / float(taylor.ess)).sqrt() + 0.02  # the second for the chain's own error in twelve steps
    assert ((share - p).abs() < 4.5 * error).all()


def test_what_it_costs_and_what_it_refuses():
    asked: list[int] = []

    def counted(x: Tensor) -> Tensor:
        asked.append(x.dim())
        return curved(x)

    model = dependent("masked")
    gk.sample(model, 8, steps=5, guides=[gk.TaylorSMC(counted, ALPHA)])
    assert asked == [3] * 5 + [2]  # one gradient a step, and the samples
    with pytest.raises(ValueError, match="it always steers"):
        gk.sample(model, 8, guides=[gk.TaylorSMC(curved, ALPHA, steer=False)])
    with pytest.raises(ValueError, match="use TDS or DAS"):
        gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 8, guides=[gk.TaylorSMC(curved, ALPHA)])
    with pytest.raises(gk.RewardError, match="no gradient"):
        gk.sample(model, 8, guides=[gk.TaylorSMC(lambda x: curved(x).detach(), ALPHA)])


def test_samples_that_cannot_be_scored_have_no_weight():
    some = lambda x: torch.where(x[:, 0] == 2, torch.nan, linear(x)) if x.dim() == 2 else linear(x)  # noqa: E731
    with pytest.warns(UserWarning, match="could not be scored"):
        found = gk.sample(independent("masked"), 200, steps=4, guides=[gk.TaylorSMC(some, ALPHA, ess=0.0)])
    lost = found.x[:, 0] == 2
    assert 0 < lost.sum() < 200
    assert (found.log_weights[lost] == -torch.inf).all() and found.log_weights[~lost].isfinite().all()

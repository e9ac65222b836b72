"""Blackout diffusion: the death of counts and its reverse, by enumeration."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import guidekit as gk
from guidekit.process import Blackout
from guidekit.solvers import Move

V, L = 4, 2
P = np.array([0.15, 0.5, 0.05, 0.3])
TABLE = (
    torch.randn((V,) * L, generator=torch.Generator().manual_seed(2), dtype=torch.float64).mul(1.3).flatten().softmax(0)
)
STATES = np.array(list(product(range(V), repeat=L)))
MOVES = [(0.15, 0.0), (1.0, 0.4), (0.8, 0.7), (0.5, 0.1), (0.9, 0.0), (1.0, 0.0)]


def dying(s: float, t: float) -> np.ndarray:
    """q(x_t = k | x_s = n), row n."""
    return np.array([[stats.binom.pmf(k, n, (1 - t) / (1 - s)) for k in range(V)] for n in range(V)])


def posterior(t: float) -> np.ndarray:
    """p(x_0 | x_t) of one element, row x_t."""
    joint = (P[:, None] * dying(0, t)).T
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(joint / joint.sum(1, keepdims=True), nan=1 / V)


def kernel(p: np.ndarray, t: float, s: float) -> np.ndarray:
    log_p = torch.as_tensor(p).log()[:, None]
    return Blackout(V).kernel(torch.arange(V)[:, None], (log_p,), Move(t, s)).log_probs[:, 0].exp().numpy()


@pytest.mark.parametrize(("t", "s"), MOVES)
def test_a_move_down_is_bayes_rule(t: float, s: float):
    joint = (P @ dying(0, s))[:, None] * dying(s, t)  # of x_s and x_t
    possible = joint.sum(0) > 0
    expected = (joint / np.where(possible, joint.sum(0), 1)).T
    found = kernel(posterior(t), t, s)
    np.testing.assert_allclose(found[possible], expected[possible], atol=1e-10)
    np.testing.assert_allclose(found.sum(1)[possible], 1, atol=1e-10)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.2, 0.7), (0.4, 1.0)])
def test_a_move_up_lets_units_die(s: float, t: float):
    x = torch.arange(V)[:, None]
    found = Blackout(V).kernel(x, (), Move(s, t)).log_probs[:, 0].exp().numpy()
    np.testing.assert_allclose(found, dying(s, t), atol=1e-12)


def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """The exact marginals of the table."""
    q = dying(0, float(t[0]))
    fits = np.prod([q[STATES[:, i]][:, x[:, i].numpy()] for i in range(L)], 0).T * TABLE.numpy()
    fits = fits / np.maximum(fits.sum(1, keepdims=True), 1e-300)
    marginals = np.stack([fits @ np.eye(V)[STATES[:, i]] for i in range(L)], 1)
    return torch.as_tensor(np.log(np.maximum(marginals, 1e-300)))


def chain(steps: int) -> np.ndarray:
    """The law of x_0, by pushing the law over all states through the kernels written by hand."""
    law = (STATES == 0).all(1).astype(float)
    for t, s in pairwise(1 - np.arange(steps + 1) / steps):
        after = np.zeros_like(law)
        p = net(torch.as_tensor(STATES), torch.tensor([t]), None).exp().numpy()
        r = t - s if t == 1 else ((1 - s) - (1 - t)) / t
        for x, weight, own in zip(STATES, law, p, strict=True):
            if weight:
                single = [
                    [sum(own[i, v] * stats.binom.pmf(k - x[i], v - x[i], r) for v in range(x[i], V)) for k in range(V)]
                    for i in range(L)
                ]
                after += weight * np.multiply.outer(*map(np.array, single)).ravel()
        law = after
    return law


def model(**options: Any) -> gk.BlackoutModel:
    return gk.BlackoutModel(net, V, L, dtype=torch.float64, **options)


def reward(x: Tensor) -> Tensor:
    return 0.5 * x[:, 0] - 0.7 * (x[:, 1] == 2)


def found_law(x: Tensor, w: Tensor) -> np.ndarray:
    return np.bincount((x * torch.tensor([V, 1])).sum(1).numpy(), w.numpy(), V**L)


def test_samples_follow_the_enumerated_chain_which_comes_near_the_table():
    n, law = 20_000, chain(4)
    x = gk.sample(model(), n, steps=4, seed=1).x
    counts = found_law(x, torch.ones(n))
    assert (((counts - n * law) ** 2) / (n * law)).sum() < 37.7  # of 15 degrees of freedom: P = 1e-3
    assert 0.5 * np.abs(chain(32) - TABLE.numpy()).sum() < 0.02 < 0.5 * np.abs(chain(1) - TABLE.numpy()).sum()


def test_weights_and_log_z_are_exact():
    law = chain(4) * np.exp(reward(torch.as_tensor(STATES)).numpy() / 0.6)
    result = gk.sample(model(), 20_000, steps=4, guides=[gk.FKSteering(reward, 0.6)], seed=2)
    assert abs(float(result.log_z) - np.log(law.sum())) < 0.03
    assert 0.5 * np.abs(found_law(result.x, result.log_weights.softmax(0)) - law / law.sum()).sum() < 0.025
    many = gk.sample(
        model(), 4, cond=[None] * 1000, steps=4, guides=[gk.FKSteering(reward, 0.6)], seed=list(range(1000))
    )
    z = many.log_z.exp()
    assert abs(float(z.mean()) - law.sum()) < 4 * float(z.std()) / 1000**0.5  # unbiased with four particles


def test_a_mean_of_births_has_the_right_law_in_many_steps():
    def mean(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        p = torch.as_tensor(posterior(float(t[0])))[x]
        return (p * torch.arange(V)).sum(-1) - x

    births = gk.BlackoutModel(mean, V, 1, predicts="births", dtype=torch.float64)
    x = torch.arange(V)[:, None]
    far = {}
    for steps in (4, 64):
        law = np.eye(V)[0]
        for t, s in pairwise(1 - np.arange(steps + 1) / steps):
            q = births.process.kernel(x, (births(x, t, None),), Move(t, s))
            law = law @ q.log_probs[:, 0].exp().numpy()  # type: ignore[attr-defined]
        far[steps] = 0.5 * np.abs(law - P).sum()
    assert far[64] < 0.02 < far[4]


def test_what_is_there_stays_and_starts_keep_their_units():
    process = Blackout(V)
    p = torch.zeros(3, 2, V)
    x = torch.tensor([[3, 0], [2, 1], [3, 3]])
    drawn = process.kernel(x, (p,), Move(0.5, 0.2)).push(process.noise(torch.arange(3), (2, V), torch.float64))
    assert (drawn >= x).all() and process.decided(x).tolist() == [False, False, True]
    assert process.clean(torch.tensor([[[9.0, 0, 1, 2]]]), torch.tensor([[2]])).item() == 3
    started = gk.sample(model(), 400, steps=[0.3, 0.15, 0.0], guides=[gk.StartFrom(torch.tensor([3, 1]), 0.3)]).x
    assert started.double().mean(0)[0] > started.double().mean(0)[1]
    best = gk.search.random(model(), 4, reward, rounds=2, candidates=4, steps=4)
    assert best.rewards is not None and float(best.rewards.mean()) > float(reward(torch.as_tensor(STATES)).mean())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="counts move by their own kernel; leave solver=None"):
        gk.sample(model(), 2, solver=gk.solvers.FirstHitting())
    with pytest.raises(ValueError, match="predicts='noise': there is 'counts' and 'births'"):
        model(predicts="noise")
    with pytest.raises(ValueError, match="a token 4, and the vocabulary is 0 to 3"):
        model().read([[4, 0]])

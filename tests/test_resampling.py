"""Laws of the resamplers: means, floors and ceilings, variances, covariances, and the degenerate weights."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from guidekit import random
from guidekit.engine import resampling

SCHEMES = ("multinomial", "stratified", "systematic", "residual", "ssp")
ROUNDING = ("systematic", "ssp")  # offspring is floor(N W) or ceil(N W)
Z_LIMIT = 4.5  # two-sided normal tail of 7e-6 for each of some hundred comparisons

WEIGHTS = {
    "asymmetric": [0.05, 0.4, 0.0, 0.3, 0.2, 0.05],
    "zeros at both ends": [0.0, 0.11, 0.0, 0.0, 0.88, 0.01, 0.0],
    "one heavy": [0.003, 0.99, 0.002, 0.005],
    "heaviest first": [0.46, 0.27, 0.13, 0.09, 0.04, 0.01],
    "single": [1.0],
    "one alive": [0.0, 0.0, 1.0],
}


def keys(n, seed=0):
    return random.fold(random.key(seed), torch.arange(n))


def offspring(index, m):
    """How often each place was chosen, (groups, m); independent of the order of the survivors."""
    groups = len(index)
    flat = np.bincount((index + torch.arange(groups)[:, None] * m).flatten().numpy(), minlength=groups * m)
    return flat.reshape(groups, m).astype(float)


def drawn(scheme, weights, n, repeats=20_000, seed=0):
    w = torch.tensor(weights, dtype=torch.float64).expand(repeats, -1)
    return offspring(resampling.get(scheme)(w, n, keys(repeats, seed)), w.shape[1])


@pytest.mark.parametrize("n", [1, 3, 6, 10, 17])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_scheme_is_unbiased_whether_more_or_fewer_survive(name, scheme, n):
    w, repeats = np.array(WEIGHTS[name]), 20_000
    counts = drawn(scheme, WEIGHTS[name], n, repeats)
    assert (counts.sum(1) == n).all()
    sd = np.sqrt(n * w * (1 - w) / repeats)  # multinomial: no scheme's offspring has a larger variance
    assert (np.abs(counts.mean(0) - n * w) <= Z_LIMIT * sd + 1e-12).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_with_different_weights_are_each_unbiased_in_one_call(scheme):
    w = torch.tensor([WEIGHTS["asymmetric"], [0.2, 0.0, 0.0, 0.1, 0.1, 0.6], [1 / 6] * 6], dtype=torch.float64)
    repeats, n = 15_000, 7
    counts = offspring(resampling.get(scheme)(w.repeat(repeats, 1), n, keys(3 * repeats, 1)), 6).reshape(repeats, 3, 6)
    w = w.numpy()
    sd = np.sqrt(n * w * (1 - w) / repeats)  # as above
    assert (np.abs(counts.mean(0) - n * w) <= Z_LIMIT * sd + 1e-12).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_group_has_the_same_survivors_alone_and_among_others(scheme):
    w = torch.rand(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = w / w.sum(-1, keepdim=True)
    every = resampling.get(scheme)(w, 11, keys(5))
    for g in range(5):
        assert torch.equal(resampling.get(scheme)(w[g : g + 1], 11, keys(5)[g : g + 1]), every[g : g + 1])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_different_keys_choose_differently(scheme):
    assert len(np.unique(drawn(scheme, WEIGHTS["asymmetric"], 7, 200), axis=0)) > 2


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("n", [3, 10, 17])
def test_offspring_is_rounded_down_or_up_where_the_scheme_says_so(name, n):
    exact = n * np.array(WEIGHTS[name])
    low, high = np.floor(exact + 1e-9), np.ceil(exact - 1e-9)
    for scheme in ROUNDING:
        counts = drawn(scheme, WEIGHTS[name], n, 3000)
        assert ((counts == low) | (counts == high)).all()
        assert (counts.max(0) == high).all() or exact[counts.max(0) < high].max() % 1 < 0.01  # both do happen
    assert (drawn("residual", WEIGHTS[name], n, 3000) >= low).all()
    stratified = drawn("stratified", WEIGHTS[name], n, 3000)
    assert (np.abs(stratified - exact) < 2).all()  # one draw in each stratum that the weight covers or touches


@pytest.mark.parametrize("scheme", ["multinomial", "residual", "stratified"])
def test_schemes_without_that_promise_do_leave_floor_and_ceiling(scheme):
    weights, n = [0.25, 0.15, 0.35, 0.25], 6
    exact = n * np.array(weights)
    counts = drawn(scheme, weights, n, 3000)
    assert ((counts < np.floor(exact)) | (counts > np.ceil(exact))).any()


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("name", ["asymmetric", "heaviest first", "one heavy", "zeros at both ends"])
def test_variance_of_offspring_is_what_the_scheme_promises(name, n):
    w, repeats = np.array(WEIGHTS[name]), 20_000
    exact, multinomial = n * w % 1, n * w * (1 - w)
    fourth = (
        multinomial + 3 * multinomial**2
    )  # E(c - E c)^4 <= this for a binomial, so it bounds the error of a variance
    error = Z_LIMIT * np.sqrt(fourth / repeats) + 1e-12
    left = n - np.floor(n * w).sum()  # the rest of the residual scheme: `left` independent draws
    p = exact / left
    known = {
        "multinomial": multinomial,
        "residual": left * p * (1 - p),
        "systematic": exact * (1 - exact),  # of a floor or ceiling with this mean
        "ssp": exact * (1 - exact),
    }
    for scheme in SCHEMES:
        variance = drawn(scheme, WEIGHTS[name], n, repeats, seed=2).var(0)
        assert (variance <= multinomial + error).all()  # Douc, Cappe and Moulines (2005)
        if scheme in known:
            assert (np.abs(variance - known[scheme]) <= error).all()


def test_pairs_of_offspring_vary_together_as_the_scheme_says():
    weights, n, repeats = [0.05, 0.4, 0.06, 0.3, 0.14, 0.05], 5, 40_000
    w = np.array(weights)
    error = Z_LIMIT * math.sqrt(3 * n**2 / 16 / repeats)  # E(xy)^2 <= 3 (n/4)^2 by Cauchy-Schwarz and as above
    off = ~np.eye(6, dtype=bool)
    multinomial = np.cov(drawn("multinomial", weights, n, repeats), rowvar=False)
    assert np.abs(multinomial - n * (np.diag(w) - np.outer(w, w)))[off].max() < error
    ssp = np.cov(drawn("ssp", weights, n, repeats), rowvar=False)
    assert ssp[off].max() < error  # negatively associated: Gerber, Chopin and Whiteley (2019)
    systematic = np.cov(drawn("systematic", weights, n, repeats), rowvar=False)
    edges = np.concatenate([[0], np.cumsum(weights)])  # all draws share u: enumerate it
    u = (np.arange(n)[:, None] + (np.arange(20_000) + 0.5) / 20_000) / n
    grid = np.stack([((u >= a) & (u < b)).sum(0) for a, b in pairwise(edges)])
    assert np.abs(systematic - np.cov(grid)).max() < error
    assert systematic[off].max() > error  # and some pairs rise together there, so the assertion on ssp has content


@pytest.mark.parametrize("scheme", ["stratified", "systematic"])
def test_survivor_i_lies_in_the_i_th_stratum_of_the_cumulative_weights(scheme):
    w = np.array(WEIGHTS["asymmetric"])
    n, edges = 9, np.concatenate([[0], np.cumsum(w)])
    index = resampling.get(scheme)(torch.tensor(w).expand(5000, -1), n, keys(5000)).numpy()
    for i in range(n):  # place j can be met only if [edges_j, edges_j+1) meets [i/n, (i+1)/n)
        reachable = {j for j in range(6) if edges[j] < (i + 1) / n and edges[j + 1] > i / n and w[j] > 0}
        assert set(index[:, i].tolist()) == reachable


@pytest.mark.parametrize("m", [1, 2, 3, 7, 10, 49, 64, 1000])
@pytest.mark.parametrize("scheme", ["stratified", "systematic", "residual", "ssp"])
def test_equal_weights_leave_everybody_in_place(scheme, m):
    w = torch.full((50, m), 1 / m, dtype=torch.float64)
    assert torch.equal(resampling.get(scheme)(w, m, keys(50)), torch.arange(m).expand(50, m))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_group_without_any_weight_does_not_disturb_the_others(scheme):
    good = torch.tensor(WEIGHTS["asymmetric"], dtype=torch.float64)
    for dead in (torch.full_like(good, torch.nan), torch.zeros_like(good)):
        index = resampling.get(scheme)(torch.stack([good, dead, good.flip(0)]), 8, keys(3))
        assert index.shape == (3, 8)
        assert ((index >= 0) & (index < 6)).all()
        alone = resampling.get(scheme)(torch.stack([good, good.flip(0)]), 8, keys(3)[[0, 2]])
        assert torch.equal(index[[0, 2]], alone)


def test_resamplers_are_known_by_name_and_anything_callable_is_one():
    assert set(resampling.RESAMPLERS) == set(SCHEMES)
    assert resampling.get(resampling.ssp) is resampling.ssp
    with pytest.raises(ValueError, match=r"resampler='lottery': there is multinomial.*or a function"):
        resampling.get("lottery")


@st.composite
def problems(draw):
    """Weights of very different sizes, zeros among them; how many survive; a seed."""
    size = st.one_of(st.just(-math.inf), st.floats(-40, 3), st.floats(-1, 0))
    log_w = draw(st.lists(size, min_size=1, max_size=13).filter(lambda v: max(v) > -math.inf))
    return torch.tensor([log_w], dtype=torch.float64).softmax(-1), draw(st.integers(1, 30)), draw(st.integers(0, 2**40))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(problem=problems())
def test_whatever_the_weights_n_survive_in_order_and_none_of_weight_zero(scheme, problem):
    w, n, seed = problem
    index = resampling.get(scheme)(w, n, keys(1, seed))
    assert index.shape == (1, n)
    assert (index.diff(dim=-1) >= 0).all()  # so that copies lie side by side
    counts, w = offspring(index, w.shape[1])[0], w[0].numpy()
    assert (counts[w == 0] == 0).all()
    if scheme in (*ROUNDING, "residual"):
        assert (counts >= np.floor(n * w - 1e-8)).all()  # N W is known to 1e-15; the code forgives 1e-9
    if scheme in ROUNDING:
        assert (counts <= np.ceil(n * w + 1e-8)).all()

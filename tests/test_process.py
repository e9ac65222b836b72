"""Laws of the processes' kernels, each against enumeration or brute-force Bayes in numpy, and of whole token chains.

Matrices here have the state before in their row and the state after in their column.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

import guidekit as gk
from guidekit import random
from guidekit.process import Categorical, Gaussian, Masked, Normal, Uniform
from guidekit.solvers import DDPM, DPMpp, Euler, Heun, Move
from guidekit.solvers.schedules import EDM, Cosine, Flow

V = 3
MASK = V
P = np.array([0.6, 0.3, 0.1])
DOWN = [(1.0, 0.4), (0.8, 0.7), (0.5, 0.1), (0.9, 0.0), (1.0, 0.0)]
UP = [(0.2, 0.7), (0.0, 0.5), (0.4, 1.0), (0.0, 1.0)]
PROCESSES = {"masked": Masked(V), "uniform": Uniform(V)}
both = pytest.mark.parametrize("noising", PROCESSES)


def keys(n, seed=0):
    return random.fold(random.key(seed), torch.arange(n))


def forward(noising, s, t):
    """q(x_t | x_s) as a matrix, s <= t."""
    kept = (1 - t) / (1 - s)
    if noising == "uniform":
        return kept * np.eye(V) + (1 - kept) / V
    q = np.zeros((V + 1, V + 1))
    q[range(V), range(V)], q[:V, MASK], q[MASK, MASK] = kept, 1 - kept, 1
    return q


def bayes(noising, p, t, s):
    """q(x_s | x_t) when x_0 ~ p, by summing over x_0 what Bayes' rule gives for each pair; NaN where x_t cannot be."""
    from_data, onward = forward(noising, 0, s)[:V], forward(noising, s, t)
    joint = np.einsum("w,ws,st->ts", p, from_data, onward)
    with np.errstate(invalid="ignore"):
        return joint / joint.sum(1, keepdims=True)


def posterior_marginal(noising, p, t):
    """p(x_0 | x_t) for each x_t; as p itself where x_t cannot be."""
    joint = (p[:, None] * forward(noising, 0, t)[:V]).T
    with np.errstate(invalid="ignore"):
        rows = joint / joint.sum(1, keepdims=True)
    return np.where(np.isnan(rows), p, rows)


def normal(mean, std):
    """The kernel N(mean, std^2)."""
    return Normal(mean, (), Move(0.5, 0.4, 1.0, (), std))


def noise(noising, n, length, seed=0):
    process = PROCESSES[noising]
    return process.noise(keys(n, seed), process.noise_shape((length,)), torch.float32)


def kernel(noising, x, marginals, t, s):
    """The library's kernel at states x (rows, L) with predictions `marginals` (rows, L, V), as probabilities."""
    log_p = torch.tensor(np.log(np.maximum(marginals, 1e-300)))
    return PROCESSES[noising].kernel(torch.as_tensor(x), (log_p,), Move(t, s))


def one_position(noising, p_given_x, t, s):
    """Probabilities of the library's kernel of a single position, one row for each state."""
    states = len(p_given_x)
    q = kernel(noising, np.arange(states)[:, None], p_given_x[:, None], t, s)
    return q.log_probs[:, 0].exp().numpy()


# Gaussian --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [0.3, 2.5])
def test_log_prob_of_a_normal_kernel_is_scipys_summed_over_elements(std, dtype):
    rng = np.random.default_rng(0)
    mean, x = (torch.tensor(rng.normal(size=(5, 3, 2)), dtype=dtype) for _ in range(2))
    found = normal(mean, std).log_prob(x)
    expected = stats.norm.logpdf(x.double().numpy(), mean.double().numpy(), std).sum((1, 2))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5 if dtype == torch.float32 else 1e-12)


def test_log_prob_in_many_dimensions_does_not_lose_the_differences_between_rows():
    z = random.normal(keys(4), (3, 256, 256))
    found = normal(torch.zeros_like(z), 0.5).log_prob(0.5 * z)
    expected = stats.norm.logpdf(z.double().numpy()).sum((1, 2, 3)) - z[0].numel() * math.log(0.5)
    assert (found - torch.tensor(expected)).abs().max() < 1e-2  # of 7e4: float32 sums would be off by more


@pytest.mark.parametrize("std", [0.3, 2.5])
def test_draws_of_a_normal_kernel_have_its_law(std):
    mean = torch.full((40_000, 1), -1.5)
    x = normal(mean, std).push(random.normal(keys(40_000), (1,)))
    assert stats.kstest(x[:, 0].double().numpy(), stats.norm(-1.5, std).cdf).statistic * 200 < 1.95  # P = 1e-3


def test_a_point_mass_moves_to_its_mean_and_has_no_log_probability():
    mean = torch.arange(6.0).view(2, 3)
    q = normal(mean, 0.0)
    assert not q.random
    assert normal(mean, 1e-9).random
    assert torch.equal(q.push(None), mean)
    with pytest.raises(ValueError, match="deterministic move has no log-probability; take a stochastic solver"):
        q.log_prob(mean)


def test_the_gaussian_kernel_combines_state_and_predictions_newest_first_and_changes_none_of_them():
    rng = np.random.default_rng(0)
    x, d0, d1 = (torch.tensor(rng.normal(size=(4, 2))) for _ in range(3))
    copies = [v.clone() for v in (x, d0, d1)]
    q = Gaussian(Cosine()).kernel(x, (d0, d1), Move(0.5, 0.4, 0.7, (1.3, -0.4), 0.2))
    mean = 0.7 * x.numpy() + 1.3 * d0.numpy() - 0.4 * d1.numpy()
    np.testing.assert_allclose(q.mean, mean, rtol=1e-12)
    z = rng.normal(size=(4, 2))
    moved = q.push(torch.tensor(z))
    np.testing.assert_allclose(moved, mean + 0.2 * z, rtol=1e-12)
    np.testing.assert_allclose(q.log_prob(moved), stats.norm.logpdf(z).sum(1) - 2 * math.log(0.2), rtol=1e-12)
    still = Gaussian(Cosine()).kernel(x, (d0, d1), Move(0.5, 0.4, 0.7, (1.3, -0.4), 0.0))
    np.testing.assert_allclose(still.push(None), mean, rtol=1e-12)
    assert all(torch.equal(v, c) for v, c in zip((x, d0, d1), copies, strict=True))


@pytest.mark.parametrize(("schedule", "sigma"), [(Cosine(), 1.0), (Flow(), 1.0), (EDM(), 80.0), (EDM(0.1, 5.0), 5.0)])
def test_a_run_starts_from_noise_of_the_size_sigma_at_its_first_time(schedule, sigma):
    process, n = Gaussian(schedule), 40_000
    x = process.prior(process.noise(keys(n), (1,), torch.float64), 1.0)[:, 0].numpy()
    assert stats.kstest(x, stats.norm(0, sigma).cdf).statistic * 200 < 1.95  # P = 1e-3
    assert process.moves(4, None) == DDPM().moves(schedule, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert Gaussian(schedule, t_max=0.8).moves(4, None)[0].t == 0.8


def test_the_clean_estimate_is_the_mean_of_a_gaussian_and_the_mode_of_a_token():
    d = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Gaussian(Cosine()).clean(d, torch.zeros(3, 2)), d)
    log_p = torch.tensor([[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]]).log()
    x = torch.tensor([[MASK, 2, MASK]])
    assert Masked(V).clean(log_p, x).tolist() == [[1, 2, 2]]  # a token that is not masked is clean already
    assert Uniform(V).clean(log_p, torch.tensor([[0, 2, 1]])).tolist() == [[1, 0, 2]]


# one move of a token ---------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("t", "s"), DOWN)
@pytest.mark.parametrize("p", [P, np.array([0.0, 0.25, 0.75])], ids=["asymmetric", "with a zero"])
def test_a_move_down_is_bayes_rule_summed_over_the_clean_token(noising, t, s, p):
    found = one_position(noising, posterior_marginal(noising, p, t), t, s)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    expected = bayes(noising, p, t, s)
    possible = ~np.isnan(expected).any(1)
    assert possible.sum() >= (1 if noising == "masked" else V)
    np.testing.assert_allclose(found[possible], expected[possible], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("t", "s"), DOWN)
def test_the_uniform_kernel_averages_the_posterior_over_any_prediction(t, s):
    prediction = np.array([[0.2, 0.7, 0.1], [0.9, 0.05, 0.05], [0.3, 0.3, 0.4]])  # of no law: a network's
    found = one_position("uniform", prediction, t, s)
    to_s, onward, to_t = forward("uniform", 0, s), forward("uniform", s, t), forward("uniform", 0, t)
    for x_t, x_s in itertools.product(range(V), repeat=2):
        given = [onward[x_s, x_t] * to_s[w, x_s] / to_t[w, x_t] for w in range(V)]  # q(x_s | x_t, x_0 = w)
        assert found[x_t, x_s] == pytest.approx(prediction[x_t] @ given, rel=1e-10, abs=1e-14)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize(("t", "s"), DOWN)
def test_the_masked_kernel_of_two_positions_is_the_product_written_by_hand(t, s):
    rng = np.random.default_rng(2)
    states = np.array(list(itertools.product(range(V + 1), repeat=2)))
    p = softmax(rng.normal(size=(16, 2, V)), -1)
    u = s / t

    def by_hand(i, position, before, after):
        if before != MASK:
            return float(after == before)
        return u if after == MASK else (1 - u) * p[i, position, after]

    for after in states:
        found = kernel("masked", states, p, t, s).log_prob(torch.tensor(after).expand(16, 2)).exp()
        expected = [math.prod(by_hand(i, j, before[j], after[j]) for j in range(2)) for i, before in enumerate(states)]
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)


@both
@pytest.mark.parametrize(("s", "t"), UP)
def test_a_move_up_is_the_forward_kernel_whatever_the_prediction_says(noising, s, t):
    expected = forward(noising, s, t)
    for p in (P, P[::-1]):
        found = one_position(noising, np.tile(p, (len(expected), 1)), s, t)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@both
def test_moves_down_compose_to_one_move_and_a_move_down_and_up_again_restores_the_law(noising):
    def down(t, s):
        return one_position(noising, posterior_marginal(noising, P, t), t, s)

    def up(s, t):
        return one_position(noising, posterior_marginal(noising, P, s), s, t)

    def law(t):
        return P @ forward(noising, 0, t)[:V]

    np.testing.assert_allclose(law(0.8) @ down(0.8, 0.5) @ down(0.5, 0.2), law(0.2), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(down(0.8, 0.5) @ down(0.5, 0.2), down(0.8, 0.2), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(up(0.1, 0.4) @ up(0.4, 0.9), up(0.1, 0.9), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(law(0.7) @ down(0.7, 0.3) @ up(0.3, 0.7), law(0.7), rtol=1e-10, atol=1e-14)


@both
@pytest.mark.parametrize(("t", "s"), [(0.8, 0.5), (1.0, 0.0), (0.3, 0.6)])
def test_draws_have_the_frequencies_that_log_prob_says(noising, t, s):
    n = 60_000
    x = torch.tensor([[0, 1, 2]]) if noising == "uniform" else torch.tensor([[MASK, 1, MASK]])
    p = np.array([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.05, 0.9, 0.05]]])
    q = kernel(noising, x.expand(n, -1), np.repeat(p, n, 0), t, s)
    drawn = q.push(noise(noising, n, 3, seed=3)).numpy()
    states = V + (noising == "masked")
    cells = np.array(list(itertools.product(range(states), repeat=3)))
    whole = kernel(noising, x.expand(len(cells), -1), np.repeat(p, len(cells), 0), t, s)
    expected = n * whole.log_prob(torch.tensor(cells)).exp().numpy()
    counts = np.bincount(drawn @ [states**2, states, 1], minlength=states**3)
    assert expected.sum() == pytest.approx(n, rel=1e-9)
    assert counts[expected == 0].sum() == 0
    common = expected > 5  # chi-square needs counts; the rare cells are taken together
    f, e = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    assert stats.chisquare(f[e > 0], e[e > 0]).pvalue > 1e-3


def test_log_prob_of_a_categorical_adds_its_positions_and_is_minus_infinity_where_it_cannot_go():
    log_p = torch.tensor([[[0.2, 0.8], [1.0, 0.0]], [[0.5, 0.5], [0.1, 0.9]]], dtype=torch.float64).log()
    found = Categorical(log_p).log_prob(torch.tensor([[1, 0], [0, 1]])).exp()
    np.testing.assert_allclose(found, [0.8, 0.45])
    assert Categorical(log_p).log_prob(torch.tensor([[1, 1], [0, 1]]))[0] == -math.inf


@both
def test_a_run_starts_from_masks_or_from_uniform_tokens(noising):
    n = 30_000
    x = PROCESSES[noising].prior(noise(noising, n, 2), 1.0)
    if noising == "masked":
        assert (x == MASK).all()
    else:
        cells = np.bincount((x[:, 0] * V + x[:, 1]).numpy(), minlength=V * V)
        assert stats.chisquare(cells).pvalue > 1e-3


@both
@pytest.mark.parametrize("solver", [Heun(), Euler(), DPMpp()])
def test_token_processes_refuse_solvers_of_gaussian_ones(noising, solver):
    with pytest.raises(ValueError, match="is for Gaussian processes; token processes move by their own"):
        PROCESSES[noising].moves(10, solver)
    assert [m.t for m in PROCESSES[noising].moves(2, DDPM(times="cosine"))] == [1.0, pytest.approx(math.sqrt(0.5))]


# whole chains ----------------------------------------------------------------------------------------------------


class Chain:
    """A law over V^L, and the transition matrices of its denoised chain, built by enumeration."""

    def __init__(self, noising, length, seed=0):
        rng = np.random.default_rng(seed)
        self.noising, self.length = noising, length
        self.log_law = rng.normal(size=(V,) * length) * 1.5
        self.law = softmax(self.log_law.ravel())
        self.data = np.array(list(itertools.product(range(V), repeat=length)))
        self.count = V + (noising == "masked")
        self.states = np.array(list(itertools.product(range(self.count), repeat=length)))

    def marginals(self, t):
        """p(x_0^i = v | x_t) for every state, (states, L, V)."""
        q = forward(self.noising, 0, t)[:V]
        likelihood = np.ones((len(self.states), len(self.data)))
        for i in range(self.length):
            likelihood *= q[self.data[:, i]][:, self.states[:, i]].T
        post = likelihood * self.law
        post = post / np.maximum(post.sum(1, keepdims=True), 1e-300)
        return np.stack([post @ np.eye(V)[self.data[:, i]] for i in range(self.length)], 1)

    def matrix(self, t, s):
        """The transition from t to s: the product over positions of the posterior averaged over x_0^i."""
        if s > t:
            single = np.tile(forward(self.noising, t, s), (self.length, len(self.states), 1, 1))
        else:
            to_s, onward, to_t = (forward(self.noising, *v) for v in ((0, s), (s, t), (0, t)))
            with np.errstate(divide="ignore", invalid="ignore"):  # q(x_s | x_t, x_0), (x_0, x_t, x_s)
                given = np.nan_to_num(to_s[:V, None, :] * onward.T[None] / to_t[:V, :, None])
            m = self.marginals(t)
            single = np.einsum("niw,wts->ints", m, given)
        k = np.ones((len(self.states), 1))
        for i in range(self.length):
            row = single[i, range(len(self.states)), self.states[:, i]]  # (states, count)
            k = (k[:, :, None] * row[:, None, :]).reshape(len(self.states), -1)
        return k

    def final(self, grid):
        """The law of x_0 from the chain over a grid of times, on the data states."""
        if self.noising == "masked":
            law = (self.states == MASK).all(1).astype(float)
        else:
            law = np.full(len(self.states), 1 / len(self.states))
        for t, s in itertools.pairwise(grid):
            law = law @ self.matrix(t, s)
        assert law.sum() == pytest.approx(1, rel=1e-9)
        return law[(self.states < V).all(1)]

    def table(self):
        return gk.analytic.TokenTable(torch.tensor(self.log_law), noising=self.noising)

    def frequencies(self, x):
        return np.bincount(x.numpy() @ V ** np.arange(self.length - 1, -1, -1), minlength=V**self.length) / len(x)


def variation(p, q):
    return np.abs(p - q).sum() / 2


def monte_carlo(law, n):
    """What the total variation of n exact samples exceeds with probability below 1e-4: its mean is at most half the
    sum of the standard deviations, and one sample changes it by at most 1/n (McDiarmid)."""
    return np.sqrt(law * (1 - law) / n).sum() / 2 + math.sqrt(math.log(1e4) / (2 * n))


GRIDS = {
    "1": [1.0, 0.0],
    "3": [1.0, 2 / 3, 1 / 3, 0.0],
    "8": np.linspace(1, 0, 9).tolist(),
    "up": [1.0, 0.5, 0.8, 0.3, 0.6, 0.0],
}


@both
@pytest.mark.parametrize("length", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_law_of_a_chain_is_its_transition_matrices_applied_to_the_start(noising, length, grid):
    n, chain, steps = 40_000, Chain(noising, length), GRIDS[grid]
    x = gk.sample(chain.table(), n, steps=len(steps) - 1 if grid in "138" else steps, seed=4).x
    assert ((x >= 0) & (x < V)).all()
    law = chain.final(steps)
    bound = monte_carlo(law, n)
    assert variation(chain.frequencies(x), law) < bound
    if length == 1:  # nothing to factorise
        assert variation(law, chain.law) < 1e-9
    elif grid == "1":
        assert variation(law, chain.law) > 2 * bound  # one step is not the data's law, and the test can tell


@both
def test_the_law_of_a_chain_approaches_the_data_as_steps_grow_and_each_token_moves_alone(noising):
    chain = Chain(noising, 3)
    gaps = [variation(chain.final(np.linspace(1, 0, steps + 1)), chain.law) for steps in (1, 4, 16, 64)]
    assert all(fine < coarse / 2 for coarse, fine in itertools.pairwise(gaps))
    assert gaps[0] > 0.1
    n = 40_000
    x = gk.sample(chain.table(), n, steps=64, seed=1).x
    assert variation(chain.frequencies(x), chain.law) < monte_carlo(chain.law, n) + gaps[-1]


@pytest.mark.parametrize("steps", [4, 12])
def test_where_one_token_is_unmasked_at_a_time_the_law_is_exact_at_any_number_of_steps(steps):
    n, chain, masks = 80_000, Chain("masked", 3), []
    result = gk.sample(
        chain.table(), n, steps=steps, seed=2, callbacks=[lambda pop, step: masks.append((pop.x == MASK).sum(1))]
    )
    unmasked = -torch.stack([torch.full((n,), 3), *masks]).diff(dim=0)
    alone = (unmasked <= 1).all(0)  # depends on the masks alone, so it selects no values
    assert alone.double().mean().item() == pytest.approx((1 - 1 / steps) * (1 - 2 / steps), abs=4.5 * 0.5 / n**0.5)
    bound = monte_carlo(chain.law, int(alone.sum()))
    assert variation(chain.frequencies(result.x[alone]), chain.law) < bound
    assert variation(chain.frequencies(result.x[~alone]), chain.law) > bound  # those unmasked together are not


@pytest.mark.parametrize("model", [gk.MaskedModel, gk.UniformModel])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_run_ends_by_sampling_and_not_by_the_most_likely_token(model, steps):
    n, logits = 30_000, torch.tensor([[0.4, 0.35, 0.25], [0.1, 0.1, 0.8]], dtype=torch.float64).log()

    def net(x, t, cond):  # knows the two independent marginals, and Bayes' rule where tokens are visible
        if model is gk.MaskedModel:
            return logits.expand(len(x), 2, V)
        kept = (1 - t[:, None, None].double()) * torch.nn.functional.one_hot(x, V)
        return logits + (kept + t[:, None, None].double() / V).log()

    x = gk.sample(model(net, V, 2), n, steps=steps, seed=3).x
    p = (logits[0].exp()[:, None] * logits[1].exp()).flatten().numpy()
    counts = np.bincount((x[:, 0] * V + x[:, 1]).numpy(), minlength=V * V)
    assert stats.chisquare(counts, n * p).pvalue > 1e-3

"""Best-of-N has the law N p F(r)^(N-1), and its rows are those of a plain run of N n rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import kstest

import guidekit as gk

from .problems import PROBLEMS, STEPS, chain_of_tokens

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def normal(steps: int = 2, **options) -> dict:
    """N(0, 1) by its true kernels, without an error of discretisation."""
    model = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [0.0], [1.0])))
    return {"model": model.exact(), "steps": steps} | options


def mixture() -> gk.analytic.GaussianMixture:
    values = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in values)).exact()


def near(x: torch.Tensor) -> torch.Tensor:
    """A reward that is not monotone in x."""
    return -(x[:, 0] - 0.8).square()


# E of the largest of N standard normal numbers, and a level of p at which one true test in 1000 fails
LARGEST = {2: 0.5642, 4: 1.0294, 8: 1.4236, 16: 1.7660}
LEVEL = 1e-3


@pytest.mark.parametrize("n", LARGEST)
def test_the_largest_of_n_normal_numbers(n: int):
    result = gk.sample(n=20_000, guides=[gk.BestOfN(lambda x: x[:, 0], n)], seed=n, **normal())
    x = result.x[:, 0].numpy()
    # the largest has a variance below .69; 4.5 standard errors of the mean of 20,000
    assert abs(x.mean() - LARGEST[n]) < 4.5 * math.sqrt(0.69 / 20_000)
    assert kstest(x, lambda v: ndtr(v) ** n).pvalue > LEVEL
    assert kstest(x, lambda v: ndtr(v) ** (n - 1)).pvalue < 1e-9  # which one chain less would pass
    assert torch.equal(result.log_weights, torch.zeros(20_000, dtype=torch.float64))


@pytest.mark.parametrize("n", [2, 5])
def test_the_law_is_n_p_f_to_the_n_minus_1_for_a_reward_that_is_not_monotone(n: int):
    result = gk.sample(mixture(), 20_000, steps=2, guides=[gk.BestOfN(near, n)], seed=n)
    grid = np.linspace(-6, 7, 20_001)
    p = sum(
        w * np.exp(-0.5 * ((grid - m) / s) ** 2) / s
        for w, m, s in zip([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6], strict=True)
    )
    p /= p.sum()
    r = -((grid - 0.8) ** 2)
    order = r.argsort()
    f = np.empty_like(p)  # the distribution function of the reward, at the middle of each cell
    f[order] = p[order].cumsum() - p[order] / 2
    law = n * p * f ** (n - 1)
    assert abs(law.sum() - 1) < 1e-4
    x = result.x[:, 0].numpy()
    assert kstest(x, lambda v: np.interp(v, grid, law.cumsum())).pvalue > LEVEL
    assert kstest(x, lambda v: np.interp(v, grid, p.cumsum())).pvalue < 1e-9
    # 4.5 standard errors of the mean of 20,000
    assert abs(x.mean() - law @ grid) < 4.5 * x.std() / math.sqrt(20_000)
    # E log(law/p) = log N - (N - 1)/N for every reward without ties
    ratio = np.log(n * np.interp(x, grid, f) ** (n - 1))
    assert abs(ratio.mean() - (math.log(n) - (n - 1) / n)) < 4.5 * ratio.std() / math.sqrt(20_000)


def test_the_law_of_tokens_with_ties_by_enumeration():
    """P(best reward <= r) = F(r)^N; among states of equal reward the chain's own shares are kept."""
    problem, n, count = PROBLEMS["masked"], 3, 30_000

    def reward(x):
        return 1.0 * (x[:, 0] == 2) + 0.5 * (x[:, 1] == x[:, 2])

    p = chain_of_tokens(problem.model.table[1].exp().numpy(), False, STEPS)
    r = reward(problem.model.states).numpy()
    law = np.zeros_like(p)
    for level in np.unique(r):
        here = r == level
        law[here] = p[here] / p[here].sum() * (p[r <= level].sum() ** n - p[r < level].sum() ** n)
    result = gk.sample(problem.model, count, steps=STEPS, cond=0, guides=[gk.BestOfN(reward, n)])
    seen = np.bincount((result.x @ torch.tensor([9, 3, 1])).numpy(), minlength=27)
    # chi-squared of 27 states (26 degrees of freedom, variance 52): 26 + 4.5 sqrt(52) = 58
    assert ((seen - count * law) ** 2 / (count * law)).sum() < 58
    assert ((seen - count * p) ** 2 / (count * p)).sum() > 1000


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.usefixtures("every_row")
def test_rows_are_those_of_a_plain_run_bit_for_bit(name: str, n: int):
    """Chain c of sample i is row c n + i of each group."""
    problem, size = PROBLEMS[name], 20
    options = {"steps": STEPS, "cond": [problem.cond, None, problem.cond], "seed": [3, 4, 5]}
    best = gk.sample(problem.model, size, guides=[gk.BestOfN(problem.reward, n)], **options)
    plain = gk.sample(problem.model, n * size, reward=problem.reward, **options)
    rewards = plain.rewards.view(3, n, size)
    chosen = rewards.argmax(1)
    rows = torch.arange(3)[:, None] * n * size + chosen * size + torch.arange(size)
    assert torch.equal(best.rewards, rewards.amax(1).flatten())
    assert torch.equal(best.x, plain.x[rows.flatten()])
    assert torch.equal(best.lineage()[0], rows.flatten())
    assert torch.equal(best.noise, plain.noise[rows.flatten()])
    assert best.cost.network_rows == plain.cost.network_rows == 3 * n * size * STEPS
    assert best.cost.network_calls == STEPS
    if best.x.is_floating_point():  # of tokens, equal ones are scored once
        assert best.cost.reward_calls == 3 * n * size


def test_noise_that_the_user_gives_has_a_row_for_every_chain():
    problem = PROBLEMS["flow-2d"]
    noise = torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guides = [gk.BestOfN(problem.reward, 3)]
    best = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=guides, noise=noise)
    assert torch.isin(best.noise[:, 0], noise[:, 0]).all()
    plain = gk.sample(problem.model, 12, steps=STEPS, cond=1, noise=noise, reward=problem.reward)
    assert torch.equal(best.rewards, plain.rewards.view(3, 4).amax(0))
    with pytest.raises(ValueError, match=r"needed is \(12, 2\)"):
        gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=guides, noise=noise[:4])


def test_chains_need_no_noise_on_the_way():
    """With a deterministic solver the best starting noise wins."""
    problem = PROBLEMS["vp-1d"]
    options = {"steps": STEPS, "cond": 1, "solver": gk.solvers.DDIM()}
    best = gk.sample(problem.model, 30, guides=[gk.BestOfN(problem.reward, 4)], **options)
    plain = gk.sample(problem.model, 120, reward=problem.reward, **options)
    assert torch.equal(best.rewards, plain.rewards.view(4, 30).amax(0))


def test_samples_without_a_score_are_never_chosen_and_a_row_without_any_weighs_nothing():
    def partial(x):
        return torch.where(x[:, 0] > 0.5, torch.nan, x[:, 0])

    n, count = 2, 20_000
    with pytest.warns(UserWarning, match="could not be scored; their reward is NaN"):
        result = gk.sample(n=count, guides=[gk.BestOfN(partial, n)], **normal())
    lost = result.log_weights == -torch.inf
    assert torch.equal(lost, result.x[:, 0] > 0.5)
    assert torch.equal(lost, result.rewards.isnan())
    q = 1 - ndtr(0.5)
    # both chains fail with probability q^2; 4.5 standard errors
    assert abs(lost.double().mean() - q**2) < 4.5 * math.sqrt(q**2 / count)
    # of the others the largest that was scored: P(x <= v) = ((F(v) + q)^2 - q^2)/(1 - q^2)
    x = result.x[~lost, 0].numpy()
    assert kstest(x, lambda v: ((np.minimum(ndtr(v), 1 - q) + q) ** n - q**n) / (1 - q**n)).pvalue > LEVEL


def test_where_nothing_can_be_scored_the_reward_is_named():
    def broken(x):
        return torch.full((len(x),), torch.nan)

    with pytest.raises(gk.RewardError, match="'broken' scored none of the 3 samples"):
        gk.sample(n=3, guides=[gk.BestOfN(broken, 2)], **normal())


def test_the_winner_keeps_the_weight_that_other_guides_gave_it():
    problem = PROBLEMS["flow-2d"]
    weigh = gk.FKSteering(lambda x: x[:, 1], 1.0, ess=0.0)
    best = gk.sample(problem.model, 20, steps=STEPS, cond=1, guides=[gk.BestOfN(problem.reward, 3), weigh])
    plain = gk.sample(problem.model, 60, steps=STEPS, cond=1, guides=[weigh])
    rows = best.lineage()[0]
    assert torch.equal(rows, torch.arange(20) + 20 * problem.reward(plain.x).view(3, 20).argmax(0))
    assert torch.equal(best.log_weights, plain.log_weights[rows])
    assert best.log_weights.std() > 0.1


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_count_of_chains_is_needed(n):
    with pytest.raises(ValueError, match="at least one chain is needed"):
        gk.BestOfN(near, n)


def test_it_has_no_tilt_to_correct():
    with pytest.raises(ValueError, match="no tilt that the weights could correct for"):
        gk.Run(mixture(), 4, guides=[gk.BestOfN(near, 2, steer=True)])

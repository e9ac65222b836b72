"""Feynman-Kac steering reaches p exp(r/alpha)/Z: of its own chain, and of the data where the chain has no error."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

import guidekit as gk

from . import problems
from .problems import Problem, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
SCHEDULES = {"vp": gk.schedules.Cosine(), "flow": gk.schedules.Flow()}


@lru_cache(maxsize=8)
def problem(d: int, schedule: str) -> Problem:
    return problems.mixture(f"{schedule}-{d}d", d, SCHEDULES[schedule])


def asymmetric(d: int, schedule: str = "vp") -> gk.analytic.GaussianMixture:
    """pi = .5, .3, .2 along the first axis, with other means beside it."""
    means = torch.zeros(3, d, dtype=torch.float64)
    means[:, 0] = torch.tensor([-2.0, 0.5, 2.5])
    means[:, -1] += torch.tensor([0.3, -0.4, 0.1])
    weights, stds = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, 0.3, 0.2], [0.5, 0.4, 0.6]))
    return gk.analytic.GaussianMixture(weights, means, stds, SCHEDULES[schedule])


@pytest.mark.parametrize("ess", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("d", [1, 2, pytest.param(16, marks=pytest.mark.slow)])
def test_the_law_and_z_of_its_own_chain_in_any_dimension(d: int, schedule: str, ess: float):
    p = problem(d, schedule)
    result = populations(p, 500, 64, [gk.FKSteering(p.reward, p.alpha, ess=ess)])
    # 500 independent populations against 400,000 weighted samples of the same chain; 4 features, 4.5 standard errors
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5
    resampled = result.trace["resampled"].double().mean()
    assert resampled == 0 if ess == 0 else resampled > 0.1


@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_the_enumerated_law_of_four_tokens(noising: str, ess: float, monkeypatch):
    monkeypatch.setattr(problems, "L", 4)
    p = problems.tokens("four", noising)
    result = populations(p, 3000, 16, [gk.FKSteering(p.reward, p.alpha, ess=ess)])
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5
    states, law = p.law()
    w = law * np.exp(p.reward(torch.as_tensor(states)).numpy() / p.alpha)
    place = (result.x @ torch.tensor([27, 9, 3, 1])).numpy()
    weights = (result.log_weights.exp() / result.log_weights.exp().sum()).numpy()
    found = np.bincount(place, weights, minlength=81)
    # total variation of 48,000 weighted draws (at least 15,000 effective) over 81 states: .5 sqrt(81/15000) = .037
    assert 0.5 * np.abs(found - w / w.sum()).sum() < 0.037
    assert 0.5 * np.abs(law - w / w.sum()).sum() > 0.1  # which the unguided law would miss


@pytest.mark.parametrize("tilt", ["linear", "quadratic"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("d", [1, 2, 16])
def test_z_of_the_mixture_itself_with_its_exact_kernel(d: int, schedule: str, tilt: str):
    """Without an error of discretisation the target is the closed form, at twelve steps."""
    base, alpha = asymmetric(d, schedule), 0.8
    b = torch.zeros(d, dtype=torch.float64)
    b[0], b[-1] = 0.9, b[-1] - 0.4
    center = torch.linspace(0.8, -0.3, d, dtype=torch.float64)
    kappa = 1.5 if d < 16 else 0.4
    known = {"linear": b} if tilt == "linear" else {"quadratic": (center, kappa)}

    def reward(x):
        return x @ b if tilt == "linear" else -kappa / 2 * (x - center).square().sum(-1)

    groups, n = 400, 128
    result = gk.sample(
        base.exact(), n, steps=12, guides=[gk.FKSteering(reward, alpha)], cond=[None] * groups, seed=list(range(groups))
    )
    target, z = base.tilted(**known, alpha=alpha), base.log_z(**known, alpha=alpha).exp()
    mean = (target.weights @ target.means)[0]
    f = torch.stack([torch.ones_like(result.x[:, 0]), result.x[:, 0]], 1)
    found = (result.log_weights.exp()[:, None] * f).view(groups, n, 2).mean(1).numpy()
    truth = np.array([z, z * mean])
    assert np.abs(deviations(found, truth, np.zeros(2))).max() < 4.5  # 400 independent populations
    assert abs(mean - (base.weights @ base.means)[0]) > 0.15  # far enough from the base law to be told apart


@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
def test_the_published_toy_numbers(ess: float):
    """Mean 3.1755, variance .4639, log Z 4.1291; a reference code that drops weights gets 2.58."""
    base = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    result = gk.sample(base.exact(), 100_000, steps=12, guides=[gk.FKSteering(lambda x: x[:, 0], 0.5, ess=ess)])
    x, w = result.x[:, 0].double(), result.weights
    mean = (w * x).sum()
    # without resampling 4 % of the particles are effective: sd .68/sqrt(4000) = .011; 4 of them, and as much for log Z
    assert abs(mean - 3.1755) < 0.045
    assert abs((w * (x - mean) ** 2).sum() - 0.4639) < 0.06
    assert abs(result.log_z - 4.1291) < 0.06
    order = x.argsort()
    target = base.tilted(linear=1.0, alpha=0.5)
    cdf = (torch.special.ndtr((x[order, None] - target.means[:, 0]) / target.stds) * target.weights).sum(1)
    # Kolmogorov-Smirnov distance, 1.95/sqrt(4000) = .031 at the level .001
    assert (w[order].cumsum(0) - cdf).abs().max() < 0.031


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ordinary_chain_comes_to_the_mixture_as_steps_grow(schedule: str):
    base, alpha = asymmetric(1, schedule), 0.8
    exact = base.log_z(linear=0.9, alpha=alpha)

    def error(steps: int) -> float:
        guides = [gk.FKSteering(lambda x: 0.9 * x[:, 0], alpha)]
        result = gk.sample(base, 2000, steps=steps, guides=guides, cond=[None] * 20, seed=list(range(20)))
        return float(result.log_z.exp().mean().log() - exact)

    errors = [abs(error(steps)) for steps in (8, 32, 128)]
    assert errors[0] > 0.1  # eight steps are visibly wrong
    # the error of ancestral sampling falls like 1/steps; sd of log Z from 20 x 2,000 particles about .006
    assert errors[1] < 0.45 * errors[0] + 0.02
    assert errors[2] < 0.45 * errors[1] + 0.02


def test_adaptive_resampling_carries_the_weights_that_it_does_not_use():
    """With a threshold that is met in some steps only, dropping weights of the others would give the unguided law."""
    p = problem(1, "vp")
    result = populations(p, 2000, 8, [gk.FKSteering(p.reward, p.alpha, ess=0.8)], first=10_000)
    share = result.trace["resampled"].double().mean()
    assert 0.05 < share < 0.95
    truth, error = p.tilted()
    plain, _ = p.tilted(reward=False)
    found = estimates(p, result)
    assert np.abs(deviations(found, truth, error)).max() < 4.5
    assert np.abs(deviations(found / found[:, :1].mean(), plain, error))[1] > 10  # the unguided mean is far off


def test_the_last_step_is_weighted_by_the_true_reward_and_not_by_the_look_ahead():
    """A value that lies changes the variance and not the target."""
    p = problem(1, "vp")
    guide = gk.FKSteering(p.reward, p.alpha, value=lambda view: -2.0 * p.reward(view.clean).double())
    result = populations(p, 3000, 16, [guide])
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5


def test_only_due_steps_are_scored_and_the_last_always_is():
    seen = []

    def reward(x):
        seen.append(len(x))
        return x[:, 0]

    p = problem(1, "vp")
    gk.sample(p.model, 4, steps=10, guides=[gk.FKSteering(reward, 1.0, every=4)], cond=1)
    assert len(seen) == 3  # steps 4, 8 and 10
    seen.clear()
    gk.sample(p.model, 4, steps=10, guides=[gk.FKSteering(reward, 1.0, start=0.3, stop=0.6)], cond=1)
    assert len(seen) == 4  # fractions .3, .4, .5 and the end


def test_lookahead_scores_the_guided_estimate():
    """With CFG in the list the value is of the estimate that CFG has made, whatever the order of the list."""
    p = problem(1, "vp")
    seen: list[torch.Tensor] = []

    def reward(x):
        seen.append(x.clone())
        return x[:, 0]

    run = gk.Run(p.model, 4, steps=4, guides=[gk.FKSteering(reward, 1.0, ess=0.0), gk.CFG(3.0)], cond=1)
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
    cond, null = (p.model(pop.x, run.moves[1].t, c.expand(4)) for c in (torch.tensor(1), torch.tensor(-1)))
    assert torch.allclose(seen[0], null + 3.0 * (cond - null))

"""DAS: twists that are counted little by little, and still p exp(r/alpha)/Z at the end, whatever the tempering."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk

from .problems import STEPS, deviations, estimates, populations
from .test_tds import KINDS, guided, moved, off, problem, twist

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

TEMPERINGS = {
    "exponential": ({"tempering": "exponential"}, lambda f: min(1.008 ** (100 * f) - 1, 1)),
    "fast exponential": ({"tempering": "exponential", "gamma": 0.02}, lambda f: min(1.02 ** (100 * f) - 1, 1)),
    "power": ({"tempering": "power"}, lambda f: min(0.8 * f, 1)),
    "square": ({"tempering": "power", "gamma": 0.02, "power": 2.0}, lambda f: min((2 * f) ** 2, 1)),
    "function": ({"tempering": lambda f: 0.2 + 0.7 * f**2}, lambda f: 0.2 + 0.7 * f**2),
    "adaptive": ({"tempering": "adaptive"}, None),
}


def size(log_w: Tensor) -> float:
    """Effective sample size."""
    return float(1 / log_w.softmax(0).square().sum())


def follow(p, run: gk.Run, scale: float, ess: float, level, cfg: float = 1.0) -> list[float]:
    """Step a run of DAS(scale, ess) and do every step again; `level` is lambda of the fraction, or None if adaptive.

    A look bends before the selection after it weighs: an adaptive bend has the lambda of the selection before.
    Returns the lambdas in the weights after each step.
    """
    noise, net, n = run.chain_noise(), guided(p, cfg), run.n
    times, now, known, lambdas = 1 - np.arange(STEPS + 1) / STEPS, 0.0, 0.0, [0.0]
    with torch.no_grad():
        pop = run.start()
        assert torch.equal(pop.log_w, torch.zeros(n).double())  # nothing is counted at the start
        for i in range(STEPS):
            t, s, last = times[i], times[i + 1], i + 1 == STEPS
            d, v, rise = twist(p, net, pop.x, t)
            bend = scale * (known if level is None else (1.0 if last else level((i + 1) / STEPS))) * rise
            assert torch.allclose(pop.predictions[0], d, rtol=1e-9, atol=1e-9)
            assert torch.allclose(pop.proposals[0], d + bend, rtol=1e-7, atol=1e-7)
            x, ratio = moved(p, pop.x, d, d + bend, noise[i + 1], t, s)
            after = twist(p, net, x, s)[1]
            free = pop.log_w + ratio - now * v  # the weights without a twist
            before, known, pop = now, now, run.advance(pop, i)
            value, counted, levels = pop.memos[0]
            if last:
                now = 1.0
            elif level is not None:
                now = level((i + 1) / STEPS)
            else:
                now = adapted(float(levels[0]), before, free, after, ess * n)
            assert torch.allclose(levels, torch.full_like(levels, now))
            log_w = free + now * after
            assert torch.allclose(run.records[-1].log_w, log_w, rtol=1e-7, atol=1e-7)
            # all that a survivor carries is its own: x, the twist there, what is counted of it
            assert torch.allclose(pop.x, x[pop.parent], rtol=1e-9, atol=1e-9)
            fresh = twist(p, net, pop.x, s)[1]
            assert torch.allclose(value, fresh, rtol=1e-8, atol=1e-8)
            assert torch.allclose(counted, now * fresh, rtol=1e-7, atol=1e-7)
            if size(log_w) < min(1.001 * ess, 1) * n * (1 - 1e-9):
                log_w = (log_w.logsumexp(0) - np.log(n)).expand(n)
            assert torch.allclose(pop.log_w, log_w, rtol=1e-7, atol=1e-7)
            lambdas.append(now)
    return lambdas


def adapted(found: float, before: float, free: Tensor, after: Tensor, enough: float) -> float:
    """Check a lambda by the ESS that it leaves: enough, with none to spare unless it is 1, or it has stayed."""
    if size(free + after) >= enough:
        assert found == 1
    else:
        assert before <= found <= 1
        spare = size(free + found * after) - enough
        assert abs(spare) < 1e-5 or (found == before and spare < 0)
        grid = torch.linspace(before, 1, 100).double()  # and nothing larger would do
        more = grid[(grid > found + 0.001) & torch.tensor([size(free + g * after) > enough + 1e-6 for g in grid])]
        assert len(more) == 0
    return found


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("schedule, d", KINDS)
def test_every_step_is_the_one_done_by_hand(schedule: str, d: int, tempering: str):
    p = problem(schedule, d)
    options, level = TEMPERINGS[tempering]
    for scale, ess in ((0.0, 0.97), (0.7, 0.9), (1.5, 0.95)):
        guide = gk.DAS(p.reward, p.alpha, scale=scale, ess=ess, **options)
        run = gk.Run(p.model, 12, steps=STEPS, cond=1, guides=[guide], seed=d)
        lambdas = follow(p, run, scale, ess, level)
        assert lambdas[0] == 0
        assert lambdas[-1] == 1


@pytest.mark.parametrize("tempering", ["adaptive", "power"])
def test_with_cfg_in_the_list_the_twist_sees_the_guided_estimate(tempering: str):
    p = problem("flow", 2)
    options, level = TEMPERINGS[tempering]
    guides = [gk.DAS(p.reward, p.alpha, scale=0.7, ess=0.9, **options), gk.CFG(1.8)]
    follow(p, gk.Run(p.model, 12, steps=STEPS, cond=1, guides=guides), 0.7, 0.9, level, cfg=1.8)


@pytest.mark.parametrize("tempering", TEMPERINGS)
@pytest.mark.parametrize("schedule, d", KINDS)
def test_all_temperings_reach_the_same_law_and_z(schedule: str, d: int, tempering: str):
    p = problem(schedule, d)
    guide = gk.DAS(p.reward, p.alpha, scale=0.5, ess=0.9, **TEMPERINGS[tempering][0])
    # 300 independent populations of eight against samples of the same chain, Z and three features, 4.5 standard errors
    assert off(p, populations(p, 300, 8, [guide])) < 4.5


@pytest.mark.parametrize("schedule, d", [("vp", 1), ("flow", 2), ("edm", 1)])
def test_an_adaptive_lambda_leaves_z_unbiased_at_eight_particles(schedule: str, d: int):
    """Though it depends on the population: over 2,000 of them, within 4.5 standard errors of some 2 %."""
    p = problem(schedule, d)
    result = populations(p, 2000, 8, [gk.DAS(p.reward, p.alpha, ess=0.9, scale=0.5)], first=20_000)
    found, (truth, error) = estimates(p, result), p.tilted()
    assert np.abs(deviations(found, truth, error)).max() < 4.5
    assert found[:, 0].std() / 2000**0.5 < 0.02 * truth[0]
    assert result.trace["resampled"].any(0).double().mean() > 0.8  # of all populations


@pytest.mark.parametrize("tempering", ["adaptive", "exponential", "function"])
def test_the_published_toy_numbers(tempering: str):
    """Mean 3.1755, variance .4639, log Z 4.1291; with a twist that stays behind at resampling 5.6, and 24."""
    base = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6]).exact()
    guide = gk.DAS(lambda x: x[:, 0], 0.5, **TEMPERINGS[tempering][0])
    result = gk.sample(base, 20_000, steps=12, guides=[guide])
    x, w = result.x[:, 0].double(), result.weights
    mean = (w * x).sum()
    # at least 5,000 effective particles, but of common descent: sd .68/sqrt(5000) = .01, five of them; as for log Z
    assert result.ess > 5000
    assert abs(mean - 3.1755) < 0.05
    assert abs((w * (x - mean) ** 2).sum() - 0.4639) < 0.06
    assert abs(result.log_z - 4.1291) < 0.06
    assert result.trace["resampled"].any()


# adaptive lambda --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ess", [0.8, 0.95])
@pytest.mark.parametrize("schedule, d, hard", [("vp", 1, 4), ("flow", 2, 4), ("edm", 1, 100), ("edm", 16, 400)])
def test_lambda_rises_from_0_to_1_and_holds_the_effective_sample_size(schedule, d, hard, ess):
    p, n, steps = problem(schedule, d), 200, 16
    guide = gk.DAS(p.reward, p.alpha / hard, scale=0.2, ess=ess)  # a lambda of 1 would cost most particles at once
    run = gk.Run(p.model, n, steps=steps, cond=1, guides=[guide])
    lambdas, rises = [0.0], 0
    with torch.no_grad():
        pop = run.start()
        for i in range(steps):
            pop = run.advance(pop, i)
            assert len(pop.memos[0][2].unique()) == 1
            lambdas.append(float(pop.memos[0][2][0]))
            left = size(run.records[-1].log_w) / (ess * n)
            # it cannot fall, and so leaves less where that of the step before has become too much; else just enough
            assert left > 1 - 1e-6 or lambdas[-1] == lambdas[-2] or i + 1 == steps
            if lambdas[-2] < lambdas[-1] < 1:
                assert left < 1 + 1e-6
                rises += 1
    assert all(a <= b for a, b in pairwise(lambdas))
    assert lambdas[-1] == 1
    assert rises >= (1 if ess < 0.9 else 3)


def test_lambda_is_that_of_a_group_alone():
    """Each group has its own, and a batch of conditions equals runs one by one."""
    p = problem("flow", 2)
    guide, n = gk.DAS(p.reward, p.alpha / 4, scale=0.3, ess=0.9), 32
    together = gk.Run(p.model, n, steps=STEPS, cond=[1, 0, 1], seed=[0, 1, 2], guides=[guide])
    alone = [gk.Run(p.model, n, steps=STEPS, cond=c, seed=s, guides=[guide]) for c, s in ((1, 0), (0, 1), (1, 2))]
    apart = 0
    with torch.no_grad():
        pop, pops = together.start(), [run.start() for run in alone]
        for i in range(STEPS):
            pop = together.advance(pop, i)
            pops = [run.advance(own, i) for run, own in zip(alone, pops, strict=True)]
            levels = pop.memos[0][2].view(3, n)
            assert torch.equal(levels.amin(1), levels.amax(1))
            apart += len(levels[:, 0].unique()) == 3
            assert torch.allclose(levels[:, 0], torch.stack([own.memos[0][2][0] for own in pops]), rtol=1e-7)
            assert torch.allclose(pop.x, torch.cat([own.x for own in pops]), rtol=1e-9, atol=1e-9)
            assert torch.allclose(pop.log_w, torch.cat([own.log_w for own in pops]), rtol=1e-7, atol=1e-7)
    assert apart >= 2


def test_one_particle_has_nothing_to_lose():
    p = problem("vp", 1)
    run = gk.Run(p.model, 1, steps=STEPS, cond=1, guides=[gk.DAS(p.reward, p.alpha, ess=0.9)])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
    assert pop.memos[0][2].item() == 1


# what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*could not be scored")
@pytest.mark.parametrize("tempering", ["adaptive", "exponential"])
def test_a_reward_that_fails_on_some_samples(tempering: str):
    """The target is p exp(r/alpha) of what can be scored."""
    p = problem("vp", 1)

    def reward(x):
        return p.reward(x) + 0 * (1.5 - x[:, 0]).sqrt()  # NaN, and so is its gradient

    guide = gk.DAS(reward, p.alpha, scale=0.5, ess=0.9, **TEMPERINGS[tempering][0])
    result = populations(p, 1000, 16, [guide])
    x, law = (torch.as_tensor(v) for v in p.law())
    w = torch.where(x[:, 0] > 1.5, 0.0, (p.reward(x) / p.alpha).exp())[:, None] * p.features(x)
    truth, error = (law[:, None] * w).sum(0).numpy(), (w.std(0) / len(w) ** 0.5).numpy()
    assert np.abs(deviations(estimates(p, result), truth, error)).max() < 4.5
    assert torch.equal(result.log_weights == -torch.inf, result.x[:, 0] > 1.5)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("tempering", ["adaptive", "exponential"])
def test_beside_other_guides_of_the_same_reward_it_is_counted_once(tempering: str, order: int):
    p = problem("flow", 2)
    das = gk.DAS(p.reward, p.alpha, scale=0.5, ess=0.9, **TEMPERINGS[tempering][0])
    for other in (gk.FKSteering(p.reward, p.alpha, ess=0.9), gk.TDS(p.reward, p.alpha, 0.3)):
        assert off(p, populations(p, 500, 8, [das, other][::order])) < 4.5
    guides = [das, gk.FKSteering(p.reward, 2 * p.alpha)][::order]
    z = estimates(p, populations(p, 800, 8, guides))[:, :1]
    x, law = p.law()
    w = np.exp(1.5 * p.reward(torch.as_tensor(x)).numpy() / p.alpha)  # another temperature multiplies
    assert abs(deviations(z, np.array([law @ w]), np.array([w.std() / len(w) ** 0.5]))[0]) < 4.5


@pytest.mark.parametrize("tempering", ["adaptive", "exponential", "power", "function"])
@pytest.mark.parametrize("interval", [{"stop": 0.6}, {"start": 0.3}, {"start": 0.3, "stop": 0.7}], ids=str)
def test_in_an_interval_the_target_is_the_same(interval: dict, tempering: str):
    p = problem("vp", 2)
    guide = gk.DAS(p.reward, p.alpha, scale=0.7, ess=0.9, **TEMPERINGS[tempering][0], **interval)
    result = populations(p, 400, 8, [guide])
    assert off(p, result) < 4.5
    assert result.trace["resampled"].any(1).sum() >= 1
    plain = gk.sample(p.model, 8, steps=STEPS, cond=1)
    assert not torch.equal(result.x[:8], plain.x)


@pytest.mark.parametrize("tempering", TEMPERINGS)
def test_shift_and_scale_of_the_reward_and_an_infinite_temperature(tempering: str):
    p = problem("vp", 1)

    def run(reward, alpha):
        guides = [gk.DAS(reward, alpha, scale=0.7, ess=0.9, **TEMPERINGS[tempering][0])]
        return gk.sample(p.model, 40, steps=STEPS, cond=1, guides=guides)

    plain = run(p.reward, p.alpha)
    shifted = run(lambda x: p.reward(x) - 4.0, p.alpha)
    assert torch.allclose(plain.x, shifted.x, rtol=1e-6)  # as near as bisection comes
    assert torch.allclose(shifted.log_z, plain.log_z - 4.0 / p.alpha, atol=1e-6)
    scaled = run(lambda x: 4 * p.reward(x), 4 * p.alpha)
    assert torch.equal(plain.x, scaled.x)
    assert torch.equal(plain.log_weights, scaled.log_weights)
    idle = run(p.reward, float("inf"))
    assert torch.equal(idle.x, gk.sample(p.model, 40, steps=STEPS, cond=1).x)
    assert idle.log_weights.abs().max() == 0


def test_the_order_beside_tilts_does_not_matter():
    p = problem("flow", 2)
    guides = [gk.CFG(1.4), gk.CFG(0.6, steer=True), gk.DAS(p.reward, p.alpha, scale=0.5, ess=0.9)]
    one, two = (gk.sample(p.model, 24, steps=STEPS, cond=1, guides=order) for order in (guides, guides[::-1]))
    assert torch.equal(one.ancestors, two.ancestors)
    assert torch.allclose(one.x, two.x, rtol=1e-10, atol=1e-10)
    assert torch.allclose(one.log_weights, two.log_weights, rtol=1e-9, atol=1e-9)


def test_gradients_are_per_row():
    p = problem("flow", 2)
    guide = gk.DAS(p.reward, p.alpha, lambda f: f, ess=0.0)
    whole = gk.sample(p.model, 11, steps=STEPS, cond=1, guides=[guide])
    parts = gk.sample(p.model, 11, steps=STEPS, cond=1, guides=[guide], batch_size=2)
    one = gk.sample(p.model, 1, steps=STEPS, cond=1, guides=[guide])
    assert torch.allclose(whole.x, parts.x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(whole.x[:1], one.x, rtol=1e-12, atol=1e-12)
    assert whole.cost.network_rows == parts.cost.network_rows == 11 * STEPS
    assert whole.cost.reward_calls == 11 * (STEPS + 1)


def test_temperings_that_make_no_sense_are_errors():
    with pytest.raises(ValueError, match=r"DAS\(tempering='linear'\): there is adaptive, exponential, power"):
        gk.DAS(lambda x: x[:, 0], 0.5, "linear")
    with pytest.raises(ValueError, match=r"DAS\(ess=0\): adaptive tempering holds the ESS"):
        gk.DAS(lambda x: x[:, 0], 0.5, ess=0)
    assert gk.DAS(lambda x: x[:, 0], 0.5, "power", ess=0).schedule(0.5) == 0.4

"""Minority generation: the score and what it ranks, two guides against simulations, Boost-and-Skip's closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm, spearmanr
from torch import nn

import guidekit as gk
from guidekit import (
    FeatureDistance,
    MinorityGuidance,
    MinorityScore,
    SelfGuidedMinority,
    minority_score,
    quantile_labels,
)
from guidekit.guides.boost_and_skip import BoostAndSkip

from .problems import PROBLEMS, STEPS

WEIGHTS, MEANS, STDS = np.array([0.9, 0.1]), np.array([[0.0, 0.0], [3.0, 2.0]]), np.array([1.0, 0.5])


def planar(**options) -> gk.analytic.GaussianMixture:
    """A frequent wide mode and a rare narrow one."""
    return gk.analytic.GaussianMixture(WEIGHTS, torch.from_numpy(MEANS), STDS, **options)


def scales(t: float) -> tuple[float, float]:
    return np.sin(np.pi * (1 - t) / 2), np.sin(np.pi * t / 2)  # exactly 0 at t = 1, where no gradient is left


def posterior(x: np.ndarray, t: float):
    """In numpy: p(k | x_t), each component's clean mean and score, (rows, K), (rows, K, 2) twice; and its variance."""
    a, sigma = scales(t)
    var = (a * STDS) ** 2 + sigma**2
    off = x[:, None] - a * MEANS
    log_p = np.log(WEIGHTS) - 0.5 * (off**2).sum(-1) / var - np.log(var)
    rho = np.exp(log_p - log_p.max(1, keepdims=True))
    rho /= rho.sum(1, keepdims=True)
    gain = (a * STDS**2 / var)[:, None]
    return rho, MEANS + gain * off, -off / var[:, None], STDS**2 * sigma**2 / var


def clean_mean(x: np.ndarray, t: float) -> np.ndarray:
    rho, per, _, _ = posterior(x, t)
    return (rho[..., None] * per).sum(1)


def simulated(shift, steps: int, n: int, seed: int = 0) -> np.ndarray:
    """Ancestral sampling where shift(k, x, t, d, b, c, rng) is added to the mean of the k-th move."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    for k, (t, s) in enumerate(pairwise(1 - np.arange(steps + 1) / steps)):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        b, c = a_s * step / s_t**2, np.sqrt(step) * s_s / s_t
        d = clean_mean(x, t)
        mean = (a_t / a_s) * s_s**2 / s_t**2 * x + b * d
        x = mean + shift(k, x, t, d, b, c, rng) + c * rng.standard_normal((n, 2))
    return x


def rare(x) -> np.ndarray:
    """Whether samples are in the rare mode: closer than 2.5 of its deviations."""
    return (((np.asarray(x) - MEANS[1]) ** 2).sum(1) < (2.5 * STDS[1]) ** 2).astype(float)


def assert_equal_means(a: np.ndarray, b: np.ndarray, errors: float = 4.0) -> None:
    assert abs(a.mean() - b.mean()) < errors * np.sqrt(a.var() / len(a) + b.var() / len(b))


# the score -----------------------------------------------------------------------------------------------------------


def test_the_score_of_a_gaussian_has_its_closed_form():
    """(sigma^4 x^2 + a^2 s^4 sigma^2)/(a^2 s^2 + sigma^2)^2; cross terms cancel between the halves of the noises."""
    s, t = 0.8, 0.6
    (a, sigma), x = scales(t), torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    model = gk.analytic.GaussianMixture([1.0], torch.zeros(1, dtype=torch.float64), [s])
    found = minority_score(model, x, t=t, noises=4000).numpy()
    v = a**2 * s**2 + sigma**2
    squares = (sigma**4 * x[:, 0] ** 2 + a**2 * s**4 * sigma**2).numpy() / v**2
    # the mean of 2,000 squared normals has the relative error sqrt(2/2000) = 0.03
    assert np.abs(found - squares).max() < 4 * 0.032 * a**2 * s**4 * sigma**2 / v**2
    two = minority_score(model, x, t=t, noises=2).numpy()
    assert spearmanr(two, x[:, 0].abs().numpy()).statistic > 0.999  # already of two noises


@pytest.mark.parametrize("t, least", [(0.5, 0.95), (0.6, 0.95)])
def test_it_ranks_the_samples_of_a_mixture_by_negative_log_density(t, least):
    base = planar()
    x = base.exact_sample(2000, 1)
    rank = spearmanr(minority_score(base, x, t=t, noises=64).numpy(), -base.log_prob(x).numpy()).statistic
    assert rank > least


def test_a_sample_has_the_same_score_in_any_batch():
    base = planar()
    x = base.exact_sample(20, 1)
    whole = minority_score(base, x)
    assert torch.equal(whole[7:9], minority_score(base, x[7:9]))
    assert torch.allclose(whole, minority_score(base, x, batch_size=18), rtol=1e-12)
    assert not torch.allclose(whole, minority_score(base, x, seed=1))


def test_the_condition_and_the_distance_are_the_users():
    base = planar(labels=[0, 1])
    there = torch.from_numpy(MEANS[1:])
    scores = [float(minority_score(base, there, cond=c)) for c in (0, 1, None)]
    assert scores[1] < scores[2] < scores[0]  # what is rare depends on what is asked for
    weight = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    features = FeatureDistance(lambda v: (v @ weight.T, v))  # 4 |first coordinate|^2 + |all|^2
    squares = [minority_score(base, there, distance=f) for f in (lambda a, b: (a - b)[:, 0] ** 2, None, features)]
    assert torch.allclose(4 * squares[0] + squares[1], squares[2], rtol=1e-12)
    with pytest.raises(ValueError, match="one number for each"):
        minority_score(base, there, distance=lambda a, b: (a - b).square())


def test_it_is_a_reward_for_whatever_takes_one():
    """Best-of-N and SVDD with the score raise the share of the rare mode; the final scores are those of the samples."""
    base = planar()
    reward = MinorityScore(base)
    plain = gk.sample(base, 400, steps=10, reward=reward)
    assert torch.equal(plain.rewards, minority_score(base, plain.x))
    best = gk.sample(base, 400, steps=10, guides=[gk.BestOfN(reward, 4)])
    chosen = gk.sample(base, 400, steps=10, guides=[gk.SVDD(reward, candidates=3)])
    assert rare(best.x).mean() > rare(plain.x).mean() + 0.1
    assert chosen.rewards.mean() > plain.rewards.mean() + 3 * plain.rewards.std() / 20
    climbed = gk.sample(base, 400, steps=10, guides=[gk.TDS(reward, 2.0, ess=0.0)])  # it has a gradient
    assert climbed.rewards.mean() > plain.rewards.mean()


def test_the_reward_of_a_model_that_decodes_needs_a_way_back():
    base = planar()
    model = gk.GaussianModel(
        lambda x, t, cond: base(x, float(t[0]), None), (2,), predicts="clean", decode=lambda x: 10 * x,
        dtype=torch.float64,
    )  # fmt: skip
    with pytest.raises(ValueError, match="give encode="):
        MinorityScore(model)
    result = gk.sample(model, 10, steps=5, reward=MinorityScore(model, encode=lambda s: s / 10))
    assert torch.allclose(result.rewards, minority_score(base, result.x), rtol=1e-9)


def test_networks_are_left_as_they_were_found():
    net, features = nn.Linear(2, 2).double(), nn.Linear(2, 3).double()
    seen = []
    net.register_forward_hook(lambda m, *_: seen.append(m.training))
    features.register_forward_hook(lambda m, *_: seen.append(m.training))
    model = gk.GaussianModel(lambda x, t, cond: net(x), (2,), predicts="clean", dtype=torch.float64)
    distance = FeatureDistance(features)
    score = minority_score(model, torch.zeros(3, 2, dtype=torch.float64), distance=distance)
    gk.sample(model, 3, steps=4, guides=[SelfGuidedMinority(0.4, interval=1, distance=distance)])
    gk.sample(model, 3, steps=4, guides=[MinorityGuidance(lambda x, t: features(x), 1.0)])
    assert len(seen) > 10
    assert not any(seen)
    assert net.training
    assert features.training
    assert not score.requires_grad


def test_labels_are_the_quantiles():
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    labels = quantile_labels(scores, 20)
    assert torch.equal(labels.bincount(), torch.full((20,), 50))
    assert (labels[scores.argsort()].diff() >= 0).all()
    assert torch.equal(labels, torch.searchsorted(scores.quantile(torch.arange(1, 20) / 20), scores))
    assert quantile_labels([1.0, 1.0, 1.0, 5.0], 2).tolist() == [0, 0, 0, 1]
    many = torch.arange(300_000).flip(0)
    assert torch.equal(quantile_labels(many, 100), many // 3000)
    with pytest.raises(ValueError, match="at least as many as bins"):
        quantile_labels([1.0, 2.0])


# guidance by a classifier --------------------------------------------------------------------------------------------


def components(base):
    """The exact noise-aware classifier of the components: log p(k | x_t)."""
    return lambda x, t: base.responsibilities(x, float(t[0])).log()


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_with_the_exact_classifier_the_prediction_is_that_of_the_class(name):
    """grad log p(k | x_t) turns the score of the mixture into that of its k-th component."""
    base = PROBLEMS[name].model
    free = gk.analytic.GaussianMixture(base.weights, base.means, base.stds, base.schedule)
    one = gk.analytic.GaussianMixture([1.0], base.means[2:3], base.stds[2:3], base.schedule)
    run = gk.Run(free, 6, steps=STEPS, guides=[MinorityGuidance(components(free), 1.0, bin=2)])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            pop = run.advance(pop, index)
            t = run.step(index + 1).t
            assert torch.allclose(pop.predictions[0], one(pop.x, t, None), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_it_raises_the_share_of_the_rare_mode_as_a_simulation_does(scale):
    steps, n = 20, 10_000

    def shift(k, x, t, d, b, c, rng):
        a, sigma = scales(t)
        if a < 1e-3:
            return 0.0
        rho, _, score, _ = posterior(x, t)
        return b * scale * sigma**2 / a * (score[:, 1] - (rho[..., None] * score).sum(1))

    base = planar()
    found = gk.sample(base, n, steps=steps, guides=[MinorityGuidance(components(base), scale)])
    known, plain = simulated(shift, steps, n), simulated(lambda *_: 0.0, steps, n)
    assert_equal_means(rare(found.x), rare(known))
    assert rare(found.x).mean() > rare(plain).mean() + 0.3  # 0.09 without, about 0.5 and 0.9 with
    assert found.cost.network_rows == n * steps


def test_the_quantile_and_the_models_own_condition_do_not_conflict():
    """The classifier tells the rare components of both classes, and each class goes to its own. It knows no class, so
    that this is not the law of the rare component given the class, which would be all of them."""
    means = torch.tensor([[-4.0], [-1.0], [1.0], [4.0]], dtype=torch.float64)
    base = gk.analytic.GaussianMixture([0.05, 0.45, 0.45, 0.05], means, [0.4] * 4, labels=[0, 0, 1, 1])

    def classifier(x, t):
        rho = base.responsibilities(x, float(t[0]))
        return torch.stack([rho[:, 1] + rho[:, 2], rho[:, 0] + rho[:, 3]], 1).log()

    guide = MinorityGuidance(classifier, 1.0)
    x = gk.sample(base, 500, steps=20, cond=[0, 1], guides=[guide]).x[:, 0]
    plain = gk.sample(base, 500, steps=20, cond=[0, 1]).x[:, 0]
    for mode, rows in ((-4.0, slice(500)), (4.0, slice(500, None))):
        before, after = (((v[rows] - mode).abs() < 1.5).double().mean() for v in (plain, x))
        assert before < 0.2
        assert after > 0.6  # 0.72 and 0.75 were seen
        assert ((x[rows] + mode).abs() < 1.5).sum() == 0


def test_a_classifier_trained_on_quantiles_of_the_score_finds_rare_samples():
    """The whole recipe: scores, labels, a small noise-aware network, guidance."""
    base = planar()
    x = base.exact_sample(3000, 2)
    scores = minority_score(base, x)
    labels = quantile_labels(scores, 5)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 5))
    speed = [torch.zeros_like(p) for p in net.parameters()]
    for _ in range(400):
        rows = torch.randint(len(x), (128,))
        t = torch.rand(128)
        alpha, sigma = gk.schedules.Cosine()(t)
        noisy = alpha[:, None] * x[rows].float() + sigma[:, None] * torch.randn(128, 2)
        loss = nn.functional.cross_entropy(net(torch.cat([noisy, t[:, None]], 1)), labels[rows])
        for p, v, g in zip(net.parameters(), speed, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            p.data.sub_(v.mul_(0.9).add_(g), alpha=0.05)  # by hand: torch.optim takes seconds to import
    guide = MinorityGuidance(lambda v, t: net(torch.cat([v, t[:, None]], 1)), 1.0)
    guided = gk.sample(base, 500, steps=20, guides=[guide], reward=MinorityScore(base))
    assert (guided.rewards > scores.quantile(0.8)).double().mean() > 0.6  # 0.2 without
    assert all(p.requires_grad for p in net.parameters())


def test_scale_zero_calls_no_classifier():
    problem = PROBLEMS["vp-1d"]
    plain = gk.sample(problem.model, 9, steps=STEPS, cond=1)
    idle = gk.sample(problem.model, 9, steps=STEPS, cond=1, guides=[MinorityGuidance(lambda x, t: 1 / 0, 0.0)])
    assert torch.equal(plain.x, idle.x)


# self-guidance -------------------------------------------------------------------------------------------------------


def self_guided(scale: float, interval: int, t_mid: float = 0.0):
    """The shift c^2 w g of the paper, with the Jacobian of the clean mean a/sigma^2 Cov[x_0 | x_t]."""

    def shift(k, x, t, d, b, c, rng):
        if k % interval or t <= t_mid or c == 0:
            return 0.0
        a, sigma = scales(t)
        rho, per, _, var = posterior(x, t)
        off = per - d[:, None]
        cov = np.einsum("nk,nki,nkj->nij", rho, off, off) + (rho @ var)[:, None, None] * np.eye(2)
        a_p, s_p = scales(0.8)
        again = clean_mean(a_p * d + s_p * rng.standard_normal(d.shape), 0.8)
        g = a / sigma**2 * np.einsum("nij,nj->ni", cov, 2 * (d - again))
        most = np.abs(g).max(1, keepdims=True)
        return c**2 * scale * np.divide(g, most, out=np.zeros_like(g), where=most > 0)

    return shift


@pytest.mark.parametrize("scale, interval, t_mid", [(0.8, 1, 0.0), (2.0, 5, 0.0), (1.5, 1, 0.4)])
def test_self_guidance_raises_the_rare_share_and_the_tail_as_a_simulation_does(scale, interval, t_mid):
    steps, n, base = 20, 10_000, planar()
    guide = SelfGuidedMinority(scale, interval=interval, t_mid=t_mid)
    found = gk.sample(base, n, steps=steps, guides=[guide])
    known, plain = simulated(self_guided(scale, interval, t_mid), steps, n), simulated(lambda *_: 0.0, steps, n)
    cut = np.quantile(base.log_prob(torch.from_numpy(plain)).numpy(), 0.05)

    def tail(x):
        return (base.log_prob(torch.as_tensor(x)).numpy() < cut).astype(float)

    assert_equal_means(rare(found.x), rare(known))
    assert_equal_means(tail(found.x), tail(known))
    assert rare(found.x).mean() > rare(plain).mean() + 0.04
    assert tail(found.x).mean() > 0.05 + 0.02
    acting = [i for i in range(steps - 1) if i % interval == 0 and 1 - i / steps > t_mid]
    assert found.cost.network_rows == n * (steps + len(acting))


def test_a_shift_is_the_variance_of_the_coming_move_times_the_normalised_gradient():
    """Every row moves by c^2 w in its steepest direction, which b_0 of the move then restores."""
    base, w = planar(), 0.7
    run = gk.Run(base, 50, steps=STEPS, guides=[SelfGuidedMinority(w, interval=1)])
    with torch.no_grad():
        pop = run.start()
        for index in range(4):
            pop = run.advance(pop, index)
    move = run.moves[4]
    shift = move.b[0] * (pop.predictions[0] - base(pop.x, move.t, None))
    assert torch.allclose(shift.abs().amax(1), torch.full((50,), w * move.c**2, dtype=torch.float64), rtol=1e-9)
    last = pop if index == STEPS - 1 else run.advance(pop, 4)
    assert torch.equal(last.predictions[0], base(last.x, run.moves[5].t, None))  # the last move has no variance


def test_self_guidance_is_idle_at_scale_zero_and_keeps_no_graph_between():
    problem, graphs = PROBLEMS["flow-2d"], []
    base = problem.model

    def net(x, t, cond):
        graphs.append(x.requires_grad)
        return base(x, float(t[0]), cond)

    model = gk.GaussianModel(net, (2,), schedule=base.schedule, predicts="clean", null=-1, dtype=torch.float64)
    plain = gk.sample(model, 9, steps=STEPS, cond=1)
    idle = gk.sample(model, 9, steps=STEPS, cond=1, guides=[SelfGuidedMinority(0.0)])
    assert torch.equal(plain.x, idle.x)
    assert idle.cost.network_rows == plain.cost.network_rows
    assert not any(graphs)
    graphs.clear()
    gk.sample(model, 9, steps=STEPS, cond=1, guides=[SelfGuidedMinority(0.5, interval=4)])
    assert graphs == [True, False, False, False, False, True, False, False]  # steps 0 and 4, each with its second row


@pytest.mark.parametrize("guide", [SelfGuidedMinority(0.5, interval=1), SelfGuidedMinority(0.5, interval=2)])
def test_a_self_guided_row_does_not_depend_on_its_batch(guide):
    base = planar()
    whole, parts = (gk.sample(base, 9, steps=STEPS, guides=[guide], batch_size=b) for b in (None, 4))
    assert torch.allclose(whole.x, parts.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_self_guided_row_is_not_led_by_rounding_where_it_is_pure_noise(batch_size: int):
    """At t = 1 of a flow the estimate is the same for all x_t, so its gradient is rounding and not a direction."""
    problem = PROBLEMS["flow-2d"]
    options = {"steps": STEPS, "cond": problem.cond, "guides": [SelfGuidedMinority(0.8, interval=2)]}
    whole, parts = (gk.sample(problem.model, 9, batch_size=b, **options) for b in (None, batch_size))
    assert torch.allclose(whole.x, parts.x, rtol=1e-9, atol=1e-9)
    run = gk.Run(problem.model, 9, **options)
    with torch.no_grad():
        pop = run.start()
    known = problem.model(pop.x, 1.0, torch.full((9,), problem.cond))
    assert torch.allclose(pop.predictions[0], known, rtol=1e-12, atol=1e-12)


# Boost-and-Skip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [gk.schedules.Cosine(), gk.schedules.Flow()], ids=["vp", "flow"])
@pytest.mark.parametrize(
    "solver", [gk.solvers.DDIM(), gk.solvers.Heun(), gk.solvers.DPMpp()], ids=["ddim", "heun", "2m"]
)
@pytest.mark.parametrize("gamma, skip", [(1.0, 0), (3.0, 0), (2.0, 20), (1.5, 50)])
def test_the_deviation_of_a_gaussian_is_the_closed_form_of_the_exact_ode(schedule, solver, gamma, skip):
    """gamma sigma_T s/sqrt(a_q^2 s^2 + sigma_q^2): the map is linear, so two particles tell it, without Monte Carlo."""
    s, steps = 0.7, 200
    model = gk.analytic.GaussianMixture([1.0], torch.zeros(1, dtype=torch.float64), [s], schedule)
    noise = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    result = gk.sample(model, 2, steps=steps, guides=[BoostAndSkip(gamma, skip)], solver=solver, noise=noise)
    a, sigma = (float(v) for v in schedule(torch.tensor(1 - skip / steps)))
    exact = gamma * s / (a**2 * s**2 + sigma**2) ** 0.5
    first_order = 0.01 if isinstance(solver, gk.solvers.DDIM) else 1e-3
    assert abs(float(result.x[1]) / exact - 1) < first_order
    assert result.x[0] == -result.x[1]


def test_the_deviation_under_ancestral_sampling_is_the_closed_form_of_the_exact_kernel():
    s, gamma, steps, skip, n = 0.7, 3.0, 20, 6, 40_000
    model = gk.analytic.GaussianMixture([1.0], torch.zeros(1, dtype=torch.float64), [s]).exact()
    x = gk.sample(model, n, steps=steps, guides=[BoostAndSkip(gamma, skip)]).x
    a, sigma = scales(1 - skip / steps)
    v = a**2 * s**2 + sigma**2
    exact = (s**2 + (a * s**2 / v) ** 2 * (gamma**2 - v)) ** 0.5
    assert abs(float(x.std()) / exact - 1) < 4 / (2 * n) ** 0.5
    assert exact > 1.15 * s


def test_the_tail_of_a_mixture_has_the_share_that_theory_gives():
    """In one dimension the ODE keeps quantiles, and the exact kernel the posterior of the component."""
    pi, m, s = np.array([0.95, 0.05]), np.array([0.0, 3.0]), np.array([1.0, 0.4])
    base = gk.analytic.GaussianMixture(pi, torch.from_numpy(m), s)
    gamma, skip, steps, n, cut = 1.6, 12, 60, 10_000, 2.2
    a, sigma = scales(1 - skip / steps)
    v = a**2 * s**2 + sigma**2

    def cdf(x, scale, var):
        return (pi * norm.cdf((x - scale * m) / np.sqrt(var))).sum()

    edge = brentq(lambda x: cdf(x, a, v) - cdf(cut, 1.0, s**2), -10, 10)  # where the trajectories to `cut` pass
    ode = norm.sf(edge / gamma)

    def beyond(z):
        x = gamma * z
        rho = pi * norm.pdf(x, a * m, np.sqrt(v))
        mean, deviation = m + a * s**2 / v * (x - a * m), np.sqrt(s**2 * sigma**2 / v)
        return (rho * norm.sf((cut - mean) / deviation)).sum() / rho.sum() * norm.pdf(z)

    sde, plain = quad(beyond, -8, 8)[0], 1 - cdf(cut, 1.0, s**2)
    for model, solver, share in ((base, gk.solvers.Heun(), ode), (base.exact(), None, sde)):
        x = gk.sample(model, n, steps=steps, guides=[BoostAndSkip(gamma, skip)], solver=solver).x
        found = float((x > cut).double().mean())
        assert abs(found - share) < 4 * (share * (1 - share) / n) ** 0.5
        assert share > 1.2 * plain


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_gamma_one_without_skipping_is_plain_sampling_bit_for_bit(name):
    problem = PROBLEMS[name]
    plain, idle = (
        gk.sample(problem.model, 20, steps=STEPS, cond=1, guides=guides) for guides in ([], [BoostAndSkip(1.0, 0)])
    )
    assert torch.equal(plain.x, idle.x)


def test_steps_that_are_skipped_cost_nothing_and_start_from_the_noise_of_the_first_time():
    problem = PROBLEMS["edm-1d"]
    run = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[BoostAndSkip(2.0, 2)])
    with torch.no_grad():
        start = run.start()
    assert run.moves[0].t == pytest.approx(4 / 6)
    noise = gk.sample(problem.model, 4, steps=STEPS, cond=1).noise
    assert torch.allclose(start.x, 2.0 * 80.0 * noise)  # sigma(1) = 80, not that of t = 4/6
    result = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=[BoostAndSkip(2.0, 2)])
    assert result.cost.network_rows == 4 * 4


@pytest.mark.parametrize("solver", [gk.solvers.Heun(), gk.solvers.DPMpp()], ids=["heun", "2m"])
def test_solvers_with_two_rows_or_a_history_start_anew_after_the_skip(solver):
    """Without a boost it is the same solver on the later times, from the noise of the first."""
    model = PROBLEMS["vp-1d"].model
    skipped = gk.sample(model, 5, steps=8, cond=1, guides=[BoostAndSkip(1.0, 3)], solver=solver)
    later = [(1 - k / 8) for k in range(3, 9)]
    noise = skipped.noise / model.process.scales(later[0])[1]
    known = gk.sample(model, 5, steps=later, cond=1, solver=solver, noise=noise)
    assert torch.allclose(skipped.x, known.x, rtol=1e-9)


def test_wrong_options_are_refused_before_the_first_call():
    model, tokens = PROBLEMS["vp-1d"].model, PROBLEMS["masked"].model
    for guide in (MinorityGuidance(lambda x, t: x, 1.0), SelfGuidedMinority(1.0), BoostAndSkip(2.0, 1)):
        with pytest.raises(ValueError, match=r"tokens have none|Gaussian process"):
            gk.Run(tokens, 2, guides=[guide])
    with pytest.raises(ValueError, match="Gaussian process"):
        minority_score(tokens, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="at most 5 of the 6 steps"):
        gk.Run(model, 2, steps=6, guides=[BoostAndSkip(2.0, 6)])
    with pytest.raises(ValueError, match="gamma=0"):
        gk.Run(model, 2, guides=[BoostAndSkip(0.0, 0)])
    with pytest.raises(ValueError, match="no start or stop"):
        gk.Run(model, 2, guides=[BoostAndSkip(2.0, 0, stop=0.5)])
    with pytest.raises(ValueError, match="stochastic solver"):
        gk.Run(model, 2, guides=[SelfGuidedMinority(1.0)], solver=gk.solvers.DDIM())
    with pytest.raises(ValueError, match="interval=0"):
        gk.Run(model, 2, guides=[SelfGuidedMinority(1.0, interval=0)])
    with pytest.raises(TypeError, match="function of"):
        gk.Run(model, 2, guides=[MinorityGuidance(3, 1.0)])  # type: ignore
    with pytest.raises(gk.NetworkError, match=r"with bin 4"):
        gk.sample(model, 2, steps=3, cond=1, guides=[MinorityGuidance(lambda x, t: x.expand(-1, 2), 1.0, bin=4)])
    with pytest.raises(ValueError, match="states of shape"):
        minority_score(model, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="noises=0"):
        MinorityScore(model, noises=0)

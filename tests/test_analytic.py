"""Closed forms of the analytic models against autograd, numerical integration, importance sampling and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp, ndtr, softmax
from torch import distributions

import guidekit as gk
from guidekit import random
from guidekit.models.analytic import GaussianMixture, TokenTable
from guidekit.solvers import Move
from guidekit.solvers.schedules import EDM, VE, Cosine, Flow, Linear

SCHEDULES = {"cosine": Cosine(), "linear": Linear(), "flow": Flow(), "edm": EDM(), "ve": VE()}
WEIGHTS, MEANS, STDS = [0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
dimensions = pytest.mark.parametrize("d", [1, 2, 16, 20])


def parameters(d):
    """The reference mixture in one dimension, and asymmetric ones in more, as numpy arrays."""
    if d == 1:
        return np.array(WEIGHTS), np.array(MEANS)[:, None], np.array(STDS)
    rng = np.random.default_rng(d)
    if d == 20:
        return rng.dirichlet(np.ones(40)), rng.normal(size=(40, d)), rng.uniform(0.3, 0.9, 40)
    return np.array([0.1, 0.5, 0.15, 0.25]), rng.normal(size=(4, d)) * 1.5, np.array([0.4, 0.9, 0.3, 0.6])


def mixture(d=1, schedule=None, **options):
    return GaussianMixture(*(torch.tensor(v) for v in parameters(d)), schedule=schedule, **options)


def law(d, alpha=1.0, sigma=0.0):
    """The law of alpha x_0 + sigma z, from torch's own distributions."""
    w, m, s = (torch.tensor(v) for v in parameters(d))
    sd = ((alpha * s) ** 2 + sigma**2).sqrt()[:, None].expand(-1, d)
    component = distributions.Independent(distributions.Normal(alpha * m, sd), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(w), component)


def draw(d, n, seed=0):
    """Samples of the mixture by numpy."""
    w, m, s = parameters(d)
    rng = np.random.default_rng(seed)
    k = rng.choice(len(w), size=n, p=w)
    return m[k] + s[k, None] * rng.normal(size=(n, d))


def distribution(x, w=WEIGHTS, m=MEANS, s=STDS):
    """The distribution function of a mixture in one dimension."""
    return (np.asarray(w) * ndtr((np.asarray(x)[:, None] - np.asarray(m)) / np.asarray(s))).sum(1)


def scales(schedule, t):
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


# the denoiser ----------------------------------------------------------------------------------------------------


@dimensions
@every_schedule
@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0])
def test_the_denoiser_is_tweedies_formula_of_the_log_density_by_autograd(d, schedule, t):
    alpha, sigma = scales(schedule, t)
    rng = np.random.default_rng(1)
    x = torch.tensor(alpha * draw(d, 50) + sigma * rng.normal(size=(50, d))).requires_grad_()
    (score,) = torch.autograd.grad(law(d, alpha, sigma).log_prob(x).sum(), x)
    d_hat = mixture(d, schedule)(x.detach(), t, None)
    # the score is (alpha E[x_0|x_t] - x_t) / sigma^2; the difference of two large numbers where sigma is small
    np.testing.assert_allclose(
        alpha * d_hat, x.detach() + sigma**2 * score, rtol=1e-9, atol=1e-10 * max(1, float(x.detach().abs().max()))
    )


def test_the_denoiser_is_the_posterior_mean_by_numerical_integration():
    w, m, s = parameters(1)
    grid = np.linspace(-8, 8, 40_001)
    density = np.exp(logsumexp(np.log(w) + stats.norm.logpdf(grid[:, None], m[:, 0], s), 1))
    for schedule, t in itertools.product(SCHEDULES.values(), (0.2, 0.5, 0.9)):
        alpha, sigma = scales(schedule, t)
        x = np.array([-2.5, -0.4, 0.3, 1.7]) * math.hypot(alpha, sigma)
        post = density * stats.norm.pdf(x[:, None], alpha * grid, sigma)
        expected = (post * grid).sum(1) / post.sum(1)
        found = mixture(1, schedule)(torch.tensor(x[:, None]), t, None)[:, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


@dimensions
def test_log_prob_and_its_gradient_are_those_of_torchs_mixture(d):
    x = torch.tensor(draw(d, 60) * 1.3)
    np.testing.assert_allclose(mixture(d).log_prob(x), law(d).log_prob(x), rtol=1e-11)


@dimensions
def test_responsibilities_are_bayes_rule_for_the_component(d):
    w, m, s = parameters(d)
    alpha, sigma = scales(Cosine(), 0.4)
    x = alpha * draw(d, 30) + sigma
    log_p = np.log(w) + stats.norm.logpdf(x[:, None], alpha * m, np.sqrt((alpha * s) ** 2 + sigma**2)[:, None]).sum(-1)
    np.testing.assert_allclose(mixture(d).responsibilities(torch.tensor(x), 0.4), softmax(log_p, 1), rtol=1e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_exact_samples_have_the_law_of_the_mixture_and_depend_on_the_seed_alone(d):
    n, base = 40_000, mixture(d)
    x = base.exact_sample(n, seed=3)
    assert torch.equal(base.exact_sample(10, seed=3), x[:10])
    assert not torch.equal(base.exact_sample(10, seed=4), x[:10])
    w, m, s = parameters(d)
    for direction in np.eye(d) if d == 1 else (np.array([1.0, 0]), np.array([0.6, -0.8])):
        z = x.numpy() @ direction
        gap = stats.kstest(z, lambda v, u=direction: distribution(v, w, m @ u, s)).statistic
        assert gap * math.sqrt(n) < 1.95  # P = 1e-3


def test_weights_are_normalised_and_one_dimension_may_be_written_flat():
    flat = GaussianMixture([5.0, 3.0, 2.0], MEANS, STDS)
    column = GaussianMixture(WEIGHTS, [[m] for m in MEANS], STDS)
    x = torch.linspace(-3, 3, 9)[:, None]
    assert torch.allclose(flat.log_prob(x), column.log_prob(x))
    assert torch.allclose(flat(x, 0.5, None), column(x, 0.5, None))


@pytest.mark.parametrize(
    ("w", "m", "s"),
    [([0.5, 0.5], [0.0], [1.0]), ([1.0], [0.0], [1.0, 2.0]), ([0.5, -0.5], [0, 1], [1, 1]), ([1.0], [0.0], [0.0])],
)
def test_a_mixture_of_impossible_parts_is_refused(w, m, s):
    with pytest.raises(ValueError, match="needs K positive weights, K means and K positive stds; given"):
        GaussianMixture(w, m, s)


# tilts -----------------------------------------------------------------------------------------------------------


def test_the_linear_tilt_of_the_reference_mixture_has_the_known_numbers():
    base = mixture()
    w, m, _ = parameters(1)
    assert w @ m[:, 0] == pytest.approx(-0.35, abs=1e-12)
    target = base.tilted(linear=1.0, alpha=0.5)
    mean = float(target.weights @ target.means[:, 0])
    assert mean == pytest.approx(3.1755, abs=5e-5)
    second = float(target.weights @ (target.means[:, 0] ** 2 + target.stds**2))
    assert second - mean**2 == pytest.approx(0.4639, abs=5e-5)
    assert float(base.log_z(linear=1.0, alpha=0.5)) == pytest.approx(4.1291, abs=5e-5)


TILTS = {
    "linear": ({"linear": 1.0}, lambda x: x),
    "linear down": ({"linear": -0.7}, lambda x: -0.7 * x),
    "quadratic": ({"quadratic": (1.2, 2.0)}, lambda x: -((x - 1.2) ** 2)),
    "weak quadratic": ({"quadratic": (-3.0, 0.1)}, lambda x: -0.05 * (x + 3) ** 2),
}


@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_a_tilt_in_one_dimension_agrees_with_numerical_integration(tilt, alpha):
    given, reward = TILTS[tilt]
    w, m, s = parameters(1)
    base = mixture()

    def tilted(x):
        return (w * stats.norm.pdf(x, m[:, 0], s)).sum() * math.exp(reward(x) / alpha)

    z, _ = integrate.quad(tilted, -14, 16, points=[-2, 0.5, 2.5, 5], limit=400, epsabs=0, epsrel=1e-11)
    assert float(base.log_z(**given, alpha=alpha)) == pytest.approx(math.log(z), abs=1e-8)
    x = np.linspace(-6, 8, 29)
    density = base.tilted(**given, alpha=alpha).log_prob(torch.tensor(x)[:, None]).exp()
    np.testing.assert_allclose(density, [tilted(v) / z for v in x], rtol=1e-7, atol=1e-200)


@pytest.mark.parametrize("d", [2, 16])
@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_a_tilt_in_more_dimensions_agrees_with_importance_sampling(d, alpha, kind):
    n, x = 200_000, draw(d, 200_000, seed=7)
    direction = np.random.default_rng(4).normal(size=d)
    direction *= 0.8 * alpha / np.linalg.norm(direction)  # so that the weights have a variance
    center, kappa = np.random.default_rng(5).normal(size=d), 0.3 * alpha
    if kind == "linear":
        given, log_w = {"linear": torch.tensor(direction)}, x @ direction / alpha
    else:
        given = {"quadratic": (torch.tensor(center), kappa)}
        log_w = -kappa / 2 * ((x - center) ** 2).sum(1) / alpha
    w = np.exp(log_w - log_w.max())
    error = w.std() / w.mean() / math.sqrt(n)  # of log Z, by the delta method
    assert error < 0.02
    base = mixture(d)
    assert abs(float(base.log_z(**given, alpha=alpha)) - (logsumexp(log_w) - math.log(n))) < 4.5 * error
    target = base.tilted(**given, alpha=alpha)
    share = w / w.sum()
    for f, exact in (
        (lambda v: v, (target.weights[:, None] * target.means).sum(0)),
        (lambda v: v**2, (target.weights[:, None] * (target.means**2 + target.stds[:, None] ** 2)).sum(0)),
    ):
        estimate = share @ f(x)
        spread = np.sqrt((share[:, None] ** 2 * (f(x) - estimate) ** 2).sum(0))  # of a self-normalised mean
        assert (np.abs(estimate - exact.numpy()) < 4.5 * spread).all()


def test_a_number_tilts_every_coordinate_and_temperature_only_scales_the_reward():
    base = mixture(2)
    every = base.tilted(linear=0.4, alpha=1.0)
    listed = base.tilted(linear=[0.4, 0.4], alpha=1.0)
    scaled = base.tilted(linear=1.2, alpha=3.0)
    for other in (listed, scaled):
        assert torch.allclose(every.means, other.means)
        assert torch.allclose(every.weights, other.weights)
    a, b = (base.log_z(quadratic=([0.0, 1.0], k), alpha=a) for k, a in ((0.6, 2.0), (0.3, 1.0)))
    assert float(a) == pytest.approx(float(b), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tilt_so_strong_that_a_component_vanishes_still_gives_a_mixture(dtype):
    base = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([-2.0, 2.5], dtype=dtype), torch.tensor([0.5, 0.5]))
    target = base.tilted(linear=1.0, alpha=0.01)  # the weights' ratio is exp(-450)
    assert float((target.weights * target.means[:, 0]).sum()) == pytest.approx(2.5 + 25, rel=1e-6)
    assert target.log_prob(torch.tensor([[27.5]], dtype=dtype)).item() == pytest.approx(
        stats.norm.logpdf(0, 0, 0.5), abs=1e-4
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one tilt"),
        ({"linear": 1.0, "quadratic": (0.0, 1.0)}, "give one tilt"),
        ({"linear": 1.0, "alpha": 0.0}, "alpha=0.0: the temperature must be positive"),
        ({"linear": 1.0, "alpha": -2.0}, "alpha=-2.0: the temperature must be positive"),
    ],
)
def test_a_tilt_that_is_none_or_two_or_without_temperature_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mixture().log_z(**given)


# the true reverse kernels ----------------------------------------------------------------------------------------


def reverse(model, x, t, s):
    return model.process.kernel(torch.as_tensor(x), (torch.zeros_like(torch.as_tensor(x)),), Move(t, s))


@every_schedule
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.8, 0.1), (0.5, 0.0), (1.0, 0.0)])
def test_the_exact_reverse_kernel_is_bayes_rule(schedule, t, s):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
    step = alpha_t / alpha_s
    noise = math.sqrt(sigma_t**2 - (step * sigma_s) ** 2)
    sd = math.hypot(4 * alpha_s, 3 * sigma_s)
    grid = np.linspace(-4 * sd, 4 * sd, 20_001)
    log_prior = law(1, alpha_s, sigma_s).log_prob(torch.tensor(grid)[:, None]).numpy()
    model = mixture(1, schedule).exact()
    for x_t in np.array([-1.6, 0.2, 1.1]) * math.hypot(alpha_t, sigma_t):
        expected = np.exp(log_prior + stats.norm.logpdf(x_t, step * grid, noise))
        expected /= np.trapezoid(expected, grid)
        q = reverse(model, torch.full((len(grid), 1), x_t, dtype=torch.float64), t, s)
        found = q.log_prob(torch.tensor(grid)[:, None]).exp().numpy()
        assert np.trapezoid(found, grid) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8 * expected.max())


@pytest.mark.parametrize(("t", "s"), [(0.9, 0.5), (0.6, 0.0)])
def test_draws_of_the_exact_reverse_kernel_have_its_density(t, s):
    n, model = 20_000, mixture().exact()
    keys = random.fold(random.key(0), torch.arange(n))
    q = reverse(model, torch.full((n, 1), 0.1, dtype=torch.float64), t, s)
    x = q.push(model.process.noise(keys, model.process.noise_shape((1,)), torch.float64))[:, 0].numpy()
    grid = np.linspace(-8, 8, 8001)
    one = reverse(model, torch.full((8001, 1), 0.1, dtype=torch.float64), t, s)
    cdf = integrate.cumulative_trapezoid(one.log_prob(torch.tensor(grid)[:, None]).exp().numpy(), grid, initial=0)
    assert stats.kstest(x, lambda v: np.interp(v, grid, cdf)).statistic * math.sqrt(n) < 1.95  # P = 1e-3


@every_schedule
@pytest.mark.parametrize("steps", [1, 3])
def test_a_chain_of_exact_kernels_has_the_exact_law_at_any_number_of_steps(schedule, steps):
    n = 20_000
    model = GaussianMixture(WEIGHTS, MEANS, STDS, schedule=schedule)
    exact, coarse = (gk.sample(m, n, steps=steps, seed=1).x[:, 0].double().numpy() for m in (model.exact(), model))
    assert stats.kstest(exact, distribution).statistic * math.sqrt(n) < 1.95  # P = 1e-3
    assert stats.kstest(coarse, distribution).statistic * math.sqrt(n) > 4  # which the solver's kernels do not have


def test_a_chain_of_exact_kernels_has_the_exact_law_in_two_dimensions():
    n, (w, m, s) = 20_000, parameters(2)
    x = gk.sample(mixture(2).exact(), n, steps=3, seed=1).x.numpy()
    for u in (np.array([1.0, 0]), np.array([0.6, -0.8])):
        gap = stats.kstest(x @ u, lambda v, u=u: distribution(v, w, m @ u, s)).statistic
        assert gap * math.sqrt(n) < 1.95  # P = 1e-3


def test_a_chain_of_exact_kernels_that_goes_up_again_keeps_the_exact_law():
    n = 20_000
    x = gk.sample(mixture().exact(), n, steps=[1.0, 0.3, 0.7, 0.2, 0.0], seed=1).x[:, 0].numpy()
    assert np.isfinite(x).all()
    assert stats.kstest(x, distribution).statistic * math.sqrt(n) < 1.95  # P = 1e-3


# classes of components -------------------------------------------------------------------------------------------


def part(labels, c):
    """The mixture of the components with label c."""
    keep = [k for k, label in enumerate(labels) if label == c]
    w, m, s = parameters(1)
    return GaussianMixture(*(torch.tensor(v[keep]) for v in (w, m, s)))


def test_a_label_conditions_on_its_components_and_null_on_none():
    labels, x = [1, 0, 1], torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]
    model = mixture(labels=labels)
    for t in (0.2, 0.9):
        for c in (0, 1):
            found = model(x, t, model.encode(c).expand(9))
            assert torch.allclose(found, part(labels, c)(x, t, None), rtol=1e-10)
        assert torch.allclose(model(x, t, model.null.expand(9)), mixture()(x, t, None), rtol=1e-10)
        assert torch.allclose(model(x, t, None), mixture()(x, t, None), rtol=1e-10)
    mixed = model(x, 0.5, torch.tensor([0, 1, -1] * 3))  # each row has its own
    for row, c in enumerate([0, 1, -1] * 3):
        alone = mixture() if c < 0 else part(labels, c)
        assert torch.allclose(mixed[row], alone(x[row : row + 1], 0.5, None)[0], rtol=1e-10)


def test_groups_of_a_labelled_mixture_are_samples_of_their_labels():
    labels, n = [1, 0, 1], 5000
    result = gk.sample(mixture(labels=labels), n, steps=250, cond=[0, 1, None], seed=2)
    for group, own in enumerate((part(labels, 0), part(labels, 1), mixture())):
        x = result.x[result.group == group, 0].numpy()
        gap = stats.kstest(x, lambda v, o=own: distribution(v, o.weights, o.means[:, 0], o.stds)).statistic
        assert gap * math.sqrt(n) < 1.95  # P = 1e-3


def test_exact_kernels_which_see_no_condition_refuse_labels_rather_than_ignore_them():
    with pytest.raises(ValueError, match="label"):
        gk.sample(mixture(labels=[1, 0, 1]).exact(), 10, steps=2, cond=0)


# tokens ----------------------------------------------------------------------------------------------------------

V, L = 3, 3
STATES = list(itertools.product(range(V), repeat=L))


def table(classes=None, noising="masked", seed=0):
    log_p = np.random.default_rng(seed).normal(size=(V,) * L) * 1.5
    given = None if classes is None else torch.tensor(np.random.default_rng(9).normal(size=(classes, *(V,) * L)))
    return TokenTable(torch.tensor(log_p), noising, given), softmax(log_p), given


def chance(noising, clean, noisy, t):
    """q(x_t | x_0) of one position."""
    if noising == "masked":
        return t if noisy == V else (1 - t) * (clean == noisy)
    return (1 - t) * (clean == noisy) + t / V


def by_hand(law, noising, x, t):
    """p(x_0 | x_t) by summing over every x_0, a dictionary."""
    joint = {x0: law[x0] * math.prod(chance(noising, a, b, t) for a, b in zip(x0, x, strict=True)) for x0 in STATES}
    total = sum(joint.values())
    return {x0: p / total for x0, p in joint.items()}


def test_log_probs_are_those_of_the_normalised_table():
    model, law, _ = table()
    found = model.log_probs(torch.tensor(STATES)).exp()
    assert found.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found, [law[s] for s in STATES], rtol=1e-12)
    shifted = TokenTable(torch.tensor(np.log(law) + 7.0))
    np.testing.assert_allclose(shifted.log_probs(torch.tensor(STATES)).exp(), found, rtol=1e-12)


@pytest.mark.parametrize("noising", ["masked", "uniform"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
def test_the_posterior_and_its_marginals_are_bayes_rule_by_enumeration(noising, t):
    model, law, _ = table(noising=noising)
    symbols = [V] if noising == "masked" and t == 1 else range(V + (noising == "masked"))
    xs = list(itertools.product(symbols, repeat=L))
    posterior = model.posterior(torch.tensor(xs), t).exp()
    marginals = model(torch.tensor(xs), t, None).exp()
    order = [tuple(s) for s in model.states.tolist()]
    for x, whole, single in zip(xs, posterior, marginals, strict=True):
        expected = by_hand(law, noising, x, t)
        np.testing.assert_allclose(whole, [expected[s] for s in order], rtol=1e-9, atol=1e-15)
        for i, v in itertools.product(range(L), range(V)):
            p = sum(q for s, q in expected.items() if s[i] == v)
            assert single[i, v].item() == pytest.approx(p, rel=1e-9, abs=1e-15)


def test_sequences_of_probability_zero_come_only_from_tokens_unmasked_together():
    log_p = torch.full((2, 2, 2), -math.inf, dtype=torch.float64)
    log_p[0, 1, 1], log_p[1, 0, 0] = math.log(0.3), math.log(0.7)
    model, n = TokenTable(log_p), 4000
    impossible = model(torch.tensor([[0, 0, 2]]), 0.5, None).exp()  # a state that two tokens can lead to
    assert torch.allclose(impossible, torch.full((1, 3, 2), 0.5, dtype=torch.float64))
    x = gk.sample(model, n, steps=40, seed=1).x
    p = model.log_probs(x).exp()
    together = 1 - (1 - 1 / 40) * (1 - 2 / 40)  # 0.074: two of three in one of 40 steps
    assert (p == 0).double().mean() < together + 4.5 * math.sqrt(together / n)
    first = (x[p > 0][:, 0] == 0).double().mean().item()
    assert first == pytest.approx(0.3, abs=4.5 * math.sqrt(0.21 / (n * 0.9)))


@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_a_class_conditions_on_its_own_table_and_null_on_the_first(noising):
    model, law, given = table(classes=2, noising=noising)
    laws = {c: softmax(g.numpy()) for c, g in enumerate(given)}
    xs = [(0, 1, 2), (2, 2, 0), (1, 1, 1)] if noising == "uniform" else [(V, 1, V), (V, V, V), (2, V, 0)]
    for c, own in [*laws.items(), (None, law)]:
        np.testing.assert_allclose(
            model.log_probs(torch.tensor(STATES), cond=c).exp(), [own[s] for s in STATES], rtol=1e-12
        )
        found = model(torch.tensor(xs), 0.6, model.encode(c).expand(3)).exp()
        for x, single in zip(xs, found, strict=True):
            expected = by_hand(own, noising, x, 0.6)
            for i, v in itertools.product(range(L), range(V)):
                p = sum(q for s, q in expected.items() if s[i] == v)
                assert single[i, v].item() == pytest.approx(p, rel=1e-9)
    mixed = model(torch.tensor(xs), 0.6, torch.stack([model.encode(c) for c in (1, None, 0)])).exp()
    for row, own in enumerate((laws[1], law, laws[0])):
        expected = by_hand(own, noising, xs[row], 0.6)
        p = [sum(q for s, q in expected.items() if s[0] == v) for v in range(V)]
        np.testing.assert_allclose(mixed[row, 0], p, rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "noising", "message"),
    [
        (torch.zeros(3, 2), "masked", r"float tensor of shape \(V,\)\*L, not \(3, 2\)"),
        (torch.zeros(3, 3, dtype=torch.int64), "masked", r"float tensor of shape \(V,\)\*L"),
        (torch.zeros(3, 3), "blurred", "noising='blurred': there is 'masked', 'ordered' and 'uniform'"),
    ],
)
def test_a_table_that_is_no_law_over_sequences_is_refused(given, noising, message):
    with pytest.raises(ValueError, match=message):
        TokenTable(given, noising)

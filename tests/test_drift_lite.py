"""DriftLite: the laws of FKC, with weights that vary less, and not at all for a Gaussian with a linear reward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.guides.drift_lite import least_variance

from .test_fkc import A1, A2, B1, LABELS, found, grid, labelled, linear, mixture, quadratic, truth

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
FIELDS = ["state", "score", "reward"]


def sampled(guide, law, schedule="cosine", *, steps=24, groups=20, n=120, cond=None, first=0, **options) -> gk.Result:
    return gk.sample(
        mixture(law, schedule, LABELS if len(law[0]) == 3 else None), n, steps=grid(schedule, steps, guide.total),
        guides=[guide], cond=[cond] * groups, seed=[first + g for g in range(groups)], **options,
    )  # fmt: skip


def spread(result: gk.Result) -> float:
    return float(result.log_weights.view(result.groups, -1).std(1).mean())


def test_the_least_variance_is_that_of_a_weighted_regression_with_a_ridge():
    rng = np.random.default_rng(1)
    W, g, h = rng.dirichlet(np.ones(30), 2), rng.normal(size=(2, 30)), rng.normal(size=(2, 30, 3)) * [1.0, 30.0, 0.01]
    theta = least_variance(*map(torch.tensor, (W, g, h))).numpy()
    for i in range(2):
        fields, rate = h[i] - W[i] @ h[i], g[i] - W[i] @ g[i]
        std = np.sqrt(W[i] @ fields**2)
        ridge = np.sqrt(1e-4 + (3 * (W[i] ** 2).sum()) ** 2) * np.eye(3)
        design = np.concatenate([np.sqrt(W[i])[:, None] * fields / std, ridge])
        exact = np.linalg.lstsq(design, np.concatenate([-rate * np.sqrt(W[i]), np.zeros(3)]), rcond=None)[0]
        assert np.allclose(theta[i], exact / std, rtol=1e-9)
    alike = torch.tensor(h)[..., :1].repeat(1, 1, 2)
    assert torch.allclose(*least_variance(torch.tensor(W), torch.tensor(g), alike).T, rtol=1e-6)
    assert torch.equal(least_variance(torch.tensor(W), torch.tensor(g), 0 * alike), torch.zeros(2, 2).double())


def test_of_a_gaussian_with_a_linear_reward_the_weights_do_not_vary():
    """At every step the rates are equal; what is left falls with the steps, as the drift does between them."""
    base = mixture(([1.0], [[0.4, -0.3]], [0.8]), "cosine")

    def run(method, steps, **options):
        return gk.sample(base, 100, steps=steps, guides=[method.tilt(linear, 0.5, ess=0.0, **options)])

    plain, coarse = spread(run(gk.FKC, 10)), spread(run(gk.DriftLite, 10, basis=("reward",)))
    found = run(gk.DriftLite, 40, basis=("reward",))
    # .75, .23 and .05: in the mean of 100 particles a std is known to 7 %, and a ratio to 10 %
    assert coarse < plain / 2 and 2.8 < coarse / spread(found) < 6
    exact = float(base.log_z(linear=torch.tensor([0.6, -0.3]), alpha=0.5))
    assert abs(float(found.log_z) - exact) < 0.02  # of .58: a se of .05/10, and c/steps^2

    stepper = gk.Run(base, 300, steps=20, guides=[gk.DriftLite.tilt(linear, 0.5, ess=0.0)])
    with torch.no_grad():
        pop = stepper.start()
        for index in range(10):
            pop = stepper.advance(pop, index)
    _, h, _, g, theta = pop.memos[0]
    assert g.std() > 0.05 and (g + (theta * h).sum(1)).std() < 1e-3 * g.std()  # (K/N)^2 = 1e-4, and the ridge


CASES = [
    ("quadratic", "cosine", A2, [(A2, 1.0)], lambda f, **o: f.tilt(quadratic, 0.4, **o), quadratic, 0.4, None, 3.0),
    ("cold", "flow", A2, [(A2, 2.0)], lambda f, **o: f.anneal(2.0, **o), None, 1.0, gk.solvers.DDIM(eta=0.7), 1.4),
    ("cold", "edm", A1, [(A1, 2.0)], lambda f, **o: f.anneal(2.0, **o), None, 1.0, None, 1.8),
    ("cfg", "cosine", A2, [(labelled(A2), 1.6), (A2, -0.6)], lambda f, **o: f.cfg(1.6, **o), None, 1.0, None, 1.3),
    (
        "product", "flow", A1, [(A1, 1.0), (B1, 1.0)], lambda f, **o: f.product(mixture(B1, "flow"), **o), None, 1.0,
        None, 2.0,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "name, schedule, law, powers, make, reward, alpha, solver, factor",
    [pytest.param(*c, marks=[pytest.mark.slow] * (i > 0), id=f"{c[0]}-{c[1]}") for i, c in enumerate(CASES)],
)
def test_the_law_is_that_of_fkc_and_the_weights_vary_less(
    name, schedule, law, powers, make, reward, alpha, solver, factor
):
    """The error of the steps, c/steps, is extrapolated away."""
    options = {"schedule": schedule, "cond": 1 if name == "cfg" else None, "solver": solver}
    guide = make(gk.DriftLite, ess=0.0)
    coarse, fine = (sampled(guide, law, steps=k, first=100 * k, **options) for k in (16, 32))
    (once, error), (twice, finer) = found(coarse), found(fine)
    wrong = np.abs(2 * twice - once - truth(powers, reward, alpha))
    # 20 populations of 120: 5 numbers, 4.5 standard errors; .04 for c/steps^2, which for E[x^2] is the largest
    assert (wrong < 4.5 * np.sqrt(4 * finer**2 + error**2) + 0.04).all(), wrong
    assert spread(coarse) < spread(sampled(make(gk.FKC, ess=0.0), law, steps=16, groups=8, **options)) / factor


def test_a_drift_that_few_particles_decide_leaves_z_unbiased():
    """The drift depends on the particles before the move alone: the mean of Z over populations of six is Z."""
    guide = gk.DriftLite.tilt(quadratic, 0.8, ess=0.5, basis=("reward",))
    (once, error), (twice, finer) = (
        found(sampled(guide, A2, steps=k, groups=400, n=6, first=1000 * k)) for k in (16, 32)
    )
    # 4 standard errors of 2 (twice) - (once), and .02 for c/steps^2
    wrong = abs(2 * twice[0] - once[0] - truth([(A2, 1.0)], quadratic, 0.8)[0])
    assert wrong < 4 * np.sqrt(4 * finer[0] ** 2 + error[0] ** 2) + 0.02 and finer[0] < 0.02, (wrong, finer[0])


@pytest.mark.parametrize("field", FIELDS)
def test_the_rate_of_every_field_has_the_mean_zero_under_the_path(field: str):
    """E_p[div b + <b, grad log p>] = 0 at any time, here of the target itself: q exp(phi) for a quadratic phi."""
    base = mixture(A2, "cosine")
    guide = gk.DriftLite.tilt(quadratic, 0.8, schedule=lambda t: 1.0, basis=(field,), probes=2)
    run = gk.Run(base, 20_000, steps=[0.3, 0.0], guides=[guide])
    alpha, sigma = base.process.scales(0.3)
    # x_t is tilted by exp(-.6 (x - .8)^2/.8 - .4 (y + .3)^2/.8): draw x_t of the model, and weigh
    x = alpha * base.exact_sample(20_000, seed=3) + sigma * torch.randn(
        20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    with torch.no_grad():
        pop = run.look(replace(run.start(), x=x, predictions=(), memos=(None,)), 0)
    h, w = pop.memos[0][1][:, 0], (quadratic(x) / 0.8).softmax(0)
    mean = (w * h).sum()
    error = (w.square() * (h - mean).square()).sum().sqrt()
    assert abs(mean) < 4.5 * error and error < 0.05 * (w * (h - mean).square()).sum().sqrt()


def test_a_reward_with_attention_is_differentiated_twice():
    """Of two tokens with equal keys attention is the mean of their values: the reward is x_1 + x_2."""
    base = mixture(([1.0], [[0.4, -0.3]], [0.8]), "cosine")

    def looked(x):
        v = x[:, None, :, None]
        return torch.nn.functional.scaled_dot_product_attention(0 * v, 0 * v, v).sum((1, 2, 3))

    results = [
        gk.sample(base, 20, steps=6, guides=[gk.DriftLite.tilt(r, 1.0, basis=("reward",))]) for r in (looked, total)
    ]
    assert torch.allclose(results[0].log_weights, results[1].log_weights, atol=1e-5)
    assert torch.allclose(results[0].x, results[1].x, atol=1e-5)


def total(x):
    return x.sum(1)


def test_a_large_move_carries_y_by_theta_b_over_the_change_of_u():
    """dy += theta b dtau in y = x/alpha, u = (sigma/alpha)^2: x_s is carried alpha_s = .85 times as far. Of the cosine
    schedule u = tan(pi t/2)^2, and the field of the state is b = y/(1 + u)."""
    guide = gk.DriftLite.tilt(quadratic, 0.4, basis=("state",))
    run = gk.Run(mixture(A2, "cosine"), 40, steps=[0.9, 0.7, 0.35, 0.0], guides=[guide])
    with run.borrowed():
        pop = run.advance(run.start(), 0)
        p, q = run.kernels(pop, 1)
    theta = pop.memos[0][-1]
    u_t, u_s = (np.tan(np.pi * t / 2) ** 2 for t in (0.7, 0.35))
    carried = (u_t - u_s) * theta * pop.x / np.cos(0.35 * np.pi) / (1 + u_t)
    assert theta.abs().min() > 1e-3
    assert torch.allclose(q.mean - p.mean, np.cos(0.175 * np.pi) * carried, rtol=1e-9)


def test_what_is_wrong_is_said_before_the_network_is_called():
    with pytest.raises(ValueError, match=r"here there is state, score$"):
        gk.DriftLite.anneal(2.0, basis=("reward",))
    with pytest.raises(ValueError, match="a number of random directions"):
        gk.DriftLite.anneal(2.0, probes=0)
    with pytest.raises(ValueError, match="tokens have none: use FKC"):
        gk.Run(gk.analytic.TokenTable(torch.zeros(2, 2)), 4, guides=[gk.DriftLite.cfg(2.0)])
    net = gk.GaussianModel(lambda x, t, cond: x.detach() * 0.5, (1,), gk.schedules.Flow(), "clean")
    with pytest.raises(gk.NetworkError, match='leave "score" out of basis'):
        gk.sample(net, 4, steps=3, guides=[gk.DriftLite.tilt(linear, 1.0)])

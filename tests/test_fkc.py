"""Feynman-Kac correctors reach products of powers, computed here on a grid or by enumeration, and their integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

import guidekit as gk
from guidekit.guides.fkc import Corrector
from guidekit.models.evaluations import Other

from .problems import PROBLEMS, L, V, deviations, estimates

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
SCHEDULES = {"cosine": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}
DDPM, DDIM = gk.solvers.DDPM, gk.solvers.DDIM

# Laws are (weights, means, stds) in one and two dimensions.
A1 = ([0.5, 0.3, 0.2], [[-1.5], [0.5], [2.0]], [0.5, 0.4, 0.6])
B1 = ([0.3, 0.7], [[-0.6], [1.2]], [0.7, 0.5])
A2 = ([0.5, 0.3, 0.2], [[-1.5, 0.3], [0.5, -0.4], [2.0, 0.8]], [0.5, 0.4, 0.6])
B2 = ([0.3, 0.7], [[-0.6, 0.5], [1.2, -0.3]], [0.7, 0.5])
LABELS = [1, 0, 1]


def labelled(law):
    """The components that cond=1 means."""
    return tuple([v for v, label in zip(part, LABELS, strict=True) if label == 1] for part in law)


def linear(x: Tensor) -> Tensor:
    return 0.6 * x[:, 0] - 0.3 * x[:, -1]


def quadratic(x: Tensor) -> Tensor:
    return -0.6 * (x[:, 0] - 0.8).square() - 0.4 * (x[:, -1] + 0.3).square()


def features(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0], x[:, 0].square(), x[:, -1], x[:, 0].tanh()], 1)


def on_a_grid(powers, reward=None, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Points, and the mass of prod q_i^(c_i) exp(reward/alpha) there; not normalised."""
    d = len(powers[0][0][1][0])
    axis = np.linspace(-9, 9, 2001 if d == 1 else 301)
    x = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    log_p = 0.0
    for (weights, means, stds), c in powers:
        w, m, s = np.array(weights) / np.sum(weights), np.array(means), np.array(stds)
        square = ((x[:, None] - m) ** 2).sum(-1)
        log_p = log_p + c * logsumexp(np.log(w) - 0.5 * square / s**2 - d / 2 * np.log(2 * np.pi * s**2), axis=1)
    if reward is not None:
        log_p = log_p + reward(torch.as_tensor(x)).numpy() / alpha
    return x, np.exp(log_p) * (axis[1] - axis[0]) ** d


def truth(powers, reward=None, alpha: float = 1.0) -> np.ndarray:
    """log of the integral, and the means of the features under the normalised law."""
    x, mass = on_a_grid(powers, reward, alpha)
    return np.array([np.log(mass.sum()), *(mass / mass.sum() @ features(torch.as_tensor(x)).numpy())])


def found(result: gk.Result) -> tuple[np.ndarray, np.ndarray]:
    """The same from independent populations, all of them together, and the standard errors (delta method)."""
    w = result.log_weights.exp().view(result.groups, -1).numpy()
    f = features(result.x).numpy().reshape(*w.shape, -1)
    z, zf = w.mean(1), (w[..., None] * f).mean(1)
    mean = zf.mean(0) / z.mean()
    rest = np.concatenate([z[:, None] - z.mean(), zf - mean * z[:, None]], 1) / z.mean()
    return np.array([np.log(z.mean()), *mean]), rest.std(0, ddof=1) / np.sqrt(len(z))


def mixture(law, schedule: str, labels=None) -> gk.analytic.GaussianMixture:
    parts = (torch.tensor(v, dtype=torch.float64) for v in law)
    return gk.analytic.GaussianMixture(*parts, SCHEDULES[schedule], labels)


def grid(schedule: str, steps: int, total: float) -> int | list[float]:
    """Evenly spaced times; where the powers do not add up to 1, from alpha > 0 evenly in log(sigma/alpha)."""
    return steps if total == 1 else gk.times.log_snr(SCHEDULES[schedule], steps, 1.0 if schedule == "edm" else 0.98)


# Gaussian processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A guide, the model that it is for, and the powers and reward that it stands for."""

    name: str
    schedule: str
    law: Any
    guide: Callable[[str], Corrector]  # given the schedule
    powers: Any
    reward: Any = None
    alpha: float = 1.0
    solver: gk.solvers.Solver | None = None

    def estimate(self, steps: int, groups: int = 40, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
        guide = self.guide(self.schedule)
        return found(
            gk.sample(
                mixture(self.law, self.schedule, LABELS if len(self.law[0]) == 3 else None),
                n,
                steps=grid(self.schedule, steps, guide.total),
                guides=[guide],
                cond=[1 if gk.Null() in guide.needs else None] * groups,
                seed=[steps * 1000 + g for g in range(groups)],
                solver=self.solver,
            )
        )


def tilt(reward, alpha, **options):
    return lambda schedule: gk.FKC.tilt(reward, alpha, ess=0.9, **options)


def combined(reward, alpha):
    """Powers that add up to 1.7, and a reward: all terms of the rule at once."""
    powers = ((gk.Cond(), 1.3), (gk.Null(), 0.4))
    return lambda schedule: Corrector(powers, reward, alpha, ess=0.9)


BOTH = [(labelled(A2), 1.3), (A2, 0.4)]
CASES = [
    Case("cfg", "cosine", A2, lambda s: gk.FKC.cfg(1.6, ess=0.9), [(labelled(A2), 1.6), (A2, -0.6)]),
    Case(
        "cfg", "edm", A2, lambda s: gk.FKC.cfg(1.6, ess=0.9), [(labelled(A2), 1.6), (A2, -0.6)],
        solver=DDIM(eta=0.7),
    ),
    Case("cold", "edm", A1, lambda s: gk.FKC.anneal(3.0, ess=0.9), [(A1, 3.0)]),
    Case("cold", "flow", A2, lambda s: gk.FKC.anneal(2.0, ess=0.9), [(A2, 2.0)], solver=DDIM(eta=0.7)),
    Case("hot", "cosine", A2, lambda s: gk.FKC.anneal(0.5, ess=0.9), [(A2, 0.5)]),
    Case(
        "product", "flow", A1, lambda s: gk.FKC.product(mixture(B1, s), ess=0.9), [(A1, 1.0), (B1, 1.0)],
        solver=DDIM(eta=0.5),
    ),
    Case("product", "edm", A2, lambda s: gk.FKC.product(mixture(B2, s), 0.7, ess=0.9), [(A2, 1.0), (B2, 0.7)]),
    Case("linear", "cosine", A2, tilt(linear, 0.7), [(A2, 1.0)], linear, 0.7),
    Case("linear", "flow", A2, tilt(linear, 0.7), [(A2, 1.0)], linear, 0.7, solver=DDIM(eta=0.5)),
    Case("quadratic", "cosine", A2, tilt(quadratic, 0.8), [(A2, 1.0)], quadratic, 0.8, solver=DDIM(eta=0.7)),
    Case("quadratic", "edm", A2, tilt(quadratic, 0.8), [(A2, 1.0)], quadratic, 0.8),
    Case(
        "scheduled", "flow", A2, tilt(quadratic, 0.8, schedule=lambda t: (1 - t) ** 2 * (1 + t)), [(A2, 1.0)],
        quadratic, 0.8,
    ),
    Case("combined", "cosine", A2, combined(quadratic, 0.8), BOTH, quadratic, 0.8),
    Case("combined", "flow", A2, combined(linear, 0.7), BOTH, linear, 0.7, solver=DDIM(eta=0.7)),
    Case("combined", "edm", A2, combined(quadratic, 0.8), BOTH, quadratic, 0.8, solver=DDIM(eta=0.5)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.name}-{c.schedule}-{c.solver or DDPM()}")
def test_the_law_and_the_integral_are_those_of_the_powers(case: Case):
    """On every schedule and at every noise level; the error of the steps, c/steps, is extrapolated away."""
    exact = truth(case.powers, case.reward, case.alpha)
    (once, error), (twice, finer) = case.estimate(48), case.estimate(96)
    # 40 independent populations of 300: 5 numbers, 4.5 standard errors of 2 (twice) - (once); .012 for c/steps^2
    wrong = np.abs(2 * twice - once - exact)
    assert (wrong < 4.5 * np.sqrt(4 * finer**2 + error**2) + 0.012).all(), wrong


def gaussians(null: tuple[float, float], schedule: str = "cosine") -> gk.GaussianModel:
    """N(m, s^2) given cond=(m, s), written out here, in one dimension; null is one of them."""

    def net(x, t, cond):
        alpha, sigma = (v[:, None] for v in SCHEDULES[schedule](t))
        m, s = cond[:, :1], cond[:, 1:]
        return m + alpha * s**2 / ((alpha * s) ** 2 + sigma**2) * (x - alpha * m)

    return gk.GaussianModel(
        net, (1,), SCHEDULES[schedule], "clean", encode_cond=lambda c: torch.tensor(c, dtype=torch.float64),
        null=torch.tensor(null, dtype=torch.float64), dtype=torch.float64,
    )  # fmt: skip


def weighted_moments(result: gk.Result) -> tuple[float, float]:
    x, w = result.x[:, 0], result.log_weights.exp()
    mean = (w * x).sum() / w.sum()
    return float(mean), float((w * (x - mean) ** 2).sum() / w.sum())


@pytest.mark.parametrize("schedule", ["flow", "edm"])
def test_guidance_of_two_gaussians_is_their_product_of_powers_and_not_what_cfg_gives(schedule: str):
    """N(0, 1)^-1 N(1.5, .25)^2 = N(1.714, .143); guidance without weights gives N(1.875, .109)."""
    model, cond = gaussians((0.0, 1.0), schedule), [(1.5, 0.5)] * 60

    def moments(guide, steps):
        solver = DDPM(times="log_snr")
        return np.array(weighted_moments(
            gk.sample(model, 500, steps=steps, guides=[guide], cond=cond, seed=list(range(60)), solver=solver)
        ))  # fmt: skip

    # without weights by the linear differential equation that the mean and the variance obey
    mean, var, edges = 0.0, 90.0**2, np.geomspace(90.0**2, 1e-7, 200_001)
    for u, h in zip(edges[:-1], -np.diff(edges), strict=True):
        pull = 2 / (0.25 + u) - 1 / (1 + u)
        mean, var = mean + h * (2 * 1.5 / (0.25 + u) - pull * mean), (var * np.exp(-2 * pull * h) + h)
    assert (round(mean, 3), round(var, 3)) == (1.875, 0.109)

    plain = 2 * moments(gk.CFG(2.0), 100) - moments(gk.CFG(2.0), 50)
    # 30,000 samples, extrapolated: se sqrt(5 x .109/30000) = .004 and sqrt(5 x 2/30000) x .109 = .002; 4.5 of them
    assert np.abs(plain - (mean, var)).max() < 0.019
    exact = 2 * moments(gk.FKC.cfg(2.0, ess=0.9), 100) - moments(gk.FKC.cfg(2.0, ess=0.9), 50)
    # weights grow like exp(y^2) and so the weighted se is larger: .0075 and .0035 by 40 repetitions
    assert abs(exact[0] - 12 / 7) < 0.034
    assert abs(exact[1] - 1 / 7) < 0.016


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", [DDPM(), DDIM(eta=0.5)], ids=str)
def test_with_equal_variances_all_particles_weigh_alike(schedule: str, solver):
    """Of N(.3, 1) and N(1.1, 1) the scores differ by a constant; log Z = scale (scale - 1) .8^2/2, exactly at s = 1."""
    result = gk.sample(
        gaussians((0.3, 1.0), schedule), 32, steps=7, guides=[gk.FKC.cfg(2.5)], cond=(1.1, 1.0), solver=solver
    )
    assert torch.allclose(result.ess, torch.tensor(32.0, dtype=torch.float64), rtol=1e-9)
    # |s_1 - s_2|^2 du is constant in 1/(1 + u), in which the integral is taken; EDM starts at u = 6400, not infinity
    start = 1 / 6401 if schedule == "edm" else 0.0
    assert abs(float(result.log_z) - 2.5 * 1.5 / 2 * 0.8**2 * (1 - start)) < 1e-9


def test_the_error_of_the_integral_falls_like_the_square_of_a_step_where_weights_are_equal():
    """At s = .6 the trapezoids are no longer exact. No Monte Carlo error, because nothing depends on the particle."""
    model, exact = gaussians((0.3, 0.6), "flow"), 2.5 * 1.5 / 2 * (0.8 / 0.6) ** 2
    error = [
        abs(float(gk.sample(model, 2, steps=k, guides=[gk.FKC.cfg(2.5)], cond=(1.1, 0.6)).log_z) - exact)
        for k in (20, 80, 320)
    ]
    order = -np.diff(np.log(error)) / np.log(4)
    assert (order > 1.6).all() and error[-1] < 1e-3, (error, order)


@pytest.mark.slow
def test_the_error_falls_like_the_step():
    """Regression of the log of the error of log Z and of E[x^2] on that of the number of steps: slope -1."""
    case = Case("product", "flow", A1, lambda s: gk.FKC.product(mixture(B1, s), ess=0.9), [(A1, 1.0), (B1, 1.0)])
    steps = np.array([24, 48, 96])
    wrong = np.array([case.estimate(k, 40, 1000)[0] for k in steps]) - truth(case.powers)
    for column, name in ((0, "log Z"), (2, "E[x^2]")):
        slope = np.polyfit(np.log(steps), np.log(np.abs(wrong[:, column])), 1)[0]
        # .085, .044, .022 and .35, .18, .09, of which the Monte Carlo part is .002 and .006: the slope is known to .06
        assert -1.2 < slope < -0.8, (name, slope, wrong[:, column])


@pytest.mark.parametrize("guide", [gk.FKC.cfg(1.6), gk.FKC.anneal(1.7), gk.FKC.anneal(0.6)], ids=["cfg", "cold", "hot"])
def test_only_sigma_over_alpha_matters(guide: Corrector):
    """The same noise at the same sigma/alpha gives the same samples and weights, however x is scaled on the way."""
    ratio = np.geomspace(60.0, 0.01, 12)
    edm = gk.schedules.EDM()
    low, high = edm.sigma_min ** (1 / 7), edm.sigma_max ** (1 / 7)
    times = {
        "cosine": np.arctan(ratio) * 2 / np.pi,
        "flow": ratio / (1 + ratio),
        "edm": (ratio ** (1 / 7) - low) / (high - low),
    }
    results = [gk.sample(mixture(A2, s, LABELS), 40, steps=[*t, 0.0], guides=[guide], cond=1) for s, t in times.items()]
    assert results[0].log_weights.std() > 0.01
    for other in results[1:]:
        assert torch.allclose(results[0].x, other.x, rtol=1e-8, atol=1e-8)
        assert torch.allclose(results[0].log_weights, other.log_weights, rtol=1e-8, atol=1e-8)


def test_one_power_may_be_written_in_many_ways():
    """q^1.8 is an annealed model, its product with itself, and guidance towards the condition that it has."""
    model = mixture(A2, "edm")
    guides = [
        gk.FKC.anneal(1.8, ess=1.0),
        gk.FKC.product(model, 0.8, ess=1.0),
        Corrector(((gk.Cond(), 1.3), (Other(mixture(A2, "edm")), 0.5)), ess=1.0),
        Corrector(((gk.Cond(), 2.5), (gk.Cond(), -0.7)), ess=1.0),
    ]
    results = [gk.sample(model, 50, steps=9, guides=[guide]) for guide in guides]
    assert results[0].trace["resampled"].any()
    for other in results[1:]:
        assert torch.equal(results[0].ancestors, other.ancestors)
        assert torch.allclose(results[0].x, other.x, rtol=1e-9)
        assert torch.allclose(results[0].log_weights, other.log_weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("total", [3.0, 0.5])
def test_powers_start_where_their_target_is_and_weigh_alike_while_it_is_noise(total: float):
    """q^C of noise is N(0, u/C)."""
    n, steps = 4000, 33
    ratio = 80 * (20 / 80) ** (np.arange(steps) / (steps - 1))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    times = [1.0, *((ratio[1:] ** (1 / 7) - low) / (high - low)), 0.0]
    run = gk.Run(mixture(A2, "edm"), n, steps=times, guides=[gk.FKC.anneal(total, ess=0.0)])
    with torch.no_grad():
        pop = run.start()
        assert torch.allclose(pop.x, run.start_noise(torch.arange(n)) * 80 / total**0.5)
        for index in range(steps - 1):
            pop = run.advance(pop, index)
    share = pop.x.square().mean() * total / 20**2
    # 8,000 numbers: 4.5 sqrt(2/8000) = .07, as much for the errors of the steps, and .02 for the data at sigma = 20
    assert abs(share - 1) < 0.16
    assert pop.ess > 0.998 * n


def test_a_shift_of_the_reward_changes_log_z_alone():
    """Although r(x_t) is weighed all the way: its weight beta rises by 1/alpha in all."""
    model = mixture(A2, "edm")
    plain, shifted = (
        gk.sample(model, 50, steps=9, guides=[gk.FKC.tilt(lambda x, c=c: quadratic(x) + c, 0.8)]) for c in (0.0, 3.0)
    )
    assert torch.allclose(plain.x, shifted.x, rtol=1e-9)
    # beta starts at 1/(1 + 6400)^2 of 1/alpha
    assert torch.allclose(shifted.log_weights - plain.log_weights, torch.tensor(3.0 / 0.8).double(), rtol=1e-7)


def test_final_samples_without_a_score_weigh_nothing():
    def partial(x):
        return torch.where(x[:, 0] < 0.3, torch.nan, quadratic(x))

    with pytest.warns(UserWarning, match="could not be scored"):
        result = gk.sample(mixture(A2, "flow"), 200, steps=20, guides=[gk.FKC.tilt(partial, 0.8, ess=0.0)])
    lost = result.x[:, 0] < 0.3
    assert 10 < lost.sum() < 190
    assert torch.equal(result.log_weights == -torch.inf, lost)
    assert result.log_weights[~lost].isfinite().all()


# masked tokens -----------------------------------------------------------------------------------------------------

TABLES = PROBLEMS["masked"].model.table.view(2, V, V, V).exp().numpy()  # without and with the condition
OTHER = np.exp(np.random.default_rng(5).normal(size=(V,) * L))
OTHER /= OTHER.sum()


def other_table() -> gk.analytic.TokenTable:
    """A second model, which has one law whatever the condition."""
    return gk.analytic.TokenTable(torch.tensor(OTHER).log(), classes=torch.tensor(OTHER).log()[None])


def marginals(table: np.ndarray, x: tuple[int, ...]) -> np.ndarray:
    """p(x_0^i = v | the tokens of x that are not masked), (L, V)."""
    fits = table.copy()
    for i, v in enumerate(x):
        if v < V:
            keep = [slice(None)] * L
            keep[i] = [u for u in range(V) if u != v]
            fits[tuple(keep)] = 0.0
    fits /= fits.sum()
    return np.stack([fits.sum(tuple(j for j in range(L) if j != i)) for i in range(L)])


def enumerated(powers, times, predicted=marginals) -> np.ndarray:
    """The measure of x_0, (V,)*L, pushed through the chain's kernels without normalising what is unmasked."""
    factors = {}
    for x in np.ndindex(*(V + 1,) * L):
        free = np.array(x) == V
        factors[x] = np.prod([np.where(free[:, None], predicted(table, x), 1.0) ** c for table, c in powers], 0)
    mass = {(V,) * L: 1.0}
    for t, s in pairwise(times):
        after: dict[tuple[int, ...], float] = {}
        for x, m in mass.items():
            factor, paths = factors[x], [((), m)]
            for i, v in enumerate(x):
                ways = [(v, 1.0)] if v < V else [(V, s / t), *((u, (1 - s / t) * factor[i, u]) for u in range(V))]
                paths = [((*y, u), p * q) for y, p in paths for u, q in ways if q > 0]
            for y, p in paths:
                after[y] = after.get(y, 0.0) + p
        mass = after
    law = np.zeros((V,) * L)
    for x, m in mass.items():
        law[x] = m
    return law


TOKEN_CASES = [
    ("cfg", lambda: gk.FKC.cfg(1.7, ess=0.9), [(TABLES[1], 1.7), (TABLES[0], -0.7)]),
    ("cold", lambda: gk.FKC.anneal(1.8, ess=0.9), [(TABLES[1], 1.8)]),
    ("hot", lambda: gk.FKC.anneal(0.4, ess=0.9), [(TABLES[1], 0.4)]),
    ("product", lambda: gk.FKC.product(other_table(), 0.6, ess=0.9), [(TABLES[1], 1.0), (OTHER, 0.6)]),
]
tokens = pytest.mark.parametrize("guide, powers", [c[1:] for c in TOKEN_CASES], ids=[c[0] for c in TOKEN_CASES])


@tokens
@pytest.mark.parametrize("times", [[1.0, 0.0], [1.0, 0.45, 0.0], [1.0, 0.8, 0.35, 0.1, 0.0]], ids=len)
def test_tokens_follow_the_law_of_their_own_chain_however_many_are_unmasked_at_once(guide, powers, times):
    problem = PROBLEMS["masked"]
    law = enumerated(powers, times)
    groups, n = 3000, 8
    result = gk.sample(problem.model, n, steps=times, guides=[guide()], cond=[0] * groups, seed=list(range(groups)))
    states = torch.tensor(list(np.ndindex(*law.shape)))
    exact = law.ravel() @ problem.features(states).numpy()
    # 4 unbiased estimates, 3,000 independent populations of 8: 4.5 standard errors
    assert np.abs(deviations(estimates(problem, result), exact, np.zeros(4))).max() < 4.5
    if len(times) == 2:  # one step draws the tokens apart, and log Z is a number
        assert torch.allclose(result.log_z, torch.tensor(np.log(law.sum())), rtol=1e-9)


def test_of_a_network_only_what_it_says_of_masked_positions_counts():
    """Networks predict known positions too, and not by a point mass: those are not unmasked, and not weighed."""
    rng = np.random.default_rng(2)
    own, pair = rng.normal(size=(2, L, V)), rng.normal(size=(L, V + 1, L, V)) * 0.5

    def logits(x: np.ndarray, c: np.ndarray) -> np.ndarray:
        return own[c] + sum(pair[j, x[:, j]] for j in range(L))

    def net(x, t, cond):
        return torch.tensor(logits(x.numpy(), cond.numpy()))

    def predicted(c, x):
        z = logits(np.array([x]), np.array([c]))[0]
        return np.exp(z - logsumexp(z, axis=1, keepdims=True))

    model = gk.MaskedModel(net, V, L, null=0, dtype=torch.float64)
    times, groups = [1.0, 0.7, 0.4, 0.0], 3000
    law = enumerated([(1, 1.7), (0, -0.7)], times, predicted)
    guides = [gk.FKC.cfg(1.7, ess=0.9)]
    result = gk.sample(model, 8, steps=times, guides=guides, cond=[1] * groups, seed=list(range(groups)))
    states = torch.tensor(list(np.ndindex(*law.shape)))
    problem = PROBLEMS["masked"]
    exact = law.ravel() @ problem.features(states).numpy()
    # 4 unbiased estimates, 3,000 independent populations of 8: 4.5 standard errors
    assert np.abs(deviations(estimates(problem, result), exact, np.zeros(4))).max() < 4.5


@tokens
def test_tokens_unmasked_one_at_a_time_follow_the_product_of_powers(guide, powers):
    """In 100 steps two of three tokens rarely go together, and what that leaves wrong is enumerated."""
    law = np.prod([table**c for table, c in powers], 0)
    chain = enumerated(powers, np.linspace(1, 0, 101))
    assert np.abs(chain / chain.sum() - law / law.sum()).sum() / 2 < 0.009
    assert abs(np.log(chain.sum() / law.sum())) < 0.03
    result = populations_in(100, guide())
    w = result.log_weights.exp().view(result.groups, -1)
    place = (result.x @ torch.tensor([V * V, V, 1])).view(result.groups, -1)
    mass = torch.zeros(result.groups, V**L, dtype=torch.float64).scatter_add_(1, place, w) / w.shape[1]
    often = law.ravel() > 0.01 * law.sum()  # states that enough particles meet for a normal law of the error
    error = (mass.std(0).numpy() / result.groups**0.5)[often]
    wrong = np.abs(mass.mean(0).numpy() - law.ravel())[often]
    # 27 or fewer unbiased estimates from 60 populations: 4.5 standard errors, and the distance of the chain itself
    assert (wrong < 4.5 * error + np.abs(chain - law).ravel()[often]).all()
    assert (np.abs(TABLES[1] - law).ravel()[often] / error).max() > 10  # as far away is the unguided law


def populations_in(steps: int, guide: gk.Guide) -> gk.Result:
    """60 populations of 100."""
    return gk.sample(PROBLEMS["masked"].model, 100, steps=steps, guides=[guide], cond=[0] * 60, seed=list(range(60)))


# what it refuses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", [gk.FKC.cfg(2.0), gk.FKC.anneal(2.0)], ids=["cfg", "anneal"])
def test_uniform_noise_has_no_such_weights(guide):
    with pytest.raises(ValueError, match="uniform noise has none that are exact"):
        gk.Run(PROBLEMS["uniform"].model, 4, steps=4, guides=[guide], cond=0)


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize("solver", [None, gk.solvers.SDEDPMpp(2)], ids=["DDPM", "multistep"])
def test_powers_that_do_not_add_up_to_one_begin_where_a_trace_of_the_data_is_left(schedule: str, solver):
    model, guides = mixture(A1, schedule), [gk.FKC.anneal(2.0)]
    whole = gk.sample(model, 4, steps=4, guides=guides, solver=solver)
    later = gk.sample(model, 4, steps=[0.75, 0.5, 0.25, 0.0], guides=guides, solver=solver)
    assert torch.equal(whole.x, later.x) and torch.equal(whole.log_weights, later.log_weights)
    assert len(whole.trace) == 3
    one = [gk.FKC.product(mixture(B1, schedule), 0.0)]  # these add up to one
    assert len(gk.sample(model, 4, steps=4, guides=one, solver=solver).trace) == 4
    with pytest.raises(ValueError, match=r"powers that add up to 2 .* the 1 steps .* give more steps"):
        gk.sample(model, 4, steps=1, guides=guides, solver=solver)


def test_a_usual_grid_of_times_is_good_enough_for_another_temperature():
    """50 evenly spaced steps, the first of which is left out."""
    law, n = mixture(A1, "cosine"), 20_000
    x = torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    cold = 2 * law.log_prob(x[:, None]).double()
    log_z = cold.logsumexp(0) + math.log(1e-3)
    mean = (cold - log_z).exp() @ x * 1e-3
    result = gk.sample(law, n, steps=50, guides=[gk.FKC.anneal(2.0)])
    assert abs(result.weights @ result.x[:, 0] - mean) < 0.04
    assert abs(result.log_z[0] - log_z) < 0.05


@pytest.mark.parametrize("options", [{"steer": True}, {"start": 0.2}, {"stop": 0.8}], ids=str)
def test_it_is_a_whole_path(options):
    with pytest.raises(ValueError, match="no steer, start or stop"):
        gk.Run(mixture(A1, "cosine"), 4, guides=[gk.FKC.tilt(linear, 1.0, **options)])


def test_times_that_go_up_are_refused():
    with pytest.raises(ValueError, match="FKC follows a path down in time"):
        gk.sample(mixture(A1, "cosine"), 4, steps=[1.0, 0.5, 0.7, 0.0], guides=[gk.FKC.tilt(linear, 1.0)])


def test_two_models_share_shape_and_noising_law():
    for base, other in (
        (mixture(A1, "cosine"), mixture(B1, "flow")),
        (mixture(A1, "cosine"), mixture(B2, "cosine")),
        (PROBLEMS["masked"].model, gk.analytic.TokenTable(torch.zeros((V + 1,) * L))),
    ):
        with pytest.raises(ValueError, match="two models in one target share shape and noising law"):
            gk.Run(base, 4, guides=[gk.FKC.product(other)])


def test_other_bad_input():
    with pytest.raises(ValueError, match="no null condition"):
        gk.Run(mixture(A1, "cosine"), 4, guides=[gk.FKC.cfg(2.0)])
    with pytest.raises(ValueError, match="takes gradients in x, and tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 4, guides=[gk.FKC.tilt(lambda x: x[:, 0], 1.0)], cond=0)
    with pytest.raises(ValueError, match="temperature must be positive"):
        gk.FKC.tilt(linear, 0.0)
    with pytest.raises(ValueError, match=r"DDIM.* is deterministic"):
        gk.Run(mixture(A1, "cosine"), 4, guides=[gk.FKC.anneal(1.0)], solver=DDIM())
    for powers in (((gk.Null(), 1.0),), ((gk.Cond(), -1.0),), ((gk.Cond(), float("nan")),)):
        with pytest.raises(ValueError, match="numbers with a positive sum"):
            Corrector(powers)

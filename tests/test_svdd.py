"""SVDD: weighted, it reaches p exp(r/alpha)/Z for any number of candidates; greedy or unweighted it has its own laws.

What must come out is worked out here: closed forms of mixtures, and finite Markov chains (all tokens, or a mixture in
one dimension cut into cells), whose kernels become those of a selection among M children.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from math import pi as PI

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, ndtr
from scipy.stats import chi2

import guidekit as gk
from rewards import Reward

from . import problems
from .problems import deviations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

# mixtures: what they are, and what exp(r/alpha) makes of them ------------------------------------------------------

SCHEDULES = {"vp": gk.schedules.Cosine(), "flow": gk.schedules.Flow()}
SCALES = {"vp": lambda t: (np.cos(PI * t / 2), np.sin(PI * t / 2)), "flow": lambda t: (1 - t, t)}
W, M1, S = np.array([0.5, 0.3, 0.2]), np.array([-2.0, 0.5, 2.5]), np.array([0.5, 0.4, 0.6])
CUT = 1.0  # a feature is whether the first coordinate lies above it


def centres(d: int) -> np.ndarray:
    """Means along the first axis, and something different in every other one."""
    means = 0.3 * np.sin(1.0 + np.arange(3)[:, None] + 2 * np.arange(d)) * (d > 1)
    means[:, 0] = M1
    return means


def mixture(d: int = 1, schedule: str = "vp") -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(*map(torch.as_tensor, (W, centres(d), S)), SCHEDULES[schedule])


@dataclass(frozen=True)
class Tilt:
    """r = b.x - kappa/2 |x - c|^2 over alpha, which keeps a mixture a mixture."""

    b: np.ndarray
    kappa: float = 0.0
    c: float = 0.0
    alpha: float = 1.0

    def reward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.as_tensor(self.b) - self.kappa / 2 * (x - self.c).square().sum(-1)

    def answer(self) -> np.ndarray:
        """E[f exp(r/alpha)] for f = 1, first and last coordinate, [first > CUT]: complete the square of each part."""
        mu, b, k = centres(len(self.b)), self.b / self.alpha, self.kappa / self.alpha
        var = 1 / (1 / S**2 + k)
        mean = var[:, None] * (mu / S[:, None] ** 2 + b + k * self.c)
        const = (mean**2).sum(1) / var - (mu**2).sum(1) / S**2 - k * len(b) * self.c**2
        w = W * (var / S**2) ** (len(b) / 2) * np.exp(const / 2)
        above = ndtr((mean[:, 0] - CUT) / np.sqrt(var))
        return np.array([w.sum(), w @ mean[:, 0], w @ mean[:, -1], w @ above])


def linear(d: int, alpha: float = 0.8) -> Tilt:
    b = np.zeros(d)
    b[-1] -= 0.4 * (d > 1)
    b[0] += 0.9
    return Tilt(b, alpha=alpha)


def quadratic(d: int) -> Tilt:
    return Tilt(np.zeros(d), kappa=1.5 if d < 16 else 0.3, c=0.9, alpha=0.8)


def features(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.ones_like(x[:, 0]), x[:, 0], x[:, -1], (x[:, 0] > CUT).double()], 1)


def by_group(result: gk.Result, f: torch.Tensor) -> np.ndarray:
    """The mean of w f in every group, unbiased for E[f exp(r/alpha)]."""
    return (result.log_weights.exp()[:, None] * f).view(result.groups, -1, f.shape[1]).mean(1).numpy()


def groups(model: gk.Model, count: int, n: int, guides, *, steps: int = 6, first: int = 0, **options) -> gk.Result:
    """Independent populations of n; all kernels here are exact, so six steps are as good as many."""
    options = {"cond": [None] * count} | options
    return gk.sample(model, n, steps=steps, guides=guides, seed=list(range(first, first + count)), **options)


def off(result: gk.Result, truth: np.ndarray) -> float:
    """The largest deviation of the features of a mixture, in standard errors between groups."""
    return float(np.abs(deviations(by_group(result, features(result.x)), truth, np.zeros(4))).max())


# finite chains ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """States with the law of the first one, the kernel of every move, and the value of a state after it."""

    states: np.ndarray
    start: np.ndarray
    kernels: list[np.ndarray]
    values: list[np.ndarray]

    def law(self, chosen: Callable[[np.ndarray, np.ndarray], np.ndarray], moves=lambda i: True) -> np.ndarray:
        """The law of x_0 where in these moves, and in the last, `chosen(kernel, values)` is the law of the survivor."""
        p = self.start
        for i, (k, v) in enumerate(zip(self.kernels, self.values, strict=True)):
            p = p @ (chosen(k, v) if moves(i) else k)
        assert abs(p.sum() - 1) < 1e-8
        return p

    def plain(self) -> np.ndarray:
        return self.law(lambda k, v: k)

    def tilted(self, alpha: float) -> np.ndarray:
        """p exp(r/alpha), not normalised; nothing where there is no reward."""
        return self.plain() * np.nan_to_num(np.exp(self.values[-1] / alpha))


def greedy(m: int) -> Callable:
    """The best of m independent children: v is the largest value with P(V <= v)^m - P(V < v)^m."""

    def chosen(kernel: np.ndarray, values: np.ndarray) -> np.ndarray:
        levels, level = np.unique(np.nan_to_num(values, nan=-np.inf), return_inverse=True)
        mass = kernel @ np.eye(len(levels))[level]
        top = np.minimum(mass.cumsum(1), 1)
        best = top**m - np.hstack([np.zeros((len(kernel), 1)), top[:, :-1]]) ** m
        ratio = np.divide(best, mass, out=np.zeros_like(mass), where=mass > 0)
        return kernel * ratio[:, level]

    return chosen


def soft(m: int, alpha: float) -> Callable:
    r"""One of m children with probability e_i / sum_j e_j, e = exp(V/alpha):

    P(y) = m K(y) e_y E[1/(e_y + sum of the m - 1 others)] = m K(y) e_y int_0^oo exp(-u e_y) E[exp(-u e)]^(m-1) du.
    """
    u, du = np.exp(np.linspace(-30, 14, 1500)), 44 / 1499  # the integrand in log u: the trapezium is as good as exact

    def chosen(kernel: np.ndarray, values: np.ndarray) -> np.ndarray:
        levels, level = np.unique(values, return_inverse=True)
        e = np.exp((levels - levels.max()) / alpha)
        decay = np.exp(-u[:, None] * e)
        rest = decay @ (kernel @ np.eye(len(levels))[level]).T
        return kernel * (m * e * du * np.einsum("u,ux,ul->xl", u, rest ** (m - 1), decay))[:, level]

    return chosen


def endless(alpha: float) -> Callable:
    """The limit m -> infinity of it: K exp(V/alpha), normalised."""

    def chosen(kernel: np.ndarray, values: np.ndarray) -> np.ndarray:
        k = kernel * np.exp((values - values.max()) / alpha)
        return k / k.sum(1, keepdims=True)

    return chosen


L, V, STEPS = 4, 3, 6
ALPHA, WARM = 0.5, 0.8  # at the second the weights of small populations have light tails


def token_reward(x):
    """In no position like in another."""
    return 0.5 * (x[:, 0] == 2) + 0.3 * x[:, 1] * (x[:, 2] == 1) - 0.4 * (x[:, 2] == 0) + 0.6 * (x[:, 3] == 1)


def picky(x):
    """Some samples cannot be scored."""
    return token_reward(x) + torch.where(x[:, 0] == x[:, 3], torch.nan, 0.0)


def table(which: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5 + which)
    return torch.randn((V,) * L, generator=generator, dtype=torch.float64) * 1.2


@lru_cache(maxsize=16)
def tokens(noising: str, steps: int = STEPS, reward=token_reward, which: int = 0) -> Chain:
    """The factorised sampler of L tokens of V kinds, whose value is the reward of the posterior's mode."""
    uniform, p = noising == "uniform", table(which).flatten().softmax(0).numpy()
    symbols = V if uniform else V + 1

    def grid(n: int) -> np.ndarray:
        return np.stack(np.meshgrid(*[np.arange(n)] * L, indexing="ij"), -1).reshape(-1, L)

    states, clean = grid(symbols), grid(V)
    same = states[:, None] == clean

    def marginals(t: float) -> np.ndarray:
        fits = same * (1 - t) + t / V if uniform else same | (states == V)[:, None]
        post = p * fits.prod(-1)
        return np.einsum("xc,clv->xlv", post / post.sum(1, keepdims=True), clean[..., None] == np.arange(V))

    def kernel(t: float, s: float) -> np.ndarray:
        each = np.zeros((len(states), L, symbols))
        if uniform:  # Bayes for each x_0, then the mean over x_0
            g, one = (1 - t) / (1 - s), np.eye(V)
            up, down, total = g * one + (1 - g) / V, (1 - s) * one + s / V, (1 - t) * one + t / V
            bayes = np.einsum("vx,wv->xwv", up, down) / total.T[..., None]
            each = np.einsum("slw,slwv->slv", marginals(t), bayes[states])
        else:
            hidden = (states == V)[..., None]
            each[..., :V] = np.where(hidden, (1 - s / t) * marginals(t), states[..., None] == np.arange(V))
            each[..., V] = np.where(hidden[..., 0], s / t, 0)
        place = np.arange(L)
        return each[:, place, states].prod(-1)

    def value(t: float) -> np.ndarray:
        mode = states
        if t > 0:
            mode = np.where((states < V) & (not uniform), states, marginals(t).argmax(-1))
        ok = (mode < V).all(1)  # masks that are left at t = 0 have probability zero
        return np.where(ok, reward(torch.as_tensor(mode)).double().numpy(), 0.0)

    times = 1 - np.arange(steps + 1) / steps
    start = np.full(len(states), 1 / len(states)) if uniform else (states == V).all(1).astype(float)
    return Chain(states, start, [kernel(t, s) for t, s in pairwise(times)], [value(s) for s in times[1:]])


class Remembered(gk.analytic.TokenTable):
    """A TokenTable that evaluates every state once for each time, and then looks it up: the same numbers, sooner."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        symbols = self.process.states
        self.all = torch.cartesian_prod(*[torch.arange(symbols)] * L)
        self.place = symbols ** torch.arange(L - 1, -1, -1)
        self.known: dict = {}

    def __call__(self, x, t, cond):
        labels = [-1] if cond is None else range(len(self.table))
        if t not in self.known:
            conds = [None if cond is None else torch.full((len(self.all),), label) for label in labels]
            self.known[t] = torch.stack([super(Remembered, self).__call__(self.all, t, c) for c in conds])
        return self.known[t][0 if cond is None else cond, (x * self.place).sum(-1)]


def token_model(noising: str) -> gk.analytic.TokenTable:
    return Remembered(table(), noising)


def place(chain: Chain, x: torch.Tensor) -> np.ndarray:
    """The index of each row among the states."""
    symbols = round(len(chain.states) ** (1 / L))
    return (x.numpy() * symbols ** np.arange(L - 1, -1, -1)).sum(-1)


def fits(chain: Chain, x: torch.Tensor, law: np.ndarray) -> bool:
    """Pearson's test of independent draws at the level 1e-6, rare states taken together."""
    law, count = law / law.sum(), np.bincount(place(chain, x), minlength=len(law))
    assert count[law <= 0].sum() == 0
    rare = law * len(x) < 10
    expected = np.append(law[~rare], law[rare].sum()) * len(x)
    found = np.append(count[~rare], count[rare].sum())
    keep = expected > 0
    return ((found - expected)[keep] ** 2 / expected[keep]).sum() < chi2.isf(1e-6, keep.sum() - 1)


def token_features(x: torch.Tensor) -> torch.Tensor:
    """Z, every token of every position, and how neighbours agree."""
    hot = torch.nn.functional.one_hot(x.clamp(max=V - 1), V).flatten(1)
    return torch.cat([torch.ones(len(x), 1), hot, x[:, 1:] == x[:, :-1]], 1).double()


def tokens_off(chain: Chain, result: gk.Result, truth: np.ndarray, mine: slice = slice(None)) -> float:
    """The largest deviation of E[w f] of these groups in standard errors between them."""
    f = token_features(torch.as_tensor(chain.states)).numpy()
    found = by_group(result, token_features(result.x))[mine]
    return float(np.abs(deviations(found, truth @ f, np.zeros(f.shape[1]))).max())


def distance(p: np.ndarray, q: np.ndarray) -> float:
    return 0.5 * float(np.abs(p / p.sum() - q / q.sum()).sum())


# weighted: p exp(r/alpha) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [1, 4, 16])
@pytest.mark.parametrize("tilt", [linear, quadratic])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("d", [1, 2, 16])
def test_weighted_samples_of_a_mixture_follow_the_tilted_law_for_any_candidates(d, schedule, tilt, candidates):
    case = tilt(d)
    guide = gk.SVDD(case.reward, case.alpha, candidates)
    count = {1: 400, 4: 240, 16: 100}[candidates]
    result = groups(mixture(d, schedule).exact(), count, 8, [guide])
    # E[w f] for Z and three features: independent populations of eight, 4.5 standard errors between them
    assert off(result, case.answer()) < 4.5


def test_the_closed_forms_of_this_file_are_those_of_an_integral():
    x = np.linspace(-9, 9, 200_001)
    p = (W * np.exp(-0.5 * ((x[:, None] - M1) / S) ** 2) / S).sum(1) / np.sqrt(2 * PI)
    for case in (linear(1), quadratic(1), Tilt(np.array([0.7]), 0.5, -0.3, 0.6)):
        w = p * np.exp(case.reward(torch.as_tensor(x)[:, None]).numpy() / case.alpha) * (x[1] - x[0])
        assert np.allclose(case.answer(), [w.sum(), w @ x, w @ x, w @ (x > CUT)], rtol=1e-4)


@pytest.mark.parametrize("candidates", [1, 4, 16])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_weighted_tokens_follow_the_tilted_law_of_their_chain(noising: str, candidates: int):
    chain = tokens(noising)
    count = {1: 2000, 4: 1000, 16: 400}[candidates]
    result = groups(token_model(noising), count, 8, [gk.SVDD(token_reward, WARM, candidates)])
    assert tokens_off(chain, result, chain.tilted(WARM)) < 4.5
    assert distance(chain.plain(), chain.tilted(WARM)) > 0.2  # which the unguided law would miss


@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_the_enumeration_of_this_file_is_that_of_the_common_problems(noising: str, monkeypatch):
    monkeypatch.setattr(problems, "L", L)
    other = problems.chain_of_tokens(table().flatten().softmax(0).numpy(), noising == "uniform", STEPS)
    chain = tokens(noising)
    assert np.allclose(chain.plain()[(chain.states < V).all(1)], other, atol=1e-12)


@pytest.mark.usefixtures("every_row")
def test_the_interval_in_which_it_acts_does_not_change_the_target():
    chain = tokens("masked")
    guide = gk.SVDD(token_reward, WARM, 4, start=0.3, stop=0.6)
    result = groups(token_model("masked"), 2000, 8, [guide])
    assert tokens_off(chain, result, chain.tilted(WARM)) < 4.5
    assert result.cost.network_rows == 2000 * 8 * (
        1 + 1 + 4 + 4 + 1 + 1
    )  # the moves to the fractions 2/6 and 3/6 have children


def test_groups_keep_their_conditions_and_their_laws():
    """Children of two classes side by side: each class has its own target and Z."""
    model, count = Remembered(table(), classes=torch.stack([table(1), table(2)])), 1500
    result = groups(model, 2 * count, 8, [gk.SVDD(token_reward, WARM, 3)], cond=[0, 1] * count)
    chains = [tokens("masked", which=which) for which in (1, 2)]
    assert distance(chains[0].tilted(WARM), chains[1].tilted(WARM)) > 0.3
    for label, chain in enumerate(chains):
        assert tokens_off(chain, result, chain.tilted(WARM), slice(label, None, 2)) < 4.5


def test_what_children_draw_for_themselves_does_not_depend_on_the_number_of_particles():
    """Rollouts take their noise from the address of the child."""
    model, case = mixture(2).exact(), linear(2)
    guides = [gk.SVDD(case.reward, 0.5, 3, value=gk.values.Rollout(case.reward, steps=2, k=2))]
    few, more = (gk.sample(model, n, steps=4, guides=guides) for n in (6, 11))
    assert torch.allclose(few.x, more.x[:6], rtol=1e-10, atol=1e-10)
    assert torch.allclose(few.log_weights, more.log_weights[:6], rtol=1e-10, atol=1e-10)


def test_every_child_is_evaluated_at_its_own_condition():
    """A network that returns its condition: with the last step deterministic, samples are that, or rows were mixed."""

    def net(x, t, cond):
        return cond[:, None].expand(-1, 2) + 0.0 * x

    model = gk.GaussianModel(net, (2,), predicts="clean", dtype=torch.float64)
    for alpha in (0.0, 0.7):
        guide = gk.SVDD(lambda x: x[:, 0].sin(), alpha, 5)
        result = gk.sample(model, 4, steps=5, guides=[guide], cond=[0.5, -1.5, 2.25])
        assert torch.equal(
            result.x, torch.tensor([0.5, -1.5, 2.25]).double().repeat_interleave(4)[:, None].expand(-1, 2)
        )


# then resampled: SVDD-R ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["svdd first", "svdd last"])
@pytest.mark.parametrize("which", ["resample", "fk"])
def test_global_resampling_after_it_keeps_the_law_and_counts_the_reward_once(which: str, first: bool):
    case, chain = linear(2), tokens("masked")

    def guides(reward, alpha):
        other = gk.Resample(ess=0.9) if which == "resample" else gk.FKSteering(reward, alpha, ess=0.9)
        return [gk.SVDD(reward, alpha, 4), other][:: 1 if first else -1]

    result = groups(mixture(2).exact(), 500, 8, guides(case.reward, case.alpha))
    assert off(result, case.answer()) < 4.5
    assert result.trace["resampled"].double().mean() > 0.1
    result = groups(token_model("masked"), 1000, 8, guides(token_reward, WARM))
    assert tokens_off(chain, result, chain.tilted(WARM)) < 4.5
    # once: p exp(2 r/alpha) is far off
    assert np.abs(chain.tilted(WARM / 2).sum() / chain.tilted(WARM).sum() - 1) > 0.5


@pytest.mark.parametrize("first", [True, False], ids=["svdd first", "svdd last"])
def test_another_temperature_or_another_reward_multiplies(first: bool):
    case, order = linear(2, 1.6), 1 if first else -1
    for other, total in [
        (gk.FKSteering(case.reward, 2.5, ess=0.9), Tilt(case.b * (1 / 1.6 + 1 / 2.5))),
        (gk.FKSteering(lambda x: -0.5 * x[:, 1], 1.6, ess=0.9), Tilt((case.b + [0, -0.5]) / 1.6)),
    ]:
        result = groups(mixture(2).exact(), 500, 8, [gk.SVDD(case.reward, 1.6, 4), other][::order])
        assert off(result, total.answer()) < 4.5
        assert abs(total.answer()[0] / case.answer()[0] - 1) > 0.1


# greedy: the law that it really has --------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def cells(which: str) -> Chain:
    """The mixture in one dimension, VP, exact kernels, 12 steps, in cells of width .03; V is r(E[x_0 | x_t])."""
    x = np.arange(-9, 9, 0.03) + 0.015
    edges = np.append(x - 0.015, x[-1] + 0.015)
    reward = rewards_1d[which]

    def component(t: float) -> np.ndarray:
        a, s = SCALES["vp"](t)
        var = (a * S) ** 2 + s**2
        log_p = np.log(W) - 0.5 * (x[:, None] - a * M1) ** 2 / var - 0.5 * np.log(var)
        return np.exp(log_p - logsumexp(log_p, axis=1, keepdims=True))

    def kernel(t: float, s: float) -> np.ndarray:
        (a_t, s_t), (a_s, s_s) = SCALES["vp"](t), SCALES["vp"](s)
        c = a_t / a_s
        tau, v = s_t**2 - (c * s_s) ** 2, (a_s * S) ** 2 + s_s**2
        var = 1 / (1 / v + c**2 / tau)
        mean = var * (a_s * M1 / v + c * x[:, None] / tau)
        rho = component(t)
        k = sum(
            rho[:, i, None] * np.diff(ndtr((edges - mean[:, i, None]) / var[i] ** 0.5)) for i in range(3)
        )  # fmt: skip
        return k / k.sum(1, keepdims=True)

    def value(t: float) -> np.ndarray:
        a, s = SCALES["vp"](t)
        clean = M1 + a * S**2 / ((a * S) ** 2 + s**2) * (x[:, None] - a * M1)
        mean = (component(t) * clean).sum(1) if t > 0 else x
        return reward(torch.as_tensor(mean)[:, None]).numpy()

    times = 1 - np.arange(13) / 12
    start = np.diff(ndtr(edges))
    return Chain(
        x, start / start.sum(), [kernel(t, s) for t, s in pairwise(times)], [value(s) for s in times[1:]]
    )  # fmt: skip


rewards_1d = {"linear": lambda x: x[:, 0], "quadratic": lambda x: -0.75 * (x[:, 0] - 1.21).square()}


def kolmogorov(chain: Chain, x: torch.Tensor, law: np.ndarray) -> float:
    """Distance of samples from a law on cells, at the upper edges of the cells."""
    found = torch.searchsorted(x[:, 0].sort().values, torch.as_tensor(chain.states + 0.015), right=True)
    return float(np.abs(found.numpy() / len(x) - (law / law.sum()).cumsum()).max())


@pytest.mark.parametrize(
    "which, candidates", [("linear", 2), ("linear", 10), ("linear", 20), ("quadratic", 2), ("quadratic", 4)]
)
def test_argmax_of_a_mixture_has_its_greedy_law(which: str, candidates: int):
    chain, n = cells(which), 3000
    law = chain.law(greedy(candidates))
    result = gk.sample(mixture().exact(), n, steps=12, guides=[gk.SVDD(rewards_1d[which], 0.0, candidates)])
    # Kolmogorov-Smirnov at the level 1e-4: 2.23/sqrt(n) = .041
    assert kolmogorov(chain, result.x, law) < 2.23 / n**0.5
    assert result.log_weights.abs().max() == 0
    assert kolmogorov(chain, result.x, chain.tilted(0.5)) > 0.1
    if which == "linear":  # published for this mixture, from a simulation: r = x, where every rising V is alike
        assert abs(law @ chain.states - {2: 2.84, 10: 5.42, 20: 6.09}[candidates]) < 0.03


@pytest.mark.parametrize("candidates", [1, 2, 7])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_argmax_of_tokens_has_its_greedy_law(noising: str, candidates: int):
    chain, n = tokens(noising), 8000
    law = chain.law(greedy(candidates))
    result = gk.sample(token_model(noising), n, steps=STEPS, guides=[gk.SVDD(token_reward, candidates=candidates)])
    assert fits(chain, result.x, law)
    assert candidates == 1 or not fits(chain, result.x, chain.tilted(ALPHA))
    assert candidates == 1 or distance(law, chain.plain()) > 0.2


def test_argmax_in_an_interval_chooses_there_and_nowhere_else():
    chain, n = tokens("uniform"), 8000
    law = chain.law(lambda k, v: greedy(5)(k, v), moves=lambda i: i in (1, 2))  # to the fractions 2/6 and 3/6
    guide = gk.SVDD(token_reward, candidates=5, start=0.3, stop=0.6)
    result = gk.sample(token_model("uniform"), n, steps=STEPS, guides=[guide])
    assert fits(chain, result.x, law)
    assert distance(law, chain.plain()) > 0.05


def test_ties_go_to_the_child_that_an_only_child_would_be():
    model = token_model("masked")
    plain = gk.sample(model, 50, steps=STEPS)
    for guide in (gk.SVDD(lambda x: torch.ones(len(x))), gk.SVDD(token_reward, candidates=1)):
        assert torch.equal(gk.sample(model, 50, steps=STEPS, guides=[guide]).x, plain.x)


# without the weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidates", [2, 8, 32])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_unweighted_tokens_have_the_law_of_choosing_among_siblings(noising: str, candidates: int):
    """With more candidates it goes to K exp(r(mode)/alpha), normalised at every step: not to the tilted law."""
    chain, n = tokens(noising), 2500
    result = gk.sample(token_model(noising), n, steps=STEPS, guides=[gk.SVDD(token_reward, ALPHA, candidates)])
    law, limit = chain.law(soft(candidates, ALPHA)), chain.law(endless(ALPHA))
    assert fits(chain, result.x, law)
    assert not fits(chain, result.x, chain.tilted(ALPHA))
    assert distance(law, limit) < 1.0 / candidates  # first order in 1/M
    assert distance(limit, chain.tilted(ALPHA)) > 0.05


def test_unweighted_samples_of_a_mixture_overshoot_and_weighted_ones_do_not():
    chain, n, alpha = cells("linear"), 2500, 0.5
    result = gk.sample(mixture().exact(), n, steps=12, guides=[gk.SVDD(rewards_1d["linear"], alpha, 60)])
    limit, target = chain.law(endless(alpha)), chain.tilted(alpha)
    # Kolmogorov-Smirnov .045 as above, and about 1/M for M = 60 instead of infinity
    assert kolmogorov(chain, result.x, limit) < 2.23 / n**0.5 + 0.016
    assert kolmogorov(chain, result.x, target) > 0.13
    x, w = result.x[:, 0], result.weights
    assert abs(target @ chain.states / target.sum() - 3.1755) < 1e-3  # published for this mixture
    # sd .68 of the target over an ESS of at least 300; 4.5 standard errors
    assert result.ess > 300
    assert abs((w * x).sum() - 3.1755) < 4.5 * 0.68 / 300**0.5
    assert abs(limit @ chain.states - 3.1755) > 0.25


# the exact value -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactValue:
    """V_t = alpha log E[exp(b.x_0/alpha) | x_t] of the mixture: x_0 given x_t is a mixture of N(m_k, S_k)."""

    b: tuple[float, ...]
    alpha: float
    schedule: str = "vp"
    rows: list[int] = field(default_factory=list, compare=False)

    sees_prediction = False

    def __call__(self, view: gk.View) -> torch.Tensor:
        self.rows.append(len(view.x))
        a, s = SCALES[self.schedule](view.t)
        x, mu, b = view.x.numpy(), centres(len(self.b)), np.array(self.b) / self.alpha
        v = (a * S) ** 2 + s**2
        log_rho = np.log(W) - 0.5 * ((x[:, None] - a * mu) ** 2).sum(-1) / v - 0.5 * len(b) * np.log(v)
        var = 1 / (1 / S**2 + a**2 / s**2)
        mean = var[:, None] * (mu / S[:, None] ** 2 + a * x[:, None] / s**2)
        up = logsumexp(log_rho + mean @ b + 0.5 * (b @ b) * var, axis=1) - logsumexp(log_rho, axis=1)
        return torch.as_tensor(self.alpha * up)


@pytest.mark.parametrize("d", [1, 2, 16])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_value_of_x_alone_costs_one_row_a_step_and_keeps_the_law(schedule: str, d: int):
    case = linear(d)
    value = ExactValue(tuple(case.b), case.alpha, schedule)
    result = groups(mixture(d, schedule).exact(), 300, 8, [gk.SVDD(case.reward, case.alpha, 4, value)])
    assert off(result, case.answer()) < 4.5
    assert result.cost.network_rows == 300 * 8 * 6
    assert value.rows == [300 * 8 * 4] * 5  # children of five moves; those of the last are scored
    assert result.cost.reward_calls == 300 * 8 * 4


def test_with_the_exact_value_weights_even_out_and_samples_come_to_the_target():
    case, n = Tilt(np.array([1.0]), alpha=0.5), 800
    value, log_w = ExactValue((1.0,), 0.5), {}
    for candidates in (1, 8, 32, 128):
        guides = [gk.SVDD(case.reward, 0.5, candidates, value)]
        result = gk.sample(mixture().exact(), n, steps=12, guides=guides)
        log_w[candidates] = result.log_weights
    # the mean of M children of one parent is exp(V(x_t)/alpha) with a variance of order 1/M
    assert log_w[1].var() > 5 * log_w[8].var()
    assert 2.5 < log_w[8].var() / log_w[32].var() < 6
    assert 2.5 < log_w[32].var() / log_w[128].var() < 6
    z = np.log(case.answer()[0])
    assert abs(log_w[128].exp().mean().log() - z) < 4.5 * log_w[128].std() / n**0.5
    # without the weights, of the 128 candidates: Kolmogorov-Smirnov at the level 1e-4, and about 1/M
    assert kolmogorov(cells("linear"), result.x, cells("linear").tilted(0.5)) < 2.23 / n**0.5 + 0.01


# the last step, cost, and what may fail --------------------------------------------------------------------------


def test_one_step_is_best_of_m_and_weighs_like_it():
    """From noise to data in one exact step: argmax has the law F^M, and nested weights are means over M children."""
    n, m = 3000, 6
    result = gk.sample(mixture().exact(), n, steps=1, guides=[gk.SVDD(rewards_1d["linear"], 0.0, m)])
    x = result.x[:, 0].sort().values.numpy()
    best = (ndtr((x[:, None] - M1) / S) @ W) ** m
    assert np.abs(np.arange(1, n + 1) / n - best).max() < 2.23 / n**0.5
    assert np.abs(np.arange(1, n + 1) / n - best ** (1 / m)).max() > 0.4
    result = gk.sample(mixture().exact(), n, steps=1, guides=[gk.SVDD(rewards_1d["linear"], 1.5, m)])
    assert result.cost.reward_calls == n * m
    w, z = result.log_weights.exp(), Tilt(np.array([1.0]), alpha=1.5).answer()[0]
    single = Tilt(np.array([1.0]), alpha=0.75).answer()[0] - z**2  # Var exp(r/alpha)
    assert abs(w.mean() - z) < 4.5 * (single / m / n) ** 0.5
    assert abs(w.var() / (single / m) - 1) < 0.5  # sd of a sample variance with these tails about .1


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("candidates", [1, 2, 5])
@pytest.mark.usefixtures("every_row")
def test_rows_and_calls(candidates: int, alpha: float):
    n, m, steps = 6, candidates, 5
    for model, last in ((mixture(2), 1), (mixture(2).exact(), m)):
        result = gk.sample(model, n, steps=steps, guides=[gk.SVDD(linear(2).reward, alpha, m)])
        assert result.cost.network_rows == n + n * m * (steps - 1)
        assert result.cost.network_calls == steps
        assert result.cost.reward_calls == n * m * (steps - 1) + n * last  # all children of the last move, if it draws
    seen = []

    def reward(x):
        seen.append(len(x))
        return token_reward(x)

    result = gk.sample(token_model("masked"), n, steps=steps, guides=[gk.SVDD(reward, alpha, m)])
    assert result.cost.network_rows == n + n * m * (steps - 1)
    assert result.cost.reward_calls == sum(seen) <= n * m * steps
    assert torch.equal(result.rewards, token_reward(result.x).double())


@pytest.mark.parametrize("model", [mixture(2), mixture(2).exact(), mixture(2, "flow")], ids=["ddpm", "exact", "flow"])
def test_one_candidate_is_plain_sampling(model: gk.Model):
    plain, case = gk.sample(model, 40, steps=6), linear(2)
    for alpha in (0.0, 0.8):
        one = gk.sample(model, 40, steps=6, guides=[gk.SVDD(case.reward, alpha, 1)])
        assert torch.equal(one.x, plain.x)
        assert torch.equal(one.ancestors, plain.ancestors)
        expected = case.reward(plain.x) / alpha if alpha else torch.zeros(40).double()
        assert torch.allclose(one.log_weights, expected, atol=1e-12)


@pytest.mark.parametrize("candidates", [1, 4, 16])
def test_shift_and_scale_of_the_reward_and_an_infinite_temperature(candidates: int):
    model, case = mixture(2).exact(), linear(2)

    def run(reward, alpha):
        return gk.sample(model, 40, steps=6, guides=[gk.SVDD(reward, alpha, candidates), gk.Resample(0.9)])

    plain = run(case.reward, 0.8)
    shifted = run(lambda x: case.reward(x) - 5.0, 0.8)
    assert torch.equal(plain.x, shifted.x)
    assert torch.allclose(shifted.log_weights, plain.log_weights - 5.0 / 0.8, atol=1e-10)
    scaled = run(lambda x: 8 * case.reward(x), 6.4)
    assert torch.equal(plain.x, scaled.x)
    assert torch.equal(plain.log_weights, scaled.log_weights)
    for alpha in (float("inf"), 1e9):  # the first of the children lives, but once in 10^9 choices
        idle = run(case.reward, alpha)
        assert torch.equal(idle.x, gk.sample(model, 40, steps=6).x)
        assert idle.log_weights.abs().max() < 10 / alpha + 1e-12


@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_weighted_tokens_of_a_reward_that_fails_on_some():
    """The target is p exp(r/alpha) of what can be scored."""
    chain = tokens("masked", reward=picky)
    assert 0.1 < chain.plain()[np.isnan(chain.values[-1])].sum() < 0.6
    for guides in ([gk.SVDD(picky, WARM, 4)], [gk.SVDD(picky, WARM, 4), gk.Resample(0.9)]):
        result = groups(token_model("masked"), 600, 16, guides)
        assert tokens_off(chain, result, chain.tilted(WARM)) < 4.5


@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_argmax_never_takes_a_child_without_a_score_while_another_has_one():
    chain, n = tokens("uniform", reward=picky), 10_000
    result = gk.sample(token_model("uniform"), n, steps=STEPS, guides=[gk.SVDD(picky, candidates=3)])
    law = chain.law(greedy(3))
    assert fits(chain, result.x, law)
    failed = law[np.isnan(chain.values[-1])].sum()
    assert 0.002 < failed < 0.2 * chain.plain()[np.isnan(chain.values[-1])].sum()
    assert torch.equal(result.log_weights == -torch.inf, picky(result.x).isnan())
    assert result.log_weights[~picky(result.x).isnan()].abs().max() == 0


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_final_sample_without_a_score_weighs_nothing_and_is_counted(alpha: float):
    n, m, seen = 3000, 2, []

    def reward(x):
        scores = torch.where(x[:, 0] > CUT, torch.nan, x[:, 0])
        seen.append(int(scores.isnan().sum()))
        return scores

    with pytest.warns(UserWarning, match=r"of 3000 samples could not be scored"):
        result = gk.sample(mixture().exact(), n, steps=1, guides=[gk.SVDD(reward, alpha, m)])
    lost = result.log_weights == -torch.inf
    assert torch.equal(lost, result.x[:, 0] > CUT)
    assert torch.equal(lost, result.rewards.isnan())
    assert result.cost.unscored == sum(seen) > lost.sum()
    one = 1 - W @ ndtr((CUT - M1) / S)
    both = one**m  # only where both children failed
    assert abs(lost.double().mean() - both) < 4.5 * (both * (1 - both) / n) ** 0.5
    assert result.best(1).log_weights.isfinite().all()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_group_in_which_nothing_can_be_scored_is_named_and_costs_no_other_group(alpha: float):
    class Broken(Reward):
        name = "broken"

        def score(self, samples):
            return torch.where(samples[:, 0] < 0, torch.nan, 1.0)

    model = gk.analytic.GaussianMixture([0.5, 0.5], [-5.0, 5.0], [0.1, 0.1], labels=[0, 1])
    with pytest.warns(UserWarning, match="'broken' scored none of the 6 samples of group 1"):
        both = gk.sample(model, 6, steps=3, guides=[gk.SVDD(Broken(), alpha, 2)], cond=[1, 0])
    alone = gk.sample(model, 6, steps=3, guides=[gk.SVDD(Broken(), alpha, 2)], cond=[1])
    assert torch.equal(both.x[:6], alone.x) and both.rewards.isnan().tolist() == [False] * 6 + [True] * 6
    with pytest.raises(gk.RewardError, match="'broken' scored none of the 6 samples of groups 0, 1"):
        gk.sample(model, 6, steps=3, guides=[gk.SVDD(Broken(), alpha, 2)], cond=[0, 0])


def test_arguments_that_make_no_sense_are_errors_before_the_network_is_called():
    def net(x, t, cond):
        raise AssertionError("called")

    for wrong in (0, -3, True, 2.5):
        with pytest.raises(ValueError, match=r"SVDD\(candidates=.*at least one child"):
            gk.SVDD(token_reward, 0.5, wrong)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=r"SVDD\(alpha=.*positive, or 0 for argmax"):
            gk.SVDD(token_reward, wrong)
    with pytest.raises(TypeError, match=r"SVDD\(reward=\.\.\.\) takes a function"):
        gk.SVDD("QED")
    model = gk.GaussianModel(net, (2,), predicts="clean")
    with pytest.raises(ValueError, match=r"SVDD\(steer=True\)"):
        gk.sample(model, 3, steps=3, guides=[gk.SVDD(token_reward, 0.5, steer=True)])
    for solver in (gk.solvers.DDIM(), gk.solvers.DPMpp(order=2)):
        with pytest.raises(ValueError, match=r"SVDD .*deterministic.*DDPM\(\)"):
            gk.sample(model, 3, steps=3, guides=[gk.SVDD(token_reward)], solver=solver)

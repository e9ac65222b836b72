"""Potentials of Feynman-Kac steering, tempering, steps that are scored, rollouts as look-ahead, and given starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import kstest
from torch import Tensor

import guidekit as gk

from .problems import PROBLEMS, STEPS, L, Problem, V, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
POTENTIALS = ["difference", "max", "sum", "final"]
LEVEL = 1e-3  # of p: one true test in 1000 fails


# potentials --------------------------------------------------------------------------------------------------------

PI, MU, SD = [0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6]


def toy() -> gk.Model:
    """The mixture of the published numbers, by its true kernels."""
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in (PI, MU, SD))).exact()


@lru_cache(maxsize=1)
def unguided() -> np.ndarray:
    """E[x_0 | x_t] at steps 1 to 11 of 12 of 100,000 unguided chains, and x_0: (12, chains)."""
    states: list[Tensor] = []
    gk.sample(
        toy(), 100_000, steps=12, seed=99,
        callbacks=[lambda p, step: states.append((p.predictions[0] if step.t > 0 else p.x)[:, 0].clone())],
    )  # fmt: skip
    return torch.stack(states).numpy()


def tilted_mean(log_w: np.ndarray) -> float:
    w = np.exp(log_w - log_w.max())
    return float(w @ unguided()[-1] / w.sum())


def pooled(result: gk.Result) -> tuple[float, float, float, float]:
    """Weighted mean of x and log Z from all populations together, with their standard errors."""
    w = result.log_weights.exp().view(result.groups, -1)
    z, zx = w.mean(1), (w * result.x[:, 0].view_as(w)).mean(1)
    mean, root = zx.mean() / z.mean(), len(z) ** 0.5
    return float(mean), float((zx - mean * z).std() / z.mean() / root), float(z.mean().log()), float(
        z.std() / z.mean() / root
    )  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, -5.0])
@pytest.mark.parametrize("potential, alpha", [("difference", 0.5), ("max", 0.5), ("final", 0.5), ("sum", 1.0)])
def test_all_potentials_reach_the_tilted_mixture_also_where_rewards_are_negative(potential, alpha: float, shift: float):
    """Of the published codes, max and sum without the right last factor end elsewhere, as does a max from zero on."""
    weights = np.array(PI) * np.exp(np.array(MU) / alpha + np.array(SD) ** 2 / (2 * alpha**2))
    mean, log_z = weights @ (np.array(MU) + np.array(SD) ** 2 / alpha) / weights.sum(), math.log(weights.sum())
    assert alpha != 0.5 or (round(mean, 4), round(log_z, 4)) == (3.1755, 4.1291)
    groups = 40
    result = gk.sample(
        toy(), 2500, steps=12, cond=[None] * groups, seed=list(range(groups)),
        guides=[gk.FKSteering(lambda x: x[:, 0] + shift, alpha, potential, every=4)],
    )  # fmt: skip
    found, error, found_z, error_z = pooled(result)
    # 40 independent populations of 2,500: 4.5 standard errors
    assert abs(found - mean) < 4.5 * error
    assert abs(found_z - shift / alpha - log_z) < 4.5 * error_z
    v, r = (unguided()[[3, 7]] + shift) / alpha, (unguided()[-1] + shift) / alpha
    wrong = {
        "max": np.maximum(v.max(0), r),  # no last factor: exp of the largest
        "sum": v.sum(0) + r,
        "difference": 0 * r,
        "final": 0 * r,
    }[potential]
    assert abs(found - tilted_mean(wrong)) > 10 * error
    if potential == "max":
        assert abs(found - tilted_mean(np.maximum(wrong, 0))) > 10 * error


@pytest.mark.parametrize("potential", POTENTIALS)
def test_a_constant_in_the_reward_changes_log_z_alone(potential: str):
    p = PROBLEMS["flow-2d"]
    one, other = (
        gk.sample(
            p.model, 30, steps=STEPS, cond=1,
            guides=[gk.FKSteering(lambda x, c=c: p.reward(x) + c, 0.2, potential, every=[2, 4], ess=0.9)],
        )
        for c in (0.0, -5.0)
    )  # fmt: skip
    assert one.trace["resampled"].any()
    assert torch.equal(one.x, other.x)
    assert torch.allclose(other.log_z - one.log_z, torch.tensor(-5.0 / 0.2).double(), atol=1e-9)


def by_hand(potential: str, v: list[float | None]) -> float:
    """sum of log G over the steps that were scored so far; None where the value is not known."""
    known = [u for u in v if u is not None]
    if potential == "difference":
        return known[-1] if known else 0.0
    if potential == "max":
        return sum(max(known[: j + 1]) for j in range(len(known)))
    return sum(sum(known[: j + 1]) for j in range(len(known))) if potential == "sum" else 0.0


@pytest.mark.parametrize("tempering", [1.0, 0.3, lambda t: (1 - t) ** 2], ids=["1", "0.3", "quadratic"])
@pytest.mark.parametrize("every", [1, 2, 4, [1, 2, 5], [3]], ids=str)
@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_on_the_way_are_the_sums_of_log_g(potential: str, every, tempering):
    """Without resampling, at every step and for every particle, with a reward that is sometimes unknown on the way."""
    p, alpha, n = PROBLEMS["vp-1d"], 0.7, 12
    final = [False]

    def reward(x):
        r = p.reward(x)
        return r if final[0] else torch.where(r > 0.35, torch.nan, r)

    guide = gk.FKSteering(reward, alpha, potential, every, ess=0.0, tempering=tempering)
    run = gk.Run(p.model, n, steps=STEPS, cond=1, guides=[guide])
    due = {1: range(1, 7), 2: (2, 4), 4: (4,)}.get(every, ()) if isinstance(every, int) else every
    paths: list[list[float | None]] = [[] for _ in range(n)]
    unknown = 0
    with torch.no_grad():
        pop = run.start()
        assert torch.equal(pop.log_w, torch.zeros(n, dtype=torch.float64))
        for index in range(1, STEPS + 1):
            final[0] = index == STEPS
            pop = run.advance(pop, index - 1)
            if index == STEPS:
                expected = p.reward(pop.x) / alpha
            else:
                t = run.moves[index].t
                gamma = tempering(t) if callable(tempering) else tempering
                scores = reward(p.model(pop.x, t, torch.ones(n, dtype=torch.long)))
                for path, r in zip(paths, scores.tolist(), strict=True):
                    if index in due:
                        path.append(None if math.isnan(r) else gamma * r / alpha)
                        unknown += math.isnan(r)
                expected = torch.tensor([by_hand(potential, path) for path in paths], dtype=torch.float64)
            assert torch.allclose(pop.log_w, expected, rtol=1e-10, atol=1e-12), index
    assert unknown > 0
    assert pop.log_w.std() > 0.1


@pytest.mark.parametrize("every", [[3], [2, 4], 4], ids=str)
@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_only_the_listed_steps_and_the_last_are_scored_and_resample(potential: str, every):
    p, scored = PROBLEMS["flow-2d"], []

    def reward(x):
        scored.append(len(x))
        return p.reward(x)

    guide = gk.FKSteering(reward, 0.3, potential, every, ess=1.0)
    result = gk.sample(p.model, 16, steps=STEPS, cond=[1, None], guides=[guide])
    due = sorted({*(every if isinstance(every, list) else (4,)), STEPS})
    assert scored == [32] * len(due)
    assert result.cost.reward_calls == 32 * len(due)
    assert (result.trace["resampled"].any(1).nonzero()[:, 0] + 1).tolist() == due
    assert result.trace["mean_reward"][: due[0] - 1].isnan().all()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(
    "options",
    [
        {"potential": "max", "every": [1, 4]},
        {"potential": "sum", "every": [2], "tempering": 0.5},
        {"potential": "difference", "every": [1, 2, 5], "tempering": lambda t: 1 - t},
        {"potential": "max", "tempering": lambda t: 0.5 * (1 - t) ** 2, "start": 0.2, "stop": 0.8},
    ],
    ids=["max", "sum", "difference", "interval"],
)
def test_the_law_does_not_depend_on_potentials_tempering_or_steps(problem: Problem, options):
    guide = gk.FKSteering(problem.reward, problem.alpha, ess=0.8, **options)
    result = populations(problem, 1500, 8, [guide], first=20_000)
    # 4 unbiased estimates from 1,500 independent populations: 4.5 standard errors
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5
    assert result.trace["resampled"].any()


def test_final_is_importance_sampling_of_the_plain_run():
    p = PROBLEMS["flow-2d"]
    plain = gk.sample(p.model, 50, steps=STEPS, cond=1, reward=p.reward)
    final = gk.sample(p.model, 50, steps=STEPS, cond=1, guides=[gk.FKSteering(p.reward, 0.3, "final", ess=0.0)])
    assert torch.equal(plain.x, final.x)
    assert torch.allclose(final.log_weights, plain.rewards / 0.3, rtol=1e-12)
    assert final.cost.reward_calls == 50


def test_a_final_sample_without_a_score_weighs_nothing_whatever_was_known_before():
    p = PROBLEMS["flow-2d"]
    final = [False]

    def reward(x):
        return torch.where(x[:, 0] > 0, torch.nan, p.reward(x)) if final[0] else p.reward(x)

    def end(population, step):
        final[0] = step.index == STEPS - 1

    with pytest.warns(UserWarning, match="could not be scored"):
        result = gk.sample(
            p.model, 60, steps=STEPS, cond=1, guides=[gk.FKSteering(reward, 0.5, ess=0.0)], callbacks=[end]
        )
    lost = result.x[:, 0] > 0
    assert 5 < lost.sum() < 55
    assert torch.equal(result.log_weights == -torch.inf, lost)


# rollouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe(gk.Guide):
    """Asks a value at one step and keeps what it said beside the states."""

    value: Any
    index: int
    seen: list = field(default_factory=list)

    def log_weight(self, view, memo):
        if view.step.index == self.index:
            self.seen.append((view.x.clone(), self.value(view)))
        return 0.0, memo

    def asked(self) -> tuple[Tensor, Tensor]:
        return tuple(map(torch.cat, zip(*self.seen, strict=True)))


TABLES = {
    name: (PROBLEMS[name].model.table[1].view((V,) * L).exp().numpy(),
           PROBLEMS[name].model.table[0].view((V,) * L).exp().numpy())
    for name in ("masked", "uniform")
}  # fmt: skip


def marginals(table: np.ndarray, x, t: float, uniform: bool) -> np.ndarray:
    """p(x_0^i = v | x_t), by Bayes over all sequences."""
    post = table.copy()
    for i, v in enumerate(x):
        like = np.full(V, t / V) if uniform else np.array([1.0 * (v in (u, V)) for u in range(V)])
        if uniform:
            like[v] += 1 - t
        post *= like.reshape([-1 if j == i else 1 for j in range(L)])
    post /= post.sum()
    return np.stack([post.sum(tuple(j for j in range(L) if j != i)) for i in range(L)])


def drawn(marginal: Callable[[tuple, float], np.ndarray], x, times, uniform: bool) -> np.ndarray:
    """The law of x_0 that the chain through these times draws from x, (V,)*L."""
    law = {tuple(x): 1.0}
    for t, s in pairwise(times):
        after: dict[tuple, float] = {}
        for state, mass in law.items():
            p, ways = marginal(state, t), []
            for i, v in enumerate(state):
                if uniform:
                    k = np.zeros(V)
                    for w, u in product(range(V), range(V)):
                        up = (1 - t) / (1 - s) * (v == u) + (1 - (1 - t) / (1 - s)) / V
                        k[u] += p[i, w] * up * ((1 - s) * (u == w) + s / V) / ((1 - t) * (v == w) + t / V)
                    ways.append(list(enumerate(k)))
                elif v < V:
                    ways.append([(v, 1.0)])
                else:
                    ways.append([*((u, (1 - s / t) * p[i, u]) for u in range(V)), *([(V, s / t)] if s > 0 else [])])
            for way in product(*ways):
                y = tuple(u for u, _ in way)
                after[y] = after.get(y, 0.0) + mass * math.prod(q for _, q in way)
        law = after
    out = np.zeros((V,) * L)
    for x_0, mass in law.items():
        out[x_0] = mass
    assert abs(out.sum() - 1) < 1e-9
    return out


def expectations(
    name: str, alpha: float, steps: int, marginal=None, index: int = 3
) -> dict[tuple, tuple[float, float]]:
    """E and sd of exp(r(x_0)/alpha) (of r at alpha = 0) for one sample drawn from each state at this step."""
    uniform, t = name == "uniform", 1 - index / STEPS
    table, states = TABLES[name][0], product(range(V + (name == "masked")), repeat=L)
    marginal = marginal or (lambda x, time: marginals(table, x, time, uniform))
    r = PROBLEMS[name].reward(torch.tensor(list(np.ndindex(V, V, V)))).double().numpy()
    f = np.exp(r / alpha) if alpha else r
    out = {}
    for x in states:
        law = drawn(marginal, x, np.linspace(t, 0, steps + 1), uniform).ravel()
        out[x] = law @ f, math.sqrt(max(law @ f**2 - (law @ f) ** 2, 0.0))
    return out


def assert_means(probe: Probe, alpha: float, k: int, expected: dict) -> None:
    """The mean of exp(V/alpha) at each state against the enumerated one, 4.5 standard errors; and its spread."""
    states, value = probe.asked()
    found = (value / alpha).exp() if alpha else value
    spreads = []
    for x in states.unique(dim=0):
        here = (states == x).all(1)
        mean, sd = expected[tuple(x.tolist())]
        count = int(here.sum())
        if count > 50:
            assert abs(found[here].mean() - mean) < 4.5 * sd / math.sqrt(k * count) + 1e-9, x
            if sd > 0.2 * max(abs(mean), 0.5) and count > 1000:  # k samples have 1/k of the variance
                spreads.append(float(found[here].var()) * k / sd**2)
    assert spreads and abs(np.mean(spreads) - 1) < 0.15, spreads


@pytest.mark.parametrize("name", ["masked", "uniform"])
@pytest.mark.parametrize("alpha, k", [(0.5, 1), (0.5, 3), (0.0, 2)])
@pytest.mark.usefixtures("every_row")
def test_one_step_of_tokens_draws_from_the_factorised_posterior(name: str, alpha: float, k: int):
    """E exp(V/alpha) is the mean of exp(r/alpha) under prod_i p(x_0^i | x_t), for any k, and costs no network rows."""
    p, n = PROBLEMS[name], 40_000
    probe = Probe(gk.values.Rollout(p.reward, 1, k, alpha), 3)
    result = gk.sample(p.model, n, steps=STEPS, cond=0, guides=[probe])
    assert_means(probe, alpha, k, expectations(name, alpha, 1))
    assert result.cost.network_rows == n * STEPS


@pytest.mark.parametrize("name", ["masked", "uniform"])
@pytest.mark.usefixtures("every_row")
def test_more_steps_of_tokens_draw_from_the_models_own_chain(name: str):
    """Evenly spaced from t to 0, here at t = 1/2 through 1/3 and 1/6; not from the factorised posterior."""
    p, n, k, alpha = PROBLEMS[name], 20_000, 2, 0.5
    probe = Probe(gk.values.Rollout(p.reward, 3, k, alpha), 3)
    result = gk.sample(p.model, n, steps=STEPS, cond=0, guides=[probe])
    once, thrice = expectations(name, alpha, 1), expectations(name, alpha, 3)
    assert max(abs(once[x][0] - thrice[x][0]) / once[x][0] for x in once) > 0.02
    assert_means(probe, alpha, k, thrice)
    assert result.cost.network_rows == n * STEPS + n * k * 2


def test_the_first_step_of_a_rollout_moves_by_the_guided_prediction():
    """With CFG in the list the posterior is p_null^(1-w) p_cond^w, normalised at each position."""
    p, scale, alpha = PROBLEMS["masked"], 2.5, 0.5

    def guided(x, t):
        own, null = (marginals(table, x, t, False) for table in TABLES["masked"])
        free = np.array(x)[:, None] == V
        q = np.where(free, np.where(free, own, 1.0) ** scale * np.where(free, null, 1.0) ** (1 - scale), own)
        return q / q.sum(1, keepdims=True)

    probe = Probe(gk.values.Rollout(p.reward, 1, 2, alpha), 3)
    gk.sample(p.model, 40_000, steps=STEPS, cond=0, guides=[probe, gk.CFG(scale)])
    assert_means(probe, alpha, 2, expectations("masked", alpha, 1, guided))


@pytest.mark.parametrize("steps, k", [(1, 1), (1, 4), (2, 3), (4, 2)])
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
@pytest.mark.usefixtures("every_row")
def test_a_rollout_costs_k_times_steps_less_one_rows_a_particle_and_look(name: str, steps: int, k: int):
    p, n = PROBLEMS[name], 7
    guide = gk.FKSteering(p.reward, 0.5, every=[2, 3], value=gk.values.Rollout(p.reward, steps, k))
    result = gk.sample(p.model, n, steps=STEPS, cond=[p.cond, None], guides=[guide])
    looks = 2  # steps 2 and 3; the last is scored as it is
    assert result.cost.network_rows == 2 * n * (STEPS + looks * k * (steps - 1))
    if name == "flow-2d":  # of tokens equal ones are scored once
        assert result.cost.reward_calls == 2 * n * (looks * k + 1)


def test_one_step_of_a_gaussian_process_is_the_clean_mean():
    p = PROBLEMS["flow-2d"]
    rollout, tweedie = (
        gk.sample(p.model, 20, steps=STEPS, cond=1, guides=[gk.FKSteering(p.reward, 0.3, value=value)])
        for value in (gk.values.Rollout(p.reward, 1, 3), gk.values.Tweedie(p.reward))
    )
    assert rollout.trace["resampled"].any()
    assert torch.equal(rollout.ancestors, tweedie.ancestors)
    assert torch.allclose(rollout.x, tweedie.x, rtol=1e-12)


def test_a_gaussian_rollout_has_the_law_of_the_chain():
    """Of a single Gaussian in two steps from t, whose mean and variance are a few lines."""
    flow = gk.schedules.Flow()
    model = gk.analytic.GaussianMixture(
        *(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [0.4], [0.6])), flow
    )  # fmt: skip
    probe = Probe(gk.values.Rollout(lambda x: x[:, 0], 2, 5, 0.8), 2)
    gk.sample(model, 40_000, steps=6, guides=[probe])
    x, value = probe.asked()
    t, s = 4 / 6, 2 / 6

    def clean(x, t):
        return 0.4 + (1 - t) * 0.36 / ((1 - t) ** 2 * 0.36 + t**2) * (x - (1 - t) * 0.4)

    # q(x_s | x_t, x_0): flow is alpha = 1 - t, sigma = t
    ratio = (1 - t) / (1 - s)
    var = (t**2 - ratio**2 * s**2) * s**2 / t**2
    mean = ratio * s**2 / t**2 * x[:, 0] + (1 - s) * (1 - ratio**2 * s**2 / t**2) * clean(x[:, 0], t)
    gain = (1 - s) * 0.36 / ((1 - s) ** 2 * 0.36 + s**2)
    end = clean(mean, s)  # x_0 ~ N(end, gain^2 var): E exp(x_0/alpha) by its moments
    ratio_to_mean = ((value - end) / 0.8 - gain**2 * var / (2 * 0.64)).exp()
    # a mean of 40,000 of which each is a mean of 5 log-normal ones
    assert abs(ratio_to_mean.mean() - 1) < 4.5 * float(ratio_to_mean.std()) / 200
    assert abs(ratio_to_mean.var() * 5 / math.expm1(gain**2 * var / 0.64) - 1) < 0.1


@pytest.mark.parametrize("name", ["masked", "uniform", "flow-2d"])
@pytest.mark.parametrize("steps, k", [(1, 2), (2, 1)])
def test_the_law_with_a_rollout_as_look_ahead_is_exact(name: str, steps: int, k: int):
    p = PROBLEMS[name]
    guide = gk.FKSteering(p.reward, p.alpha, ess=0.8, value=gk.values.Rollout(p.reward, steps, k))
    result = populations(p, 1500, 8, [guide], first=40_000)
    # 4 unbiased estimates from 1,500 independent populations: 4.5 standard errors
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5


def test_the_exact_posterior_is_a_better_twist_than_the_mode():
    """With many samples for tokens, V is nearly the soft value, and log Z varies less."""
    p, alpha = PROBLEMS["masked"], 0.3
    spread = [
        float(
            gk.sample(
                p.model, 32, steps=3, cond=[0] * 300, seed=list(range(300)),
                guides=[gk.FKSteering(p.reward, alpha, value=value, ess=1.0)],
            ).log_z.exp().var()
        )
        for value in (None, gk.values.Rollout(p.reward, 1, 12))
    ]  # fmt: skip
    assert spread[1] < 0.8 * spread[0]  # variances of 300 are known to 8 %


@pytest.mark.parametrize("steps, k", [(1, 3), (3, 4)])
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
@pytest.mark.usefixtures("every_row")
def test_rollouts_do_not_depend_on_the_micro_batch_or_on_other_groups(name: str, steps: int, k: int):
    p = PROBLEMS[name]
    guide = gk.FKSteering(p.reward, 0.4, value=gk.values.Rollout(p.reward, steps, k))
    options = {"steps": STEPS, "guides": [guide]}
    whole = gk.sample(p.model, 6, cond=[p.cond, None], seed=[3, 4], **options)
    for batch_size in (1, 5, 9):
        parts = gk.sample(p.model, 6, cond=[p.cond, None], seed=[3, 4], batch_size=batch_size, **options)
        assert torch.equal(whole.ancestors, parts.ancestors)
        assert torch.allclose(whole.x.double(), parts.x.double(), rtol=1e-12, atol=1e-12)
        assert torch.allclose(whole.log_weights, parts.log_weights, rtol=1e-11, atol=1e-11)
        assert parts.cost.network_rows == whole.cost.network_rows
    alone = gk.sample(p.model, 6, seed=4, cond=None, **options)
    assert torch.allclose(whole.x[6:].double(), alone.x.double(), rtol=1e-12, atol=1e-12)
    assert torch.allclose(whole.log_weights[6:], alone.log_weights, rtol=1e-11, atol=1e-11)


def test_a_batch_limit_bounds_the_rows_of_a_rollout():
    sizes = []

    def net(x, t, cond):
        sizes.append(len(x))
        return torch.zeros_like(x)

    model = gk.GaussianModel(net, (1,), gk.schedules.Flow(), "clean")
    guide = gk.FKSteering(lambda x: x[:, 0], 1.0, value=gk.values.Rollout(lambda x: x[:, 0], 3, 5))
    gk.sample(model, 6, steps=4, guides=[guide], batch_size=4)
    assert max(sizes) == 4


@pytest.mark.parametrize("alpha", [0.5, 0.0])
def test_what_a_rollout_could_not_score_counts_as_weightless(alpha: float):
    """exp(r/alpha) = 0 in the soft mean; the mean is of the known ones; both are unknown where there are none."""
    seen: list[Tensor] = []

    def reward(x):
        seen.append(torch.where(x[:, 0] > 0.4, torch.nan, x[:, 0]))
        return seen[-1]

    model = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in (PI, MU, SD)))
    probe = Probe(gk.values.Rollout(reward, 2, 3, alpha), 8)
    result = gk.sample(model, 300, steps=16, guides=[probe])
    _, value = probe.asked()
    scores = seen[0].view(300, 3)
    known = ~scores.isnan()
    assert {0, 1, 2, 3} == set(known.sum(1).tolist())
    for v, row, ok in zip(value.tolist(), scores, known, strict=True):
        r = row[ok].numpy()
        if len(r) == 0:
            assert math.isnan(v)
        else:
            by_hand = alpha * math.log(np.exp(r / alpha).sum() / 3) if alpha else r.mean()
            assert abs(v - by_hand) < 1e-9
    assert result.cost.unscored == int((~known).sum())
    assert result.cost.reward_calls == 900


def test_a_rollout_without_any_score_leaves_the_last_value_standing():
    """And the law stays that of the rewards of final samples."""
    p = PROBLEMS["flow-2d"]

    def patchy(x):
        return torch.where(x[:, 1] > 0.3, torch.nan, p.reward(x)).where(torch.tensor(len(x) != 2500 * 8), p.reward(x))

    guide = gk.FKSteering(p.reward, p.alpha, ess=0.8, value=gk.values.Rollout(patchy, 2, 3))
    result = populations(p, 2500, 8, [guide], first=60_000)
    assert result.cost.unscored > 10_000
    assert np.abs(deviations(estimates(p, result), *p.tilted())).max() < 4.5


def test_a_rollout_takes_the_temperature_of_its_guide_unless_it_has_its_own():
    rollout = gk.values.Rollout(len, 2, 3)
    assert rollout.at(0.7).alpha == 0.7
    assert gk.values.Rollout(len, 2, 3, 0.0).at(0.7).alpha == 0.0
    p = PROBLEMS["masked"]
    a, b, c = (
        gk.sample(
            p.model, 20, steps=3, cond=0,
            guides=[gk.FKSteering(p.reward, 0.5, ess=0.0, every=[1], value=gk.values.Rollout(p.reward, 1, 4, own))],
            callbacks=[lambda pop, step, keep=keep: keep.append(pop.log_w)],
        ) and keep[0]
        for own, keep in ((None, []), (0.5, []), (0.0, []))
    )  # fmt: skip
    assert torch.equal(a, b)
    assert (a >= c - 1e-12).all() and (a > c + 1e-6).any()  # the soft mean lies above the mean


@pytest.mark.parametrize("options", [{"steps": 0}, {"k": 0}, {"steps": -1}])
def test_a_rollout_has_steps_and_samples(options):
    with pytest.raises(ValueError, match="both are at least 1"):
        gk.values.Rollout(len, **options)


# given starts ------------------------------------------------------------------------------------------------------


def started(model: gk.Model, n: int, x: Tensor, t: float, **options) -> Tensor:
    run = gk.Run(model, n, steps=[t, t / 2, 0.0], guides=[gk.StartFrom(x)], **options)
    with torch.no_grad():
        return run.start().x


@pytest.mark.parametrize("t", [0.3, 0.8])
@pytest.mark.parametrize(
    "schedule, scales",
    [
        (gk.schedules.Cosine(), lambda t: (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2))),
        (gk.schedules.Flow(), lambda t: (1 - t, t)),
        (gk.schedules.VE(), lambda t: (1.0, 0.01 * 5000**t)),
    ],
    ids=["cosine", "flow", "ve"],
)
def test_a_gaussian_start_is_the_sample_and_noise_of_its_time(schedule, scales, t: float):
    """x_t = alpha x_0 + sigma z, each row with its own x_0 and independent normal z."""
    model = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0], schedule)
    n, (alpha, sigma) = 10_000, scales(t)
    x_0 = torch.randn(2 * n, 2, generator=torch.Generator().manual_seed(3)) * 3 + 1
    x = started(model, n, x_0, t, cond=[None, None], seed=[1, 2])
    z = ((x - alpha * x_0) / sigma).double()
    for column in range(2):
        assert kstest(z[:, column].numpy(), ndtr).pvalue > LEVEL
    # correlations of 20,000 independent numbers: 4.5/sqrt(20000) = .032
    assert abs(np.corrcoef(z.T.numpy())[0, 1]) < 0.032
    assert abs(np.corrcoef(z[:, 0].numpy(), x_0[:, 0].numpy())[0, 1]) < 0.032
    assert abs(np.corrcoef(z[:n, 0].numpy(), z[n:, 0].numpy())[0, 1]) < 0.045  # of 10,000


@pytest.mark.parametrize("t", [0.25, 0.7])
@pytest.mark.parametrize("noising", ["masked", "uniform"])
def test_tokens_are_noised_with_probability_t(noising: str, t: float):
    """Masked, or drawn anew from all V (so that a V-th of them stays); positions apart."""
    p, n = PROBLEMS[noising], 20_000
    x_0 = torch.randint(V, (n, L), generator=torch.Generator().manual_seed(1))
    x = started(p.model, n, x_0, t, cond=0)
    kept = x == x_0
    stay = 1 - t if noising == "masked" else 1 - t + t / V
    sd = math.sqrt(stay * (1 - stay) / n)
    assert (kept.double().mean(0) - stay).abs().max() < 4.5 * sd
    if noising == "masked":
        assert (x[~kept] == V).all()
    else:
        for v, w in product(range(V), range(V)):
            share = (x[x_0 == v] == w).double().mean()
            assert abs(share - (t / V + (1 - t) * (v == w))) < 4.5 * 0.5 / math.sqrt(n)  # of 3 n/3 tokens
    both = (kept[:, 0] & kept[:, 1]).double().mean()
    assert abs(both - stay**2) < 4.5 * 0.5 / math.sqrt(n)


def test_one_sample_serves_all_rows_each_with_its_own_noise():
    model = PROBLEMS["flow-2d"].model
    one = torch.tensor([0.5, -1.0], dtype=torch.float64)
    x = started(model, 4, one, 0.4, cond=[1, None], seed=[1, 2])
    assert len(x[:, 0].unique()) == 8
    assert torch.equal(x, started(model, 4, one.expand(8, 2), 0.4, cond=[1, None], seed=[1, 2]))


def test_rows_and_groups_keep_their_own_start_in_any_micro_batch():
    p = PROBLEMS["flow-2d"]
    x_0 = torch.arange(14, dtype=torch.float64).view(7, 2).repeat(2, 1) * torch.tensor([[1.0]] * 7 + [[-1.0]] * 7)
    options = {"steps": [0.5, 0.3, 0.1, 0.0]}
    whole = gk.sample(p.model, 7, cond=[1, None], seed=[1, 2], guides=[gk.StartFrom(x_0)], **options)
    for batch_size in (1, 3, 5):
        parts = gk.sample(
            p.model, 7, cond=[1, None], seed=[1, 2], guides=[gk.StartFrom(x_0)], batch_size=batch_size, **options
        )
        assert torch.allclose(whole.x, parts.x, rtol=1e-12, atol=1e-12)
    alone = gk.sample(p.model, 7, seed=2, guides=[gk.StartFrom(x_0[7:])], **options)
    assert torch.allclose(whole.x[7:], alone.x, rtol=1e-12, atol=1e-12)


def test_samples_of_the_model_stay_so_when_they_are_noised_and_denoised():
    """p(x_0) q(x_t | x_0) and the true reverse process give p again, and each row a neighbour of its own start."""
    model, n = toy(), 20_000
    rng = np.random.default_rng(2)
    k = rng.choice(3, n, p=PI)
    x_0 = torch.tensor(np.array(MU)[k] + np.array(SD)[k] * rng.standard_normal(n))[:, None]
    result = gk.sample(model, n, steps=[0.5, 0.4, 0.3, 0.2, 0.1, 0.0], guides=[gk.StartFrom(x_0)])

    def cdf(v):
        return sum(w * ndtr((v - m) / s) for w, m, s in zip(PI, MU, SD, strict=True))

    assert kstest(result.x[:, 0].numpy(), cdf).pvalue > LEVEL
    assert np.corrcoef(result.x[:, 0].numpy(), x_0[:, 0].numpy())[0, 1] > 0.5
    mirrored = gk.sample(model, n, steps=[0.5, 0.25, 0.0], guides=[gk.StartFrom(-x_0)])
    assert kstest(mirrored.x[:, 0].numpy(), cdf).pvalue < 1e-9


@pytest.mark.parametrize("t", [0.3, 0.6])
def test_the_law_around_one_sample_of_a_normal_model(t: float):
    """VP and N(0, 1): back at 0 it is N(alpha^2 x_0, 1 - alpha^4)."""
    model = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [0.0], [1.0])))
    start = torch.tensor([2.0], dtype=torch.float64)
    result = gk.sample(model.exact(), 20_000, steps=[t, t / 2, 0.0], guides=[gk.StartFrom(start)])
    a2 = math.cos(math.pi * t / 2) ** 2
    z = (result.x[:, 0].numpy() - 2 * a2) / math.sqrt(1 - a2 * a2)
    assert kstest(z, ndtr).pvalue > LEVEL


def test_from_pure_noise_the_start_says_nothing():
    p = PROBLEMS["vp-1d"]
    plain = gk.sample(p.model, 9, steps=STEPS, cond=1)
    start = gk.StartFrom(torch.tensor([3.0]).double(), level=1.0)
    given_start = gk.sample(p.model, 9, steps=STEPS, cond=1, guides=[start])
    assert torch.equal(plain.x, given_start.x)
    assert given_start.cost.network_rows == plain.cost.network_rows


def begun(steps, level=None, model=None, **options) -> list[float]:
    """The times of a run from given samples."""
    model = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]) if model is None else model
    guides = [gk.StartFrom(torch.zeros(model.shape), level)]
    return [round(move.t, 6) for move in gk.Run(model, 4, steps=steps, guides=guides, **options).moves]


def test_a_number_of_steps_begins_at_the_level_and_not_in_noise_that_forgets_the_start():
    assert begun(10) == [0.5, 0.4, 0.3, 0.2, 0.1]
    assert begun(10, 0.3) == [0.3, 0.2, 0.1]
    assert begun(10, 0.35) == [0.3, 0.2, 0.1]  # never more noise than is asked for
    assert begun(10, 0.01) == [0.1]  # but one step at least
    assert begun(4, 1.0) == [1.0, 0.75, 0.5, 0.25]
    assert (
        begun(6, 0.5, PROBLEMS["masked"].model) == begun(6, 0.5, PROBLEMS["uniform"].model) == [0.5, 0.333333, 0.166667]
    )
    noise = gk.GaussianModel(lambda x, t, cond: x, (2,))  # whose runs begin at .999
    assert begun(10, model=noise)[0] == 0.4995


def test_times_that_do_not_begin_in_noise_are_taken_as_they_are():
    assert begun([0.8, 0.4, 0.0]) == [0.8, 0.4]
    assert begun([0.2, 0.1, 0.0], 0.5) == [0.2, 0.1]
    assert begun([0.8, 0.4, 0.2, 0.0], 0.4) == [0.4, 0.2]  # where both are given, the level is where it begins
    assert begun(gk.times.restart(10, 0.1, 0.4, 1, 2), 0.3) == [0.3, 0.2, 0.1, 0.4, 0.25, 0.1]


def test_solvers_with_a_memory_or_two_evaluations_start_anew_at_the_level():
    model, x = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), torch.full((4, 2), 2.0)
    for solver in (gk.solvers.Heun(), gk.solvers.DPMpp()):
        given = gk.sample(model, 4, steps=[0.5, 0.25, 0.0], solver=solver, guides=[gk.StartFrom(x)])
        cut = gk.sample(model, 4, steps=4, solver=solver, guides=[gk.StartFrom(x)])
        assert torch.equal(cut.x, given.x)


def test_the_larger_the_level_the_less_of_the_start_is_left():
    model, x = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), torch.full((200, 2), 4.0)
    means = [float(gk.sample(model, 200, steps=10, guides=[gk.StartFrom(x, v)]).x.mean()) for v in (0.1, 0.5, 1.0)]
    assert means[0] > 3.5 and 1.5 < means[1] < 2.5 and abs(means[2]) < 0.3  # alpha^2 x: 3.9, 2 and 0


@pytest.mark.parametrize("level", [0.0, -0.5, 1.5, math.nan, True, "half"])
def test_a_level_is_a_time(level):
    with pytest.raises(ValueError, match=r"StartFrom\(level=.*\(0, 1\]"):
        gk.StartFrom(torch.zeros(2), level)


def test_samples_that_a_model_does_not_read_are_refused_before_the_run():
    model = PROBLEMS["flow-2d"].model
    with pytest.raises(ValueError, match=r"StartFrom\(x=\.\.\.\): sample 0 of 1 .* cannot be read"):
        gk.Run(model, 4, cond=1, guides=[gk.StartFrom(["CCO"])])


def test_steering_from_a_start_reaches_the_tilted_law_around_it():
    """FK steering from x_0 = 2 through t = 1/2 on N(0, 1): the Gaussian above times exp(r/alpha)."""
    model = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([1.0], [0.0], [1.0])))
    start, groups = torch.tensor([2.0], dtype=torch.float64), 200
    guides = [gk.StartFrom(start), gk.FKSteering(lambda x: -x[:, 0], 0.8, ess=0.8)]
    result = gk.sample(
        model.exact(), 100, steps=[0.5, 0.4, 0.2, 0.0], guides=guides, cond=[None] * groups, seed=list(range(groups))
    )
    found, error, log_z, error_z = pooled(result)
    mean, var = 2 * 0.5, 1 - 0.25  # alpha^2 = 1/2
    # 200 independent populations: 4.5 standard errors
    assert abs(found - (mean - var / 0.8)) < 4.5 * error
    assert abs(log_z - (-mean / 0.8 + var / (2 * 0.64))) < 4.5 * error_z
    assert error < 0.02


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 2), (1, 2, 2), ()], ids=str)
def test_starts_of_a_wrong_shape_are_refused_before_the_run(shape):
    with pytest.raises(ValueError, match=r"StartFrom\(x of shape .*: samples have shape \(2,\)"):
        gk.Run(PROBLEMS["flow-2d"].model, 4, cond=1, guides=[gk.StartFrom(torch.zeros(shape))])


@pytest.mark.parametrize("rows", [3, 5, 8])
def test_there_is_one_start_for_every_row_of_every_group(rows: int):
    p, guides = PROBLEMS["flow-2d"], [gk.StartFrom(torch.zeros(rows, 2))]
    with pytest.raises(ValueError, match=f"StartFrom has {rows} samples for 1 conditions of 4 rows"):
        gk.sample(p.model, 4, steps=[0.5, 0.0], cond=1, guides=guides)
    with pytest.raises(ValueError, match=f"StartFrom has {2 * rows} samples for 2 conditions of 4 rows"):
        starts = gk.StartFrom(torch.zeros(2 * rows, 2))
        gk.sample(p.model, 4, steps=[0.5, 0.0], cond=[1, None], guides=[starts])


@pytest.mark.parametrize("guide", [lambda r: gk.BestOfN(r, 3), lambda r: gk.BeamSearch(r, 8, 2)], ids=["bon", "beam"])
def test_where_more_rows_live_than_there_are_starts_they_take_turns(guide):
    """And the memo says from which one each sample descends: noised to t = .01 only, they are still beside it."""
    p = PROBLEMS["flow-2d"]
    starts = torch.tensor([[float(10 * i), float(-i)] for i in range(8)], dtype=torch.float64)
    begun: list[Tensor] = []

    @dataclass(frozen=True)
    class Watch(gk.Guide):
        def log_weight(self, view, memo):
            if view.step.index == 0:
                begun.append(view.x.clone())
            return 0.0, memo

    guides = [gk.StartFrom(starts), Watch(), guide(p.reward)]
    result = gk.sample(p.model, 4, steps=[0.01, 0.005, 0.0], cond=[1, None], guides=guides)
    rows = len(begun[0]) // 2
    expected = torch.cat([torch.arange(rows) % 4, 4 + torch.arange(rows) % 4])
    assert torch.equal((begun[0][:, 0] / 10).round().long(), expected)
    assert torch.equal(result.memos[0], expected[result.lineage()[0]])
    if isinstance(guides[2], gk.BestOfN):  # sample i is the best of the chains that start from its own
        assert torch.equal(result.memos[0], torch.arange(8))


def test_the_start_that_a_sample_descends_from_follows_it_through_resampling():
    p = PROBLEMS["flow-2d"]
    starts = torch.randn(32, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guides = [gk.FKSteering(p.reward, 0.1, ess=1.0), gk.StartFrom(starts)]
    result = gk.sample(p.model, 16, steps=[0.6, 0.4, 0.2, 0.0], cond=[1, None], guides=guides)
    assert result.trace["resampled"].any()
    assert torch.equal(result.memos[1], result.lineage()[0])
    assert not torch.equal(result.memos[1], torch.arange(32))

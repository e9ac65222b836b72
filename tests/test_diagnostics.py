"""What a result says of itself: the error of log Z, entropies, ancestors, a second opinion, and warnings."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.engine.result import Trace
from guidekit.engine.trace import Record
from guidekit.engine.variance import errors

from .problems import PROBLEMS, STEPS, Problem, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
every = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def steered(problem: Problem, n: int = 40, alpha: float = 0.3, ess: float = 0.8, **options) -> gk.Result:
    """Two groups, resampled now and then."""
    guides = [gk.FKSteering(problem.reward, alpha, ess=ess)]
    cond, seed = [problem.cond, None], [3, 4]
    return gk.sample(problem.model, n, **{"steps": STEPS, "guides": guides, "cond": cond, "seed": seed} | options)


# the error of log Z ------------------------------------------------------------------------------------------------


RESAMPLERS = ("multinomial", "stratified", "systematic", "residual", "ssp")
resamplers = pytest.mark.parametrize("resampler", RESAMPLERS)


def runs(name: str, groups: int, n: int, alpha: float, ess: float, resampler: str, **options) -> gk.Result:
    """Independent runs of Feynman-Kac steering, as groups."""
    problem = PROBLEMS[name]
    guide = gk.FKSteering(problem.reward, alpha, ess=ess, resampler=resampler)
    return populations(problem, groups, n, [guide], **options)


def coverage(result: gk.Result) -> tuple[float, float]:
    """How many of the intervals log Z +- 1.96 errors hold the log of the mean of all Z, and their number."""
    known = result.log_z_error.isfinite()
    off = (result.log_z - result.log_z.exp().mean().log()).abs()[known]
    return float((off <= 1.96 * result.log_z_error[known]).double().mean()), float(known.sum())


def check_coverage(result: gk.Result, low: float = 0.90, high: float = 0.98) -> None:
    """Intervals of 95 % hold the truth in so many runs; 3.5 binomial errors for chance."""
    share, number = coverage(result)
    assert share >= low - 3.5 * math.sqrt(low * (1 - low) / number)
    assert share <= high + 3.5 * math.sqrt(high * (1 - high) / number)


def check_size(result: gk.Result, bias: float) -> None:
    """The mean of Z^2 error^2 is the variance of Z, within 4.5 standard errors and a relative bias."""
    z = result.log_z.exp() / result.log_z.exp().mean()
    said, real = (z * result.log_z_error) ** 2, (z - 1) ** 2
    assert abs(said.mean() - real.mean()) < 4.5 * (said - real).std() / math.sqrt(len(z)) + bias * real.mean()


@resamplers
def test_intervals_of_log_z_cover_whatever_the_resampler(resampler: str):
    result = runs("vp-1d", 400, 60, 0.5, 1.0, resampler)
    assert result.log_z_error.isfinite().double().mean() > 0.97
    check_coverage(result)
    check_size(result, 0.1)


def test_intervals_of_log_z_cover_for_tokens_resampled_now_and_then():
    result = runs("masked", 400, 60, 0.4, 0.6, "systematic")
    resampled = result.trace["resampled"].double().mean()
    assert 0.1 < resampled < 0.9
    check_coverage(result)
    check_size(result, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("ess", [1.0, 0.5])
@pytest.mark.parametrize("name, alpha", [("vp-1d", 0.7), ("vp-1d", 0.3), ("masked", 0.7), ("masked", 0.3)])
@resamplers
def test_intervals_of_log_z_cover_everywhere(name: str, alpha: float, resampler: str, ess: float, n: int):
    result = runs(name, 500, n, alpha, ess, resampler, steps=12)
    distinct = torch.tensor(result.trace[-2]["distinct"], dtype=torch.float64)
    check_coverage(result, 0.90 if distinct.mean() >= 10 else 0.80)


@pytest.mark.slow
@pytest.mark.parametrize("guides", [
    lambda r: [gk.SVDD(r, 0.5, 4)], lambda r: [gk.SVDD(r, 0.5, 4), gk.Resample(1.0)],
    lambda r: [gk.FKSteering(r, 0.3, every=3, ess=1.0)],
    lambda r: [gk.FKSteering(r, 0.3, every=[4, 9], ess=0.7, resampler="stratified")],
], ids=["SVDD", "SVDD and Resample", "every third", "a list"])  # fmt: skip
@pytest.mark.parametrize("name", ["vp-1d", "uniform"])
def test_intervals_of_log_z_cover_for_other_selections(name: str, guides):
    result = populations(PROBLEMS[name], 500, 100, guides(PROBLEMS[name].reward), steps=12)
    check_coverage(result)
    check_size(result, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp-1d", "masked"])
@pytest.mark.parametrize("ess", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("resampler", ["multinomial", "systematic", "residual"])
def test_the_error_of_log_z_is_its_spread_over_independent_runs(name: str, ess: float, resampler: str):
    """E[Z^2 error^2] = Var(Z) within 5 %, however often it was resampled."""
    result = runs(name, 2500, 128, 0.4, ess, resampler)
    resampled = result.trace["resampled"].double().sum(0)
    assert (resampled == 0).all() if ess == 0 else (resampled > 0).any()
    check_size(result, 0.05)
    spread = float(result.log_z.std())
    assert abs(spread - float(result.log_z_error.square().mean().sqrt())) < 0.1 * spread


def lineages(ancestors: list[list[int]], log_weights: list[float], resampled: list[bool]) -> gk.Result:
    """A result of one group with this history."""
    n = len(log_weights)
    trace = Trace([{"resampled": [r]} for r in resampled])
    return gk.Result(
        x=torch.arange(n, dtype=torch.float64)[:, None], samples=None, rewards=None,
        group=torch.zeros(n, dtype=torch.long), log_weights=torch.tensor(log_weights, dtype=torch.float64),
        ancestors=torch.tensor(ancestors), trace=trace, cost=None, row=torch.arange(n),
    )  # fmt: skip


def record(log_w: list[float], parent: list[int], left: list[float] | None = None) -> Record:
    """A step: weights before the selection, and survivors that weigh alike or as told."""
    w = torch.tensor(left or [1.0] * len(parent), dtype=torch.float64).log()
    none = torch.full((len(parent),), torch.nan)
    return Record(0.0, 0.0, torch.tensor(log_w, dtype=torch.float64).log(), w, torch.tensor(parent), none, {})


def test_the_error_of_log_z_by_hand():
    """Shares 1/6 -> (1, 1, 2, 2, 3, 3)/12, resampled to (1, 0, 1, 1, 2, 1)/6, -> (6, 0, 3, 3, 9, 3)/24."""
    steps = [record([1, 1, 2, 2, 3, 3], [0, 2, 3, 4, 4, 5]), record([2, 1, 1, 1, 2, 1], [0, 0, 1, 3, 4, 5])]
    first, second = errors(steps, 1, 6)
    one = np.array([-2, -2, 0, 0, 2, 2]) / 24
    two = np.array([2, 0, -1, -1, 1, -1]) / 24
    more = (1 - (1 + 1 + 4 + 4 + 9 + 9) / 144) / (1 - (1 + 1 + 1 + 4 + 1) / 36)
    assert abs(float(first) - math.sqrt(6 / 5 * (one**2).sum())) < 1e-12
    assert abs(float(second) - math.sqrt(6 / 5 * ((one + math.sqrt(more) * two) ** 2).sum())) < 1e-12


def test_the_last_resampling_adds_no_error():
    """log Z is the mean weight before it."""
    w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert errors([record(w, [0] * 6)], 1, 6) == errors([record(w, [0, 1, 2, 3, 4, 5], w)], 1, 6)


def test_where_few_families_are_left_the_error_of_log_z_is_not_known():
    w = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]

    def after(parent: list[int]) -> float:
        return float(errors([record(w, parent), record(w, [0, 1, 2, 3, 4, 5])], 1, 6)[-1])

    assert after([0, 1, 2, 3, 4, 4]) > 0
    assert math.isnan(after([0, 1, 2, 3, 3, 3]))
    assert math.isnan(after([3] * 6))
    assert float(errors([record([1.0, 2.0, 3.0], [0, 1, 2], [1.0, 2.0, 3.0])] * 2, 1, 3)[-1]) > 0  # all are left
    assert math.isnan(float(errors([record([1.0], [0])], 1, 1)[0]))
    assert errors([], 1, 6) == []
    assert lineages([[0, 1]], [0.0, 0.0], [False]).log_z_error.isnan().all()  # a trace without it


def test_one_family_that_weighs_all_has_an_error_where_nothing_was_resampled():
    """The standard error of a mean of one heavy weight: 1."""
    w = [1.0, *[0.0] * 7]
    found = errors([record(w, list(range(8)), w)] * 3, 1, 8)
    assert all(abs(float(v) - 1) < 1e-9 for v in found)


@every
@pytest.mark.parametrize("children", [1, 3])
def test_the_error_of_log_z_on_the_way_by_hand(problem: Problem, children: int):
    """Counted family by family from the populations; a parent's share is that of its children."""
    n = 20
    guides = [gk.SVDD(problem.reward, 0.6, children), gk.Resample(0.9)]
    run = gk.Run(problem.model, n, steps=STEPS, guides=guides, cond=[problem.cond, None], seed=[3, 4])

    def shares(log_w: Tensor, root: np.ndarray) -> np.ndarray:
        mass = np.bincount(root, np.exp(log_w.numpy()), 2 * n).reshape(2, n)
        return mass / mass.sum(1, keepdims=True)

    found = []
    with torch.no_grad():
        pop = run.start()
        root, share, moved, c = np.arange(2 * n), np.full((2, n), 1 / n), np.zeros((2, n)), np.full((2, 1), n / (n - 1))
        for index in range(STEPS):
            born = run.look(run.move(run.branch(pop, index), index), index + 1)
            before = shares(born.log_w, root[born.parent.numpy()])
            alive = [len(set(part)) for part in root.reshape(2, n)]
            moved += np.sqrt(c) * (before - share)
            found.append(np.where(np.array(alive) < 5, np.nan, np.sqrt((moved**2).sum(1))))
            pop = run.select(born, index + 1)
            root = root[pop.parent.numpy()]
            share = shares(pop.log_w, root)
            c *= (1 - (before**2).sum(1, keepdims=True)) / (1 - (share**2).sum(1, keepdims=True))
        result = run.result(pop)
    traced = np.array([row["log_z_error"] for row in result.trace])
    assert np.allclose(traced, found, rtol=1e-9, equal_nan=True)
    assert torch.equal(result.log_z_error.nan_to_num(7.5), torch.from_numpy(traced[-1]).nan_to_num(7.5))
    assert np.isfinite(traced[-1]).any() and result.trace["resampled"].any()


def test_it_is_the_error_of_the_run_after_its_samples_were_chosen():
    result = steered(PROBLEMS["flow-2d"])
    for part in (result.resample(), result.best(3)):
        assert torch.equal(part.log_z_error, result.log_z_error)


def test_without_resampling_it_is_the_standard_error_of_a_mean():
    """sd(w)/(mean(w) sqrt(N)), of each group apart."""
    result = steered(PROBLEMS["flow-2d"], ess=0.0)
    w = result.log_weights.exp().view(2, -1)
    expected = w.std(1) / w.mean(1) / math.sqrt(w.shape[1])
    assert torch.allclose(result.log_z_error, expected, rtol=1e-10)
    assert expected[0] != expected[1]


# weights and ancestors ---------------------------------------------------------------------------------------------


@every
def test_entropy_and_ess_on_the_way_by_hand(problem: Problem):
    """Of the weights before each selection, in every group; exp(entropy), the perplexity, is at least the ESS."""
    guides = [gk.FKSteering(problem.reward, 0.3, ess=0.8)]
    run = gk.Run(problem.model, 20, steps=STEPS, guides=guides, cond=[problem.cond, None], seed=[3, 4])
    rows = []
    with torch.no_grad():
        pop = run.start()
        roots = np.arange(40)
        for index in range(STEPS):
            born = run.look(run.move(run.branch(pop, index), index), index + 1)
            w = np.exp(born.log_w.numpy().reshape(2, -1))
            w /= w.sum(1, keepdims=True)
            pop = run.select(born, index + 1)
            roots = roots[pop.parent.numpy()]
            rows.append((
                -(w * np.log(w)).sum(1), 1 / (w**2).sum(1),
                [len(set(part)) for part in roots.reshape(2, -1)],
                (pop.parent.numpy().reshape(2, -1) != np.arange(40).reshape(2, -1)).any(1),
            ))  # fmt: skip
        trace = run.result(pop).trace
    entropy, ess, distinct, resampled = (np.array(column) for column in zip(*rows, strict=True))
    assert np.allclose(trace["entropy"], entropy, rtol=1e-5)
    assert np.allclose(trace["ess"], ess, rtol=1e-5)
    assert np.array_equal(trace["distinct"], distinct)
    assert np.array_equal(trace["resampled"], resampled)
    assert resampled.any() and distinct.min() < 20
    assert (np.exp(entropy) >= ess * (1 - 1e-9)).all()


def test_equal_weights_have_the_entropy_log_n_and_one_particle_none():
    one = lineages([[0, 1, 2]], [2.0, 2.0, 2.0], [False])
    none = lineages([[0, 1, 2]], [0.0, -math.inf, -math.inf], [False])
    for result, entropy in ((one, math.log(3)), (none, 0.0)):
        whole = replace(result, samples=["a", "b", "b"], trace=Trace([{"resampled": [False]}]))
        row = whole.summary()[0]
        assert abs(row["entropy"] - entropy) < 1e-12
        assert abs(row["ess"] - math.exp(entropy)) < 1e-12
        assert row["distinct"] == 2


@every
def test_the_summary_by_hand(problem: Problem):
    def second(x):
        return x.flatten(1)[:, -1].double() ** 2

    result = steered(problem, alpha=0.15, holdout=second)
    rows = result.summary()
    assert len(rows) == 2
    for g, row in enumerate(rows):
        mine = slice(40 * g, 40 * g + 40)
        w = result.log_weights[mine].exp().numpy()
        p = w / w.sum()
        x = result.x[mine].double().numpy()
        roots = np.arange(80)
        for parents in result.ancestors.numpy():
            roots = roots[parents]
        assert (row["group"], row["n"]) == (g, 40)
        assert abs(row["log_z"] - math.log(w.mean())) < 1e-9
        assert abs(row["ess"] - 1 / (p**2).sum()) < 1e-6
        assert abs(row["entropy"] + (p * np.log(p)).sum()) < 1e-9
        assert row["ancestors"] == len(set(roots[mine])) < 40
        assert row["distinct"] == len({tuple(v) for v in x})
        assert row["log_z_error"] == pytest.approx(float(result.log_z_error[g]), nan_ok=True)
        assert abs(row["reward"] - p @ problem.reward(result.x[mine]).double().numpy()) < 1e-9
        assert abs(row["holdout"] - p @ second(result.x[mine]).numpy()) < 1e-9
        assert not {"reward_gain", "holdout_gain"} & set(row)
        if result.x.is_floating_point():  # of two samples drawn with replacement
            square = ((x[:, None] - x[None]) ** 2).sum(-1).mean()
            assert abs(row["spread"] - math.sqrt(square)) < 1e-9
        else:
            assert "spread" not in row


def test_gains_are_in_standard_deviations_of_the_unguided_result():
    problem = PROBLEMS["flow-2d"]

    def second(x):
        return -x[:, 0]

    result = steered(problem, holdout=second)
    base = gk.sample(
        problem.model, 50, steps=STEPS, cond=[problem.cond, None], seed=[5, 6], reward=problem.reward, holdout=second
    )
    for g, row in enumerate(result.summary(base)):
        own, theirs = slice(40 * g, 40 * g + 40), slice(50 * g, 50 * g + 50)
        p = result.weights[own].numpy()
        for name, column in (("reward", "rewards"), ("holdout", "holdout")):
            mine, other = getattr(result, column)[own].numpy(), getattr(base, column)[theirs].numpy()
            assert abs(row[f"{name}_gain"] - (p @ mine - other.mean()) / other.std(ddof=1)) < 1e-9
        assert row["reward_gain"] > 0.5  # what it was steered to rises, and what opposes it falls
        assert row["holdout_gain"] < -0.3
    one = gk.sample(problem.model, 50, steps=STEPS, cond=1, reward=problem.reward)  # one group serves all, no holdout
    gains = [row["reward_gain"] for row in result.summary(one)]
    means = [row["reward"] for row in result.summary()]
    assert np.allclose(gains, (np.array(means) - float(one.rewards.mean())) / float(one.rewards.std()))
    assert "holdout_gain" not in result.summary(one)[0]


def test_means_of_the_summary_leave_out_what_is_unknown():
    result = lineages([[0, 1, 2]], np.log([0.2, 0.3, 0.5]).tolist(), [False])
    result = replace(
        result, samples=result.x, rewards=torch.tensor([1.0, torch.nan, 4.0], dtype=torch.float64),
        holdout=torch.tensor([torch.nan, 2.0, torch.nan], dtype=torch.float64),
    )  # fmt: skip
    (row,) = result.summary()
    assert abs(row["reward"] - (0.2 * 1 + 0.5 * 4) / 0.7) < 1e-12
    assert row["holdout"] == 2.0


# a second opinion --------------------------------------------------------------------------------------------------


class Second:
    """Scores and remembers what it was given."""

    def __init__(self, unknown: bool = False):
        self.given: list[Tensor] = []
        self.unknown = unknown

    def __call__(self, x):
        self.given.append(x.clone())
        r = x.flatten(1)[:, -1].double() ** 3
        return torch.where(x.flatten(1)[:, 0] > 0.5, torch.nan, r) if self.unknown else r


@every
@pytest.mark.parametrize("batch_size", [None, 7])
def test_the_holdout_scores_final_samples_once_and_changes_nothing(problem: Problem, batch_size):
    second = Second()
    plain = steered(problem, batch_size=batch_size)
    seen = steered(problem, batch_size=batch_size, holdout=second)
    assert len(second.given) == 1
    given = second.given[0]
    if problem.name in ("masked", "uniform"):  # equal ones once
        assert len(given) == len(given.unique(dim=0))
        assert torch.equal(given.unique(dim=0), seen.x.unique(dim=0))
    else:
        assert torch.equal(given, seen.samples)
    assert torch.equal(seen.holdout, seen.x.flatten(1)[:, -1].double() ** 3)
    for name in ("x", "log_weights", "rewards", "ancestors"):
        assert torch.equal(getattr(plain, name), getattr(seen, name))
    assert plain.holdout is None
    for name in ("network_rows", "network_calls", "reward_calls", "unscored"):
        assert getattr(plain.cost, name) == getattr(seen.cost, name)
    assert [row["mean_reward"] for row in plain.trace] == [row["mean_reward"] for row in seen.trace]


def test_the_holdout_sees_decoded_samples():
    model = gk.MaskedModel(
        lambda x, t, cond: torch.zeros(*x.shape, 3), 3, 4, decode=lambda x: ["".join("ACG"[i] for i in s) for s in x]
    )
    given = []

    def second(samples):
        given.extend(samples)
        return [float(s.count("G")) for s in samples]

    result = gk.sample(model, 30, steps=3, reward=lambda s: [float(v.count("A")) for v in s], holdout=second)
    assert sorted(given) == sorted(set(result.samples))
    assert result.holdout.tolist() == [s.count("G") for s in result.samples]
    assert result.rewards.tolist() == [s.count("A") for s in result.samples]


def test_a_holdout_may_leave_samples_without_a_score():
    """They are NaN; neither weight nor count nor warning comes of it (warnings are errors here)."""
    problem = PROBLEMS["flow-2d"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = steered(problem, alpha=3.0, holdout=Second(unknown=True))
        unknown = result.x[:, 0] > 0.5
        assert 0 < unknown.sum() < 80
        assert torch.equal(result.holdout.isnan(), unknown)
        assert result.cost.unscored == 0
        assert result.log_weights.isfinite().all()
        for g, row in enumerate(result.summary()):
            known = ~unknown[40 * g : 40 * g + 40]
            w = result.weights[40 * g : 40 * g + 40][known]
            mean = (w * result.holdout[40 * g : 40 * g + 40][known]).sum() / w.sum()
            assert abs(row["holdout"] - float(mean)) < 1e-12
        nothing = steered(problem, alpha=3.0, holdout=lambda x: x[:, 0] * torch.nan)
        assert nothing.holdout.isnan().all()
        assert all(math.isnan(row["holdout"]) for row in nothing.summary())


def test_a_holdout_that_is_no_reward_is_refused_and_one_that_fails_is_named():
    problem = PROBLEMS["flow-2d"]
    with pytest.raises(TypeError, match="a reward is a Reward or a function of samples"):
        gk.Run(problem.model, 4, cond=1, holdout=3)

    def judge(x):
        raise OSError("no weights")

    with pytest.raises(gk.RewardError, match="'judge' raised OSError: no weights"):
        gk.sample(problem.model, 4, steps=2, cond=1, holdout=judge)

    def short(x):
        return x[:2, 0]

    with pytest.raises(gk.RewardError, match="'short' returned shape"):
        gk.sample(problem.model, 4, steps=2, cond=1, holdout=short)


def test_the_reward_of_the_record_and_the_holdout_are_apart_from_the_guides():
    problem = PROBLEMS["flow-2d"]
    result = steered(problem, reward=lambda x: x[:, 1], holdout=lambda x: 5 - x[:, 0])
    assert torch.equal(result.rewards, result.x[:, 1])
    assert torch.equal(result.holdout, 5 - result.x[:, 0])
    plain = steered(problem)
    assert torch.equal(result.x, plain.x)


# results that are cut, kept and shown ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory(gk.Guide):
    """Remembers the state at the start, and in a tuple the state now."""

    def log_weight(self, view, memo):
        first = view.x.clone() if memo is None else memo[0]
        return 0.0, (first, (view.x.clone(), None))


@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_memos_and_holdout_follow_their_sample(name: str):
    problem = PROBLEMS[name]
    guides = [Memory(), gk.FKSteering(problem.reward, 0.3, ess=0.9)]
    result = steered(problem, guides=guides, holdout=Second())
    begun = gk.Run(problem.model, 40, steps=STEPS, guides=guides, cond=[problem.cond, None], seed=[3, 4])
    with torch.no_grad():
        first = begun.start().x
    assert result.trace["resampled"].any()
    for part in (result, result.best(7), result.best(40), result.resample(seed=1)):
        assert torch.equal(part.memos[0][1][0], part.x)
        assert torch.equal(part.memos[0][0], first[part.lineage()[0]])
        assert part.memos[0][1][1] is None
        assert torch.equal(part.holdout, part.x.flatten(1)[:, -1].double() ** 3)
        assert torch.allclose(part.memos[1][0], problem.reward(part.x).double() / 0.3)  # what FK weighed last
    assert not torch.equal(result.best(40).x, result.x)


@pytest.mark.parametrize("unknown", [False, True])
def test_a_frame_has_the_holdout(unknown: bool):
    pytest.importorskip("pandas")
    problem = PROBLEMS["flow-2d"]
    frame = steered(problem, holdout=Second(unknown)).to_frame()
    result = steered(problem, holdout=Second(unknown))
    assert list(frame.columns) == ["sample", "group", "weight", "reward", "holdout"]
    assert np.allclose(frame["holdout"], result.holdout, equal_nan=True)
    assert "holdout" not in steered(problem).to_frame()


@pytest.mark.parametrize("unknown", [False, True])
def test_saved_and_loaded_it_keeps_the_holdout(unknown: bool, tmp_path):
    problem = PROBLEMS["flow-2d"]
    result = steered(problem, holdout=Second(unknown))
    base = gk.sample(problem.model, 50, steps=STEPS, cond=1, reward=problem.reward, holdout=Second())
    loaded = gk.load_result(result.save(tmp_path / "out"))
    assert (result.log_z_error > 0).all()
    assert torch.equal(loaded.holdout.nan_to_num(77.0), result.holdout.nan_to_num(77.0))
    assert (result.holdout.isnan().sum() > 0) == unknown
    assert loaded.summary(base) == result.summary(base)
    assert torch.equal(loaded.log_z_error, result.log_z_error)
    assert torch.equal(loaded.trace["entropy"], result.trace["entropy"])
    without = gk.load_result(steered(problem).save(tmp_path / "without"))
    assert without.holdout is None


# warnings ----------------------------------------------------------------------------------------------------------


def test_a_collapse_is_told_with_its_step_and_what_to_change():
    problem = PROBLEMS["flow-2d"]
    with pytest.warns(gk.CollapseWarning) as caught:
        result = steered(problem, n=200, alpha=0.002, ess=0.5)
    (message,) = (str(w.message) for w in caught if w.category is gk.CollapseWarning)
    found = re.search(r": the effective sample size fell to ([\d.]+) of 200 at step (\d+) of 6, and", message)
    assert found and message.startswith("weighted means and log_z are not reliable")
    lowest = result.trace["ess"].amin(1)
    assert float(found[1]) == round(float(lowest.min()), 1) < 2
    assert int(found[2]) == int(lowest.argmin()) + 1
    assert f"the samples descend from {int(result.trace['distinct'][-1].min())} of the starting particles" in message
    assert "Take more particles or a larger alpha, or weigh earlier and in more steps" in message


def test_a_larger_alpha_helps_as_the_warning_says():
    problem = PROBLEMS["flow-2d"]
    usual = {"n": 20, "alpha": 0.05, "ess": 0.5}
    with pytest.warns(gk.CollapseWarning):
        steered(problem, **usual)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = usual | {"alpha": 1.0}
        result = steered(problem, **options)
    assert result.trace["ess"].min() >= max(1.5, 0.01 * options["n"])


def test_a_handful_of_particles_is_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = steered(PROBLEMS["flow-2d"], n=4, alpha=0.002)
    assert result.trace["ess"].min() < 1.5


@pytest.mark.parametrize("alpha", [0.005, 0.02])
def test_weights_that_differ_after_a_choice_among_children_are_no_failure(alpha: float):
    """The samples are steered by the choice itself; the same weights without one are a warning."""
    problem = PROBLEMS["flow-2d"]
    options = {"steps": STEPS, "cond": problem.cond, "seed": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guides = [gk.SVDD(problem.reward, alpha, 4)]
        result = gk.sample(problem.model, 32, guides=guides, **options)
    assert result.ess < 1.5
    assert len(result.lineage()[0].unique()) == 32
    with pytest.warns(gk.CollapseWarning, match="at step 6 of 6"):
        weighed = gk.sample(problem.model, 32, guides=[gk.FKSteering(problem.reward, alpha / 10, ess=0.0)], **options)
    assert weighed.ess < 1.5


def test_resampling_by_weights_of_one_particle_is_told_after_a_choice_among_children_too():
    problem = PROBLEMS["flow-2d"]
    guides = [gk.SVDD(problem.reward, 0.001, 2), gk.Resample(ess=1.0)]
    with pytest.warns(gk.CollapseWarning):
        result = gk.sample(problem.model, 32, steps=STEPS, cond=problem.cond, guides=guides)
    assert len(result.lineage()[0].unique()) < 32


def test_a_dip_that_evens_out_before_anything_is_resampled_does_no_harm():
    """Potentials of a path telescope: what they weigh on the way need not reach the end."""
    problem = PROBLEMS["flow-2d"]

    @dataclass(frozen=True)
    class Dip(gk.Guide):
        def log_weight(self, view, memo):
            sign = {2: 1.0, 4: -1.0}.get(view.step.index, 0.0)
            memo = view.x[:, 0].double() if memo is None else memo
            return sign * 500 * memo, memo

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = gk.sample(problem.model, 32, steps=STEPS, cond=problem.cond, guides=[Dip()])
    assert result.trace["ess"].min() < 1.5 < 31 < float(result.ess)

"""Rewards in formulas, their transforms and means, caches, programs and networks, each against its formula by hand."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import guidekit as gk
import rewards
from guidekit.engine.cost import Cost
from guidekit.engine.scoring import Scorer
from rewards import (
    Cached,
    Each,
    ParetoRank,
    Reward,
    RewardError,
    RewardWarning,
    arithmetic_mean,
    as_reward,
    filtered,
    from_callable,
    from_command,
    from_module,
    geometric_mean,
    pareto_rank,
    standardised,
    weighted_sum,
)
from rewards.cached import caches
from rewards.transforms import (
    Clip,
    DoubleSigmoid,
    ExponentialDecay,
    LeftStep,
    ReverseSigmoid,
    RightStep,
    Sigmoid,
    Step,
    ValueMapping,
    ZScore,
)

NAN = math.nan


def given_scores(*values: float) -> Reward:
    """The samples' own numbers: sample i is its place."""
    table = torch.tensor(values, dtype=torch.float64)
    return from_callable(lambda places: table[list(places)], "table")


def equal(a: Tensor, b) -> bool:
    return np.allclose(np.asarray(a, dtype=float), np.asarray(b, dtype=float), atol=1e-12, rtol=1e-12, equal_nan=True)


# formulas ------------------------------------------------------------------------------------------------------------


def test_arithmetic():
    a, b = given_scores(1.0, 2.0, NAN).named("a"), given_scores(10.0, 20.0, 30.0).named("b")
    every = [0, 1, 2]
    assert equal((2 * a + b)(every), [12, 24, NAN])
    assert equal((a - 3)(every), [-2, -1, NAN])
    assert equal((3 - a)(every), [2, 1, NAN])
    assert equal((b / a)(every), [10, 10, NAN])
    assert equal((b / 4)(every), [2.5, 5, 7.5])
    assert equal((-b)(every), [-10, -20, -30])
    assert equal((b * b - b)(every), [90, 380, 870])
    assert equal((b + len_of)(every), [13, 23, 33])
    assert (2 * a + b).name == "2 * a + b"
    assert (2 * (a + b)).name == "2 * (a + b)"
    assert (-b).name == "-b"
    with pytest.raises(TypeError):
        a + "b"
    with pytest.raises(TypeError):
        a * True


def len_of(samples) -> list[float]:
    return [3.0] * len(samples)


def test_direction_and_gradients_of_formulas():
    smooth, rough = from_callable(lambda x: x[:, 0], differentiable=True), from_callable(len_of, differentiable=False)
    low = from_callable(len_of, higher_is_better=False)
    assert (2 * smooth + 1).differentiable is True and (smooth + rough).differentiable is False
    assert (smooth + from_callable(len_of)).differentiable is None
    for formula, up in (
        (low, False),
        (-low, True),
        (2 * low, False),
        (low - 1, False),
        (1 - low, True),
        (low / -2, True),
    ):
        assert formula.higher_is_better is up, formula.name
    x = torch.tensor([[2.0], [3.0]], requires_grad=True)
    (3 * smooth * smooth)(x).sum().backward()
    assert equal(x.grad, [[12.0], [18.0]])


def test_a_sample_that_raises_costs_itself():
    class Picky(Each):
        name = "picky"

        def one(self, sample):
            return 1 / sample

    with pytest.warns(RewardWarning, match="'picky' raised on 1 of 3 samples, first ZeroDivisionError"):
        assert equal(Picky()([1, 0, 4]), [1, NAN, 0.25])
    with pytest.raises(RewardError, match="the text 'CCO'"):
        Picky()("CCO")


def test_a_plain_function_that_raises_on_a_batch_is_asked_once_more_sample_by_sample():
    asked = []

    def inverse(samples):
        asked.append(list(samples))
        return [1 / s for s in samples]

    with pytest.warns(RewardWarning, match="'inverse' raised on 1 of 3 samples, first ZeroDivisionError"):
        assert equal(as_reward(inverse)([1, 0, 4]), [1, NAN, 0.25])
    assert asked == [[1, 0, 4], [1], [0], [4]]
    lazy = as_reward(lambda samples: (1 / s for s in samples))
    with pytest.warns(RewardWarning, match="raised on 1 of 2 samples"):
        assert equal((2 * lazy)([0, 4]), [NAN, 0.5])
    for samples in ([0, 0], [0]):
        asked.clear()
        with pytest.raises(RewardError, match="'inverse' raised ZeroDivisionError") as caught:
            as_reward(inverse)(samples)
        assert isinstance(caught.value.__cause__, ZeroDivisionError) and len(asked) == (3 if len(samples) == 2 else 1)

    def alone(samples):
        if len(samples) > 1:
            raise MemoryError("too many")
        return torch.ones(1)

    with pytest.warns(RewardWarning, match="raised MemoryError: too many for 2 samples together.*one by one"):
        assert equal(as_reward(alone)([1, 2]), [1, 1])

    def interrupted(samples):
        raise KeyboardInterrupt

    def missing(samples):
        asked.append(samples)
        raise ImportError("no rdkit")

    with pytest.raises(KeyboardInterrupt):
        as_reward(interrupted)([1, 2])
    asked.clear()
    with pytest.raises(RewardError, match="no rdkit"):
        as_reward(missing)([1, 2])
    assert len(asked) == 1


def test_scores_of_a_plain_function_that_raises_keep_their_gradients():
    def positive(x):
        if (x < 0).any():
            raise ValueError("negative")
        return x[:, 0].square()

    x = torch.tensor([[2.0], [-1.0], [3.0]], requires_grad=True)
    with pytest.warns(RewardWarning, match="1 of 3"):
        scores = as_reward(positive)(x)
    assert equal(scores.detach(), [4, NAN, 9])
    (grad,) = torch.autograd.grad(scores[~scores.isnan()].sum(), x)
    assert equal(grad, [[4.0], [0.0], [6.0]])


def test_a_run_counts_what_a_cache_computes():
    words = ["C", "CC", "C", "CCC"]
    group = torch.zeros(4, dtype=torch.long)

    def counted(reward, *calls) -> list[int]:
        cost = Cost()
        score, found = Scorer(cost, torch.device("cpu")), []
        for samples in calls:
            assert equal(score(reward, samples, group[: len(samples)]), [float(len(s)) for s in samples])
            found.append(cost.reward_calls)
        return found

    length = lambda samples: [len(s) for s in samples]  # noqa: E731
    cached = Cached(length)
    assert counted(cached, words, ["CC", "CCCC"]) == [3, 4]
    assert counted(cached, words, ["CC", "CCCCC"]) == [0, 1]  # another run
    twice = -1 * (-1 * cached)
    assert counted(twice, words, ["C" * 9]) == [0, 1]
    half = 0.5 * cached + 0.5 * as_reward(length)
    assert counted(half, words) == [3]  # the other half is computed
    assert counted(arithmetic_mean([cached, Cached(length)]), words) == [3]
    assert counted(filtered(cached, Cached(length)), words) == [3] and caches(filtered(cached, length)) is None
    assert counted(length, words, words) == [3, 3]


def test_rewards_are_sent_as_they_are():
    reward = weighted_sum([as_reward(len_of), 2 * as_reward(len_of)], [0.3, 0.7]).transformed(Sigmoid(0, 5))
    assert equal(pickle.loads(pickle.dumps(reward))([1, 2]), reward([1, 2]))


# transforms ----------------------------------------------------------------------------------------------------------

X = torch.tensor([-3.0, -0.2, 0.0, 0.3, 0.55, 0.8, 1.0, 4.0], dtype=torch.float64)
x_ = X.numpy()


def double_sigmoid(x, low, high, div, si, se):
    """As REINVENT writes it."""
    a = 10 ** (se * x / div)
    b = a + 10 ** (se * low / div)
    c = 10 ** (si * x / div) / (10 ** (si * x / div) + 10 ** (si * high / div))
    return a / b - c


@pytest.mark.parametrize(
    "transform, expected",
    [
        (Sigmoid(0.3, 0.8, 0.5), 1 / (1 + 10 ** (-10 * 0.5 * (x_ - 0.55) / 0.5))),
        (Sigmoid(0.3, 0.8), 1 / (1 + 10 ** (-10 * 0.25 * (x_ - 0.55) / 0.5))),
        (ReverseSigmoid(0.3, 0.8, 0.5), 1 / (1 + 10 ** (10 * 0.5 * (x_ - 0.55) / 0.5))),
        (DoubleSigmoid(-0.5, 0.7, 1.0, 3.0, 2.0), double_sigmoid(x_, -0.5, 0.7, 1.0, 3.0, 2.0)),
        (Step(0.0, 0.8), [0, 0, 1, 1, 1, 1, 0, 0]),
        (LeftStep(0.3), [1, 1, 1, 1, 0, 0, 0, 0]),
        (RightStep(0.3), [0, 0, 0, 1, 1, 1, 1, 1]),
        (Clip(0.0, 0.8), [0, 0, 0, 0.3, 0.55, 0.8, 0.8, 0.8]),
        (Clip(-1.0, 1.0, scale=True), [0, 0.4, 0.5, 0.65, 0.775, 0.9, 1, 1]),
        (ExponentialDecay(2.0), np.where(x_ > 0, np.exp(-2 * np.maximum(x_, 0)), 1.0)),
        (ValueMapping({0: 0.4, 1: 0.9}), [NAN, NAN, 0.4, NAN, NAN, NAN, 0.9, NAN]),
        (ValueMapping({4: 1.0}, otherwise=0.0), [0, 0, 0, 0, 0, 0, 0, 1]),
        (ZScore(1.0, 2.0), (x_ - 1) / 2),
    ],
)
def test_transforms_are_their_formulas_and_keep_nan(transform, expected):
    assert equal(transform(X), expected)
    reward = given_scores(*X.tolist(), NAN).transformed(transform)
    assert equal(reward(range(9)), [*np.asarray(expected), NAN])


def test_transforms_far_out_are_finite_and_have_gradients():
    x = torch.tensor([-1e6, 0.1, 1e6], dtype=torch.float64, requires_grad=True)
    for transform in (Sigmoid(0, 1), ReverseSigmoid(0, 1), DoubleSigmoid(0, 1), Clip(), ExponentialDecay()):
        y = transform(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert y.isfinite().all() and slope.isfinite().all()
        step = 1e-6
        middle = torch.tensor([0.1], dtype=torch.float64)
        rise = (transform(middle + step) - transform(middle - step)) / (2 * step)
        assert abs(float(slope[1]) - float(rise)) < 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sigmoid(1, 1), lambda: ReverseSigmoid(2, 1), lambda: DoubleSigmoid(0, math.inf), lambda: Clip(1, 0),
        lambda: DoubleSigmoid(0, 1, coef_div=0), lambda: Step(2, 1), lambda: ExponentialDecay(0),
        lambda: ValueMapping({}), lambda: ZScore(0, 0), lambda: as_reward(len_of).transformed(3),
    ],
)  # fmt: skip
def test_transforms_check_their_arguments(make):
    with pytest.raises((ValueError, TypeError)):
        make()


# means ---------------------------------------------------------------------------------------------------------------


def test_means_leave_out_what_is_unknown():
    a, b, c = given_scores(0.2, 0.5, NAN, NAN), given_scores(0.8, NAN, 0.4, NAN), given_scores(0.5, 0.3, 0.9, NAN)
    w = [2.0, 1.0, 1.0]
    assert equal(
        arithmetic_mean([a, b, c], w)(range(4)),
        [(0.4 + 0.8 + 0.5) / 4, (1.0 + 0.3) / 3, (0.4 + 0.9) / 2, NAN],
    )
    assert equal(
        geometric_mean([a, b, c], w)(range(4)),
        [(0.04 * 0.8 * 0.5) ** 0.25, (0.25 * 0.3) ** (1 / 3), 0.36**0.5, NAN],
    )
    assert equal(weighted_sum([a, b, c], w)(range(4)), [1.7, 1.3 / 3 * 4, 1.3 / 2 * 4, NAN])
    assert equal(arithmetic_mean([a, c])([0]), [0.35])


def test_a_factor_of_zero_is_tiny_and_a_weight_of_zero_nothing():
    zero, one = given_scores(0.0), given_scores(1.0)
    assert equal(geometric_mean([zero, one])([0]), [1e-4])
    assert equal(geometric_mean([zero, one], [0, 1])([0]), [1.0])
    assert equal(weighted_sum([given_scores(NAN), one], [0.0, 2.0])([0]), [2.0])


def test_means_give_gradients():
    first, second = (from_callable(lambda x, i=i: x[:, i], differentiable=True) for i in (0, 1))
    x = torch.tensor([[0.25, 0.5]], dtype=torch.float64, requires_grad=True)
    mean = geometric_mean([first, second], [1, 3])
    assert mean.differentiable is True
    (slope,) = torch.autograd.grad(mean(x).sum(), x)
    value = 0.25**0.25 * 0.5**0.75
    assert equal(slope, [[value / 4 / 0.25, value * 3 / 4 / 0.5]])


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0], [NAN, 1.0], [math.inf, 1.0]])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match="weights"):
        weighted_sum([len_of, len_of], weights)


def test_filters_stand_before_the_reward():
    asked: list[str] = []

    def length(texts):
        asked.extend(texts)
        return [float(len(t)) for t in texts]

    short = from_callable(lambda t: NAN if t == "?" else float(len(t) < 4), each=True)
    no_x = from_callable(lambda texts: ["x" not in t for t in texts])
    reward = filtered(length, short, no_x, otherwise=-1.0)
    assert equal(reward(["aa", "xa", "aaaaa", "?", "b"]), [2, -1, -1, NAN, 1])
    assert asked == ["aa", "b"]
    with pytest.raises(ValueError, match="at least one filter"):
        filtered(length)


def test_standardised_rewards_have_the_reference_as_unit():
    reward = given_scores(1.0, 2.0, 6.0, NAN)
    own = standardised(reward, [0, 1, 2, 3])
    assert equal(own([0, 1, 2, 3]), [*((np.array([1, 2, 6]) - 3) / np.std([1, 2, 6], ddof=1)), NAN])
    with pytest.raises(ValueError, match="1 samples of the reference have scores"):
        standardised(reward, [0, 3])


def test_pareto_ranks():
    scores = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [1.0, 1.0], [2.0, 2.0], [0.0, 0.5], [NAN, 9.0]])
    assert pareto_rank(scores).tolist() == [0, 0, 0, 1, 0, 2, -1]
    a, b = (given_scores(*column) for column in scores.T.tolist())
    assert equal(ParetoRank([a, b])(range(7)), [0, 0, 0, -1, 0, -2, NAN])
    assert equal(ParetoRank([a, b], reference=torch.tensor([[5.0, 5.0]]))([0]), [-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_pareto_fronts_are_those_of_the_definition(points):
    scores = torch.tensor(points, dtype=torch.float64)
    left, front, expected = set(range(len(points))), 0, [0] * len(points)

    def dominates(i, j):
        return all(a >= b for a, b in zip(points[i], points[j], strict=True)) and points[i] != points[j]

    while left:
        now = {j for j in left if not any(dominates(i, j) for i in left)}
        for j in now:
            expected[j] = front
        left, front = left - now, front + 1
    assert pareto_rank(scores).tolist() == expected


# caches --------------------------------------------------------------------------------------------------------------


class Counting(Reward):
    name = "counting"

    def __init__(self):
        self.seen: list = []

    def score(self, samples):
        self.seen += list(samples)
        return [NAN if "bad" in str(s) else float(len(str(s))) for s in samples]


def test_ten_thousand_duplicates_cost_one_call():
    own = Counting()
    cached = Cached(own)
    scores = cached(["CCO"] * 10_000)
    assert own.seen == ["CCO"] and cached.calls == 1 and cached.hits == 9_999
    assert (scores == 3).all()


def test_order_and_nan_and_asking_again():
    own = Counting()
    cached = Cached(own, chunk=2)
    assert equal(cached(["a", "bad", "ccc", "a", "bad"]), [1, NAN, 3, 1, NAN])
    assert own.seen == ["a", "bad", "ccc"]
    assert equal(cached(["ccc", "bad"]), [3, NAN])
    assert own.seen == ["a", "bad", "ccc", "bad"]  # what had no score is asked for again
    assert (cached.calls, cached.hits) == (4, 3)


@pytest.mark.parametrize(
    "key, samples, distinct",
    [
        ("smiles", ["OCC", "CCO", "C(C)O", "not a molecule", "CCN"], 3),
        ("sequence", ["acgt", "ACGT", "ACGU", " ACGT\n", "ACG"], 2),
        (str.lower, ["A", "a", "b"], 2),
        (None, ["A", "a", "A"], 2),
    ],
)
def test_samples_are_told_apart_by_their_content(key, samples, distinct: int):
    own = Counting()
    Cached(own, key=key)(samples)
    assert len(own.seen) == distinct


def test_pictures_are_told_apart_in_eight_bits():
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0] = (x[0] * 255).round() / 255
    x[1] = x[0] + 1e-4  # the same in eight bits
    x[2] = x[0].clone()
    x[2, 0, 0, 0] = 1 - x[0, 0, 0, 0]
    asked = []
    reward = from_callable(lambda images: asked.append(len(images)) or images.flatten(1).mean(1))
    assert equal(Cached(reward, key="image")(x), x[[0, 0, 2]].flatten(1).mean(1).double())
    assert asked == [2]


def test_a_file_keeps_scores_for_the_next_process(tmp_path: Path):
    file = tmp_path / "scores.db"
    one = Cached(Counting(), file)
    one(["a", "bb", "bad"])
    own = Counting()
    two = Cached(own, file)
    assert equal(two(["bb", "a", "bad", "dddd"]), [2, 1, NAN, 4])
    assert own.seen == ["bad", "dddd"]
    other = Counting()
    Cached(other, file, name="another")(["a"])
    assert other.seen == ["a"]  # scores belong to a name
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT COUNT(*) FROM scores").fetchone() == (4,)


def test_a_kill_loses_nothing_that_was_returned(tmp_path: Path):
    file = tmp_path / "scores.db"
    program = f"""
import os
from rewards import Cached
def score(texts):
    if "f" in texts:
        os._exit(9)
    return [float(len(t)) for t in texts]
Cached(score, {str(file)!r}, chunk=2, name="x")(list("abcdefg"))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 9
    own = Counting()
    assert equal(Cached(own, file, name="x")(list("abcdefg")), [1] * 7)
    assert own.seen == ["e", "f", "g"]


def _write(file: str, first: int) -> None:
    cached = Cached(len_of, file, chunk=1, name="shared")
    for i in range(first, first + 40):
        cached([f"text {i}"])


def test_several_processes_share_a_file(tmp_path: Path):
    file = str(tmp_path / "scores.db")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(file, 30 * i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    own = Counting()
    Cached(own, file, name="shared")([f"text {i}" for i in range(100)])
    assert own.seen == []


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    file = tmp_path / "scores.db"
    file.write_bytes(b"these are no scores, and they are long enough to be read as a header" * 10)
    with pytest.raises(ValueError, match="give a file of its own"):
        Cached(len_of, file)
    with pytest.raises(ValueError, match="key='colour'"):
        Cached(len_of, key="colour")


def test_a_run_with_a_cache_resumes_though_the_cache_has_changed(tmp_path: Path):
    table = gk.analytic.TokenTable(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    cached, file = Cached(lambda x: x[:, 0].double(), key="content"), tmp_path / "run.safetensors"
    options = {"steps": 4, "guides": [gk.FKSteering(cached, 1.0)], "checkpoint": file}

    def kill(population, step):
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(table, 64, callbacks=[kill], **options)
    resumed = gk.sample(table, 64, **options)
    whole = gk.sample(table, 64, steps=4, guides=[gk.FKSteering(lambda x: x[:, 0].double(), 1.0)])
    assert torch.equal(resumed.x, whole.x)
    assert 0 < cached.calls <= 9


def test_each_group_has_its_own_reward():
    up = from_callable(lambda x: x[:, 0], "up", differentiable=True)
    down = from_callable(lambda x: -x[:, 0], "down", differentiable=True)
    base = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5])
    both = rewards.ByGroup([up, down])
    assert both.name == "by group: up, down" and both.differentiable
    makes = (gk.FKSteering, gk.TDS, lambda r, a: gk.SVDD(r, a, 3), gk.LGD, lambda r, a: gk.BestOfN(r, 2))
    for make in makes:
        for batch in (None, 3):
            run = {"steps": 6, "cond": [None, None], "batch_size": batch, "holdout": both, "seed": [1, 2]}
            together = gk.sample(base, 16, guides=[make(both, 1.0)], **run)
            for g, own in enumerate((up, down)):
                alone = gk.sample(base, 16, steps=6, guides=[make(own, 1.0)], seed=1 + g, batch_size=batch)
                mine = together.group == g
                assert torch.allclose(together.x[mine], alone.x, atol=1e-5)
                assert equal(together.rewards[mine], own(together.x[mine]))
                assert equal(together.holdout[mine], own(together.x[mine]))
    with pytest.raises(RewardError, match="has 2 rewards, and group 2 has none"):
        gk.sample(base, 4, steps=3, cond=[None] * 3, guides=[gk.FKSteering(both, 1.0)])
    with pytest.raises(RewardError, match="3 samples are not 2 groups"):
        both(torch.zeros(3, 1))


# programs and networks -----------------------------------------------------------------------------------------------


def program(tmp_path: Path, body: str) -> list[str]:
    file = tmp_path / "score.py"
    file.write_text(f"import json, sys\nlines = sys.stdin.read().splitlines()\n{body}\n", encoding="utf-8")
    return [sys.executable, str(file)]


@pytest.mark.parametrize(
    "body, endpoint",
    [
        ("print(json.dumps([len(l) if l != 'bad' else None for l in lines]))", None),
        ("print(json.dumps({'scores': [len(l) if l != 'bad' else None for l in lines]}))", None),
        ("own = [len(l) if l != 'bad' else 'none' for l in lines]\n"
         "print(json.dumps({'version': 1, 'payload': {'a': [0] * len(lines), 'b': own}}))", "b"),
    ],
)  # fmt: skip
def test_a_program_scores(tmp_path: Path, body: str, endpoint: str | None):
    reward = from_command(program(tmp_path, body), endpoint=endpoint)
    assert equal(reward(["CCO", "bad", "", "two\nlines", "π", "C C"]), [3, NAN, NAN, NAN, 1, 3])
    assert equal(reward([]), [])


@pytest.mark.parametrize(
    "body, message",
    [
        ("sys.exit('out of licences')", "ended with 1: out of licences"),
        ("print('hello')", "wrote no JSON: 'hello"),
        ("print(json.dumps([1.0]))", "returned 1 scores for 2 samples"),
        ("print(json.dumps({'a': [1, 2]}))", "no endpoint 'b'; it has a"),
        ("print(json.dumps(3))", "returned int scores"),
    ],
)
def test_a_program_that_fails_says_how(tmp_path: Path, body: str, message: str):
    endpoint = "b" if "'a'" in body else None
    with pytest.raises(RewardError, match=message):
        from_command(program(tmp_path, body), endpoint=endpoint)(["C", "CC"])


def test_a_program_has_a_time(tmp_path: Path):
    with pytest.raises(RewardError, match="timed out after"):
        from_command(program(tmp_path, "import time; time.sleep(30)"), timeout=0.5)(["C"])
    with pytest.raises(TypeError, match="a list is needed"):
        from_command("score.py")
    with pytest.raises(ValueError, match="no program 'no-such-program'"):
        from_command(["no-such-program"])


def test_no_shell_reads_the_command(tmp_path: Path):
    mark = tmp_path / "mark"
    command = [*program(tmp_path, "print(json.dumps([float(len(sys.argv[1]))] * len(lines)))"), f"; touch {mark}"]
    assert equal(from_command(command)(["C"]), [len(f"; touch {mark}")])
    assert not mark.exists()


def test_a_network_scores_and_is_left_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    net[1].eval()
    modes = [m.training for m in net.modules()]
    x = torch.randn(7, 3, dtype=torch.float64)
    weight = net[2].weight @ net[0].weight
    bias = net[2].weight @ net[0].bias + net[2].bias
    expected = (x @ weight.mT + bias).detach()
    for output, column in ((1, 1), (lambda out: out[:, 0], 0)):
        assert equal(from_module(net, output=output, batch=3)(x).detach(), expected[:, column])
    assert [m.training for m in net.modules()] == modes
    x.requires_grad_()
    (slope,) = torch.autograd.grad(from_module(net, output=1)(x).sum(), x)
    assert equal(slope, weight[1].detach().expand(7, 3))
    assert not from_module(net, output=1, differentiable=False)(x).requires_grad
    texts = from_module(net, prepare=lambda samples: torch.tensor([[float(len(s))] * 3 for s in samples]), output=0)
    assert equal(
        texts(["C", "CC"]).detach(), (torch.tensor([[1.0] * 3, [2.0] * 3]).double() @ weight.mT + bias)[:, 0].detach()
    )
    with pytest.raises(RewardError, match="give prepare="):
        from_module(net, output=0)(["C"])
    with pytest.raises(RewardError, match=r"shape \(7, 2\)"):
        from_module(net)(x)


def test_nothing_is_imported_before_it_is_needed():
    heavy = ("rdkit", "open_clip", "guidekit", "sklearn", "pandas", "dask", "torchvision")
    code = f"import sys, rewards; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ.copy()
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
    assert all(hasattr(rewards, name) for name in rewards.__all__)

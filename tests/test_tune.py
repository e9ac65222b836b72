"""gk.tune: the settings it tries are those of a beam search written out here, and what it reports is what runs give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.errors import CheckpointError, RewardError
from guidekit.guides.tfg import DPS, TFG
from guidekit.search.tune import tune
from rewards import as_reward

MODEL = gk.analytic.GaussianMixture(*torch.tensor([[0.6, 0.4], [-1.0, 1.5], [0.5, 0.7]], dtype=torch.float64))
OPTIONS: dict[str, Any] = {"n": 1, "steps": 1}


@dataclass(frozen=True)
class Knobs(gk.Guide):
    """Strengths that change nothing."""

    a: float = 1.0
    b: float = 1.0
    c: str = "x"


def hills(a: float, b: float, c: str) -> float:
    """Two, the higher one far away."""
    a, b = math.log2(a), math.log2(b)
    return max(-((a - 1) ** 2) - b**2, 4 - 0.5 * (a - 2) ** 2 - (b - 3) ** 2) + {"x": 0.0, "y": 0.5, "z": -3.0}[c]


def height(result: gk.Result) -> float:
    return hills(*(result.config["guides"][0][k] for k in "abc"))


def searched(beam: int, sweeps: int) -> list[tuple[float, float, str]]:
    """The settings in the order of a beam search from (1, 1, x)."""
    start = (1.0, 1.0, "x")
    tried, kept = {start: hills(*start)}, [start]
    for _ in range(sweeps):
        for a, b, c in kept:
            after = {"x": ["y"], "y": ["z"], "z": []}[c]
            for s in [(2 * a, b, c), (a, 2 * b, c), *((a, b, v) for v in after)]:
                tried.setdefault(s, hills(*s))
        new = sorted(tried, key=lambda s: -tried[s])[:beam]
        if new == kept:
            break
        kept = new
    return list(tried)


@pytest.mark.parametrize("beam, sweeps", [(1, 9), (3, 1), (3, 4), (4, 7)])
def test_it_is_a_beam_search_over_the_strengths(beam: int, sweeps: int):
    space = {"a": 1.0, "b": 1.0, "c": ["x", "y", "z"]}
    tuned = tune(Knobs(), MODEL, height, space, beam=beam, sweeps=sweeps, **OPTIONS)
    assert [(row["a"], row["b"], row["c"]) for row in tuned.table] == searched(beam, sweeps)
    top = max(tuned.table, key=lambda row: row["metric"])
    assert tuned.best == {k: top[k] for k in space}
    assert tuned.guides == [Knobs(**tuned.best)]


def test_a_wider_beam_leaves_the_near_hill():
    heights = [
        max(
            row["metric"]
            for row in tune(Knobs(), MODEL, height, {"a": 1.0, "b": 1.0}, beam=k, sweeps=9, **OPTIONS).table
        )
        for k in (1, 6)
    ]
    assert heights == [0.0, 4.0]


def test_it_finds_the_strength_of_dps_that_brings_the_mean_to_a_target():
    """And by another factor, a finer one; every row is what a run of these settings gives."""
    target = 2.0

    def near(result):
        return -abs(float(result.x.mean()) - target)

    guide = DPS(lambda x: x[:, 0])
    tuned = tune(guide, MODEL, near, {"scale": 0.1}, n=100, steps=15, beam=2, sweeps=12, factor=1.5, seed=4)
    values = [row["metric"] for row in tuned.table]
    assert [row["scale"] for row in tuned.table] == pytest.approx([0.1 * 1.5**i for i in range(len(values))])
    assert max(values) > -0.3
    assert len(values) > 4 and values[-1] < max(values)  # past the best it stops
    seed = int(random.fold(random.fold(random.fold(random.key(4), "tune"), 0), 0))
    again = gk.sample(MODEL, 100, steps=15, guides=tuned.guides, seed=seed)
    assert near(again) == max(values)
    row = max(tuned.table, key=lambda row: row["metric"])
    assert row["network_rows"] == again.cost.network_rows
    assert row["reward_calls"] == again.cost.reward_calls
    assert math.isnan(row["error"])  # one number has none


def test_a_reward_has_a_mean_and_a_standard_error():
    reward = as_reward(lambda x: x[:, 0])
    tuned = tune(Knobs(), MODEL, reward, {"a": 1.0}, n=400, steps=5, sweeps=1, cond=[None, None], repeats=2)
    row = tuned.table[0]
    values = []
    for repeat in (0, 1):
        key = random.fold(random.fold(random.key(0), "tune"), repeat)
        seeds = [int(random.fold(key, g)) for g in (0, 1)]
        values.append(gk.sample(MODEL, 400, steps=5, cond=[None, None], seed=seeds).x[:, 0])
    values = torch.cat(values)
    assert len(values.unique()) == 1600
    assert row["metric"] == pytest.approx(float(values.mean()))
    assert row["error"] == pytest.approx(float(values.std() / 40))
    assert row["scored"] == 1600
    assert row["network_rows"] == 1600 * 5
    assert tuned.table[1]["metric"] == row["metric"]  # the same noise
    one = tune(Knobs(), MODEL, lambda r: float(r.x.mean()), {"a": 1.0}, n=400, steps=5, sweeps=1, repeats=4).table[0]
    assert 0 < one["error"] < 0.2
    assert one["scored"] == 4


def test_weighted_samples_count_by_their_weights_and_unscored_ones_do_not():
    def metric(result):
        return torch.where(result.x[:, 0] > 0, result.x[:, 0], torch.nan)

    def make(alpha):
        return [gk.FKSteering(lambda x: x[:, 0], alpha, ess=0.0), gk.Resample(ess=0.0)]

    tuned = tune(make, MODEL, metric, {"alpha": [1.0]}, n=200, steps=6, guides=[Knobs()])
    seed = int(random.fold(random.fold(random.fold(random.key(0), "tune"), 0), 0))
    result = gk.sample(MODEL, 200, steps=6, guides=tuned.guides, seed=seed)
    assert len(tuned.guides) == 3
    known = result.x[:, 0] > 0
    mean = (result.weights * result.x[:, 0])[known].sum() / result.weights[known].sum()
    assert tuned.table[0]["metric"] == pytest.approx(float(mean))
    assert tuned.table[0]["scored"] == int(known.sum()) < 200


def test_an_interrupted_search_goes_on_where_it_was(tmp_path):
    calls = []

    def metric(result):
        calls.append(result)
        if len(calls) == metric.stop:
            raise KeyboardInterrupt
        return result.x[:, 0]

    space = {"rho": 0.2, "mu": 0.1, "sigma": 0.05}
    guide = TFG(lambda x: x[:, 0], draws=2)
    options: dict[str, Any] = {"n": 4, "steps": 3, "beam": 2, "sweeps": 3}
    metric.stop = None
    whole = tune(guide, MODEL, metric, space, **options)
    total = len(calls)
    assert total == len(whole.table) > 8
    calls.clear()
    metric.stop = 6
    file = tmp_path / "tune.json"
    with pytest.raises(KeyboardInterrupt):
        tune(guide, MODEL, metric, space, checkpoint=file, **options)
    calls.clear()
    metric.stop = None
    rest = tune(guide, MODEL, metric, space, checkpoint=file, **options)
    assert len(calls) == total - 5
    assert rest.best == whole.best
    for one, two in zip(rest.table, whole.table, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}
    calls.clear()  # what the metric holds belongs to the search
    with pytest.raises(CheckpointError, match="another search: seed was 0 and is 1 now"):
        tune(guide, MODEL, metric, space, checkpoint=file, seed=1, **options)
    calls.clear()
    file.write_text("{")
    with pytest.raises(CheckpointError, match="truncated"):
        tune(guide, MODEL, metric, space, checkpoint=file, **options)


def test_settings_that_fail_come_last_and_say_why():
    def net(x, t, cond):
        return torch.where(x.abs() > 20, torch.nan, 0.5 * x)

    model = gk.GaussianModel(net, (1,), predicts="clean", dtype=torch.float64)
    guide = DPS(lambda x: x[:, 0], schedule="constant")
    tuned = tune(guide, model, as_reward(lambda x: x[:, 0]), {"scale": 1.0}, n=4, steps=6, beam=1, sweeps=9, factor=4.0)
    metrics = [row["metric"] for row in tuned.table]
    assert math.isnan(metrics[-1]) and "NaN or infinity" in tuned.table[-1]["failed"]
    assert tuned.best["scale"] == tuned.table[-2]["scale"]
    assert all(a < b for a, b in pairwise(metrics[:-1]))
    frame = tuned.to_frame()
    assert next(iter(frame["scale"])) == tuned.best["scale"]
    assert math.isnan(list(frame["metric"])[-1])
    with pytest.raises(RewardError, match="the metric scored no sample"):
        tune(guide, model, lambda r: r.x[:, 0] * torch.nan, {"scale": 1.0}, n=4, steps=6)


def test_what_cannot_work_says_so():
    def attempt(guide: Any = Knobs(), metric: Any = height, space: Any = None, **options):
        tune(guide, MODEL, metric, {"a": 1.0} if space is None else space, **OPTIONS | options)

    with pytest.raises(TypeError, match="a guide or a function that makes one, not str"):
        attempt("DPS")
    with pytest.raises(TypeError, match="a function of a Result"):
        attempt(metric="mean")
    with pytest.raises(TypeError, match=r"A function f of samples is given as rewards\.as_reward"):
        attempt(metric=lambda x: x[:, 0])
    with pytest.raises(ValueError, match=r"returned \(1, 1\) for 1 samples"):
        attempt(metric=lambda r: r.x)
    for space in ({}, {"metric": 1.0}):
        with pytest.raises(ValueError, match="strengths and where each begins"):
            attempt(space=space)
    for value in (0.0, "x", [], True):
        with pytest.raises(ValueError, match="a positive number to begin with"):
            attempt(space={"a": value})
    with pytest.raises(ValueError, match=r"Knobs has .*a, b, c; space has rho"):
        attempt(space={"rho": 1.0})
    with pytest.raises(ValueError, match="beam=0"):
        attempt(beam=0)
    with pytest.raises(ValueError, match="a factor above 1"):
        attempt(factor=1.0)

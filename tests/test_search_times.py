"""gk.search.times: the times of a run by evolution under a metric of its samples."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

import guidekit as gk
from guidekit.search.times import _child, _drawn

BASE = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.3], schedule=gk.schedules.Flow())
DDIM = gk.solvers.DDIM()


def moment(x):
    """How far E[x^4] is from that of the data."""
    exact = sum(w * (m**4 + 6 * (m * s) ** 2 + 3 * s**4) for w, m, s in ((0.7, -1.0, 0.5), (0.3, 2.0, 0.3)))
    return (x.double().pow(4).mean() - exact).abs()


def test_with_as_many_candidates_as_there_are_sets_the_best_of_all_is_found():
    found = gk.search.times(BASE, 3, moment, solver=DDIM, n=100, points=6, candidates=50, keep=3, seed=2)
    grid = [1 - i / 6 for i in range(7)]
    values = {
        inner: moment(gk.sample(BASE, 100, steps=[1.0, *(grid[i] for i in inner), 0.0], solver=DDIM, seed=2).x).item()
        for inner in combinations(range(1, 6), 2)
    }
    best = min(values, key=lambda inner: values[inner])
    assert found.times == pytest.approx([1.0, *(grid[i] for i in best), 0.0])
    assert found.metric == pytest.approx(values[best]) and found.own == pytest.approx(values[2, 4])
    assert len(set(values.values())) == 10  # so that another choice has another value


def test_evolution_finds_more_than_as_many_random_sets_and_it_holds_on_other_noise():
    """The squared distance of quantiles (Wasserstein's) to those of the fine solution from the same noise."""

    def apart(n, seed):
        fine = gk.sample(BASE, n, steps=60, solver=gk.solvers.UniPC(3), seed=seed).x.sort(0).values
        return lambda x: (x.sort(0).values - fine).double().square().mean()

    run = {"solver": DDIM, "n": 200, "points": 16, "candidates": 50, "seed": 1}
    found, drawn = (gk.search.times(BASE, 5, apart(200, 1), keep=keep, **run) for keep in (8, 50))
    assert found.metric < drawn.metric < found.own and found.metric < 0.9 * found.own
    own, other = (apart(1000, 9)(gk.sample(BASE, 1000, steps=k, solver=DDIM, seed=9).x) for k in (5, found.times))
    assert other < 0.9 * own


def test_children_are_sets_of_as_many_points_and_differ_from_their_parents():
    import numpy as np

    choice, points = np.random.default_rng(0), np.arange(1, 9)
    parents = [_drawn(choice, points, 5) for _ in range(4)]
    children = [_child(choice, parents, points, 5) for _ in range(200)]
    assert all(
        len(set(child)) == 5 and child == tuple(sorted(child)) and set(child) <= {*range(1, 9)} for child in children
    )
    assert len({*children}) > 20 and any(child not in parents for child in children)


def test_tokens_conditions_and_guides_have_times_too():
    table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    seen = []

    def metric(x):
        seen.append(len(x))
        return -(x == 0).double().mean()

    found = gk.search.times(table, 3, metric, n=20, points=6, candidates=5, guides=[gk.Temperature(0.5)])
    assert len(seen) == 5 and set(seen) == {20} and found.metric <= found.own
    gk.search.times(BASE, 2, moment, n=4, points=3, candidates=9, keep=2)  # there are but two sets
    labelled = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.2, 0.2], labels=[0, 1])
    gk.search.times(labelled, 3, lambda x: seen.append(len(x)) or 0.0, cond=[0, 1], n=4, points=5, candidates=2)
    assert seen[-2:] == [8, 8]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 1}, "steps=1"),
        ({"points": 3}, "points=3"),
        ({"candidates": 0}, "candidates=0"),
        ({"keep": 1}, "keep=1"),
        ({"metric": lambda x: float("nan")}, "the metric of 8 samples is nan"),
    ],
    ids=["steps", "points", "candidates", "keep", "metric"],
)
def test_what_has_no_times_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        gk.search.times(**{"model": BASE, "steps": 4, "metric": moment, "n": 8, "solver": DDIM, **given})

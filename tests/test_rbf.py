"""Rollover budget forcing: its budget, which it spends to the last candidate, and the path that each particle takes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.engine.run import Run

BASE = gk.analytic.GaussianMixture([0.4, 0.6], [[-1.0, 0.3], [1.5, -0.2]], [0.5, 0.8])
TABLE = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))


def reward(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double() - 0.6 * (x[:, -1].double() - 1) ** 2


class Told:
    """A reward of one number for all samples of a call: these, call after call, and then the last one again. It keeps
    what it was asked."""

    def __init__(self, *scores: float):
        self.scores = scores
        self.asked: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x.clone())
        own = self.scores[min(len(self.asked), len(self.scores)) - 1]
        return torch.full((len(x),), own, dtype=torch.float64)


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Random rewards, some of which fail."""
    r = (1000 * x.double().flatten(1).sum(1)).sin()
    return torch.where(r > 0.8, torch.nan, r)


@pytest.mark.parametrize("score", [reward, noisy, lambda x: 0 * x[:, 0], Told(9.0, 0.0)])
def test_every_candidate_of_the_budget_is_drawn_and_none_beyond_it(score):
    """The last of 6 moves draws nothing, and its look needs no network."""
    found = gk.search.rbf(BASE, 5, score, quota=4, steps=6, cond=[None, None])
    assert found.cost.network_rows == 10 * (1 + 4 * 5)
    assert found.cost.reward_calls == 10 * (1 + 4 * 5 + 1)
    spent = found.trace["candidates"]
    assert spent.sum(0).tolist() == pytest.approx([21, 21]) and bool((spent[-1] == 1).all())
    assert bool((spent[:-1].cumsum(0) <= 4 * torch.arange(1, 6)[:, None] + 1e-4).all())


def test_tokens_draw_in_the_last_move_which_costs_rewards_alone():
    found = gk.search.rbf(TABLE, 6, reward, quota=3, steps=4)
    assert float(found.trace["candidates"].sum()) == pytest.approx(3 * 4)
    assert found.cost.network_rows <= 6 * (1 + 3 * 3)
    assert found.rewards is not None and torch.allclose(found.rewards, reward(found.x))
    assert found.rewards.mean() > reward(gk.sample(TABLE, 500, steps=4).x).mean() + 0.5


@pytest.mark.parametrize("model", [BASE, TABLE])
def test_without_preferences_samples_are_those_of_the_model(model):
    """Equal is not better, so that all candidates are drawn, and the first of equals is taken."""
    options: dict[str, Any] = {"steps": 5, "seed": 3}
    plain = gk.sample(model, 7, **options).x
    found = gk.search.rbf(model, 7, lambda x: torch.zeros(len(x)), quota=3, **options)
    assert torch.equal(found.x, plain)
    assert bool((found.trace["candidates"][:4] == 3).all()) and not found.trace["improved"].any()
    assert torch.equal(gk.search.rbf(model, 7, reward, quota=1, **options).x, plain)


def test_where_nothing_is_better_than_the_start_it_is_greedy_svdd():
    out_of_reach = Told(1e6, 0.0)  # for the starts
    options: dict[str, Any] = {"steps": 5, "seed": 2}
    found = gk.search.rbf(BASE, 6, lambda x: reward(x) + out_of_reach(x), quota=3, **options)
    svdd = gk.sample(BASE, 6, guides=[gk.SVDD(reward, candidates=3)], **options)
    assert torch.allclose(found.x, svdd.x, rtol=1e-10, atol=1e-10)  # forwards have other numbers of rows
    assert found.cost.network_rows == svdd.cost.network_rows


def by_hand(quota: int, steps: int, seed: int) -> tuple[torch.Tensor, list[int]]:
    """The sample of one particle, and its candidates in every move. The noise is that of the children of a particle."""
    run = Run(BASE, 1, steps=steps, seed=seed)
    keys = random.fold(random.fold(run.keys, "noise"), 0)
    x = random.normal(random.fold(keys, 0), (2,), torch.float32)
    clean = BASE(x, 1.0, None)
    best, left, spent = float(reward(clean)), 0, []
    for index, move in enumerate(run.moves):
        left, tried = left + quota, []
        while move.c and left:
            left -= 1
            keys = random.fold(random.fold(run.keys, "noise"), len(tried) << 32)
            z = random.normal(random.fold(keys, index + 1), (2,), torch.float32)
            y = move.a * x + move.b[0] * clean + move.c * z
            tried.append((float(reward(BASE(y, move.s, None))), y))
            if tried[-1][0] > best and index < steps - 2:
                break
        spent.append(max(len(tried), 1))
        scored, x = max(tried, key=lambda own: own[0]) if tried else (best, move.a * x + move.b[0] * clean)
        best, clean = max(best, scored), BASE(x, move.s, None) if move.s else x
    return x, spent


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_by_hand_takes_the_same_path(seed):
    x, spent = by_hand(4, 6, seed)
    found = gk.search.rbf(BASE, 1, reward, quota=4, steps=6, seed=seed)
    assert found.trace["candidates"][:, 0].tolist() == spent
    assert torch.allclose(found.x, x, atol=1e-5)


def test_what_is_left_goes_to_the_moves_that_need_it():
    """The start; a first candidate that is better; a move that finds nothing, with the 2 that were left; another one,
    with nothing left; and one that finds something at once. The last move that draws uses the rest."""
    told = Told(1.0, 2.0, *[0.0] * 5, *[1.5] * 3, 3.0, 0.0)
    found = gk.search.rbf(BASE, 1, told, quota=3, steps=6)
    assert found.trace["candidates"][:, 0].tolist() == [1, 5, 3, 1, 5, 1]
    assert found.trace["improved"][:, 0].tolist() == [1, 0, 0, 1, 0, 0]


def test_candidates_without_a_score_are_the_worst_and_cost_nothing_else():
    """Of the first move only the second candidate has a score, and is taken; of the second move none has one, and the
    first is taken. The last move, which draws nothing, goes to the clean estimate."""
    bad = math.nan
    few = Told(9.0, bad, 5.0, bad, bad, bad, bad, 1.0)
    all_told = Told(9.0, 1.0, 5.0, 2.0, 3.0, 3.0, 1.0, 1.0)
    found, same = (gk.search.rbf(BASE, 1, told, quota=3, steps=3) for told in (few, all_told))
    assert torch.equal(found.x, same.x) and torch.equal(found.x, few.asked[4])
    assert found.cost.unscored == 5 and found.cost.network_rows == same.cost.network_rows == 1 + 2 * 3
    assert bool((few.asked[1] != few.asked[2]).all())


def test_particles_conditions_and_batches_do_not_matter_to_each_other():
    options: dict[str, Any] = {"quota": 3, "steps": 5}
    whole = gk.search.rbf(BASE, 4, reward, cond=[None, None], seed=[3, 4], **options)
    parts = [gk.search.rbf(BASE, 4, reward, seed=s, batch_size=3, **options) for s in (3, 4)]
    assert torch.allclose(whole.x, torch.cat([part.x for part in parts]), atol=1e-5)
    assert whole.rewards is not None and torch.allclose(whole.rewards, reward(whole.x))
    assert not whole.log_weights.any()
    fewer = gk.search.rbf(BASE, 2, reward, seed=3, **options)
    assert torch.allclose(fewer.x[0], parts[0].x[0], atol=1e-5)


def test_guides_that_bend_cost_as_many_evaluations_more_and_a_second_reward_is_told():
    labelled = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.5, 0.5], labels=[0, 1])
    first = lambda x: x[:, 0]  # noqa: E731
    options: dict[str, Any] = {"guides": [gk.CFG(2.0)], "holdout": lambda x: -first(x), "cond": 1}
    found = gk.search.rbf(labelled, 3, first, quota=2, steps=4, **options)
    assert found.cost.network_rows == 2 * 3 * (1 + 2 * 3)
    assert found.holdout is not None and torch.equal(found.holdout, -found.x[:, 0].double())
    assert found.config["search"] == "rbf" and len(found.config["guides"]) == 1
    assert found.noise is not None and found.noise.shape == found.x.shape


def test_a_flow_at_the_times_of_a_variance_preserving_path_is_that_path():
    given: tuple[Any, ...] = [0.4, 0.6], [-1.0, 1.5], [0.5, 0.8]
    u = torch.linspace(1, 0, 7, dtype=torch.float64) * math.pi / 2
    times = (u.sin() / (u.sin() + u.cos())).tolist()
    flow = gk.analytic.GaussianMixture(*given, schedule=gk.schedules.Flow())
    found = gk.search.rbf(flow, 20, lambda x: x[:, 0], quota=3, steps=[1.0, *times[1:-1], 0.0])
    other = gk.search.rbf(gk.analytic.GaussianMixture(*given), 20, lambda x: x[:, 0], quota=3, steps=6)
    assert torch.allclose(found.x, other.x, atol=1e-3)
    straight = gk.search.rbf(flow, 20, lambda x: x[:, 0], quota=3, steps=6)
    assert float((straight.x - other.x).abs().max()) > 0.1


def test_what_it_cannot_do_is_said_before_the_first_call():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    chain = Run(model, 2, steps=4).chain_noise()
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("quota=0", {"quota": 0}),
        ("quota=2.5", {"quota": 2.5}),
        ("each particle searches for itself", {"guides": [gk.FKSteering(reward, 1.0)]}),
        ("draws nothing on the way", {"solver": gk.solvers.DDIM()}),
        ("give that of the start", {"noise": chain}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.rbf(model, 2, reward, steps=4, **options)
    with pytest.raises(TypeError, match="reward"):
        gk.search.rbf(model, 2, None, steps=4)
    assert not calls

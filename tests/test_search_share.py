"""One budget for many conditions: order statistics, allocation, and what it gains."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.search.share import expected_max, gain, plan
from rewards import ByGroup

from .problems import PROBLEMS, STEPS
from .test_search import Killed

S = gk.search


def spread() -> gk.GaussianModel:
    """One step gives x = c z: rewards of condition c are c times as far apart."""
    return gk.GaussianModel(lambda x, t, c: c[:, None] * x, (2,), predicts="clean", dtype=torch.float64, null=0.0)


def first(x: Tensor) -> Tensor:
    return x[:, 0]


@pytest.mark.parametrize("m", [1, 2, 3, 6, 7])
def test_the_expected_maximum_is_the_mean_over_all_subsets(m: int):
    rewards = gk.random.normal(gk.random.key(0), (2, 3, 7), torch.float64).round(decimals=1)  # some equal
    found = expected_max(rewards, m)
    for i, j in itertools.product(range(2), range(3)):
        every = [max(part) for part in itertools.combinations(rewards[i, j].tolist(), m)]
        assert float(found[i, j]) == pytest.approx(sum(every) / len(every))


def test_the_gain_is_that_of_the_last_doubling_and_failures_count_as_the_worst():
    rewards = torch.tensor([[[1.0, 4.0, 2.0, 3.0], [0.0, 0.0, 8.0, 0.0]], [[-torch.inf, 1.0, 1.0, 5.0], [2.0] * 4]])
    pairs = lambda row: sum(max(p) for p in itertools.combinations(row, 2)) / 6  # noqa: E731
    wanted = [(4 - pairs([1, 2, 3, 4]) + 8 - pairs([0, 0, 0, 8])) / 2, (5 - pairs([1, 1, 1, 5])) / 2]
    assert gain(rewards.double()).tolist() == pytest.approx(wanted)
    assert gain(torch.full((1, 2, 4), -torch.inf)).tolist() == [0]
    assert gain(torch.tensor([[[1.0, 2.0, 6.0]]])).tolist() == pytest.approx([3.0])  # half of three is one


@pytest.mark.parametrize("conditions", [1, 2, 3, 5, 8, 10, 33])
@pytest.mark.parametrize("candidates", [12, 31])
def test_both_allocations_spend_the_budget_up_to_less_than_a_candidate_each(conditions: int, candidates: int):
    for halving in (True, False):
        parts = plan(conditions, candidates, halving)
        left = conditions * candidates - sum(alive * k for alive, k in parts)
        assert 0 <= left < parts[-1][0]
        assert [alive for alive, _ in parts] == [
            -(-conditions // 2**r) if halving else conditions for r in range(len(parts))
        ]
        shares = [alive * k for alive, k in parts]
        assert max(shares) - min(shares) < 2 * conditions and parts[0][1] >= 2


CONDS = [0.1, 3.0, 0.2, 0.1, 2.0, 0.3, 0.1, 0.2]


def test_rows_are_those_of_the_plan_and_a_condition_has_the_candidates_of_its_own_search():
    model, n = spread(), 3
    found = S.share(model, n, first, CONDS, candidates=12, steps=1, seed=2)
    equal = S.share(model, n, first, CONDS, candidates=12, steps=1, seed=2, allocation="equal")
    assert found.cost.network_rows == equal.cost.network_rows == n * (8 * 12 + 8)
    assert found.cost.reward_calls == equal.cost.reward_calls == n * 8 * 12
    assert [len(row["conditions"]) for row in found.rounds] == [8, 4, 2]
    assert found.rounds[-1]["conditions"] == [1, 4]  # where rewards are far apart
    assert found.rounds["mean_reward"][-1].isfinite().nonzero()[:, 0].tolist() == [1, 4]
    assert torch.allclose(found.rounds["best_reward"][-1].double(), found.rewards.view(8, n).mean(1))
    drawn = [sum(row["candidates"] for row in found.rounds if g in row["conditions"]) for g in range(8)]
    assert sum(drawn) == 8 * 12 and drawn[1] > 12 > drawn[0]
    for g, c in enumerate(CONDS):
        alone = S.random(model, n, first, rounds=1, candidates=drawn[g], cond=c, steps=1, seed=2)
        assert torch.equal(alone.x, found.x[found.group == g])
        assert torch.equal(alone.rewards, found.rewards[found.group == g])
    assert torch.equal(gk.sample(model, n, cond=CONDS, steps=1, noise=found.noise).x, found.x)
    same = S.random(model, n, first, rounds=1, candidates=12, cond=CONDS, steps=1, seed=2)
    assert torch.equal(same.x, equal.x)


def test_who_goes_on_has_the_largest_gain_of_what_was_seen():
    n, found = 3, S.share(spread(), 3, first, CONDS, candidates=12, steps=1)
    z = gk.sample(spread(), 15 * n, cond=1.0, steps=1).x[:, 0].view(15, n).T
    k = found.rounds[0]["candidates"]
    gains = gain(torch.tensor(CONDS).double()[:, None, None] * z[None, :, :k])
    assert found.rounds[1]["conditions"] == sorted(gains.argsort(descending=True)[:4].tolist())


def test_where_spreads_differ_halving_has_the_better_rewards():
    """12 seeds with independent samples; the difference in its standard errors."""
    gains = []
    for seed in range(12):
        options = {"candidates": 12, "steps": 1, "seed": [seed * 8 + i for i in range(8)]}
        halving, equal = (
            S.share(spread(), 4, first, CONDS, allocation=kind, **options) for kind in ("halving", "equal")
        )
        gains.append(float(halving.rewards.mean() - equal.rewards.mean()))
    found = torch.tensor(gains)
    assert found.mean() > 4 * found.std() / 12**0.5 and found.mean() > 0.1


@pytest.mark.parametrize("name", ["flow-2d", "masked", "vp-1d"])
def test_a_killed_search_goes_on_to_the_same_end_and_its_log_names_conditions(name: str, tmp_path: Path):
    p = PROBLEMS[name]
    conds = [p.cond, None, p.cond]
    go = lambda reward, **o: S.share(p.model, 2, reward, conds, candidates=6, steps=STEPS, seed=[1, 2, 3], **o)  # noqa: E731
    killed = Killed(p.reward, 2)
    with pytest.raises(KeyboardInterrupt):
        go(killed, folder=tmp_path)
    resumed, whole = go(killed, folder=tmp_path), go(p.reward)
    assert torch.equal(resumed.noise, whole.noise) and torch.equal(resumed.rewards, whole.rewards)
    assert resumed.cost.network_rows == whole.cost.network_rows
    assert [r["conditions"] for r in resumed.rounds] == [r["conditions"] for r in whole.rounds] != [[0, 1, 2]] * 2
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    for g in range(3):
        mine = [row for row in rows if row.get("condition") == g]
        assert len(mine) == 2 * sum(r["candidates"] for r in whole.rounds if g in r["conditions"])
        for i in range(2):
            best = max(row["worth"] for row in mine if row["sample"] == i)
            assert best == pytest.approx(float(whole.rewards[2 * g + i]))
    before = killed.calls
    assert torch.equal(go(killed, folder=tmp_path).x, whole.x) and killed.calls == before


def test_every_condition_may_have_a_reward_of_its_own_also_behind_those_that_stopped():
    own = [lambda x, a=a: a * x[:, 0] for a in (0.1, 1.0, -5.0, 0.2)]
    found = S.share(spread(), 3, ByGroup(own), [1.0, 2.0, 3.0, 4.0], candidates=8, steps=1)
    assert found.rounds[-1]["conditions"] == [1, 2]
    for g, reward in enumerate(own):
        assert torch.equal(found.rewards[found.group == g], reward(found.x[found.group == g]))
    several = S.share(spread(), 3, [first, lambda x: x[:, 1]], CONDS, candidates=12, steps=1, holdout=first)
    assert several.rewards.isfinite().all() and torch.equal(several.holdout, several.x[:, 0])


def test_what_is_wrong_is_said_before_the_first_network_call():
    calls: list[int] = []
    model = gk.GaussianModel(lambda x, t, c: calls.append(1) or x, (2,), predicts="clean", null=0.0)
    for message, given in (
        ("list of conditions", {"conds": 3.0}),
        ("list of conditions", {"conds": []}),
        ("allocation='fair'", {"allocation": "fair"}),
        ("candidates=3: 8 conditions in 3 rounds need at least 6", {"candidates": 3}),
        ("candidates=0", {"candidates": 0}),
        ("takes no budget", {"budget": S.Budget(rows=9)}),
        ("takes no cond", {"cond": [1.0]}),
    ):
        with pytest.raises(ValueError, match=message):
            S.share(**{"model": model, "n": 2, "reward": first, "conds": CONDS} | given)
    assert not calls

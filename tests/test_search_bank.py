"""Banks of seeds: their folders, a held-out reward, and rewards of the conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import guidekit as gk
from rewards import ByGroup

from .test_search import Killed
from .test_search_paths import mixed, seeded

S = gk.search
CONDS = [0.3 * i for i in range(40)]


def by_hand(seeds: int, reward, conds: list[float]) -> Tensor:
    """(conditions, seeds)."""
    return torch.stack([reward(gk.sample(seeded(), seeds, steps=1, cond=c).x) for c in conds])


def test_a_killed_bank_goes_on_to_the_same_end_and_every_look_is_in_its_log(tmp_path: Path):
    options = {"looks": 72, "steps": 1}
    whole = S.bank(seeded(), 8, mixed, CONDS, **options)
    killed = Killed(mixed, 2)
    with pytest.raises(KeyboardInterrupt):
        S.bank(seeded(), 8, killed, CONDS, folder=tmp_path, **options)
    resumed = S.bank(seeded(), 8, killed, CONDS, folder=tmp_path, **options)
    for bank in (resumed, S.bank(seeded(), 8, killed, CONDS, folder=tmp_path, **options)):
        assert bank.seeds == whole.seeds and bank.values == whole.values and bank.looks == whole.looks
        assert torch.equal(bank.noise, whole.noise)
        assert bank.cost.network_rows == whole.cost.network_rows and bank.cost.reward_calls == 72
    assert killed.calls == 2 + 2  # one was lost, and the whole bank asked nothing
    values = by_hand(8, mixed, CONDS)
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "scores" in row]
    assert len({(row["condition"], row["candidate"]) for row in looks}) == len(looks) == 72
    for row in looks:
        assert row["worth"] == row["scores"][0] == pytest.approx(float(values[row["condition"], row["candidate"]]))
    best = [row["worth"] for row in looks if row["candidate"] == whole.seeds[0]]
    assert whole.values[0] == pytest.approx(sum(best) / len(best))
    few = S.bank(seeded(), 8, killed, CONDS, folder=tmp_path, keep=2, **options)
    assert few.seeds == whole.seeds[:2] and killed.calls == 4
    with pytest.raises(gk.CheckpointError, match="looks was 72 and is 80"):
        S.bank(seeded(), 8, killed, CONDS, folder=tmp_path, looks=80, steps=1)
    with pytest.raises(gk.CheckpointError, match="another search"):
        S.bank(seeded(), 8, killed, [c + 1 for c in CONDS], folder=tmp_path, **options)


def test_a_holdout_judges_the_seeds_that_are_kept_under_all_conditions_that_the_best_has_seen():
    seen: list[int] = []

    def judge(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x[:, 1] - x[:, 0]

    bank = S.bank(seeded(), 8, mixed, CONDS, looks=72, keep=3, steps=1, holdout=judge)
    plain = S.bank(seeded(), 8, mixed, CONDS, looks=72, keep=3, steps=1)
    assert bank.looks == [21, 21, 9] and bank.seeds == plain.seeds and seen == [21 * 3]
    values = by_hand(8, lambda x: x[:, 1] - x[:, 0], CONDS[:21]).mean(0)
    assert bank.holdout == pytest.approx(values[bank.seeds].tolist()) and plain.holdout is None
    assert bank.cost.network_rows == plain.cost.network_rows + 21 * 3
    assert bank.cost.reward_calls == plain.cost.reward_calls


def test_every_condition_may_have_a_reward_of_its_own_in_every_round():
    signs = [1.0 if i % 3 else -2.0 for i in range(40)]
    own = ByGroup([lambda x, s=s: s * mixed(x) for s in signs])
    bank = S.bank(seeded(), 8, own, CONDS, looks=72, steps=1)
    values = by_hand(8, mixed, CONDS) * torch.tensor(signs).double()[:, None]
    for seed, value, looks in zip(bank.seeds, bank.values, bank.looks, strict=True):
        assert value == pytest.approx(float(values[:looks, seed].mean()))


def test_several_rewards_rank_the_seeds_of_every_condition(tmp_path: Path):
    def low(x: Tensor) -> Tensor:
        return -1000 * x[:, 1].abs()

    both = [lambda x: x[:, 0], low]
    bank = S.bank(seeded(), 6, both, CONDS[:3], looks=18, allocation="equal", steps=1, folder=tmp_path)
    values = torch.stack([by_hand(6, reward, CONDS[:3]) for reward in both])
    ranks = (values[..., None] > values[..., None, :]).double().sum(-1) / 5
    wanted = ranks.mean((0, 1))
    assert bank.values == pytest.approx(wanted[bank.seeds].tolist()) and bank.values == sorted(bank.values)[::-1]
    again = S.bank(seeded(), 6, both, CONDS[:3], looks=18, allocation="equal", steps=1, folder=tmp_path)
    assert again.values == bank.values


def test_keep_is_at_least_one():
    with pytest.raises(ValueError, match="keep=0"):
        S.bank(seeded(), 8, mixed, CONDS, looks=72, keep=0)

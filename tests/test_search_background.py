"""Rewards in the background: rounds overlap, and nothing else is changed by it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import guidekit as gk
from guidekit.search.background import Task

from .problems import PROBLEMS, STEPS
from .test_search import Killed

S = gk.search
LONG = 20.0  # seconds until a test that waits in vain fails; none waits where rounds overlap


class Plain(S.Random):
    """Random search with every round scored before the next."""

    independent = False


def first(x: Tensor) -> Tensor:
    return x[:, 0]


class Watched:
    """A network that calls `watch`, and is described alike whatever that is."""

    def __init__(self, watch: Any):
        self.watch = watch

    def identity(self) -> str:
        return "watched"

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.watch()
        return 0.5 * x


def halved(watch: Any = lambda: None) -> gk.GaussianModel:
    return gk.GaussianModel(Watched(watch), (2,), predicts="clean")


def test_a_round_is_denoised_while_the_one_before_is_scored():
    """The reward of the first round waits for the network's work on the second, and this for the reward to begin."""
    scoring, denoising, calls = threading.Event(), threading.Event(), []

    def watch():
        calls.append(1)
        if len(calls) == STEPS + 1:
            assert scoring.wait(LONG), "the first round is not scored while the second is denoised"
            denoising.set()

    def reward(x: Tensor) -> Tensor:
        scoring.set()
        assert denoising.wait(LONG), "the second round is not denoised while the first is scored"
        return x[:, 0]

    found = S.random(halved(watch), 3, reward, rounds=3, candidates=2, steps=STEPS)
    plain = S.random(halved(), 3, first, rounds=3, candidates=2, steps=STEPS)
    assert torch.equal(found.x, plain.x) and len(calls) == 4 * STEPS


def stripped(rounds: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rounds]


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [row | ({"cost": row["cost"] | {"seconds": 0}} if "cost" in row else {}) for row in rows]


@pytest.mark.parametrize("budget", [
    S.Budget(rounds=5), S.Budget(rows=4 * 3 * 4 * STEPS + 50), S.Budget(calls=33), S.Budget(calls=60),
    S.Budget(rounds=40, target=1.25), S.Budget(rounds=9, calls=44, rows=5000),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_results_and_logs_are_the_same_to_the_bit(name: str, budget: Any, tmp_path: Path):
    """Of tokens equal ones are scored once, so that how many calls a round takes is known only behind it."""
    p = PROBLEMS[name]
    options = {"budget": budget, "steps": STEPS, "cond": p.cond}
    ahead, plain = (
        S.run(p.model, 3, p.reward, kind(4), folder=tmp_path / kind.__name__, **options) for kind in (S.Random, Plain)
    )
    assert torch.equal(ahead.x, plain.x) and torch.equal(ahead.noise, plain.noise)
    assert torch.equal(ahead.rewards, plain.rewards)
    assert stripped(ahead.rounds) == stripped(plain.rounds) and len(ahead.rounds) > 1
    assert logged(tmp_path / "Random") == logged(tmp_path / "Plain")
    assert ahead.cost.network_rows == plain.cost.network_rows and ahead.cost.reward_calls == plain.cost.reward_calls
    assert ahead.cost.network_calls == plain.cost.network_calls


def test_a_reward_that_fails_is_reported_and_the_rounds_before_it_are_kept(tmp_path: Path):
    p, calls = PROBLEMS["flow-2d"], []

    def dies(x: Tensor) -> Tensor:
        calls.append(threading.current_thread())
        if len(calls) > 2:
            raise RuntimeError("no licence")
        return x[:, 0]

    options = {"steps": STEPS, "cond": 1, "candidates": 2}
    with pytest.raises(gk.RewardError, match="no licence"):
        S.random(p.model, 3, dies, rounds=9, folder=tmp_path, **options)
    assert threading.main_thread() not in calls
    two = S.random(p.model, 3, first, rounds=2, **options)
    assert torch.equal(load_file(tmp_path / "best.safetensors")["noise"], two.noise)


class Stops:
    """A network whose call number `left` raises."""

    def __init__(self, left: int, error: type[BaseException]):
        self.left, self.error = left, error

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error("stopped")


@pytest.mark.parametrize("error, kept", [(RuntimeError, 2), (KeyboardInterrupt, 1)])
def test_a_search_that_stops_in_the_network_can_go_on(error: type[BaseException], kept: int, tmp_path: Path):
    """In the third round. What is being scored is waited for where the network fails, and not on Ctrl-C."""
    stops = Stops(2 * STEPS + 2, error)
    model, options = halved(stops), {"rounds": 4, "candidates": 2, "steps": STEPS, "folder": tmp_path}
    released = threading.Event()

    def reward(x: Tensor) -> Tensor:
        if len(asked) == 1 and error is KeyboardInterrupt:  # of the second round: it is not waited for
            released.wait(LONG)
        asked.append(1)
        return x[:, 0]

    asked: list[int] = []
    patient = Same(reward)
    with pytest.raises(error, match="stopped"):
        S.random(model, 3, patient, **options)
    released.set()
    ends = [row for row in logged(tmp_path) if "end" in row]
    assert len(ends) == kept
    patient.reward = first
    resumed = S.random(model, 3, patient, **options)
    whole = S.random(halved(), 3, first, rounds=4, candidates=2, steps=STEPS)
    assert torch.equal(resumed.x, whole.x) and resumed.cost.network_rows == whole.cost.network_rows


class Same:
    """A reward that is described alike whatever it calls."""

    def __init__(self, reward: Any):
        self.reward = reward

    def identity(self) -> str:
        return "same"

    def __call__(self, x: Tensor) -> Tensor:
        return self.reward(x)


def test_ctrl_c_in_a_reward_stops_the_search(tmp_path: Path):
    p = PROBLEMS["flow-2d"]
    killed, options = Killed(p.reward, 3), {"rounds": 4, "candidates": 2, "steps": STEPS, "cond": 1}
    with pytest.raises(KeyboardInterrupt):
        S.random(p.model, 3, killed, folder=tmp_path, **options)
    assert len([row for row in logged(tmp_path) if "end" in row]) == 2
    resumed = S.random(p.model, 3, killed, folder=tmp_path, **options)
    assert torch.equal(resumed.x, S.random(p.model, 3, p.reward, **options).x)


@pytest.mark.parametrize("shared", [True, False])
def test_a_reward_that_shares_a_network_with_the_sampler_is_asked_between_the_rounds(shared: bool):
    net, threads = nn.Linear(2, 2), []
    other = net if shared else nn.Linear(2, 2)
    model = gk.GaussianModel(lambda x, t, c: net(x), (2,), predicts="clean")

    def reward(x: Tensor) -> Tensor:
        threads.append(threading.current_thread())
        return other(x)[:, 0]

    S.random(model, 3, reward, rounds=3, candidates=2, steps=3)
    assert all((thread is threading.main_thread()) is shared for thread in threads) and len(threads) == 3


def test_a_strategy_that_learns_is_told_before_it_is_asked():
    order: list[str] = []

    class Learns(S.Random):
        independent = False

        def ask(self):
            order.append("ask")
            return super().ask()

        def tell(self, noises, rewards):
            order.append("tell")

    S.run(halved(), 2, first, Learns(2), rounds=3, steps=3)
    assert order == ["ask", "tell"] * 3 + ["ask"]


def test_tells_come_in_order_and_the_last_round_is_told():
    told: list[float] = []

    class Notes(S.Random):
        def tell(self, noises, rewards):
            told.append(float(rewards.sum()))

    found = S.run(halved(), 2, first, Notes(3), rounds=4, steps=3)
    assert told == pytest.approx([6 * row["mean_reward"][0] for row in found.rounds])


def test_a_task_has_the_settings_of_its_caller_and_raises_what_was_raised():
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert Task(torch.is_grad_enabled).result() is grad
    with pytest.raises(ZeroDivisionError):
        Task(lambda: 1 / 0).result()

"""`guidekit bench steering`: equal quotas, runs that are kept, and numbers that mean what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result as Answer

import guidekit as gk
from guidekit.cli.app import app
from guidekit.jobs import steering
from guidekit.jobs.specs import ConfigError
from rewards import as_reward

ROOT = Path(__file__).parent.parent
SMALL = ("-n", "6", "--steps", "4", "--rows", "3", "--calls", "10", "--kl", "0.5", "--pilot", "64")


def tokens() -> steering.Task:
    """Four letters of four; the reward counts the last one, in rows and in one-hot rows."""
    base = gk.analytic.TokenTable(torch.randn((4,) * 4, generator=torch.Generator().manual_seed(0)).double())
    count = lambda x: (x == 3).double().sum(1) if x.dim() == 2 else x[..., 3].sum(1)  # noqa: E731
    distance = lambda s: float((s[:, None] != s).double().mean())  # noqa: E731
    reward = as_reward(count)
    reward.differentiable = True
    return steering.Task("the letter 3", base, reward, lambda s, others: 1.0, "nature", distance)


def numbers() -> steering.Task:
    base = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.0], [1.0, 1.0]], [0.4, 0.4])
    offset = lambda s, others: float((s.mean(0) - others.mean(0)).norm())  # noqa: E731
    spread = lambda s: float(torch.pdist(s).mean())  # noqa: E731
    value = gk.values.Learned(lambda x, t, cond: x[:, 0])
    judge = lambda x: x[:, 0] + 10 * x[:, 1]  # noqa: E731
    return steering.Task("x_1", base, lambda x: x[:, 0], offset, "offset", spread, judge, "lower", value=value)


@pytest.fixture
def toys(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(steering, "TASKS", {"tokens": tokens, "numbers": numbers})
    monkeypatch.setattr(steering, "draw", lambda found, file: file.touch())  # pictures take a second each
    return tmp_path


def ask(*args: str) -> Answer:
    return CliRunner().invoke(app, ["bench", "steering", *args], prog_name="guidekit")


def runs(out: str) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(Path(out).glob("runs/*/*/*.json"))]


def test_runs_are_kept_seeds_extend_them_and_a_method_that_fails_says_why(toys, monkeypatch):
    (toys / "mine.py").write_text(
        "import guidekit as gk\n"
        "def mine(model, task, quota):\n    return [gk.FKSteering(task.reward, task.alpha)]\n"
        "def broken(model, task, quota):\n    raise RuntimeError('no licence')\n"
    )
    given = (
        *SMALL,
        "--tasks",
        "numbers",
        "--methods",
        "unguided; best of N; mine.py:mine; mine.py:broken",
        "-o",
        "out",
    )
    first = ask(*given, "--seeds", "0")
    assert first.exit_code == 0, first.output
    found = runs("out")
    assert [run["failed"] for run in found if "failed" in run] == ["RuntimeError: no licence"] * 2  # rows and calls
    assert len(found) == 1 + 3 + 2 + 2  # best of 3, of 24 and of 10
    assert "mine.py:mine, 3" in first.stdout and "broken" not in first.stdout and "| best of 24 |" in first.stdout
    assert (toys / "out" / "table.md").read_text() == first.stdout and (toys / "out" / "rewards.png").exists()
    made, asked = steering.Bench.made, []
    monkeypatch.setattr(steering.Bench, "made", lambda self, *run: (asked.append(run), made(self, *run))[1])
    assert ask(*given, "--seeds", "0").stdout == first.stdout
    assert [run[1] for run in asked] == ["mine.py:broken"] * 2
    asked.clear()
    both = ask(*given, "--seeds", "0,1", "--json")
    assert {run[4] for run in asked if run[1] != "mine.py:broken"} == {1}
    rows = {(r["method"], r["by"], r["size"]): r for r in json.loads(both.stdout)["rows"]}
    plain = [gk.sample(numbers().model, 6, steps=4, seed=seed).x for seed in (0, 1)]
    own, means = rows["unguided", "rows", 1], [float(x[:, 0].mean()) for x in plain]
    assert own["reward"] == pytest.approx(sum(means) / 2, abs=1e-4) and own["seeds"] == 2
    assert own["reward_sd"] == pytest.approx(abs(means[0] - means[1]) / math.sqrt(2), abs=1e-4)
    held_out = [float((x[:, 0] + 10 * x[:, 1]).mean()) for x in plain]
    assert own["held_out"] == pytest.approx(sum(held_out) / 2, abs=1e-4)


def test_every_method_takes_its_quota_and_none_takes_more(toys):
    bench = steering.Bench(toys / "out", n=4, steps=4, rows=(3,), calls=(16,), seeds=(0,), kl=0.5, pilot=64)
    good = [run for run in bench.run()["runs"] if "failed" not in run]
    assert {run["method"] for run in good} == set(steering.METHODS) - {"CFG", "ledidi"}
    for run in good:
        spent, most = (run["rows"], 4 * run["size"]) if run["by"] == "rows" else (run["calls"], run["size"])
        assert spent <= most, run
    by_rows = [run for run in good if (run["task"], run["by"], run["size"]) == ("numbers", "rows", 3)]
    for run in by_rows:  # a particle that is not looked at in the first step, and simulations that would not fit
        least = {"SVDD": 10, "SVDD, weighted": 10, "CoDe": 10, "rbf": 10, "FK steering, funnel": 11, "tree": 7}
        assert run["rows"] >= least.get(run["method"], 12), run
    for task, method in (("tokens", "DAS"), ("numbers", "Taylor SMC"), ("numbers", "ledidi"), ("numbers", "CFG")):
        assert {(r["task"], r["method"]) for r in good}.isdisjoint({(task, method)})


def test_a_method_that_takes_more_than_its_quota_has_failed(toys, monkeypatch):
    def greedy(model, task, quota):
        return quota.draw(model, [], particles=2 * quota.size)

    monkeypatch.setitem(steering.METHODS, "greedy", greedy)
    bench = steering.Bench(toys / "out", ("numbers",), ("greedy",), 6, 4, (3,), (), (0,), 0.5, 64)
    assert bench.run()["rows"][0]["failed"] == "ValueError: took 144 network rows and had 72"


def test_rows_that_are_random_are_those_of_an_unguided_sample():
    """A model that is asked for half of its steps on average has half of the rows to spend, and a fifth for chance."""
    plain = gk.sample(numbers().model, 8, steps=4)
    for most, rows in ((2.0, 38), (4.0, 64)):
        quota = steering.Quota(8, 4, "rows", 2, 0, most)
        assert quota.whole == 16 * most
        quota.check(replace(plain, cost=replace(plain.cost, network_rows=rows)))
        with pytest.raises(ValueError, match=f"took {rows + 1} network rows and had {quota.whole}"):
            quota.check(replace(plain, cost=replace(plain.cost, network_rows=rows + 1)))


def test_what_is_measured_is_drawn_by_weight():
    """All weight is on the third of six particles, of which three samples are drawn; and one of each of two groups."""
    base = numbers()
    plain = gk.sample(base.model, 6, steps=2)
    heavy = replace(plain, log_weights=torch.tensor([-50.0, -50, 0, -50, -50, -50], dtype=torch.float64))
    study = steering.Study(replace(base, alpha=1.0), base.model, replace(plain, rewards=plain.x[:, 0]), plain.x, 1.0)
    found = study.measured("FK steering", heavy, steering.Quota(3, 2, "rows", 2, 0, 2.0))
    assert found["reward"] == pytest.approx(float(plain.x[2, 0])) and found["unique"] == pytest.approx(1 / 3)
    assert found["held_out"] == pytest.approx(float(plain.x[2, 0] + 10 * plain.x[2, 1]), rel=1e-5)
    assert found["ess"] == pytest.approx(1 / 6) and found["rows"] == 4.0  # 6 particles, 2 steps, 3 samples
    groups = gk.sample(base.model, 3, steps=2, cond=[None, None])
    two = replace(groups, log_weights=torch.tensor([0.0, -50, -50, -50, -50, 0.0], dtype=torch.float64))
    found = study.measured("FK steering", two, steering.Quota(2, 2, "rows", 3, 0, 2.0))
    assert found["reward"] == pytest.approx(float((groups.x[0, 0] + groups.x[5, 0]) / 2))


def test_what_is_possible_at_a_divergence_is_that_of_a_tilted_gaussian():
    """For r ~ N(0, 1) the most is sqrt(2 KL), and the best of 4 has the mean 1.02938 and KL = log 4 - 3/4.
    Quantiles for a sample leave an error below .01."""
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    rewards = math.sqrt(2) * torch.erfinv(2 * levels - 1)
    plain = gk.sample(numbers().model, 2, steps=2)
    pilot = replace(plain, rewards=rewards, log_weights=torch.zeros(4000, dtype=torch.float64), x=rewards)
    study = steering.Study(numbers(), numbers().model, pilot, None, 1.0)
    kl = steering.divergence("best of N", 4, 1.0)
    assert kl is not None
    assert kl == pytest.approx(math.log(4) - 0.75) and study.possible(kl) == pytest.approx(math.sqrt(2 * kl), abs=0.01)
    assert study.gained(1.02938, kl) == pytest.approx(1.02938 / math.sqrt(2 * kl), abs=0.01)
    assert steering.divergence("best of N, second order", 4, 1.0) == kl
    assert steering.divergence("FK steering", 4, 1.5) == 1.5 and steering.divergence("SVDD", 4, 1.5) is None
    assert math.isnan(study.possible(7.0))  # more than 4,000 samples can tell


def test_ahead_of_best_of_n_is_as_much_reward_without_a_loss():
    usual = {"held_out": 2.0, "natural": 5.0, "natural_sd": 0.5, "diversity": 1.0, "by": "rows", "task": "a"}
    other = {"held_out": 2.0, "natural": 5.4, "diversity": 0.91, "size": 2}
    rows = [usual | {"method": "best of N", "size": 16}, usual | other | {"method": "good"}]
    rows += [usual | other | {"method": m} | own for m, own in (
        ("weak", {"held_out": 1.9}), ("odd", {"natural": 5.6}), ("alike", {"diversity": 0.89}), ("big", {"size": 3})
    )]  # fmt: skip
    found = {"rows": rows, "tasks": {"a": {"better": "lower"}}}
    told = {r["method"]: (r["reached"], r["natural"], r["diverse"]) for r in steering.ahead(found)}
    short = {"weak": (False, True, True), "odd": (True, False, True), "alike": (True, True, False)}
    assert told == {"good": (True, True, True)} | short
    found["tasks"]["a"]["better"] = "higher"
    assert [r["natural"] for r in steering.ahead(found) if r["method"] == "odd"] == [True]
    better, close = {"method": "best of N, second order", "size": 16, "held_out": 2.5}, {"held_out": 2.4, "size": 2}
    found["rows"] += [usual | better, usual | close | {"method": "good, second order"}]
    told = {r["method"]: r["reached"] for r in steering.ahead(found)}
    assert told["good"] and not told["good, second order"]  # each is compared with the best of N of its own solver


def test_the_network_of_start_noise_is_trained_once_for_all_seeds_and_its_rows_are_not_counted(toys, monkeypatch):
    made, trained = steering.search.amortise, []
    monkeypatch.setattr(
        steering.search, "amortise", lambda *given, **more: (trained.append(given), made(*given, **more))[1]
    )
    bench = steering.Bench(toys / "out", ("numbers",), ("amortised",), 6, 4, (3,), (), (0, 1), 0.5, 64)
    found = bench.run()["runs"]
    assert len(trained) == 1 and trained[0][2] == bench.studies["numbers"].task.alpha
    assert [run["rows"] for run in found] == [12.0, 12.0]  # three particles, four steps


def test_a_value_that_completes_what_it_sees_has_fewer_chains_for_its_calls_and_asks_the_network_about_none():
    """Four candidates at 4 steps: by calls a chain takes 4 where the value calls no reward, and 4 (1 + 3 * 2) where it
    completes every candidate twice before the last step."""
    task = tokens()
    twice = gk.values.Rollout(task.reward, k=2, shared=True, parent=True)
    corrected: Any = lambda x, t, cond, seen: seen[:, 0]  # noqa: E731
    value = gk.values.Learned(corrected, looks=(twice,))
    for of, calls, chains in ((value, 56, 2), (value, 55, 1), (gk.values.Learned(lambda x, t, cond: 0 * t), 56, 14)):
        quota = steering.Quota(3, 4, "calls", calls, 0, 4.0)
        for method in (steering.by_value, steering.by_weighted_value):
            found = method(task.model, replace(task, value=of, alpha=1.0), quota)
            assert found.cost.network_rows <= 3 * 4 * chains and found.cost.reward_calls <= 3 * calls
            assert len(found) == (3 if method is steering.by_value else 3 * chains)
    with pytest.raises(ValueError, match="needs at least 28 reward calls"):
        steering.by_value(task.model, replace(task, value=value), steering.Quota(3, 4, "calls", 27, 0, 4.0))


def test_a_value_in_another_unit_is_multiplied():
    """With half of the value at half of the temperature, the weights on the way are the same, and those at the end are
    of the reward alone."""
    base, value = numbers().model, gk.values.Learned(lambda x, t, cond: x[:, 0])
    reward = lambda x: x[:, 0] / 2  # noqa: E731
    own, other = (gk.SVDD(r, a, 3, value=v) for r, a, v in (
        (lambda x: x[:, 0], 1.0, value), (reward, 0.5, steering.Rescaled(value, 0.5))
    ))  # fmt: skip
    found = [gk.sample(base, 5, steps=4, guides=[guide], seed=3) for guide in (own, other)]
    assert torch.equal(found[0].x, found[1].x) and torch.allclose(found[0].log_weights, found[1].log_weights)
    assert found[1].cost.network_rows == 5 * 4  # none for candidates


@pytest.mark.parametrize(("n", "steps", "size"), [(16, 16, 2), (32, 16, 4), (4, 4, 3), (3, 7, 2), (5, 6, 1)])
def test_a_funnel_has_the_rows_of_its_quota(n, steps, size):
    """All but what rounding leaves: half a particle in each step and one more."""
    task, quota = replace(numbers(), alpha=1.0), steering.Quota(n, steps, "rows", size, 0, float(steps))
    found = quota.draw(task.model, steering.funnelled(task.model, task, quota))
    assert len(found) == n and quota.whole - steps - 1 <= found.cost.network_rows <= quota.whole


def picture() -> dict:
    about = {"about": "x", "better": "lower", "nature": "offset", "judged": True}
    row = {"task": "a", "by": "rows", "held_out": 1.5, "held_out_sd": 0.25, "diversity": 1.0, "natural": 2.0}
    row |= {"natural_sd": None}
    rows = [row | {"method": "unguided", "size": 1}, row | {"method": "off", "by": "calls", "size": 9, "failed": "no"}]
    rows += [row | {"method": "best of N", "size": k, "held_out": float(k)} for k in (8, 5)]
    rows += [row | {"method": "good", "size": 1}, row | {"method": "alike", "size": 1, "diversity": 0.89}]
    rows += [row | {"method": "good", "size": 5, "by": "calls", "held_out": 7.0}]
    rows += [row | {"method": "odd", "size": 5, "by": "calls", "natural": 2.1}]
    return {"rows": rows, "tasks": {"a": about}, "settings": {"rows": [1], "calls": [5]}}


def test_the_picture_shows_what_the_tables_have(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    shown, errorbar = [], Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar",
        lambda self, x, y, **more: (shown.append((more["label"], x, more["xerr"])), errorbar(self, x, y, **more))[1],
    )  # fmt: skip
    found = picture()
    own = {(d.name, d.by): (d.value, d.whole) for d in steering.dots(found, "a")}
    assert own == {
        ("unguided", ""): (1.5, True), ("best of 8", ""): (8.0, True), ("best of 5", ""): (5.0, True),
        ("good", "rows"): (1.5, True), ("alike", "rows"): (1.5, False), ("good", "calls"): (7.0, True),
        ("odd", "calls"): (1.5, False),
    }  # fmt: skip
    steering.draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(shown) == sorted((d.name, d.value, 0.25) for d in steering.dots(found, "a"))


def test_at_equal_calls_a_method_is_beside_the_best_of_as_many():
    told = {r["method"]: (r["n"], r["reached"], r["natural"]) for r in steering.ahead(picture(), "calls")}
    assert told == {"good": (5, True, True), "odd": (5, False, False)}
    text = steering._verdict(picture())
    assert "* a: good (5 against 5)" in text and "* a: none" in text  # by calls, and by rows


def test_what_is_wrong_is_said_before_it_runs(toys):
    for args, said in [
        (("--tasks", "token"), "did you mean 'tokens'"),
        (("--methods", "svd"), "did you mean 'SVDD'"),
        (("--methods", "mine.py:f"), "there is no such file"),
        (("--seeds", "a"), "--seeds 'a': whole numbers"),
        (("--rows", "0"), "sizes of 1 or more"),
        (("--rows", "", "--calls", ""), "there is nothing to run"),
        (("-n", "1"), "at least 2"),
        (("--kl", "3", "--pilot", "100"), "3 nats need 201 unguided samples"),
    ]:
        answer = ask(*args, "-o", "out")
        assert answer.exit_code == 2 and said in answer.stderr, answer.output
        assert not Path("out").exists()
    assert ask(*SMALL, "--tasks", "numbers", "--methods", "unguided", "--seeds", "0", "-o", "out").exit_code == 0
    answer = ask(*SMALL, "--steps", "5", "-o", "out")
    assert answer.exit_code == 2 and "has runs of n=6, steps=4" in answer.stderr
    with pytest.raises(ConfigError, match="another folder"):
        steering.Bench(Path("out"))


def test_the_tables_of_the_page_are_those_of_the_stored_runs():
    found = json.loads((ROOT / "benchmarks" / "results" / "equal_cost.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "equal_cost.md").read_text(encoding="utf-8")
    assert "\n".join(steering.lines(found)) in page and found["rows"] == steering.summary(found["runs"])
    for name in ("n", "steps", "kl", "pilot"):
        assert all(run[name] == found["settings"][name] for run in found["runs"])

"""Runs that survive a kill: the same bytes as if nothing had happened, and no file is taken for what it is not."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import guidekit as gk
from guidekit.engine import checkpoint as module

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
N, STEPS = 6, 12
calls: list[int] = []
breaks: list[float] = []


@dataclass(frozen=True)
class Memory(gk.Guide):
    """A tuple of memos, some empty, that the tilt of the next step depends on."""

    strength: float = 0.1

    def log_weight(self, view, memo):
        total, (count, _, ones) = (view.x, (view.zeros(), None, view.x[:, :1] > 0)) if memo is None else memo
        total = 0.5 * (total + view.x)
        return self.strength * total.flatten(1).sum(1).double(), (total, (count + 1, None, ones))


def net(x, t, cond):
    """Quick, and records its calls."""
    calls.append(len(x))
    drift = 0.0 if cond is None else 0.1 * cond[:, None]
    return (x * 0.7 + drift).tanh() * (0.3 + t[:, None])


def slow_net(x, t, cond):
    """The same, at the speed of a network."""
    time.sleep(0.05)
    return net(x, t, cond)


def fragile_net(x, t, cond):
    """The same, until the time at which it breaks."""
    if breaks and t[0] < breaks[0]:
        raise MemoryError
    return net(x, t, cond)


def reward(x):
    return x[:, 0] - 0.3 * x[:, 1] ** 2


def run(file=None, network=net, **options) -> gk.Result:
    """Two groups under everything that has a state: weights, memos, solver history, resampling, a bent proposal."""
    return gk.sample(gk.GaussianModel(network, (2,), predicts="clean", null=0), checkpoint=file, **(BUSY | options))


BUSY = {
    "n": N,
    "steps": STEPS,
    "cond": [2, 5],
    "seed": [3, 4],
    "solver": gk.solvers.SDEDPMpp(order=2),
    "guides": (Memory(), gk.CFG(1.5, steer=True), gk.FKSteering(reward, 0.5, ess=0.7)),
}


def assert_same(a: gk.Result, b: gk.Result) -> None:
    """The same bytes, in all that a result holds except the time that was spent."""
    for name in ("x", "samples", "rewards", "group", "log_weights", "ancestors", "row", "noise"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.dtype == two.dtype
        assert one.numpy().tobytes() == two.numpy().tobytes(), name
    assert a.config == b.config
    for name in ("t", "ess", "resampled", "distinct", "mean_reward", "max_reward", "log_z_error"):
        assert torch.equal(a.trace[name].nan_to_num(7.5), b.trace[name].nan_to_num(7.5)), name
    assert a.cost.network_rows == b.cost.network_rows
    if a.x.is_floating_point():  # tokens that were scored before an interruption may be scored again
        assert a.cost.reward_calls == b.cost.reward_calls


def stop_at(index: int, error: type[BaseException] = KeyboardInterrupt):
    def callback(population, step):
        if step.index == index:
            raise error

    return callback


def half_done(file: Path, index: int = 5, **options) -> Path:
    """The checkpoint of a run that was interrupted after `index` steps."""
    with pytest.raises(KeyboardInterrupt):
        run(file, callbacks=[stop_at(index)], **options)
    return file


def header(file: Path) -> dict:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["guidekit"])


# interruptions -----------------------------------------------------------------------------------------------------


def in_another_process(file: str) -> None:
    """A run that gets stuck after its seventh step, and says so."""

    def stick(population, step):
        if step.index == 7:
            print("stuck", flush=True)
            time.sleep(600)

    run(file, slow_net, callbacks=[stick])


def test_a_process_that_was_killed_is_continued_by_another_to_the_same_bytes(tmp_path):
    file = tmp_path / "run.safetensors"
    code = f"from tests.test_checkpoint import in_another_process; in_another_process({str(file)!r})"
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "stuck\n"
        finally:
            process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    done = header(file)["index"]
    assert 1 <= done < 7
    calls.clear()
    resumed = run(file, slow_net)
    assert len(calls) == STEPS - 1 - done  # the look after the last step needs no network
    assert_same(resumed, run(None, slow_net))


@pytest.mark.parametrize("index", [1, 2, 5, STEPS - 1, STEPS])
def test_an_interrupt_saves_the_step_that_it_follows(index: int, tmp_path):
    file = half_done(tmp_path / "run", index)
    assert header(file)["index"] == index
    calls.clear()
    resumed = run(file)
    assert len(calls) == max(STEPS - 1 - index, 0)
    assert_same(resumed, run())


def test_an_error_of_the_network_saves_the_steps_before_it(tmp_path):
    breaks.append(0.5)
    try:
        with pytest.raises(MemoryError):
            run(tmp_path / "run", fragile_net)
    finally:
        breaks.clear()
    assert header(tmp_path / "run")["index"] == STEPS // 2
    assert_same(run(tmp_path / "run", fragile_net), run(None, fragile_net))


def test_a_run_may_be_interrupted_again_and_again(tmp_path):
    file = tmp_path / "run"
    for index in (2, 3, 7, 11):
        half_done(file, index)
    assert_same(run(file), run())


@pytest.mark.parametrize("first, second", [(None, 5), (5, None), (3, 7)])
def test_the_micro_batch_may_change_between_the_parts(first, second, tmp_path):
    file = half_done(tmp_path / "run", batch_size=first)
    result, whole = run(file, batch_size=second), run()
    assert torch.allclose(result.x, whole.x, rtol=1e-5)
    assert torch.equal(result.ancestors, whole.ancestors)


def test_a_run_of_tokens_is_continued(tmp_path):
    def letters(tokens, t, cond):
        return torch.nn.functional.one_hot(tokens % 3, 3) * 1.5 + torch.arange(3) * t[:, None, None]

    def sample(file=None, **options):
        model = gk.MaskedModel(letters, 3, 8)
        guides = [gk.FKSteering(lambda x: (x == 1).sum(1).double(), 0.6)]
        return gk.sample(model, 16, steps=6, guides=guides, checkpoint=file, **options)

    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "run", callbacks=[stop_at(3)])
    assert_same(sample(tmp_path / "run"), sample())


def test_chain_noise_and_a_deterministic_solver_are_continued(tmp_path):
    noise = torch.randn(2 * N, 2, generator=torch.Generator().manual_seed(0))
    options = {"noise": noise, "guides": [gk.CFG(2.0)], "solver": gk.solvers.DPMpp(order=2)}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", callbacks=[stop_at(5)], reward=reward, **options)
    assert_same(run(tmp_path / "run", reward=reward, **options), run(reward=reward, **options))


def test_a_guide_that_branches_is_continued(tmp_path):
    @dataclass(frozen=True)
    class Widen(gk.Guide):
        def plan(self, n, step):
            return n, 3

    options = {"guides": [Widen(), gk.FKSteering(reward, 0.5)]}
    half_done(tmp_path / "run", **options)
    assert_same(run(tmp_path / "run", **options), run(**options))


def test_a_finished_run_is_returned_without_a_call_of_the_network(tmp_path):
    first = run(tmp_path / "run")
    calls.clear()
    again = run(tmp_path / "run")
    assert calls == []
    assert_same(again, first)


def test_the_time_of_both_parts_is_counted(tmp_path):
    file = half_done(tmp_path / "run", 6, network=slow_net)
    before = header(file)["cost"]["seconds"]
    assert before >= 6 * 0.05
    result = run(file, slow_net)
    assert result.cost.seconds >= before + (STEPS - 7) * 0.05
    assert (result.trace["seconds"].diff() >= 0).all()


# the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
def test_folders_are_made_and_only_the_checkpoint_is_left_in_them(as_text: bool, tmp_path):
    file = tmp_path / "a" / "b c" / "run.ckpt"
    half_done(str(file) if as_text else file)
    assert [p.name for p in file.parent.iterdir()] == ["run.ckpt"]
    run(file)
    assert [p.name for p in file.parent.iterdir()] == ["run.ckpt"]


def test_the_file_is_safetensors_with_the_whole_population(tmp_path):
    file = half_done(tmp_path / "run")
    tensors, text = load_file(file), header(file)
    assert tensors["x"].shape == (2 * N, 2)
    assert text["population"]["memos"][0] == ["memos.0.0", ["memos.0.1.0", None, "memos.0.1.2"]]
    assert tensors["memos.0.1.0"].tolist() == [6.0] * 2 * N  # looks: the start and five steps
    assert tensors["memos.0.1.2"].dtype == torch.bool
    assert len(text["population"]["predictions"]) == len(text["population"]["proposals"]) == 2
    assert len(text["records"]) == 5
    assert file.read_bytes().find(b"pickle") == -1


def test_a_failed_write_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    file = half_done(tmp_path / "run")
    good = file.read_bytes()

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(gk.CheckpointError, match="disk full"):
        run(file)
    assert file.read_bytes() == good
    monkeypatch.undo()
    assert_same(run(file), run())


class Clock:
    """Time that passes only where the test says so."""

    def __init__(self, monkeypatch, save: float):
        self.now, self.saved, replace = 0.0, [], os.replace
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

        def counted(*paths):
            self.now += save
            self.saved.append(round(self.now, 3))
            replace(*paths)

        monkeypatch.setattr(os, "replace", counted)


def test_saving_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """1,000 steps of 10 ms and saves of 50 ms: one at the start, one at the end, and one a second."""
    clock = Clock(monkeypatch, save=0.05)

    def tick(population, step):
        clock.now += 0.01

    model = gk.GaussianModel(net, (2,), predicts="clean")
    gk.sample(model, 2, steps=1000, callbacks=[tick], checkpoint=tmp_path / "run")
    assert 10 <= len(clock.saved) <= 12
    assert len(clock.saved) * 0.05 <= 0.06 * clock.now
    gaps = [b - a for a, b in zip(clock.saved[:-2], clock.saved[1:-1], strict=True)]
    assert min(gaps) == pytest.approx(max(gaps), abs=0.011) == pytest.approx(1.05, abs=0.011)


def test_slow_steps_are_saved_one_by_one(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, save=0.05)

    def tick(population, step):
        clock.now += 2.0

    run(tmp_path / "run", callbacks=[tick])
    assert len(clock.saved) == STEPS


def test_many_fast_steps_are_not_saved_each(tmp_path, monkeypatch):
    """The same by the real clock, on whatever machine this is."""
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: replaced.append(1) or replace(*paths))
    model = gk.GaussianModel(net, (2,), predicts="clean")
    gk.sample(model, 2, steps=400, checkpoint=tmp_path / "run")
    assert 2 <= len(replaced) < 100


# files that are not this run's -------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width: int = 4, fill: float = 0.5):
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, 2)
        for p in self.parameters():
            nn.init.constant_(p, fill)

    def forward(self, x, t, cond):
        return self.second(self.first(x).tanh())


def scaled(x, by):
    return by * x[:, 0]


def scaling(by):
    def score(x):
        return by * x[:, 0]

    return score


class Scaled:
    def __init__(self, by: float):
        self.by = by

    def score(self, x):
        return self.by * x[:, 0]

    __call__ = score


NOISE = torch.zeros(2 * N, 2)
OTHERS = {
    "seed": ({"seed": [3, 5]}, "seed"),
    "one seed": ({"seed": 3}, "seed"),
    "n": ({"n": 7}, "n "),
    "steps": ({"steps": 13}, "moves"),
    "times": ({"steps": [1.0, *(0.9 - 0.08 * i for i in range(11)), 0.0]}, "moves"),
    "no guides": ({"guides": ()}, "guides"),
    "order of guides": ({"guides": BUSY["guides"][::-1]}, "guides"),
    "alpha": ({"guides": (*BUSY["guides"][:2], gk.FKSteering(reward, 0.6, ess=0.7))}, "guides"),
    "scale": ({"guides": (Memory(), gk.CFG(1.6, steer=True), BUSY["guides"][2])}, "guides"),
    "strength": ({"guides": (Memory(0.2), *BUSY["guides"][1:])}, "guides"),
    "steer": ({"guides": (Memory(), gk.CFG(1.5), BUSY["guides"][2])}, "guides"),
    "reward of a guide": ({"guides": (*BUSY["guides"][:2], gk.FKSteering(torch.sum, 0.5, ess=0.7))}, "guides"),
    "cond": ({"cond": [2, 6]}, "cond"),
    "noise": ({"noise": NOISE}, "noise"),
    "solver": ({"solver": gk.solvers.DDPM()}, "moves|solver"),
    "order": ({"solver": gk.solvers.SDEDPMpp(order=1)}, "moves|solver"),
    "network": ({"network": slow_net}, "model"),
    "weights": ({"network": Net()}, "model"),
}


@pytest.mark.parametrize("change, names", OTHERS.values(), ids=OTHERS)
def test_the_checkpoint_of_another_run_is_refused_with_what_differs(change: dict, names: str, tmp_path):
    file = half_done(tmp_path / "mine")
    before = file.read_bytes()
    calls.clear()
    with pytest.raises(gk.CheckpointError, match=f"mine is of another run: ({names})") as caught:
        run(file, **change)
    assert "another file" in str(caught.value)
    assert calls == []
    assert file.read_bytes() == before


@pytest.mark.parametrize("other", [Net(width=5), Net(fill=0.4), nn.Identity()], ids=["shape", "values", "kind"])
def test_a_network_with_other_weights_is_another_run(other: nn.Module, tmp_path):
    half_done(tmp_path / "run", network=Net())
    with pytest.raises(gk.CheckpointError, match=r"of another run: (model|weights)"):
        run(tmp_path / "run", other)
    assert_same(run(tmp_path / "run", Net()), run(None, Net()))


FUNCTIONS = {
    "partial": (functools.partial(scaled, by=2.0), functools.partial(scaled, by=3.0)),
    "method": (Scaled(2.0).score, Scaled(3.0).score),
    "object": (Scaled(2.0), Scaled(3.0)),
    "closure": (scaling(2.0), scaling(3.0)),
    "lambda": (lambda x: 2 * x[:, 0], lambda x: 3 * x[:, 0]),
}


@pytest.mark.parametrize("one, other", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_same_function_with_other_settings_is_another_run(one, other, tmp_path):
    half_done(tmp_path / "run", guides=[gk.FKSteering(one, 0.5)])
    with pytest.raises(gk.CheckpointError, match="of another run: guides"):
        run(tmp_path / "run", guides=[gk.FKSteering(other, 0.5)])


def test_other_starting_noise_is_another_run(tmp_path):
    half_done(tmp_path / "run", noise=NOISE)
    with pytest.raises(gk.CheckpointError, match="another run: noise"):
        run(tmp_path / "run", noise=NOISE + 1e-6)
    assert_same(run(tmp_path / "run", noise=NOISE.clone()), run(noise=NOISE))


def test_settings_that_json_cannot_compare_do_not_make_it_another_run(tmp_path):
    guides = [Memory(math.inf), Memory(math.nan)]
    model = gk.GaussianModel(net, (2,), predicts="clean")
    options = {"steps": 3, "guides": [_Named(g.strength) for g in guides], "checkpoint": tmp_path / "run"}
    first = gk.sample(model, 2, **options)
    assert torch.equal(gk.sample(model, 2, **options).x, first.x)


@dataclass(frozen=True)
class _Named(gk.Guide):
    strength: float


def test_what_does_not_change_the_bytes_may_change(tmp_path, capfd):
    file = half_done(tmp_path / "run")
    seen = []
    result = run(file, progress=True, callbacks=[lambda population, step: seen.append(step.index)])
    assert seen == list(range(6, STEPS + 1))
    assert f"{STEPS}/{STEPS}" in capfd.readouterr().err
    assert_same(result, run())


def rewritten(change):
    """A file with its header changed."""

    def spoil(file: Path) -> None:
        text = header(file)
        change(text)
        save_file(load_file(file), file, {"guidekit": json.dumps(text)})

    return spoil


def less(file: Path) -> None:
    """Without one of its tensors."""
    text, tensors = header(file), load_file(file)
    del tensors["memos.0.0"]
    save_file(tensors, file, {"guidekit": json.dumps(text)})


SPOILT = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one byte": lambda file: file.write_bytes(b"\x00"),
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("step 5: loss 0.3\n" * 20),
    "a pickle": lambda file: torch.save({"x": torch.zeros(3)}, file),
    "no header": lambda file: save_file(load_file(file), file),
    "header of others": lambda file: save_file(load_file(file), file, {"format": "pt"}),
    "header that is no json": lambda file: save_file(load_file(file), file, {"guidekit": "{"}),
    "header that is a list": lambda file: save_file(load_file(file), file, {"guidekit": "[1]"}),
    "deep header": lambda file: save_file(load_file(file), file, {"guidekit": "[" * 100_000}),
    "other format": rewritten(lambda text: text.update(format="guidekit-checkpoint-0")),
    "no population": rewritten(lambda text: text.pop("population")),
    "population that is a list": rewritten(lambda text: text.update(population=[1])),
    "run that is a list": rewritten(lambda text: text.update(run=[1])),
    "cost that is a list": rewritten(lambda text: text.update(cost=[1])),
    "records that are numbers": rewritten(lambda text: text.update(records=[1, 2])),
    "index that is text": rewritten(lambda text: text.update(index="five")),
    "no tensor": less,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_file_that_is_no_whole_checkpoint_is_an_error_that_says_what_to_do(spoil, tmp_path):
    file = half_done(tmp_path / "mine")
    spoil(file)
    calls.clear()
    with pytest.raises(gk.CheckpointError, match=r"mine.*(delete|another file)"):
        run(file)
    assert calls == []
    assert file.exists()  # it is the user's to delete

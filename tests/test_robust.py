"""What users' code does to an engine: threads, buffers, copies, hash seeds, wrappers. Each of these once went wrong."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.engine import scoring

from .problems import PROBLEMS, STEPS


def halved(**options) -> gk.GaussianModel:
    return gk.GaussianModel(lambda x, t, c: x * 0.5, (2,), predicts="clean", **options)


def first(x):
    return x[:, 0]


def test_two_runs_in_threads_borrow_one_network_and_the_last_gives_it_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model = gk.GaussianModel(lambda x, t, c: net(x), (2,), predicts="clean")
    inside, ended, modes = threading.Event(), threading.Event(), []

    def first_run():
        gk.sample(model, 2, steps=1, callbacks=[lambda *_: inside.wait(10)])
        ended.set()

    def second_step(*_):
        inside.set()
        ended.wait(10)  # the first run ends while the second goes on
        modes.append(net.training)

    thread = threading.Thread(target=first_run)
    thread.start()
    gk.sample(model, 2, steps=3, callbacks=[second_step])
    thread.join()
    assert modes == [False] * 3
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.slow
def test_a_description_does_not_depend_on_the_hash_seed():
    code = """
import json
from guidekit.engine.describe import describe
letters = {"G", "C", "S", "W"}
reward = lambda x: [sum(c in {"G", "C", "S"} for c in s) + (s in letters) for s in x]
held = (lambda kept: lambda x: kept)(letters)
print(json.dumps(describe([reward, held, letters])))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(found) == 1


def test_a_decode_that_works_in_place_changes_nothing():
    guides = [gk.FKSteering(first, 1e6)]
    plain = gk.sample(halved(), 8, steps=5, guides=guides)
    clamped = gk.sample(halved(decode=lambda x: x.clamp_(-0.01, 0.01)), 8, steps=5, guides=guides)
    assert torch.equal(plain.x, clamped.x)
    assert torch.equal(clamped.samples, plain.x.clamp(-0.01, 0.01))
    zeroed = gk.sample(halved(decode=lambda x: x.numpy()), 8, steps=5, reward=lambda s: s.fill(0) or s[:, 0])
    assert torch.equal(plain.x, zeroed.x)


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"solver": gk.solvers.DPMpp()}, {}])
def test_a_network_may_use_its_output_buffer_again(options: dict):
    buffer = torch.empty(100, 2)
    net = lambda x, t, c: torch.mul(x, 0.5, out=buffer[: len(x)])  # noqa: E731
    reused = gk.GaussianModel(net, (2,), predicts="clean")
    assert torch.equal(gk.sample(reused, 8, steps=5, **options).x, gk.sample(halved(), 8, steps=5, **options).x)


def test_rewards_made_on_the_fly_are_not_taken_for_each_other():
    seen = []

    @dataclass(frozen=True)
    class Several(gk.Guide):
        def log_weight(self, view, memo):
            seen.append([float(view.score(lambda s, i=i: s[:, 0] * 0 + i)[0]) for i in range(6)])
            return 0.0, memo

    gk.sample(halved(), 4, steps=1, guides=[Several()])
    assert seen[0] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    words = halved(decode=lambda x: ["a"] * len(x))

    class Two:
        def f(self, s):
            return [1.0] * len(s)

        def g(self, s):
            return [2.0] * len(s)

    two, found = Two(), []

    @dataclass(frozen=True)
    class Pair(gk.Guide):
        def log_weight(self, view, memo):
            found.append([float(view.score(r)[0]) for r in (two.f, two.g, two.f, two.g)])
            return 0.0, memo

    gk.sample(words, 4, steps=1, guides=[Pair()])
    assert found[0] == [1.0, 2.0, 1.0, 2.0]


def test_a_move_without_a_branch_gives_siblings_their_own_noise():
    problem = PROBLEMS["vp-1d"]
    run = gk.Run(problem.model, 16, steps=STEPS, cond=1, guides=[gk.FKSteering(problem.reward, 0.02, ess=1.0)])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            pop = run.advance(pop, index)
        assert len(pop.x.unique()) < 16
        assert len(run.move(pop, 3).x.unique()) == 16
        assert torch.equal(run.move(pop, 3).x, run.move(run.branch(pop, 3), 3).x)
        part = run.move(run.branch(pop.take(slice(4, 8)), 3), 3)
        assert torch.equal(part.x, run.move(pop, 3).x[4:8])


@pytest.mark.parametrize("scores", [np.array([123456789.123, 1.0]), [123456789.123, 1.0], torch.tensor([123456789, 1])])
def test_rewards_keep_their_precision(scores):
    found = gk.sample(halved(), 2, steps=1, reward=lambda s: scores).rewards
    assert torch.equal(found, torch.as_tensor(scores, dtype=torch.float64))


def test_networks_inside_wrappers_are_found():
    class Pipeline:
        def __init__(self):
            self.unet = nn.Dropout(0.5)

        def forward(self, x, t, c):
            assert not self.unet.training
            return self.unet(x)

    def twice(net):
        inner = lambda x, t: net(x)  # noqa: E731
        return lambda x, t, c: inner(x, t)

    pipeline, dropout = Pipeline(), nn.Dropout(0.5)
    for net, module in ((pipeline.forward, pipeline.unet), (twice(dropout), dropout)):
        model = gk.GaussianModel(net, (2,), predicts="clean")
        assert model.modules() == [module]
        gk.sample(model, 3, steps=2)
        assert module.training


def test_the_precision_of_a_decoder_is_not_that_of_the_network():
    vae, seen = nn.Linear(2, 2).half(), []

    def net(x, t, c):
        seen.append(x.dtype)
        return x * 0.5

    gk.sample(gk.GaussianModel(net, (2,), predicts="clean", decode=lambda x: vae(x.half())), 3, steps=2)
    assert set(seen) == {torch.float32}


def test_an_interrupt_right_after_a_selection_leaves_a_checkpoint_that_can_be_read(tmp_path, monkeypatch):
    problem, file = PROBLEMS["vp-1d"], tmp_path / "run"
    options = {"steps": STEPS, "cond": 1, "guides": [gk.FKSteering(problem.reward, 0.5)]}
    whole = gk.sample(problem.model, 8, **options)
    let_go, count = scoring.Scorer.let_go, iter(range(100))

    def interrupted(self):
        let_go(self)
        if next(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring.Scorer, "let_go", interrupted)
        gk.sample(problem.model, 8, **options, checkpoint=file)
    resumed = gk.sample(problem.model, 8, **options, checkpoint=file)
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.ancestors, resumed.ancestors)


def test_runs_within_inference_mode_and_with_networks_in_it():
    plain = gk.sample(halved(), 3, steps=3, guides=[gk.FKSteering(first, 1.0)])
    with torch.inference_mode():
        assert torch.equal(gk.sample(halved(), 3, steps=3, guides=[gk.FKSteering(first, 1.0)]).x, plain.x)
    net = torch.inference_mode()(lambda x, t, c: x * 0.5)
    inner = gk.GaussianModel(net, (2,), predicts="clean")
    assert torch.equal(gk.sample(inner, 3, steps=3, guides=[gk.FKSteering(first, 1.0)]).x, plain.x)


def test_samples_may_be_single_numbers():
    scalar = gk.GaussianModel(lambda x, t, c: x * 0.5, (), predicts="clean", null=0)
    vector = gk.GaussianModel(lambda x, t, c: x * 0.5, (1,), predicts="clean", null=0)
    guides = [gk.CFG(2.0, rescale=0.5, steer=True)]
    results = [gk.sample(m, 6, steps=4, guides=guides, cond=1) for m in (scalar, vector)]
    assert torch.equal(results[0].x, results[1].x[:, 0])
    assert torch.equal(results[0].log_weights, results[1].log_weights)


def test_times_in_single_precision_are_those_of_double():
    model = gk.GaussianModel(lambda x, t, c: x * 0.1, (2,))
    times = torch.linspace(0.999, 0, 5)
    assert torch.allclose(gk.sample(model, 3, steps=times).x, gk.sample(model, 3, steps=4).x, rtol=1e-5)


def test_models_can_be_pickled():
    for name in ("vp-1d", "masked"):
        model = PROBLEMS[name].model
        again = pickle.loads(pickle.dumps(model))
        conds = {"cond": PROBLEMS[name].cond}
        assert torch.equal(gk.sample(model, 4, steps=3, **conds).x, gk.sample(again, 4, steps=3, **conds).x)


def test_a_schedule_that_changes_is_asked_again():
    class Power:
        k = 1.0

        def __call__(self, t):
            return 1 - t**self.k, t**self.k

    schedule = Power()
    model = gk.GaussianModel(lambda x, t, c: x * 0.5, (2,), schedule, predicts="clean")
    before = gk.sample(model, 3, steps=3).x
    schedule.k = 3.0
    after = gk.sample(model, 3, steps=3).x
    fresh = gk.GaussianModel(lambda x, t, c: x * 0.5, (2,), schedule, predicts="clean")
    assert not torch.equal(before, after)
    assert torch.equal(after, gk.sample(fresh, 3, steps=3).x)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gk.sample(halved(), 2, callbacks=print), TypeError, "callbacks"),
        (lambda: gk.sample(halved(decode=lambda x: x[:2]), 4, steps=1), ValueError, "decode returned 2 samples for 4"),
        (lambda: gk.sample(PROBLEMS["vp-1d"].model, 2, cond=7), ValueError, r"cond=7.*\[0, 1\]"),
        (lambda: gk.sample(PROBLEMS["masked"].model, 2, cond=7), ValueError, "cond=7.*1 classes"),
        (lambda: gk.sample(PROBLEMS["masked"].model, 2, cond=-1), ValueError, "cond=-1"),
        (lambda: gk.GaussianModel(first, (2,), gk.schedules.Flow), TypeError, "schedule.*instance"),
        (lambda: gk.GaussianModel(first, (2,), dtype=torch.float16), ValueError, "float32 or float64"),
        (lambda: gk.analytic.GaussianMixture([1.0], torch.zeros(1, 2, 2), [1.0]), ValueError, "K means"),
    ],
)
def test_errors_say_what_was_given(call, error, message: str):
    with pytest.raises(error, match=message):
        call()

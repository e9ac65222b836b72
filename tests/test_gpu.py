"""On an accelerator: the same laws, the same noise, and no waiting for the device inside the loop.

GUIDEKIT_TEST_DEVICE=cpu runs these tests on the host, to see that they can run.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.models.base import Model

from .conformance.cases import CASES, Case
from .problems import PROBLEMS, STEPS

DEVICE = os.environ.get("GUIDEKIT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no accelerator"),
    pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning"),
]


def on_device(name: str) -> gk.Model:
    model, device = PROBLEMS[name].model, torch.device(DEVICE)
    if isinstance(model, gk.analytic.TokenTable):
        table = model.table.view(-1, *[model.vocab_size] * model.length).to(device)
        noising = "masked" if isinstance(model.process, gk.process.Masked) else "uniform"
        return gk.analytic.TokenTable(table[0], noising, classes=table[1:])
    parts = (v.to(device) for v in (model.weights, model.means, model.stds))
    return gk.analytic.GaussianMixture(*parts, model.schedule, labels=model.labels)


def test_noise_has_the_same_bits_as_on_the_host():
    keys = random.fold(random.key(5), torch.arange(100))
    assert torch.equal(random._bits(keys.to(DEVICE), 33).cpu(), random._bits(keys, 33))
    assert torch.allclose(random.normal(keys.to(DEVICE), (7,)).cpu(), random.normal(keys, (7,)), atol=1e-5)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("resampler", ["multinomial", "stratified", "systematic", "residual", "ssp"])
def test_a_steered_run_equals_the_host(name: str, resampler: str):
    problem = PROBLEMS[name]
    guides = [gk.CFG(1.5), gk.FKSteering(problem.reward, problem.alpha, ess=0.8, resampler=resampler)]
    runs = [
        gk.sample(model, 64, steps=STEPS, guides=guides, cond=problem.cond)
        for model in (problem.model, on_device(name))
    ]
    assert torch.equal(runs[0].ancestors, runs[1].ancestors.cpu())
    assert torch.allclose(runs[0].x.double(), runs[1].x.double().cpu(), atol=1e-8)
    assert torch.allclose(runs[0].log_weights, runs[1].log_weights.cpu(), atol=1e-8)


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing to wait for")
@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_the_loop_does_not_wait_for_the_device(name: str):
    """Of tokens it waits for the number of rows to evaluate and to draw: see tests/test_no_waiting.py."""
    problem = PROBLEMS[name]
    guides = [gk.CFG(1.5), gk.FKSteering(problem.reward, problem.alpha)]
    run = gk.Run(on_device(name), 64, steps=STEPS, guides=guides, cond=problem.cond)
    with run.borrowed():
        pop = run.start()  # caches what it needs
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for index in range(STEPS):
                pop = run.advance(pop, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_nan_is_reported_at_the_end_with_its_step_and_rows():
    def net(x, t, cond):
        bad = (t < 0.5)[:, None] & (torch.arange(len(x), device=x.device) == 3)[:, None]
        return torch.where(bad, torch.nan, x * 0.5)

    model = gk.GaussianModel(net, (2,), predicts="clean", device=DEVICE)
    with pytest.raises(gk.NetworkError, match=r"step 3 of 5 .*1 rows: 3"):
        gk.sample(model, 6, steps=5)


@pytest.mark.parametrize("tokens", [False, True])
def test_compiled_networks_give_the_same(tokens: bool):
    """Of Gaussian processes they are replayed as CUDA graphs, whose results are overwritten by the next replay."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.Tanh(), torch.nn.Linear(32, 18 if tokens else 6))
    net = net.requires_grad_(False).to(DEVICE)

    def logits(x, t, cond):
        return net(x.float()).view(-1, 6, 3)

    def clean(x, t, cond):
        return net(x * (1 + t[:, None]))

    model = gk.MaskedModel(logits, 3, 6, device=DEVICE) if tokens else gk.GaussianModel(clean, (6,), device=DEVICE)
    steering = gk.FKSteering(lambda x: x.double().sum(1), 0.5)
    backend = True if DEVICE == "cuda" else "aot_eager"
    plain, fast, again = (
        gk.sample(model, 16, steps=6, guides=[steering], batch_size=8, compile=how) for how in (False, backend, backend)
    )
    assert torch.equal(plain.ancestors, fast.ancestors) and torch.equal(fast.x, again.x)
    assert torch.allclose(plain.x.double(), fast.x.double(), atol=1e-5)


def test_rewards_of_the_host_are_asked_while_the_device_works():
    """The next micro-batch is begun before this one is scored, and the samples are those of the host."""
    problem = PROBLEMS["vp-1d"]
    steering = gk.FKSteering(lambda x: torch.as_tensor(x.cpu().numpy()[:, 0]), 0.5)
    runs = [
        gk.sample(model, 12, steps=STEPS, guides=[steering], cond=problem.cond, batch_size=4)
        for model in (problem.model, on_device("vp-1d"))
    ]
    assert torch.equal(runs[0].ancestors, runs[1].ancestors.cpu())
    assert torch.allclose(runs[0].x, runs[1].x.cpu(), atol=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_guide_gives_the_same_on_host_and_device(case: Case):
    for name in case.processes:
        problem = case.on(name)
        guides = [case.make(problem)]
        others = [need.model(problem.model) for g in guides for need in g.needs]
        if any(m is not problem.model for m in others) or any(
            isinstance(v, Model) for g in guides for v in vars(g).values()
        ):
            continue  # a second model or a classifier lives on the host
        there = case.with_(replace(PROBLEMS[name], model=on_device(name))).model
        host, device = (
            gk.sample(model, 12, steps=STEPS, guides=guides, cond=problem.cond) for model in (problem.model, there)
        )
        assert torch.equal(host.ancestors, device.ancestors.cpu())
        assert torch.allclose(host.x.double(), device.x.double().cpu(), atol=1e-7)
        assert torch.allclose(host.log_weights, device.log_weights.cpu(), atol=1e-7)

"""Runs with compile=True give what others give, and compile each network once for the whole grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from benchmarks import compiled
from guidekit import random


class Net(nn.Module):
    """A network of numbers (rows, 6), or of tokens (rows, 6) with logits."""

    def __init__(self, tokens: bool):
        super().__init__()
        self.into = nn.Embedding(4, 8) if tokens else nn.Linear(1, 8)
        self.cond, self.out = nn.Embedding(3, 8), nn.Linear(8, 3 if tokens else 1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        h = self.into(x if x.dtype == torch.long else x[..., None]) + self.cond(cond)[:, None] + t[:, None, None]
        out = self.out(torch.tanh(h) + h.mean(1, keepdim=True).sin())
        return out if x.dtype == torch.long else out[..., 0]


def model(kind: str) -> gk.Model:
    torch.manual_seed(3)
    net = Net(kind != "gaussian").double()
    options: dict[str, Any] = {"encode_cond": torch.tensor, "null": 0}
    if kind == "gaussian":
        return gk.GaussianModel(net, (6,), predicts="clean", **options)
    return (gk.MaskedModel if kind == "masked" else gk.UniformModel)(net, 3, 6, **options)


def reward(x: Tensor) -> Tensor:
    return x.double()[:, :2].sum(1)


GUIDES: dict[str, Callable[[], list[gk.Guide]]] = {
    "CFG and FK": lambda: [gk.CFG(2.0), gk.FKSteering(reward, 0.7)],
    "SVDD": lambda: [gk.SVDD(reward, 0.5, candidates=2)],
    "TDS": lambda: [gk.TDS(reward, 1.0)],
}


class Counting:
    """A backend of torch.compile that runs graphs as they are, and counts them and their rows."""

    def __init__(self) -> None:
        self.graphs, self.rows = 0, set[int]()

    def __call__(self, graph: Any, inputs: Any) -> Callable:
        self.graphs += 1

        def call(*args: Any) -> Any:
            self.rows |= {len(v) for v in args if isinstance(v, Tensor) and v.dtype == torch.long and v.dim() == 2}
            return graph.forward(*args)

        return call


@pytest.mark.parametrize(
    ("kind", "guides"), [("gaussian", "CFG and FK"), ("gaussian", "TDS"), ("masked", "CFG and FK"), ("uniform", "SVDD")]
)
def test_a_network_is_compiled_once_for_the_whole_grid_and_for_later_runs(kind: str, guides: str):
    base, counting = model(kind), Counting()
    options: dict[str, Any] = {"steps": 7, "cond": [1, 2], "batch_size": 40, "guides": GUIDES[guides]()}
    plain = gk.sample(base, 20, **options)
    torch.compiler.reset()
    for seed in (0, 1):
        fast = gk.sample(base, 20, seed=seed, compile=counting, **options)
        if seed == 0:
            assert torch.equal(fast.ancestors, plain.ancestors)
            assert torch.allclose(fast.x.double(), plain.x.double(), rtol=1e-9)
            assert torch.allclose(fast.log_weights, plain.log_weights, rtol=1e-9, atol=1e-9)
    assert counting.graphs == 1
    assert len(counting.rows) > 2 or kind != "masked"  # fewer and fewer rows are evaluated


def test_nothing_else_is_compiled_after_a_run_that_is_however_it_ends():
    torch.compiler.reset()
    base, counting = model("gaussian"), Counting()
    with pytest.raises(ZeroDivisionError):
        gk.sample(base, 4, steps=2, cond=1, compile=counting, callbacks=[lambda population, step: 1 / 0])
    assert counting.graphs == 1
    base(torch.zeros(5, 6, dtype=torch.float64), 0.5, torch.ones(5, dtype=torch.long))
    gk.sample(base, 5, steps=2, cond=1)
    assert counting.graphs == 1


def test_what_cannot_be_compiled_is_refused_before_the_first_call():
    with pytest.raises(ValueError, match="GaussianMixture has no network to compile"):
        gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 4, compile=True)
    with pytest.raises(ValueError, match=r"compile='quickly'.*one of .*inductor"):
        gk.sample(model("gaussian"), 4, cond=1, compile="quickly")


@pytest.mark.slow  # a compiler of C++ is called
def test_the_compiler_of_torch_changes_nothing_but_rounding():
    base, options = model("masked"), {"steps": 5, "cond": 1, "guides": GUIDES["CFG and FK"]()}
    plain, fast = (gk.sample(base, 16, compile=how, **options) for how in (False, True))
    assert torch.equal(fast.ancestors, plain.ancestors)
    assert torch.allclose(fast.x.double(), plain.x.double(), rtol=1e-7, atol=1e-9)


def test_the_step_that_the_benchmark_compiles_is_that_of_the_engine():
    """States and log-weights, with the noise of the run, which weighs nothing before its first move."""
    base, n = compiled.networks()["trivial"], 3
    guides = [gk.CFG(compiled.SCALE), gk.FKSteering(lambda x: x.double().flatten(1).mean(1), compiled.ALPHA, ess=0.0)]
    run, given = gk.Run(base, n, steps=compiled.STEPS, guides=guides, cond=3), compiled.inputs(base, n)
    step, log_w = compiled.Moved(base.net), torch.zeros(n, dtype=torch.float64)  # type: ignore[arg-type]
    with run.borrowed():
        population, r = run.start(), log_w
        for index, (times, conds, row, _) in enumerate(given):
            noise = random.drawn(run.noise(population, index + 1))
            x, log_w, r = step(population.x, times, conds, row, noise, log_w, r)
            torch.testing.assert_close(log_w * (index > 0), population.log_w, atol=1e-5, rtol=1e-5)
            population = run.advance(population, index)
            torch.testing.assert_close(x, population.x, atol=1e-5, rtol=1e-5)
    assert len(given) == compiled.STEPS - 1 and float(log_w.abs().max()) > 0.01


def test_times_are_compared_in_the_round_in_which_they_were_taken():
    spent = {name: [1.0, 2.0, 9.0] for name in ("plain", "engine", "engine, compiled")}
    spent |= {"net": [0.5, 1.0, 4.5], "network": [2.0, 4.0, 9.0], "whole": [1.0, 1.0, 9.0]}
    spent |= {"wrapper": [1.0, 4.0, 18.0], "exported": [4.0, 8.0, 9.0]}
    found = compiled.ratios(spent)
    assert found["around"] == 0.5
    assert found["over plain"] == {"network": 2, "whole": 1, "wrapper": 2, "exported": 4}
    assert found["over network"] == {"whole": 0.5, "wrapper": 1, "exported": 2}

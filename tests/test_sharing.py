"""Guides share the evaluations that they have in common, pay nothing where they are off, and keep small graphs."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk

from .problems import PROBLEMS, STEPS, attending


def count(model: gk.Model, guides: list[gk.Guide], n: int = 5, **options) -> tuple[int, int]:
    """Network rows of a particle, and forwards."""
    cost = gk.sample(model, n, steps=STEPS, cond=1, guides=guides, **options).cost
    assert cost.network_rows % n == 0
    return cost.network_rows // n, cost.network_calls


@pytest.fixture(scope="module")
def model() -> gk.Model:
    return attending(PROBLEMS["vp-1d"]).model


def weak() -> gk.Model:
    return gk.analytic.GaussianMixture(
        torch.tensor([1.0], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64), [1.5], gk.schedules.Cosine()
    )


def test_guides_cost_their_distinct_branches(model: gk.Model):
    """CFG + PAG + autoguidance: condition, null, perturbed and weak, whatever the number of guides that read them."""
    other = weak()
    once = [gk.CFG(2.0), gk.PAG(1.0, "block"), gk.AutoGuidance(other, 1.5)]
    assert count(model, once) == (4 * STEPS, 2 * STEPS)
    again = [gk.APG(2.0), gk.PAG(0.5, ["block"]), gk.AutoGuidance(other, 1.2), gk.Compose(None, -0.5), gk.TCFG(1.5)]
    assert count(model, [*once, *again]) == (4 * STEPS, 2 * STEPS)
    different = [*once, gk.PAG(1.0, "block", strength=0.5), gk.SEG(1.0, "block"), gk.AutoGuidance(weak(), 1.5)]
    assert count(model, different) == (7 * STEPS, 3 * STEPS)


@pytest.mark.parametrize("start, stop", [(0.0, 0.0), (0.3, 0.3), (0.99, 1.0)])
def test_a_guide_outside_its_interval_costs_nothing(model: gk.Model, start: float, stop: float):
    where = {"start": start, "stop": stop}
    reward = PROBLEMS["vp-1d"].reward
    guides = [
        gk.CFG(2.0, **where), gk.PAG(1.0, "block", **where), gk.AutoGuidance(weak(), 1.5, **where),
        gk.Distillation(weak(), 0.5, **where), gk.DPS(reward, 1.0, **where), gk.SelfGuidedMinority(1.0, **where),
        gk.Views(gk.views.Negate(), **where), gk.Compose(weak(), 1.0, **where),
    ]  # fmt: skip
    plain = gk.sample(model, 5, steps=STEPS, cond=1)
    guided = gk.sample(model, 5, steps=STEPS, cond=1, guides=guides)
    assert torch.equal(plain.x, guided.x)
    assert guided.cost.network_rows == plain.cost.network_rows
    assert guided.cost.network_calls == plain.cost.network_calls
    assert guided.cost.reward_calls == 5  # the samples, for the result


class Kept:
    """Bytes that graphs hold, as they come and go."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, v: Tensor) -> Tensor:
        size = v.numel() * v.element_size()
        v = v.detach()[...]  # an object of its own, which dies with the graph
        weakref.finalize(v, self.drop, size)
        self.now += size
        self.most = max(self.most, self.now)
        return v

    def drop(self, size: int) -> None:
        self.now -= size


def most_kept(guides: list[gk.Guide], n: int, batch_size: int | None) -> int:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).double()
    model = gk.GaussianModel(lambda x, t, c: net(x), (8,), predicts="clean", dtype=torch.float64, null=0)
    kept = Kept()
    gc.collect()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda v: v):
        gk.sample(model, n, steps=4, cond=0, guides=guides, batch_size=batch_size)
    return kept.most


def far(x: Tensor) -> Tensor:
    return -(x - 1).square().sum(-1)


GRADIENTS = {
    "TDS": [gk.TDS(far, 5.0)],
    "DAS": [gk.DAS(far, 5.0)],
    "DPS": [gk.DPS(far, 0.2)],
    "TFG": [gk.TFG(far, 0.1, 0.1, 0.1, recur=2, iters=2)],
    "SelfGuidedMinority": [gk.SelfGuidedMinority(0.3, interval=1)],
    "DPS beside CFG": [gk.CFG(1.5), gk.DPS(far, 0.2)],
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_graphs_are_those_of_one_micro_batch(name: str):
    """A run of 512 rows in micro-batches of 32 keeps what a run of 32 rows keeps, and much less than in one batch."""
    guides = GRADIENTS[name]
    rows = 32 * (2 if "CFG" in name else 1)  # a micro-batch counts the rows of all evaluations
    small = most_kept(guides, 32, None)
    assert small > 32 * 64 * 8
    assert most_kept(guides, 512, rows) <= 1.01 * small
    assert most_kept(guides, 512, None) > 6 * small  # weights of the network are kept once


def test_a_guide_without_gradients_keeps_no_graph():
    assert most_kept([gk.CFG(2.0), gk.FKSteering(far, 5.0), gk.HiGS()], 16, None) == 0
    assert most_kept([gk.DPS(far, 0.2, stop=0.0)], 16, None) == 0
    through_network = most_kept([gk.DPS(far, 0.2)], 16, None)
    assert 0 < most_kept([gk.MPGD(far, 0.2)], 16, None) < through_network / 4

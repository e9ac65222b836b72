"""Several masks: the laws of the rehash sampler and of masks that stay, against an enumeration of the chain."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit import random
from guidekit.process import ManyMasks
from guidekit.solvers import Move

V, L, M, STEPS = 2, 2, 3, 3
PROCESS = ManyMasks(V, M)
# logits of the token 1, by the own state and that of the other position, of which the masks 2, 3 and 4 are the last
TABLE = torch.randn(L, V + M, V + M, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 2
SOLVERS = {"again": gk.solvers.ReDDiT(), "kept": gk.solvers.Ancestral()}
KNOWN = torch.tensor([True, False])
REWARDS = np.array([0.0, 1.0, -0.5, 2.0])


def logits(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    one = torch.stack([TABLE[i, x[:, i], x[:, 1 - i]] for i in range(L)], 1) * (0.5 + t[:, None])
    return torch.stack([torch.zeros_like(one), one], -1)


def model() -> gk.MaskedModel:
    return gk.MaskedModel(logits, V, L, masks=M, dtype=torch.float64)


def reward(x: Tensor) -> Tensor:
    return torch.as_tensor(REWARDS)[2 * x[:, 0] + x[:, 1]]


def kernel(x: tuple[int, ...], t: float, s: float, again: bool) -> dict[tuple[int, ...], float]:
    """q(x_s | x_t), written out."""
    p1 = torch.sigmoid(logits(torch.tensor([x]), torch.tensor([t], dtype=torch.float64), None)[0, :, 1]).tolist()
    each = []
    for i, v in enumerate(x):
        if v < V:
            each.append({v: 1.0})
            continue
        own = {0: (1 - s / t) * (1 - p1[i]), 1: (1 - s / t) * p1[i]}
        masks = {V + k: s / t / M for k in range(M)} if again else {v: s / t}
        each.append(own | masks)
    return {y: float(np.prod([each[i].get(v, 0.0) for i, v in enumerate(y)])) for y in product(range(V + M), repeat=L)}


@lru_cache
def law(again: bool) -> np.ndarray:
    """P(x_0) of the chain, whose first masks are drawn uniformly."""
    now = dict.fromkeys(product(range(V, V + M), repeat=L), M ** (-L))
    for k in range(STEPS):
        after: dict[tuple[int, ...], float] = defaultdict(float)
        for x, weight in now.items():
            for y, chance in kernel(x, 1 - k / STEPS, 1 - (k + 1) / STEPS, again).items():
                after[y] += weight * chance
        now = {x: w for x, w in after.items() if w > 0}
    return np.array([now[x] for x in product(range(V), repeat=L)])


def test_the_two_laws_differ():
    assert np.abs(law(True) - law(False)).sum() > 0.03


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_follow_the_enumerated_chain(name: str):
    n = 20_000
    x = gk.sample(model(), n, steps=STEPS, solver=SOLVERS[name], seed=3).x
    found, expected = np.bincount((2 * x[:, 0] + x[:, 1]).numpy(), minlength=4), n * law(name == "again")
    assert ((found - expected) ** 2 / expected).sum() < 21  # of 3 degrees of freedom: by chance once in 10^4


@pytest.mark.parametrize("name", SOLVERS)
def test_log_probabilities_are_those_of_the_chain(name: str):
    move = model().moves(STEPS, SOLVERS[name])[1]
    every = torch.tensor(list(product(range(V + M), repeat=L)))
    for x in [(2, 4), (3, 3), (1, 4)]:
        rows = torch.tensor([x]).expand(len(every), -1)
        prediction = model()(rows, move.t, None)
        found = PROCESS.kernel(rows, (prediction,), move).log_prob(every).exp().tolist()
        expected = kernel(x, move.t, move.s, name == "again")
        assert found == pytest.approx([expected[tuple(y)] for y in every.tolist()], abs=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "guides",
    [[gk.FKSteering(reward, 1.0, ess=0.9)], [gk.SVDD(reward, 1.0, candidates=3)]],
    ids=["FK", "SVDD"],
)
def test_weights_tilt_the_law(name: str, guides: list[gk.Guide]):
    run = gk.sample(model(), 4 * 1500, steps=STEPS, solver=SOLVERS[name], guides=guides, seed=5)
    w = law(name == "again") * np.exp(REWARDS)
    share = torch.stack([run.weights[(2 * run.x[:, 0] + run.x[:, 1]) == k].sum() for k in range(4)])
    # 4.5 standard errors of a share of 6000 particles, of which resampling leaves a third at least
    assert np.abs(share.numpy() - w / w.sum()).max() < 4.5 * 0.5 / np.sqrt(2000)
    assert float(run.log_z) == pytest.approx(np.log(w.sum()), abs=0.12)


def test_masks_of_a_move_up_are_drawn_and_those_that_are_there_stay_with_ancestral():
    x = torch.tensor([[0, 4]]).expand(6000, -1)
    noise = PROCESS.noise(random.fold(random.key(1), torch.arange(len(x))), (L, PROCESS.states), torch.float64)
    up = PROCESS.kernel(x, (), Move(0.25, 0.625)).push(noise)
    counts = np.bincount(up[:, 0].numpy(), minlength=V + M)
    expected = 6000 * np.array([0.5, 0, 1 / 6, 1 / 6, 1 / 6])  # masked with probability (0.625 - 0.25)/(1 - 0.25)
    assert counts[1] == 0 and (np.abs(counts - expected) < 4.5 * np.sqrt(expected) + 1e-9).all()
    assert (up[:, 1] == 4).all()


def test_rows_are_evaluated_with_their_own_masks_until_they_are_whole():
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append(x)
        return logits(x, t, cond)

    run = gk.sample(gk.MaskedModel(net, V, L, masks=M, dtype=torch.float64), 300, steps=8, solver=SOLVERS["again"])
    assert len(seen[0]) == M**L and sum(map(len, seen)) == run.cost.network_rows  # equal rows once
    assert all((x >= V).any(1).all() for x in seen) and (run.x < V).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gk.MaskedModel(logits, V, L, masks=0), "masks=0.*at least 1"),
        (lambda: gk.MaskedModel(logits, V, L, masks=2, ordered=True), "masks=2.*ordered"),
        (
            lambda: gk.sample(gk.MaskedModel(logits, V, L), 2, solver=gk.solvers.ReDDiT()),
            r"ReDDiT.* is for tokens with many-mask noise, and this process is masked",
        ),
        (
            lambda: gk.sample(model(), 2, solver=gk.solvers.FirstHitting()),
            r"FirstHitting.*this process is many-mask.*Ancestral",
        ),
        (lambda: gk.sample(model(), 2, guides=[gk.TopP(0.5)]), "TopP.*ManyMasks"),
        (
            lambda: gk.sample(model(), 2, guides=[gk.Keep(torch.tensor([0, 1]), torch.tensor([True, False]))]),
            "Keep.*ManyMasks",
        ),
        (lambda: model().log_prob(torch.tensor([[0, 1]])), "log_prob is for.*ManyMasks"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()

"""Saber against an enumeration of its chain, whose states are tokens and what they were revealed with."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import pairwise, product
from math import ceil

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk

V, L = 2, 5
TABLE = torch.randn((V,) * L, generator=torch.Generator().manual_seed(6), dtype=torch.float64).mul(2.0).flatten()
STATES = torch.cartesian_prod(*[torch.arange(V)] * L)
SABER = gk.solvers.Saber()


def judging(x: Tensor, t: Tensor, cond: None) -> Tensor:
    """log p(x_i = v | the other positions): a network that judges its own tokens."""
    fits = (x[:, None] == STATES) | (x[:, None] == V)
    every = torch.stack([fits[..., [j for j in range(L) if j != i]].all(-1) for i in range(L)], 1)  # (rows, L, states)
    joint = torch.where(every, TABLE, -torch.inf)
    letters = STATES.T[:, None] == torch.arange(V)[:, None]  # (L, V, states)
    return torch.where(letters, joint[:, :, None], -torch.inf).logsumexp(-1)


MODEL = gk.MaskedModel(judging, V, L, dtype=torch.float64)


@lru_cache
def predicted(x: tuple[int, ...]) -> np.ndarray:
    return judging(torch.tensor([x]), torch.ones(1), None).softmax(-1)[0].numpy()


def moved(x: tuple[int, ...], memory: tuple[tuple[float, float], ...], share: float) -> Counter:
    """The law of the state after a move that leaves this share of the masks, by the description of the paper."""
    p, found = predicted(x), Counter()
    masks = [i for i in range(L) if x[i] == V]
    asked = len(masks) - ceil(len(masks) * share - 1e-9)
    known = [sure for _, sure in memory if sure > 0]
    tau = float(np.mean(known)) if known else 1.0
    surest = sorted(masks, key=lambda i: -p[i].max())
    k = max(asked, sum(p[i].max() > tau for i in masks))
    fallen = [(memory[i][0] - p[i][x[i]], i) for i in range(L) if x[i] < V and memory[i][0] > p[i][x[i]]]
    most = min(max(asked // 2, ceil(k / 8)), k - asked)
    back = [i for _, i in sorted(fallen, reverse=True)[:most]]
    for letters in product(range(V), repeat=k):
        shown = dict(zip(surest[:k], letters, strict=True))
        chance = float(np.prod([p[i][v] for i, v in shown.items()]))
        new = [shown.get(i, x[i]) for i in range(L)]
        kept = [(p[i][shown[i]], p[i].max()) if i in shown else memory[i] for i in range(L)]
        for i in back:
            new[i], kept[i] = V, (0.0, 0.0)
        found[tuple(new), tuple(kept)] += chance
    return found


@lru_cache
def law(steps: int) -> tuple[np.ndarray, float]:
    """The law of x_0, and the chance that some token has been taken back."""
    states, revised = {((V,) * L, ((0.0, 0.0),) * L): 1.0}, 0.0
    for before, after in pairwise(SABER.counts(steps, L)):
        following: Counter = Counter()
        for (x, memory), weight in states.items():
            for (y, kept), chance in moved(x, memory, after / before).items():
                following[y, kept] += weight * chance
                revised += weight * chance * any(a < V and b == V for a, b in zip(x, y, strict=True))
        states = following
    final: Counter = Counter()
    for (x, _), weight in states.items():
        final[x] += weight
    return np.array([final[x] for x in product(range(V), repeat=L)]), revised


@pytest.mark.parametrize("steps", [3, 5])
def test_samples_follow_the_enumerated_chain(steps: int):
    n = 6000
    expected, revised = law(steps)
    x = gk.sample(MODEL, n, steps=steps, solver=SABER, seed=2).x
    found = np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)
    some = n * expected > 1
    assert (found - n * expected)[~some].sum() < 12
    assert ((found - n * expected)[some] ** 2 / (n * expected)[some]).sum() < 75  # at most 31 degrees of freedom: 10^-5
    assert steps < 5 or revised > 0.01


def test_weights_tilt_that_law_exactly_and_candidates_keep_their_memory():
    def reward(x: Tensor) -> Tensor:
        return 0.8 * x[:, 0] - 0.5 * (x[:, 3] == x[:, 4]).double()

    groups = 500
    for guides in ([gk.FKSteering(reward, 0.7, ess=0.9)], [gk.SVDD(reward, 0.7, candidates=2)]):
        options = {"cond": [None] * groups, "seed": list(range(groups))}
        result = gk.sample(MODEL, 4, steps=5, solver=SABER, guides=guides, **options)
        truth = law(5)[0] * (reward(STATES) / 0.7).exp().numpy()
        for feature in (lambda x: torch.ones(len(x)), lambda x: x[:, 1].double(), lambda x: (x[:, 2] == 0).double()):
            found = (result.log_weights.exp() * feature(result.x)).view(groups, 4).mean(1)
            error = found.mean() - float(truth @ feature(STATES).double().numpy())
            assert abs(float(error / (found.std() / groups**0.5))) < 4.5


@pytest.mark.usefixtures("every_row")
def test_tokens_of_a_network_that_repeats_them_are_kept_and_rows_do_not_depend_on_their_batch():
    table = gk.analytic.TokenTable(TABLE.view((V,) * L))
    runs = [gk.sample(table, 50, steps=5, solver=s) for s in (SABER, gk.solvers.Confidence())]
    assert (runs[0].x < V).all() and runs[0].cost.network_calls == runs[1].cost.network_calls
    whole = gk.sample(MODEL, 50, steps=5, solver=SABER)
    assert torch.equal(whole.x, gk.sample(MODEL, 50, steps=5, solver=SABER, batch_size=7).x)


def test_proposals_are_refused():
    with pytest.raises(ValueError, match=r"Saber.*follows from the prediction.*FirstHitting"):
        gk.Run(MODEL, 4, steps=3, solver=SABER, guides=[gk.Temperature(0.5, steer=True)])
    with pytest.raises(ValueError, match=r"masked noise.*uniform"):
        gk.Run(gk.UniformModel(judging, V, L), 4, solver=SABER)
    with pytest.raises(ValueError, match=r"inner=Saber.*orders positions"):
        gk.solvers.Blocks(2, SABER)

"""RDM against an enumeration of its loop, and against `Confidence` where a network repeats its tokens."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk

from .test_saber import MODEL, STATES, TABLE, L, V, predicted

RDM = gk.solvers.RDM()


def looped(steps: int) -> tuple[np.ndarray, float]:
    """The law of x_0 by the loop of the paper, with the score of the most probable token, and the chance that some
    token has been masked again."""
    states, again = Counter({(V,) * L: 1.0}), 0.0
    for _, left in pairwise(RDM.counts(steps, L)):
        following: Counter = Counter()
        for x, weight in states.items():
            p = predicted(x)
            routed = sorted(range(L), key=lambda i: -p[i].max())[: L - left]
            drawn = [i for i in routed if x[i] == V]
            again += weight * any(x[i] < V for i in range(L) if i not in routed)
            for letters in product(range(V), repeat=len(drawn)):
                new = dict(zip(drawn, letters, strict=True))
                chance = float(np.prod([p[i][v] for i, v in new.items()]))
                following[tuple(new.get(i, x[i]) if i in routed else V for i in range(L))] += weight * chance
        states = following
    return np.array([states[x] for x in product(range(V), repeat=L)]), again


law = lru_cache(looped)


@pytest.mark.parametrize("steps", [3, 5])
def test_samples_follow_the_loop(steps: int):
    n = 6000
    expected, again = law(steps)
    assert expected.sum() == pytest.approx(1) and (steps < 5 or again > 0.05)
    x = gk.sample(MODEL, n, steps=steps, solver=RDM, seed=2).x
    found = np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)
    some = n * expected > 1
    assert (found - n * expected)[~some].sum() < 12
    assert ((found - n * expected)[some] ** 2 / (n * expected)[some]).sum() < 75  # at most 31 degrees of freedom: 10^-5


def test_weights_tilt_that_law_exactly():
    def reward(x: Tensor) -> Tensor:
        return 0.8 * x[:, 0] - 0.5 * (x[:, 3] == x[:, 4]).double()

    groups = 500
    for guides in ([gk.FKSteering(reward, 0.7, ess=0.9)], [gk.SVDD(reward, 0.7, candidates=2)]):
        options = {"cond": [None] * groups, "seed": list(range(groups))}
        result = gk.sample(MODEL, 4, steps=5, solver=RDM, guides=guides, **options)
        truth = law(5)[0] * (reward(STATES) / 0.7).exp().numpy()
        for feature in (lambda x: torch.ones(len(x)), lambda x: x[:, 1].double(), lambda x: (x[:, 2] == 0).double()):
            found = (result.log_weights.exp() * feature(result.x)).view(groups, 4).mean(1)
            error = found.mean() - float(truth @ feature(STATES).double().numpy())
            assert abs(float(error / (found.std() / groups**0.5))) < 4.5


@pytest.mark.usefixtures("every_row")
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_with_a_network_that_repeats_its_tokens_it_is_confidence_bit_for_bit(steps: int):
    repeating = gk.analytic.TokenTable(TABLE.view((V,) * L))
    runs = [gk.sample(repeating, 300, steps=steps, solver=s, seed=1) for s in (RDM, gk.solvers.Confidence())]
    assert torch.equal(runs[0].x, runs[1].x)
    judging = [gk.sample(MODEL, 300, steps=steps, solver=s, seed=1).x for s in (RDM, gk.solvers.Confidence())]
    assert steps < 3 or not torch.equal(*judging)


def test_rows_do_not_depend_on_their_batch_and_what_is_no_part_of_the_text_stays():
    whole = gk.sample(MODEL, 50, steps=5, solver=gk.solvers.RDM(0.5))
    assert (whole.x < V).all() and torch.equal(
        whole.x, gk.sample(MODEL, 50, steps=5, solver=gk.solvers.RDM(0.5), batch_size=7).x
    )
    short = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 3), 3, L, end=2, lengths=[0, 0.5, 0, 0.5, 0])
    x = gk.sample(short, 200, steps=5, solver=RDM).x
    assert set((x != 2).sum(1).tolist()) == {2, 4} and (x[:, 4] == 2).all() and (x < 3).all()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"RDM.*follows from the prediction.*FirstHitting"):
        gk.Run(MODEL, 4, steps=3, solver=RDM, guides=[gk.Temperature(0.5, steer=True)])
    with pytest.raises(ValueError, match=r"inner=RDM.*orders positions"):
        gk.solvers.Blocks(2, RDM)
    with pytest.raises(ValueError, match=r"RDM\(temperature=-1"):
        gk.solvers.RDM(-1.0)

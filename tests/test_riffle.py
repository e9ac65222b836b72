"""Permutations: riffle shuffles, Plackett-Luce kernels, and whole chains by enumeration."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.process import PlackettLuce, Riffle
from guidekit.process.riffle import Shuffle
from guidekit.solvers import Move

N = 4
ORDERS = torch.tensor(list(permutations(range(N))))
T = 4


def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Scores that depend on items, their places, the item before, and the time."""
    before = x.roll(1, 1)
    return torch.sin(1.7 * x + 0.9 * before) + t[:, None] * torch.arange(N) * 0.4 - 0.8 * (x == 2)


def model() -> gk.RiffleModel:
    return gk.RiffleModel(net, N, T, dtype=torch.float64)


def reward(x: Tensor) -> Tensor:
    return 1.0 * (x[:, 0] == 3) - 0.5 * (x[:, 1] == 0) + 0.3 * x[:, 3]


def matrix(kernel: Any) -> np.ndarray:
    """The kernel from all orders, of which it has been made, to all orders."""
    return np.stack([kernel.log_prob(y.expand(len(ORDERS), N)).exp().numpy() for y in ORDERS], 1)


def by_hand(x: list[int], scores: list[float], y: list[int]) -> float:
    """The probability of y, place after place."""
    of, left, p = dict(zip(x, scores, strict=True)), list(x), 1.0
    for item in y:
        p *= np.exp(of[item]) / sum(np.exp(of[other]) for other in left)
        left.remove(item)
    return p


def riffled(x: list[int], packets: int) -> dict[tuple[int, ...], float]:
    """A shuffle by its definition: every place has a packet, and items fill the packets in order."""
    found: dict[tuple[int, ...], float] = {}
    for code in range(packets**N):
        packet = [code // packets**j % packets for j in range(N)]
        y, cards = [0] * N, iter(x)
        for b in range(packets):
            for place in range(N):
                if packet[place] == b:
                    y[place] = next(cards)
        found[tuple(y)] = found.get(tuple(y), 0.0) + packets**-N
    return found


def frequencies(x: Tensor, w: Tensor | None = None) -> np.ndarray:
    same = (x[:, None] == ORDERS).all(-1).double()
    return (same if w is None else same * w[:, None]).sum(0).numpy()


@pytest.mark.parametrize("shuffles", [1, 2, 3])
def test_a_shuffle_has_the_law_of_its_definition_and_two_make_four_packets(shuffles: int):
    kernel = Riffle(T).kernel(ORDERS, (), Move(0.25, 0.25 + shuffles / T))
    q = matrix(kernel)
    for row in (0, 9):
        expected = riffled(ORDERS[row].tolist(), 2**shuffles)
        np.testing.assert_allclose(q[row], [expected.get(tuple(y), 0.0) for y in ORDERS.tolist()], atol=1e-12)
    if shuffles == 2:
        once = matrix(Shuffle(ORDERS, 2))
        np.testing.assert_allclose(once @ once, q, atol=1e-12)
    n, process = 20_000, Riffle(T)
    noise = process.noise(torch.arange(n), (N,), torch.float64)
    counts = frequencies(process.noised(ORDERS[9].expand(n, N), noise, shuffles / T))
    possible = q[9] > 0
    assert counts[~possible].sum() == 0
    assert ((counts - n * q[9])[possible] ** 2 / (n * q[9][possible])).sum() < 49.7  # at most 23 degrees: P = 1e-3


def test_a_kernel_is_plackett_luce():
    scores = torch.randn(len(ORDERS), N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = matrix(PlackettLuce(ORDERS, scores))
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-12)
    for i, j in ((0, 5), (7, 7), (23, 2), (11, 16)):
        assert q[i, j] == pytest.approx(by_hand(ORDERS[i].tolist(), scores[i].tolist(), ORDERS[j].tolist()))
    n, process = 20_000, Riffle(T)
    kernel = PlackettLuce(ORDERS[11].expand(n, N), scores[11].expand(n, N))
    counts = frequencies(kernel.push(process.noise(torch.arange(n), (N,), torch.float64)))
    assert ((counts - n * q[11]) ** 2 / (n * q[11])).sum() < 49.7  # 23 degrees of freedom: P = 1e-3
    mode = process.clean(scores, ORDERS)
    assert torch.equal(mode, ORDERS[torch.as_tensor(q.argmax(1))])


def chain(steps: int) -> np.ndarray:
    law = np.full(len(ORDERS), 1 / len(ORDERS))
    for j in range(steps):
        scores = net(ORDERS, torch.full((len(ORDERS),), 1 - j / steps), None).tolist()
        rows = zip(ORDERS.tolist(), scores, strict=True)
        law = law @ np.array([[by_hand(x, s, y) for y in ORDERS.tolist()] for x, s in rows])
    return law


def test_samples_weights_and_log_z_are_those_of_the_enumerated_chain():
    n, law = 20_000, chain(2)
    counts = frequencies(gk.sample(model(), n, steps=2, seed=1).x)
    assert ((counts - n * law) ** 2 / (n * law)).sum() < 49.7
    tilted = law * np.exp(reward(ORDERS).numpy() / 0.7)
    result = gk.sample(model(), n, steps=2, guides=[gk.FKSteering(reward, 0.7)], seed=2)
    assert abs(float(result.log_z) - np.log(tilted.sum())) < 0.03
    found = frequencies(result.x, result.log_weights.softmax(0))
    assert 0.5 * np.abs(found - tilted / tilted.sum()).sum() < 0.03
    assert 0.5 * np.abs(law - tilted / tilted.sum()).sum() > 0.2


def test_a_steered_proposal_leaves_the_target_unchanged():
    null = torch.zeros(N, dtype=torch.float64)

    def scores(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return net(x, t, None) + cond.gather(1, x)

    both = gk.RiffleModel(scores, N, T, None, lambda c: null + 0.5 * (torch.arange(N) == c), null, dtype=torch.float64)
    plain = gk.sample(both, 20_000, cond=1, steps=2, seed=1)
    steered = gk.sample(both, 20_000, cond=1, steps=2, guides=[gk.CFG(3.0, steer=True)], seed=1)
    a, b = frequencies(plain.x) / 20_000, frequencies(steered.x, steered.log_weights.softmax(0))
    assert 0.5 * np.abs(a - b).sum() < 0.03 and abs(float(steered.log_z)) < 0.03
    assert 0.5 * np.abs(a - frequencies(steered.x) / 20_000).sum() > 0.05


def test_starts_reads_and_bad_input():
    x = gk.sample(model(), 300, steps=[0.25, 0.0], guides=[gk.StartFrom(torch.arange(N), 0.25)]).x
    assert (x.sort(1).values == torch.arange(N)).all() and len(x.unique(dim=0)) > 3
    assert model().read([[3, 1, 0, 2]]).tolist() == [[3, 1, 0, 2]]
    with pytest.raises(ValueError, match="it is no order of the items 0 to 3"):
        model().read([[3, 1, 1, 2]])
    with pytest.raises(ValueError, match="3 steps: this model reverses 4 shuffles"):
        gk.sample(model(), 2, steps=3)
    with pytest.raises(ValueError, match="permutations move by their own kernel"):
        gk.sample(model(), 2, steps=4, solver=gk.solvers.TauLeaping())
    with pytest.raises(ValueError, match="at least one item and one shuffle"):
        gk.RiffleModel(net, N, 0)

"""Tokens that are drawn together by a fitted layer: the law of the moves, by enumeration, and how near it comes."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.solvers import Joint

V, L = 3, 4
# neighbours are alike, and the first token decides much
PAIR = torch.tensor([[2.5, -0.5, 0.0], [-1.0, 1.5, 0.5], [0.3, -0.7, 2.0]], dtype=torch.float64)
LOG_P = sum(PAIR.reshape([V if d in (i, i + 1) else 1 for d in range(L)]) for i in range(L - 1)) + torch.tensor(
    [0.0, 0.8, -0.4], dtype=torch.float64
).reshape(V, 1, 1, 1)
TABLE = gk.analytic.TokenTable(LOG_P)
EVERY = torch.tensor(list(product(range(V + 1), repeat=L)))
REWARDS = torch.linspace(-1, 1, V**L, dtype=torch.float64).sin() * 2


def at(x: Tensor, base: int) -> Tensor:
    return (x * base ** torch.arange(L - 1, -1, -1)).sum(-1)


def reward(x: Tensor) -> Tensor:
    return REWARDS[at(x, V)]


def drawn(rank: int = 2, seed: int = 3) -> Joint:
    """A layer that was not fitted, and changes much."""
    said, heard = torch.randn(2, L, V, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Joint(said, heard, tokens=2)


@lru_cache
def fitted() -> Joint:
    return gk.search.joint(TABLE, 2, 400, rank=8, updates=300, seed=1)


def conditionals(kernel: Any, x: Tensor, where: tuple[int, ...], order: Joint) -> dict[tuple[int, ...], float]:
    """The law of the tokens at two positions, by the formula, for one row."""
    i, j = where
    log_p = kernel.log_probs[0]
    first = log_p[i].softmax(0)
    law = {}
    for a in range(V):
        second = (log_p[j] + order.heard[j].double() @ order.said[i, a].double()).softmax(0)
        law |= {(a, b): float(first[a] * second[b]) for b in range(V)}
    return law


@lru_cache(maxsize=4)
def law(solver: Any, steps: int = 2) -> Tensor:
    """P(x_0): all states, pushed through the moves by their log-probabilities."""
    now = torch.zeros(len(EVERY), dtype=torch.float64)
    now[-1] = 1.0
    for move in TABLE.moves(steps, solver):
        after = torch.zeros_like(now)
        for place in now.nonzero()[:, 0]:
            row = EVERY[place].expand(len(EVERY), -1)
            kernel = TABLE.process.kernel(row, (TABLE(row, move.t, None),), move)
            after += now[place] * kernel.log_prob(EVERY).exp()
        assert float(after.sum()) == pytest.approx(1, abs=1e-9)
        now = after
    return now[(EVERY < V).all(1)]


def test_the_probability_of_two_tokens_is_the_formula():
    solver = drawn()
    move = TABLE.moves(2, solver)[1]
    x = torch.tensor([[1, V, 0, V]])
    kernel = TABLE.process.kernel(x, (TABLE(x, move.t, None),), move)
    for (a, b), p in conditionals(kernel, x, (1, 3), solver).items():
        assert float(kernel.log_prob(torch.tensor([[1, a, 0, b]])).exp()) == pytest.approx(p, abs=1e-12)
    assert kernel.log_prob(torch.tensor([[1, 0, 0, V]])).exp() == 0  # one token too few


@pytest.mark.parametrize("make", [drawn, fitted])
def test_samples_follow_the_law_of_the_kernels(make: Any):
    n, solver = 20_000, make()
    run = gk.sample(TABLE, n, steps=2, solver=solver, seed=4)
    expected = n * law(solver).numpy()
    found = np.bincount(at(run.x, V).numpy(), minlength=V**L)
    assert run.cost.network_calls == 2
    assert ((found - expected) ** 2 / expected).sum() < 137  # of 80 degrees of freedom: by chance once in 10^4


def test_the_fitted_layer_comes_nearer_to_the_table_than_independent_draws():
    truth = TABLE.table[0].exp()
    near, far = (float((law(s) - truth).abs().sum()) / 2 for s in (fitted(), gk.solvers.FirstHitting(tokens=2)))
    assert near < 0.5 * far and far > 0.1


@pytest.mark.parametrize(
    "guides",
    [
        [gk.FKSteering(reward, 1.0, ess=0.9)],
        [gk.SVDD(reward, 1.0, candidates=3)],
        [gk.FKSteering(reward, 1.0, ess=0.9), gk.Temperature(1.5, steer=True)],
    ],
    ids=["FK", "SVDD", "FK and a proposal"],
)
def test_weights_tilt_the_law_of_the_layer(guides: list[gk.Guide]):
    run = gk.sample(TABLE, 6000, steps=2, solver=drawn(), guides=guides, seed=6)
    w = law(drawn_once()) * REWARDS.exp()
    truth = torch.stack([(w / w.sum())[(EVERY[(EVERY < V).all(1)][:, i] == 0)].sum() for i in range(L)])
    found = torch.stack([run.weights[run.x[:, i] == 0].sum() for i in range(L)])
    # 4.5 standard errors of a share of 6000 particles, of which resampling and weights leave a sixth at least
    assert float((found - truth).abs().max()) < 4.5 * 0.5 / 1000**0.5
    assert float(run.log_z) == pytest.approx(float(w.sum().log()), abs=0.12)


@lru_cache
def drawn_once() -> Joint:
    return drawn()


def test_a_layer_of_zeros_is_first_hitting():
    nothing = Joint(torch.ones(L, V, 1), torch.zeros(L, V, 1), tokens=2)
    runs = [gk.sample(TABLE, 300, steps=2, solver=s, seed=9).x for s in (nothing, gk.solvers.FirstHitting(tokens=2))]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Joint(torch.zeros(4, 3, 2), torch.zeros(4, 3, 1)), r"\(4, 3, 2\), \(4, 3, 1\).*one shape"),
        (lambda: Joint(torch.zeros(4, 3, 2), torch.full((4, 3, 2), torch.nan)), "finite"),
        (lambda: Joint(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2), 0), "tokens=0.*at least 1"),
        (
            lambda: gk.sample(TABLE, 2, solver=Joint(torch.zeros(5, 3, 2), torch.zeros(5, 3, 2))),
            "5 positions, and the model has 4",
        ),
        (
            lambda: gk.sample(TABLE, 2, solver=drawn(), guides=[gk.Sites(forbidden=[[0, 1]])]),
            "Sites draws tokens.*Joint.*FirstHitting",
        ),
        (lambda: gk.search.joint(TABLE, 5), "tokens=5.*2 to 4"),
        (lambda: gk.search.joint(TABLE, 2, updates=0), "updates=0.*at least 1"),
        (lambda: gk.search.joint(gk.analytic.TokenTable(LOG_P, "ordered")), "joint: a masked model"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()

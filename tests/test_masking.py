"""Kernels of masked tokens: numbers are drawn, and predictions normalised, only where a token can change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

import guidekit as gk
from guidekit import random
from guidekit.edits import tokens
from guidekit.process import Categorical, Masked, Masking
from guidekit.solvers import Move
from guidekit.solvers.token_solver import TokenSolver

V, L = 3, 4
PREDICTION = torch.randn(1, L, V, generator=torch.Generator().manual_seed(2))
STATE = torch.tensor([[V, 1, V, 0]])
SOLVERS: dict[str, TokenSolver] = {
    "ancestral": gk.solvers.Ancestral(),
    "first hitting": gk.solvers.FirstHitting(),
    "confidence": gk.solvers.Confidence(temperature=0.5),
    "saber": gk.solvers.Saber(),
    "routing": gk.solvers.RDM(),
    "remasking": gk.solvers.ReMDM(0.3),
    "leaps": gk.solvers.TauLeaping(),
}


def keys(n: int, seed: int = 0) -> Tensor:
    return random.fold(random.key(seed), torch.arange(n))


def kernel(n: int = 1, solver: TokenSolver | None = None, s: float = 0.4) -> Any:
    move = solver.table([0.8, s])[0] if solver else Move(0.8, s)
    return Masked(V).kernel(STATE.expand(n, -1), (PREDICTION.expand(n, -1, -1),), move)


@pytest.mark.parametrize("name", SOLVERS)
def test_numbers_that_are_drawn_late_move_tokens_as_those_that_are_drawn_at_once(name: str):
    late = random.Gumbels(keys(500), (L, V + 1))
    moves = [kernel(500, SOLVERS[name]).push(noise) for noise in (late, random.gumbel(keys(500), (L, V + 1)))]
    assert torch.equal(*moves) and len(moves[0].unique(dim=0)) > 2


def test_the_numbers_of_chosen_places_are_those_of_the_tensor():
    late, now = random.Gumbels(keys(12), (L, V + 1)), random.gumbel(keys(12), (L, V + 1))
    rows, places = torch.tensor([3, 0, 11, 3]), torch.tensor([0, 2, 3, 1])
    assert late.shape == now.shape and torch.equal(late.drawn(), now)
    for index in ((..., V), (rows, places), (rows, places, V), (rows, places, slice(V))):
        assert torch.equal(late[index], now[index])
    assert torch.equal(late[rows][..., 1], now[rows][..., 1])


def test_few_numbers_are_read(monkeypatch: pytest.MonkeyPatch):
    """One number for each mask, and V more for each mask that is revealed; none for tokens, or where all is certain."""
    read, plain = [0], random._mix

    def counted(z: Tensor, spare: Tensor | None = None) -> Tensor:
        read[0] += z.numel()
        return plain(z, spare)

    late = random.Gumbels(keys(100), (L, V + 1))
    late[..., 0]  # the counter is made once
    monkeypatch.setattr(random, "_mix", counted)
    x = kernel(100).push(late)
    shown = int(((x != V) & (STATE == V)).sum())
    assert 0 < shown < 200 and read[0] == 200 + shown * V
    read[0] = 0
    kernel(100, s=0.0).push(late)
    assert read[0] == 200 * V


@pytest.mark.parametrize("name", ["ancestral", "remasking", "leaps"])
def test_moves_follow_the_probabilities_that_the_kernel_states(name: str):
    n = 40_000
    q = kernel(n, SOLVERS[name])
    x = q.push(random.Gumbels(keys(n, 7), (L, V + 1)))
    p = q.log_probs[0].exp()
    assert torch.allclose(p.sum(-1), torch.ones(L, dtype=torch.float64))
    for i in range(L):
        found = x[:, i].bincount(minlength=V + 1).double()
        possible = p[i] > 0
        assert not found[~possible].any()
        if possible.sum() > 1:
            assert chisquare(found[possible], n * p[i][possible]).pvalue > 1e-4
    assert torch.allclose(q.log_prob(x), Categorical(q.log_probs).log_prob(x))
    assert (x == V).double().mean(0)[0] == pytest.approx(float(p[0, V]), abs=0.02)


def test_the_table_of_a_kernel_is_drawn_as_the_kernel_is():
    for name in ("ancestral", "remasking", "leaps"):
        q, noise = kernel(2000, SOLVERS[name]), random.gumbel(keys(2000, 3), (L, V + 1))
        assert torch.equal(q.table.push(noise), q.push(noise))


def test_which_masks_are_revealed_depends_on_no_prediction():
    """So guided and unguided runs of one seed reveal the same positions at the same steps."""
    model = gk.analytic.TokenTable(torch.randn((V,) * L, generator=torch.Generator().manual_seed(1)))
    masks: list[list[Tensor]] = [[], []]
    for found, guides in zip(masks, ([], [gk.Temperature(0.3)]), strict=True):
        gk.sample(
            model, 50, steps=6, guides=guides, seed=4, callbacks=[lambda p, s, found=found: found.append(p.x == V)]
        )
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True)) and 0 < int(masks[0][2].sum()) < 200


def test_impossible_moves_have_no_probability():
    q = kernel(4)
    x = torch.tensor([[V, 1, V, 0], [0, 2, V, 0], [0, V, V, 0], [1, 1, 2, 0]])
    assert q.log_prob(x).isfinite().tolist() == [True, False, False, True]


def test_noise_given_whether_a_mask_is_drawn_has_the_law_of_gumbel_noise():
    n, m = 20_000, torch.tensor(0.3, dtype=torch.float64)
    fresh, hidden = random.gumbel(keys(n, 5)), random.uniform(keys(n, 6)) < m
    g = torch.where(hidden, tokens.below(m.log(), fresh), tokens.above(m.log(), fresh))
    assert torch.equal(g < -(-m.log()).log(), hidden) and kstest(g.numpy(), "gumbel_r").pvalue > 1e-4


def test_a_kernel_without_numbers_to_draw_is_certain():
    """Of an ordered process a move reveals one position; the numbers of all others are not asked for."""
    x = torch.tensor([[0, V, V, V]])
    q = Masked(V, L).kernel(x, (PREDICTION,), Move(0.75, 0.5))
    assert isinstance(q, Masking) and q.hide.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert q.push(random.Gumbels(keys(1), (L, V + 1)))[0, 2:].tolist() == [V, V]

"""Masked diffusion in which one position is unmasked after the other."""

from itertools import pairwise

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.models.analytic import TokenTable
from guidekit.process import Masked
from guidekit.solvers import Move
from guidekit.zoo.nets import OrderedNet

V, L = 3, 4
TABLE = torch.randn((V,) * L, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5


def hidden(i: int, t: float) -> float:
    return min(1.0, max(0.0, L * t - (L - 1 - i)))


def found_law(x: torch.Tensor) -> np.ndarray:
    place = V ** torch.arange(L - 1, -1, -1)
    return np.bincount((x * place).sum(1).numpy(), minlength=V**L) / len(x)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.8), (0.7, 0.6), (0.55, 0.3), (0.5, 0.25), (0.2, 0.0), (1.0, 0.0)])
def test_a_move_down_unmasks_from_the_left_with_the_share_that_bayes_rule_says(t, s):
    p = torch.tensor([0.2, 0.5, 0.3]).log().expand(1, L, V)
    x = torch.full((1, L), V)
    found = Masked(V, L).kernel(x, (p,), Move(t, s)).log_probs.exp()[0]
    for i in range(L):
        u = hidden(i, s) / hidden(i, t) if hidden(i, t) else 0.0
        expected = [*((1 - u) * np.array([0.2, 0.5, 0.3])), u]
        np.testing.assert_allclose(found[i], expected, atol=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0.1, 0.3), (0.3, 0.6), (0.5, 1.0), (0.25, 0.5)])
def test_a_move_up_composes_to_the_forward_process(s, t):
    process, clean = Masked(V, L), torch.tensor([[0, 1, 2, 1]])
    noise = torch.zeros(1, L, V + 1)
    masked_at_s = process.kernel(clean, (), Move(0.0, s)).log_probs.exp()[0, :, V]
    onward = process.kernel(clean, (), Move(s, t)).log_probs.exp()[0, :, V]
    expected = [hidden(i, t) for i in range(L)]
    np.testing.assert_allclose(masked_at_s + (1 - masked_at_s) * onward, expected, atol=1e-12)
    masks = torch.full((1, L), V)
    assert torch.equal(process.kernel(masks, (), Move(s, t)).push(noise), masks)


@pytest.mark.parametrize("steps", [L, 9])
def test_at_least_as_many_steps_as_positions_draw_exactly_from_the_model(steps):
    n = 40_000
    law = TABLE.flatten().softmax(0).numpy()
    found = found_law(gk.sample(TokenTable(TABLE, "ordered"), n, steps=steps, seed=steps).x)
    assert n * ((found - law) ** 2 / law).sum() < 140  # chi-square, 80 degrees of freedom: P = 4e-5
    any_order = found_law(gk.sample(TokenTable(TABLE), n, steps=steps, seed=steps).x)
    assert n * ((any_order - law) ** 2 / law).sum() > 300  # positions unmasked together are taken to be independent


@pytest.mark.parametrize("steps", range(L, 30))
def test_times_are_moved_so_that_no_step_draws_two_tokens(steps):
    moves = Masked(V, L).moves(steps, None)
    assert len(moves) == steps
    times = [moves[0].t, *(move.s for move in moves)]
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == steps + 1
    assert {k / L for k in range(L + 1)} <= set(times)
    assert max(a - b for a, b in pairwise(times)) < 2 / steps
    assert Masked(V, L).moves([1.0, 0.4, 0.0], None)[0].s == 0.4  # a grid of one's own stays


def reward(x: torch.Tensor) -> torch.Tensor:
    return (x == 2).sum(1).double() * 0.7 + (x[:, 0] == 1).double()


@pytest.mark.slow
@pytest.mark.parametrize("guide", [gk.FKSteering(reward, alpha=0.8), gk.SVDD(reward, 0.8, 3)], ids=["FK", "SVDD"])
def test_steering_finds_the_tilted_law_and_its_constant(guide):
    grid = torch.cartesian_prod(*[torch.arange(V)] * L)
    log_p = TABLE.flatten().log_softmax(0) + reward(grid) / 0.8
    result = gk.sample(TokenTable(TABLE, "ordered"), 40_000, steps=L, guides=[guide])
    assert abs(float(result.log_z) - float(log_p.logsumexp(0))) < 0.03
    weights = result.log_weights.exp().numpy()
    place = V ** torch.arange(L - 1, -1, -1)
    found = np.bincount((result.x * place).sum(1).numpy(), weights, V**L) / weights.sum()
    assert 0.5 * np.abs(found - log_p.softmax(0).numpy()).sum() < 0.03


def test_what_is_said_of_a_position_depends_on_the_tokens_before_it_and_on_no_mask():
    torch.manual_seed(0)
    net = OrderedNet(5, 6, 2, 64, 2).eval()
    x, cond, t = torch.randint(1, 5, (3, 6)), torch.tensor([0, 1, 2]), torch.ones(3)
    known = torch.tensor([0, 0, 2, 1, 4, 3]).expand(3, -1)
    taught = net.taught(x, known, cond)
    for i, k in enumerate(known[0].tolist()):
        state = x.clone()
        state[:, k:] = 5
        torch.testing.assert_close(net(state, t, cond)[:, i], taught[:, i], atol=1e-5, rtol=1e-5)
        state[:, :k] = state[:, :k] % 4 + 1
        assert k == 0 or not torch.allclose(net(state, t, cond)[:, i], taught[:, i], atol=1e-3)


def test_an_ordered_model_learns_a_table_it_is_taught():
    from guidekit.zoo.train import ordered

    torch.manual_seed(0)
    table = torch.tensor([2.0, 0.0, 0.5, 1.5, 0.0, 2.0, 1.0, 0.2]).log_softmax(0)  # of 2^3, far from independent
    grid = torch.cartesian_prod(*[torch.tensor([1, 2])] * 3)
    net = OrderedNet(3, 3, 1, 64, 2)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(250):
        x = grid[torch.multinomial(table.exp(), 256, replacement=True)]
        loss = ordered(1)(net, (x, torch.zeros(256, dtype=torch.long)), True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model = gk.MaskedModel(net.eval(), 3, 3, ordered=True, null=1, encode_cond=torch.tensor)
    x = gk.sample(model, 5000, cond=0, steps=3).x
    found = np.bincount(((x.clamp(1, 2) - 1) * torch.tensor([4, 2, 1])).sum(1).numpy(), minlength=8) / 5000
    assert 0.5 * np.abs(found - table.exp().numpy()).sum() < 0.08
    p = table.exp().view(2, 2, 2)
    free = torch.einsum("a,b,c->abc", p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))).flatten()
    assert 0.5 * (free - table.exp()).abs().sum() > 0.15  # what independent positions would be off by

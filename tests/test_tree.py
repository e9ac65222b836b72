"""Trees: without a reward the model's own law, with one the tilted law as simulations grow, and the best leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import guidekit as gk

TABLE = gk.analytic.TokenTable(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
BASE = gk.analytic.GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.5, 0.8])


def reward(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0].double() - 0.6 * (x[:, -1].double() - 1) ** 2


def shares(result: gk.Result) -> torch.Tensor:
    """Of the states, by weight, (groups, states)."""
    of = (result.x[:, None] == TABLE.states).all(2) * result.weights[:, None]
    return of.view(result.groups, -1, len(TABLE.states)).sum(1)


def law(steps: int) -> torch.Tensor:
    """Shares of the states among samples of the model; of one step, the product of the marginals."""
    if steps == 1:
        p = TABLE.log_probs(TABLE.states).exp().view(3, 3)
        return (p.sum(1)[:, None] * p.sum(0)).flatten()
    many = gk.sample(TABLE, 20000, steps=steps, seed=77)
    return (many.x[:, None] == TABLE.states).all(2).double().mean(0)


def test_without_a_reward_leaves_follow_the_model():
    """Weights are 1 over numbers of children. Twelve trees of two steps; their means differ by what trees differ by."""
    options: dict[str, Any] = {"steps": 2, "cond": [None] * 12, "seed": list(range(12)), "parallel": 10}
    grown = gk.search.Tree(TABLE, lambda x: reward(x) * 0, alpha=1.0, **options).grow(40)
    found = shares(grown.result(40))
    p = law(2)
    assert not grown.log_z.any()
    assert ((found.mean(0) - p).abs() < 4.5 * (found.std(0) / 12**0.5 + (p / 20000).sqrt())).all()
    assert float((p - TABLE.log_probs(TABLE.states).exp()).abs().max()) > 0.005


def six(steps: int, simulations: int) -> gk.search.Tree:
    options: dict[str, Any] = {"steps": steps, "cond": [None] * 6, "seed": list(range(6)), "parallel": 40}
    return gk.search.Tree(TABLE, reward, alpha=1.0, **options).grow(simulations)


def test_of_one_level_it_is_importance_sampling():
    p, grown = law(1), six(1, 200)
    w = p * reward(TABLE.states).exp()
    found = grown.result(60)
    assert torch.allclose(found.log_z, grown.log_z)
    z = grown.log_z.exp() / w.sum()
    assert abs(float(z.mean()) - 1) < 4.5 * float((reward(TABLE.states).exp() / w.sum() * p).std() + z.std()) / 6**0.5
    share = shares(found)
    assert ((share.mean(0) - w / w.sum()).abs() < 5 * share.std(0) / 6**0.5 + 0.01).all()
    assert float((p - w / w.sum()).abs().sum() / 2) > 0.25


def test_of_more_it_tends_to_the_tilted_law_and_z():
    """Shares are within a tenth of the tilted law, which is .38 from the model; log Z is too low by .07, since values
    that are too low are corrected last."""
    p = law(2)
    w = p * reward(TABLE.states).exp()
    grown = six(2, 600)
    assert abs(float(grown.log_z.mean()) - math.log(float(w.sum()))) < 0.15
    distance = [float((v - w / w.sum()).abs().sum()) / 2 for v in (shares(grown.result(40)).mean(0), p)]
    assert distance[0] < 0.1 < 0.3 < distance[1]


def test_a_tree_grows_on_and_does_not_depend_on_the_others():
    options: dict[str, Any] = {"alpha": 0.5, "steps": 4, "parallel": 8}
    whole = gk.search.Tree(BASE, reward, cond=[None, None], seed=[3, 4], **options).grow(32).result(10)
    parts = [gk.search.Tree(BASE, reward, seed=s, batch_size=3, **options).grow(16).grow(16).result(10) for s in (3, 4)]
    for g, part in enumerate(parts):
        assert torch.allclose(whole.x[whole.group == g], part.x, atol=1e-6)
        assert torch.allclose(whole.log_weights[whole.group == g], part.log_weights)
    assert len(whole.x[:10].unique()) == 10
    assert torch.allclose(whole.rewards, reward(whole.x))  # type: ignore[arg-type]


def test_a_simulation_costs_the_nodes_that_it_makes():
    """The last move of this solver draws nothing, so no node there has a second child."""
    grown = gk.search.Tree(BASE, reward, alpha=0.5, steps=4, parallel=8).grow(40)
    nodes, leaves, at = 0, 0, list(grown.roots)
    while at:
        node = at.pop()
        nodes, leaves = nodes + (0 <= node.index < 4), leaves + (node.index == 4)
        assert node.index != 3 or len(node.children) == 1
        assert not node.children or node.value == pytest.approx(
            float(torch.tensor([c.value for c in node.children]).double().logsumexp(0)) - math.log(len(node.children))
        )
        at += node.children
    assert leaves == 40 == grown.roots[0].visits and grown.run.cost.reward_calls == 40
    unused = len(grown.fresh[0])
    assert grown.run.cost.network_rows == nodes + unused


def test_the_greedy_search_goes_where_rewards_are_high_faster_than_walks_do():
    """The second half of 80 simulations, of five trees."""
    far = lambda x: x[:, 0]  # noqa: E731
    options: dict[str, Any] = {"alpha": 0.5, "steps": 5, "parallel": 4, "explore": 0.3, "cond": [None] * 5}
    both = [gk.search.Tree(BASE, far, greedy=g, seed=[1, 2, 3, 4, 5], **options).grow(80) for g in (False, True)]
    walks, greedy = (0.5 * torch.tensor([[leaf.value for leaf in own] for own in tree.leaves]) for tree in both)
    plain = float(gk.sample(BASE, 2000, steps=5, reward=far).rewards.mean())  # type: ignore[union-attr]
    assert float(greedy[:, 40:].mean()) > float(walks[:, 40:].mean()) + 0.15 > plain + 0.25
    best = both[1].result(5).rewards
    assert best is not None and torch.allclose(best.view(5, 5), greedy.sort(1, descending=True).values[:, :5].double())


def test_what_a_tree_cannot_do_is_said_before_the_first_call():
    calls = []
    model = gk.GaussianModel(lambda x, t, cond: calls.append(1) or x, (1,), predicts="clean")
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("alpha=0", {"alpha": 0}),
        ("power=1.5", {"alpha": 1.0, "power": 1.5}),
        ("and the tree does so itself", {"alpha": 1.0, "guides": [gk.FKSteering(reward, 1.0)]}),
        ("draws nothing on the way", {"alpha": 1.0, "solver": gk.solvers.DDIM()}),
    )
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.Tree(model, reward, steps=4, **options)
    assert not calls
    with pytest.raises(ValueError, match="grow it"):
        gk.search.tree(TABLE, 30, reward, alpha=1.0, steps=2, simulations=10)

"""Split Gibbs sampling of tokens: both copies have their law, by enumeration, and the posterior is reached."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import guidekit as gk

V, L = 3, 3
TABLE = torch.randn(V, V, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
E = torch.tensor([0.2, 1.0, -0.7], dtype=torch.float64)  # an embedding


def curved(x: Tensor) -> Tensor:
    a, b, c = E[x].unbind(1)
    return torch.stack([a * b + c, b - c.square()], 1)  # not linear, of the embedded sequence


MEASURED = gk.Measurement(curved, torch.tensor([0.6, 0.9], dtype=torch.float64), 0.5)


def shares(x: Tensor) -> Tensor:
    return torch.bincount((x * torch.tensor([9, 3, 1])).sum(1), minlength=27) / len(x)


def law(model: gk.analytic.TokenTable, t: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Of x and of z, by sums over all pairs."""
    s = model.states
    p, likely = model.table[0].exp(), (MEASURED(s) / alpha).exp()
    K = torch.where(s[:, None] == s[None], 1 - t + t / V, t / V).prod(-1)  # (x, z)
    joint = p[:, None] * K * likely
    return joint.sum(1) / joint.sum(), joint.sum(0) / joint.sum()


@pytest.mark.parametrize("noising", ["masked", pytest.param("uniform", marks=pytest.mark.slow)])
def test_both_copies_have_the_law_of_the_level(noising: str):
    model, t, alpha, n = gk.analytic.TokenTable(TABLE, noising), 0.45, 0.7, 3000
    found = gk.search.split_gibbs(model, n, MEASURED, alpha=alpha, rounds=14, levels=(t, t), moves=12, steps=20, seed=1)
    for x, own in zip((found.x, found.memos[0]), law(model, t, alpha), strict=True):
        error = 4.5 * (own / n).sqrt() + (0.0 if noising == "masked" else 0.012)  # of twenty steps
        assert ((shares(x) - own).abs() < error + 1e-4).all()
    posterior = model.table[0].exp() * (MEASURED(model.states) / alpha).exp()
    assert (law(model, t, alpha)[0] - posterior / posterior.sum()).abs().sum() > 0.2  # the level matters
    assert found.trace[-1]["t"] == pytest.approx(t)


def test_as_the_level_falls_samples_come_to_the_posterior():
    model, n = gk.analytic.TokenTable(TABLE), 1500
    found = gk.search.split_gibbs(model, n, MEASURED, rounds=40, levels=(0.8, 0.04), anneal=30, moves=4)
    p = model.table[0].exp() * MEASURED(model.states).exp()
    last = law(model, 0.04, 1.0)[0]
    assert ((shares(found.x) - last).abs() < 4.5 * (last / n).sqrt() + 0.02).all()  # the chain is slow at the end
    assert (last - p / p.sum()).abs().sum() < 0.15
    assert [round(found.trace[i]["t"], 3) for i in (0, 29, 39)] == [0.8, 0.04, 0.04]


def test_each_condition_has_its_measurement_and_its_table(tmp_path):
    from rewards import ByGroup

    classes = torch.stack([TABLE, TABLE.flip(0)])
    model = gk.analytic.TokenTable(TABLE, classes=classes)
    both = ByGroup([MEASURED, MEASURED.of(torch.tensor([-0.5, 0.0]))])
    options = {"levels": (0.5, 0.5), "moves": 2, "seed": 2}
    together = gk.search.split_gibbs(model, 20, both, cond=[0, 1], rounds=3, batch_size=7, **options)
    for g, m in enumerate(both.rewards):
        alone = gk.search.split_gibbs(model, 20, m, cond=g, rounds=3, **options)
        assert torch.equal(together.x[together.group == g], alone.x)
    folder = tmp_path / "chain"
    gk.search.split_gibbs(model, 20, both, cond=[0, 1], rounds=1, checkpoint=folder, batch_size=7, **options)
    again = gk.search.split_gibbs(model, 20, both, cond=[0, 1], rounds=3, checkpoint=folder, batch_size=7, **options)
    assert torch.equal(again.x, together.x) and torch.equal(again.memos[0], together.memos[0])


def test_the_cost_is_that_of_the_places_that_were_replaced():
    model, seen = gk.analytic.TokenTable(TABLE), []
    asked = gk.Measurement(lambda x: (seen.append(len(x)), curved(x))[1], MEASURED.y, 0.5)
    first = gk.sample(model, 40, steps=3).x
    found = gk.search.split_gibbs(model, first, asked, rounds=2, levels=(0.2, 0.2), moves=3)
    assert 0 < found.cost.network_rows < 2 * 40 * L and found.cost.network_calls <= 2 * L
    assert sum(seen) == found.cost.reward_calls


def test_what_cannot_be_sampled_is_refused():
    table = gk.analytic.TokenTable(TABLE)
    run = lambda model=table, m=MEASURED, **options: gk.search.split_gibbs(model, 4, m, **options)  # noqa: E731
    with pytest.raises(ValueError, match="fills its places in any order"):
        run(gk.analytic.TokenTable(TABLE, "ordered"))
    with pytest.raises(ValueError, match="a model of tokens"):
        run(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]))
    with pytest.raises(ValueError, match=r"levels=.*falling"):
        run(levels=(0.1, 0.5))
    with pytest.raises(ValueError, match="noise=0"):
        run(m=gk.Measurement(curved, MEASURED.y, 0.0))
    with pytest.raises(ValueError, match="alpha=0"):
        run(alpha=0)
    with pytest.raises(ValueError, match="moves=0"):
        run(moves=0)

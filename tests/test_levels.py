"""How far samples are noised, where an ordered model's texts are padded, and rows that are behind the times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.models.analytic import TokenTable
from guidekit.process import Masked
from guidekit.solvers import Move
from rewards.molecules.descriptors import canonical

V, L, END = 3, 4, 0
TABLE = torch.randn((V,) * L, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5
_after = (torch.cartesian_prod(*[torch.arange(V)] * L) == END).cumsum(1).view(*TABLE.shape, L)
TABLE -= 30.0 * (_after.diff(dim=-1) == 0).mul(_after[..., :-1] > 0).any(-1)  # what follows the end is the end


def ended() -> TokenTable:
    """An ordered model whose texts end with token 0 and are padded with it."""
    model = TokenTable(TABLE, "ordered")
    model.process = Masked(V, L, END)
    return model


@pytest.mark.parametrize(
    ("row", "level", "kept"),
    [
        ([1, 2, 0, 0], 0.5, 1), ([1, 2, 1, 2], 0.5, 2), ([1, 2, 1, 0], 1 / 3, 2), ([1, 0, 2, 2], 1.0, 0),
        ([0, 0, 0, 0], 0.5, 0),
    ],
)  # fmt: skip
def test_a_level_is_the_share_of_what_a_text_uses(row: list[int], level: float, kept: int):
    process, x = Masked(V, L, END), torch.tensor([row])
    noise = torch.zeros(1, L, V + 1)
    assert process.noised(x, noise, level).tolist() == [row[:kept] + [V] * (L - kept)]


def test_between_two_tokens_chance_decides():
    """Two of three tokens at level .5: one and a half of them is kept."""
    n = 4000
    x = torch.tensor([[1, 2, 1, 0]]).repeat(n, 1)
    noise = Masked(V, L).noise(gk.random.fold(gk.random.key(1), torch.arange(n)), (L, V + 1), torch.float64)
    kept = (Masked(V, L, END).noised(x, noise, 0.5) != V).double().mean(0)
    assert kept[0] == 1 and kept[2] == kept[3] == 0
    assert abs(float(kept[1]) - 0.5) < 4.5 * 0.5 / n**0.5


def test_without_an_end_noising_is_the_forward_process_as_before():
    x = torch.tensor([[1, 2, 0, 0]])
    assert Masked(V, L).noised(x, torch.zeros(1, L, V + 1), 0.5).tolist() == [[1, 2, V, V]]


def test_the_end_is_a_token_of_an_ordered_model():
    def net(x, t, cond):
        return torch.zeros(*x.shape, 3)

    for end, ordered in ((3, True), (-1, True), (0, False)):
        with pytest.raises(ValueError, match=f"end={end}: a token below 3"):
            gk.MaskedModel(net, 3, 4, ordered=ordered, end=end)


@pytest.mark.parametrize("steps", [8, 16])
def test_rows_behind_the_times_catch_up_from_the_left_and_follow_the_model(steps: int):
    """From the prefix of one token at level .5: what follows has the law of the model given that token."""
    n, model = 20_000, ended()
    start = torch.tensor([1, 2, 0, 0])
    result = gk.sample(model, n, steps=steps, guides=[gk.StartFrom(start, 0.5)], seed=steps)
    assert (result.x[:, 0] == 1).all()
    law = TABLE.flatten().softmax(0).view((V,) * L)[1].flatten()
    law = (law / law.sum()).numpy()
    place = V ** torch.arange(L - 2, -1, -1)
    found = np.bincount((result.x[:, 1:] * place).sum(1).numpy(), minlength=V ** (L - 1)) / n
    assert n * ((found - law) ** 2 / law).sum() < 62  # chi-square, 26 degrees of freedom: P = 1e-4


@pytest.mark.parametrize(("t", "s"), [(0.5, 0.25), (0.5, 0.4), (0.25, 0.1), (0.1, 0.0)])
def test_the_moves_of_such_rows_unmask_their_share_in_order(t: float, s: float):
    p = torch.full((1, L, V), 1 / V).log()
    for masks in range(L + 1):
        x = torch.tensor([[1] * (L - masks) + [V] * masks])
        found, plain = (
            process.kernel(x, (p,), Move(t, s)).log_probs.exp()[0, :, V]
            for process in (Masked(V, L, END), Masked(V, L))
        )
        if masks <= np.ceil(L * t):  # not behind
            assert torch.equal(found, plain)
        else:
            left = int(np.ceil(masks * s / t - 1e-9))
            assert found.tolist() == [0.0] * (L - left) + [1.0] * left


def test_steering_rows_that_are_behind_the_times_keeps_its_law():
    """FK steering from a prefix: the model given it, times exp(r/alpha), and log Z."""
    model, groups, n = ended(), 300, 16
    reward = lambda x: (x == 2).sum(1).double() + (x[:, 3] == 1)  # noqa: E731
    guides = [gk.StartFrom(torch.tensor([1, 2, 0, 0]), 0.5), gk.FKSteering(reward, 0.8)]
    result = gk.sample(model, n, steps=8, guides=guides, cond=[None] * groups, seed=list(range(groups)))
    states = model.states[model.states[:, 0] == 1]
    prior = model.log_probs(states).softmax(0)
    tilt = (reward(states) / 0.8).exp()
    z = float((prior * tilt).sum())
    share = (result.log_z.exp() / z).numpy()
    assert abs(share.mean() - 1) < 4.5 * share.std() / groups**0.5
    w = result.log_weights.view(groups, n).exp() / n
    hits = ((result.x[:, 3] == 1).view(groups, n) * w).sum(1) / z
    truth = float((prior * tilt)[states[:, 3] == 1].sum()) / z
    assert abs(float(hits.mean()) - truth) < 4.5 * float(hits.std()) / groups**0.5


def test_bundled_molecules_change_at_the_usual_level():
    model = gk.zoo.load("molecules")
    first = gk.sample(model, 30, steps=20)
    again = gk.sample(model, 30, steps=40, guides=[gk.StartFrom(first.x)], seed=1)
    changed = [canonical(a) != canonical(b) for a, b in zip(first.samples, again.samples, strict=True)]
    assert sum(changed) >= 24
    heads = [(a[:2] == b[:2]).all() for a, b in zip(first.x, again.x, strict=True)]
    assert sum(map(bool, heads)) >= 27  # and keep the beginnings: half of eight or nine tokens
    assert sum(canonical(s) is not None for s in again.samples) >= 27


def test_refining_bundled_molecules_changes_them():
    model = gk.zoo.load("molecules")
    first = gk.sample(model, 10, steps=20)
    count = lambda smiles: torch.tensor([float(s.count("O")) for s in smiles])  # noqa: E731
    better = gk.refine(model, first, count, rounds=2, steps=20)
    assert better.rewards.mean() > count(first.samples).mean() + 0.3
    assert (better.trace["changed"] >= 0.8).all()


@pytest.mark.parametrize("search", [gk.refine, gk.evolve], ids=["refine", "evolve"])
def test_a_search_that_changes_nothing_says_so(search):
    """A network that writes the same again, whatever is noised."""
    table = torch.full((2, 2, 2), -60.0, dtype=torch.float64)
    table[1, 0, 1] = 0.0
    model, start = TokenTable(table), torch.tensor([[1, 0, 1]]).repeat(4, 1)
    with pytest.warns(UserWarning, match=r"none of the 4 samples changed in 3 rounds at level=0\.5"):
        result = search(model, start, lambda x: x[:, 0], rounds=3, steps=3)
    assert (result.trace["changed"] == 0).all()


@dataclass(frozen=True)
class Infill(Masked):
    """Masked noise on the positions where the template is -1; the others keep its tokens."""

    template: tuple[int, ...] = ()

    def prior(self, noise, t):
        known = torch.tensor(self.template, device=noise.device)
        return torch.where(known < 0, super().prior(noise, t), known)


@pytest.mark.parametrize("noising", ["masked", "ordered"])
def test_refining_keeps_the_template_that_a_process_keeps(noising: str):
    model = TokenTable(TABLE, noising)
    places = L * (noising == "ordered")
    model.process = Infill(V, places, template=(-1, 2, -1, -1))
    first = gk.sample(model, 30, steps=8)
    assert (first.x[:, 1] == 2).all()
    better = gk.refine(model, first, lambda x: -(x == 2).sum(1).double(), rounds=3, level=0.9, steps=8)
    assert (better.x[:, 1] == 2).all() and not torch.equal(better.x, first.x)
    again = gk.sample(model, 30, steps=gk.times.restart(8, 0.25, 0.75, 2))
    assert (again.x[:, 1] == 2).all()
    assert (again.x < V).all()

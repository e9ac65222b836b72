"""Informed moves: they leave p exp(r/alpha) as it is, within every constraint, and cost what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk

V, L, N, ALPHA = 3, 4, 20_000, 0.8
made = torch.Generator().manual_seed(3)
TABLE = gk.analytic.TokenTable(
    1.2 * torch.randn(V, V, V, V, generator=made, dtype=torch.float64),
    classes=1.2 * torch.randn(2, V, V, V, V, generator=made, dtype=torch.float64),
)
LETTER = torch.randn(L, V, generator=made, dtype=torch.float64)
PAIR = torch.randn(V, V, generator=made, dtype=torch.float64)
LEVEL = 5.0  # standard deviations of a chi square


def reward(x: Tensor) -> Tensor:
    """Asymmetric, with terms of single letters and of neighbours; of tokens, and of one-hot rows."""
    hot = x.double() if x.dim() == 3 else torch.nn.functional.one_hot(x, V).double()
    return (hot * LETTER).sum((1, 2)) + torch.einsum("ria,rib,ab->r", hot[:, :-1], hot[:, 1:], PAIR)


def law(allowed: Tensor | None = None, cond: int | None = None, alpha: float = ALPHA) -> Tensor:
    log_p = TABLE.log_probs(TABLE.states, cond) + reward(TABLE.states) / alpha
    return (log_p if allowed is None else log_p.masked_fill(~allowed, -torch.inf)).softmax(0)


def drawn(p: Tensor, n: int = N) -> Tensor:
    return TABLE.states[torch.multinomial(p, n, True, generator=torch.Generator().manual_seed(1))]


def distance(x: Tensor, p: Tensor) -> float:
    """Chi square of samples against a law, in standard deviations above its mean. States of which fewer than 5 samples
    are expected count together, and one that is impossible is infinitely far away."""
    place = V ** torch.arange(L - 1, -1, -1)
    counts, expected = torch.bincount((x * place).sum(1), minlength=V**L).double(), len(x) * p
    if bool((counts[p == 0] > 0).any()):
        return torch.inf
    rare = expected < 5
    pairs = torch.stack([counts, expected])
    counts, expected = torch.cat([pairs[:, ~rare], pairs[:, rare].sum(1, keepdim=True)], 1)
    free = len(counts) - 1
    return float(((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum() - free) / (2 * free) ** 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.25},
        {"share": 0.25, "gradient": True},
        {"share": 0.75, "exact": True},
        {"share": 0.5, "exact": True, "gradient": True},
    ],
    ids=["one place", "one place by gradient", "three places", "two places by gradient"],
)
def test_samples_of_the_tilted_law_stay_samples_of_it(options: dict[str, Any]):
    found = gk.search.informed(TABLE, drawn(law()), reward, alpha=ALPHA, rounds=2, **options)
    assert found.trace["accepted"].min() > 0.05
    assert distance(found.x, law()) < LEVEL


def test_places_weighed_at_once_leave_out_how_they_depend_on_each_other():
    """The error that `exact` mends is of the model alone: it is there with and without gradients, and shows here."""
    for gradient in (False, True):
        options: dict[str, Any] = {"share": 0.5, "gradient": gradient}
        found = gk.search.informed(TABLE, drawn(law()), reward, alpha=ALPHA, rounds=2, **options)
        assert distance(found.x, law()) > 3 * LEVEL


def test_samples_of_the_model_come_to_the_tilted_law_of_their_condition():
    cond = [None, 0, 1]
    start = torch.cat([drawn(TABLE.table[c].exp(), 3000) for c in (1, 2, 0)])  # of other conditions
    options = {"alpha": 2.0, "rounds": 25, "share": 0.5, "exact": True, "gradient": True}
    found = gk.search.informed(TABLE, start, reward, cond=cond, **options)
    for group, c in enumerate(cond):
        x = found.x[found.group == group]
        assert distance(x, law(cond=c, alpha=2.0)) < LEVEL
        assert distance(x, law(cond=cond[group - 1], alpha=2.0)) > 3 * LEVEL
    alone = gk.search.informed(TABLE, start[3000:6000], reward, cond=0, **options)
    assert torch.equal(alone.x, found.x[found.group == 1])


@pytest.mark.parametrize("name", ["sites", "kept", "near", "edits", "kept and edits"])
def test_constraints_hold_and_the_law_within_them_stays(name: str):
    origin = torch.tensor([2, 0, 1, 1])
    differ = (TABLE.states != origin).sum(1)
    kept = (TABLE.states[:, 1] == 0) & (TABLE.states[:, 3] < 2)
    letters = torch.tensor([[True] * 3, [True, False, False], [True] * 3, [True, True, False]])
    guides, allowed, edits = {
        "sites": ([gk.Sites(forbidden=[[[0], [2]]], required=[[[1]]])], _sites(TABLE.states), None),
        "kept": ([gk.Keep(template=letters)], kept, None),
        "near": ([gk.MaxEdits(origin, 2)], differ <= 2, None),
        "edits": ([], differ <= 2, 2),
        "kept and edits": ([gk.Keep(template=letters)], kept & (differ <= 2), 2),
    }[name]
    options: dict[str, Any] = {"share": 0.5, "exact": True, "gradient": True, "guides": guides, "max_edits": edits}
    if edits is None:
        start, rounds = drawn(law(allowed, alpha=2.0)), 2
    else:  # all from one sample
        start, rounds = origin.expand(2000, -1), 40
    found = gk.search.informed(TABLE, start, reward, alpha=2.0, rounds=rounds, **options)
    assert found.trace["accepted"].min() > 0.05
    assert distance(found.x, law(allowed, alpha=2.0)) < LEVEL


def _sites(x: Tensor) -> Tensor:
    return ~((x[:, :-1] == 0) & (x[:, 1:] == 2)).any(1) & (x == 1).any(1)


def test_each_sample_keeps_to_its_own_edits():
    start = drawn(law(), 200)
    found = gk.search.informed(TABLE, start, reward, alpha=0.1, rounds=30, share=0.5, max_edits=1)
    assert ((found.x != start).sum(1) <= 1).all() and (found.x != start).any(1).sum() > 60


@pytest.mark.usefixtures("every_row")
def test_a_round_costs_a_row_and_a_call_for_each_sample_that_a_proposal_changes():
    start, rounds = drawn(law(), 50), 4
    asked: list[int] = []

    def counted(x: Tensor) -> Tensor:
        asked.append(len(x))
        return reward(x)

    options: dict[str, Any] = {"alpha": ALPHA, "rounds": rounds, "share": 0.5, "gradient": True}
    found = gk.search.informed(TABLE, start, counted, **options)
    assert found.cost.network_rows == rounds * 50
    assert found.cost.reward_calls == sum(asked) < (2 + rounds) * 50  # of the start as samples, and as one-hot rows


@pytest.mark.usefixtures("every_row")
def test_exact_moves_cost_two_rows_for_each_letter_that_changes():
    """Of independent letters and a constant reward every proposal is accepted, so that what changed can be counted."""
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, V), V, L)
    start = drawn(law(), 50)
    none = lambda x: torch.zeros(len(x))  # noqa: E731
    found = gk.search.informed(model, start, none, alpha=ALPHA, rounds=1, share=0.75, exact=True)
    changed = int((found.x != start).sum())
    assert 0 < changed < 150 and found.cost.network_rows == 50 + 2 * changed


def test_the_gradient_that_is_kept_is_the_one_at_the_sample():
    found = gk.search.informed(TABLE, drawn(law(), 60), reward, alpha=ALPHA, rounds=3, share=0.5, gradient=True)
    assert 0.1 < float(found.trace["accepted"][-1]) < 0.9
    hot = torch.nn.functional.one_hot(found.x, V).double().requires_grad_()
    (slope,) = torch.autograd.grad(reward(hot).sum(), hot)
    assert torch.allclose(found.memos[0], slope)  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", [False, True])
def test_a_killed_search_resumes_to_the_same_samples_and_costs(gradient: bool, tmp_path: Path):
    options: dict[str, Any] = {"alpha": ALPHA, "share": 0.5, "gradient": gradient, "max_edits": 3, "seed": 5}
    whole = gk.search.informed(TABLE, 12, reward, rounds=5, **options)
    gk.search.informed(TABLE, 12, reward, rounds=2, checkpoint=tmp_path / "run", **options)
    resumed = gk.search.informed(TABLE, 12, reward, rounds=5, checkpoint=tmp_path / "run", **options)
    assert torch.equal(whole.x, resumed.x)
    assert torch.equal(whole.rewards, resumed.rewards)  # type: ignore[arg-type]
    assert (whole.cost.network_rows, whole.cost.reward_calls) == (resumed.cost.network_rows, resumed.cost.reward_calls)
    assert whole.trace["accepted"].tolist() == resumed.trace["accepted"].tolist()
    with pytest.raises(gk.CheckpointError, match="of another search: alpha was"):
        gk.search.informed(TABLE, 12, reward, checkpoint=tmp_path / "run", **dict(options, alpha=0.7))


def test_batches_do_not_change_the_samples():
    start = drawn(law(), 30)
    options: dict[str, Any] = {"alpha": ALPHA, "rounds": 3, "share": 0.5, "gradient": True, "exact": True}
    whole, parts = (gk.search.informed(TABLE, start, reward, batch_size=b, **options) for b in (None, 7))
    assert torch.equal(whole.x, parts.x)


def test_samples_without_a_score_are_left_and_never_moved_to():
    picky = lambda x: torch.where(x[:, 0] == 2, torch.nan, (x == 1).double().sum(1))  # noqa: E731
    start = TABLE.states
    found = gk.search.informed(TABLE, start, picky, alpha=ALPHA, rounds=30, share=0.5)
    assert (start[:, 0] == 2).sum() == 27 and not (found.x[:, 0] == 2).any()


def test_what_is_wrong_is_said_before_the_first_network_call():
    calls = []

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        calls.append(1)
        return torch.zeros(*x.shape, V)

    model, x = gk.MaskedModel(net, V, L), torch.zeros(2, L, dtype=torch.long)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("alpha=0", {"alpha": 0}),
        ("share=0", {"share": 0}),
        ("share=1.5", {"share": 1.5}),
        ("max_edits=0", {"max_edits": 0}),
        ("rounds=-1", {"rounds": -1}),
        ("constraints alone", {"guides": [gk.SVDD(reward, candidates=2)]}),
        ("no place that could change", {"guides": [gk.Keep(x[0], torch.ones(L, dtype=torch.bool))]}),
        ("max_edits goes with gk.Keep alone", {"guides": [gk.Sites(forbidden=[[[0], [2]]])], "max_edits": 2}),
        ("sample 0 does not satisfy", {"guides": [gk.Sites(forbidden=[[[0], [0]]])]}),
    ]
    for message, options in wrong:
        with pytest.raises(ValueError, match=message):
            gk.search.informed(model, x, reward, **{"alpha": 1.0, **options})
    for other in (gk.UniformModel(net, V, L), gk.MaskedModel(net, V, L, ordered=True)):
        with pytest.raises(ValueError, match="a masked model that fills its places in any order"):
            gk.search.informed(other, x, reward, alpha=1.0)
    with pytest.raises(ValueError, match="in another order than the model's tokens"):
        turned = lambda x: reward(x.flip(-1) if x.dim() == 3 else x)  # noqa: E731
        gk.search.informed(model, x, turned, alpha=1.0, gradient=True)
    with pytest.raises(gk.RewardError, match="no gradient of reward"):
        gk.search.informed(model, x, lambda x: reward(x).detach(), alpha=1.0, gradient=True)
    assert not calls

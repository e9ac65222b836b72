"""A linear head on what a model of tokens says: its numbers, the hidden state in them, and fits that read it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.values import Pooled
from guidekit.values.learned import Correction

from .test_values_fit import token_reward
from .test_values_looks import Asked, table

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning", "ignore:the value is no better")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looked(model: gk.Model, look, n: int = 12, **options) -> tuple[Tensor, Tensor]:
    """States at the second step, and what the look-ahead says of them."""
    probe = Asked(look)
    gk.sample(model, n, guides=[probe], batch_size=n, **options)
    return probe.seen[0]


def test_log_probabilities_are_pooled_over_the_masks():
    """A plain loop over rows and positions, on states with 0 to 3 masks; nothing is said where none is left."""
    model = table()[0]
    x, found = looked(model, Pooled(3), 60, steps=3)
    said = model(x, 2 / 3, None).double()
    for row, own in enumerate(x):
        masks = [i for i, v in enumerate(own) if v == 3]
        if masks:
            assert torch.allclose(found[row], sum(said[row, i] for i in masks) / len(masks), atol=1e-9)
        else:
            assert found[row].isnan().all()
    assert (x == 3).sum(1).unique().tolist() == [0, 1, 2, 3]


def test_of_uniform_noise_all_positions_are_open():
    logits = drawn(5, 4)
    model = gk.UniformModel(lambda x, t, cond: logits.expand(len(x), 5, 4), 4, 5, dtype=torch.float64)
    x, found = looked(model, Pooled(4), steps=3)
    assert torch.allclose(found, logits.log_softmax(-1).mean(0).expand(len(x), 4))


def test_texts_that_have_ended_say_nothing_and_impossible_tokens_decide_nothing():
    """Of an ordered model nothing is drawn behind the end; log-probabilities count as -20 at least."""
    logits = torch.tensor([0.0, 0.0, -1e3]).double()
    model = gk.MaskedModel(lambda x, t, cond: logits.expand(*x.shape, 3), 3, 4, ordered=True, end=0,
                           dtype=torch.float64)  # fmt: skip
    x, found = looked(model, Pooled(3), 40, steps=4)
    ended = x[:, 0] == 0
    assert 5 < int(ended.sum()) < 35 and bool(found[ended].isnan().all())
    mine = torch.tensor([0.5, 0.5, 0]).double().log().clamp(min=-20)
    assert torch.allclose(found[~ended], mine.expand(int((~ended).sum()), 3))


def test_a_head_on_the_hidden_state_is_one_on_the_pooled_log_probabilities():
    """With W^T w = a and sum(w) = 0, w . m = a . h + w . b, for 7 tokens and hidden states of width 4."""
    W, b, a, hidden = drawn(7, 4), drawn(7, seed=1), drawn(4, seed=2), drawn(8, 6, 4, seed=3)

    def net(x: Tensor, t: Tensor, cond) -> Tensor:
        return hidden[x, torch.arange(6)] @ W.T + b

    x, m = looked(gk.MaskedModel(net, 7, 6, dtype=torch.float64), Pooled(7), 30, steps=3)
    open = x == 7
    h = torch.stack([hidden[7, own].mean(0) for own in open])
    both = torch.cat([W.T, torch.ones(1, 7).double()])
    w = torch.linalg.lstsq(both, torch.cat([a, torch.zeros(1).double()])).solution
    known = open.any(1)
    assert known.sum() > 20 and (both @ w)[-1].abs() < 1e-9
    assert torch.allclose(m[known] @ w, h[known] @ a + w @ b, atol=1e-8)


def test_a_head_is_a_cubic_in_time():
    """(t w_1 + t^2 w_2 + t^3 w_3)/8 times (u - mean)/spread, beside a look-ahead that the knots weight; by hand."""
    t = torch.tensor([0.5, 1.0]).double()
    path = Correction.of(t, torch.tensor([[1.0, 1.0, 0.0], [3.0, 5.0, 0.0]]).double(), many=2)
    path.put(torch.tensor([0.0, 2, 0, 2, 8, 0, 80, 0, 800, 0]).double())  # 2 knots of (a, b), then 3 powers of 2
    seen = torch.tensor([[4.0, 5.0, 9.0], [2.0, 7.0, 0.0], [2.0, torch.nan, 0.0]]).double()
    found = path(torch.tensor([0.5, 1.0, 1.0]).double(), seen)
    assert found.tolist() == pytest.approx([2 * 2 + (0.5 + 2.5 + 12.5), 2 * 111, 0])


def test_a_fitted_head_is_the_ridge_regression_by_hand():
    """E[r | x_t] for the mean of squares: the normal equations on the states that the fit has recorded."""
    model = table()[0]
    looks = [Pooled(3), gk.values.Rollout(token_reward, k=2, shared=True)]
    options = {"target": "mean", "rollouts": 60, "steps": 6, "epochs": 0, "per_rollout": 3, "looks": looks, "seed": 3}
    kept: list = []
    with pytest.MonkeyPatch.context() as patch:
        own = Correction.put

        def put(self: Correction, b: Tensor) -> None:
            kept.append((self, b))
            own(self, b)

        patch.setattr(Correction, "put", put)
        solve = gk.values.fit.__globals__["solved"]

        def solved(terms, left, weight, *more):
            kept.append((terms, left, weight, more[-1]))
            return solve(terms, left, weight, *more)

        patch.setitem(gk.values.fit.__globals__, "solved", solved)
        value = gk.values.fit(model, token_reward, **options)
    (terms, left, weight, ridge), (path, b) = kept
    by_hand = torch.linalg.solve(terms.T @ terms + ridge * torch.eye(terms.shape[1]).double(), terms.T @ left)
    assert ridge == 3 and bool((weight == 1).all()) and torch.allclose(b, by_hand, atol=1e-8)
    assert isinstance(value.looks[0], gk.values.Rollout) and value.looks[1] == Pooled(3)  # the head is the last
    assert terms.shape[1] == path.weight.numel() + 9 and path.head.shape == (3, 3) and path.head.abs().max() > 0


def test_children_are_evaluated_for_a_head_and_survivors_once():
    """10 rows at the start, and 3 x 10 at each of the next steps; the survivor's evaluation is the run's own."""
    logits = drawn(8, 4)
    model = gk.MaskedModel(lambda x, t, cond: logits.expand(len(x), 8, 4) + t[:, None, None], 4, 8)
    value = gk.values.Learned(lambda x, t, cond, said: said[:, 0].nan_to_num(0.0), looks=(Pooled(4),))
    result = gk.sample(model, 10, steps=3, guides=[gk.SVDD(lambda x: (x == 0).sum(1), 0.5, 3, value=value)])
    assert result.cost.network_rows <= 10 + 2 * 30


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="the log-probabilities of 3 tokens, not of"):
        gk.sample(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), 4, steps=3, guides=[Asked(Pooled(3))])

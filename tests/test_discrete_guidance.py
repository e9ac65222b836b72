"""Classifier guidance of tokens, against a table with classes: exact weights give the conditional law, and one gradient
gives them where log p(y | x) is linear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit import DCBG, TAG

from .problems import PROBLEMS

V, L = 3, 3
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def table() -> gk.analytic.TokenTable:
    """A mixture of three laws, which are its classes."""
    generator = torch.Generator().manual_seed(2)
    laws = torch.randn(3, *(V,) * L, generator=generator, dtype=torch.float64) * 1.5
    laws = laws.flatten(1).log_softmax(1).view_as(laws)
    mixed = (laws + SHARES.log().view(-1, *[1] * L)).logsumexp(0)
    return gk.analytic.TokenTable(mixed, classes=laws)


MODEL = table()


def exact(x: Tensor, t: Tensor) -> Tensor:
    """log p(y, x_t): the sum over all sequences that fit."""
    fits = ((x[:, None] == MODEL.states) | (x[:, None] == V)).all(-1)
    joint = MODEL.table[1:] + SHARES.log()[:, None]
    return torch.where(fits[:, None], joint, -torch.inf).logsumexp(-1)


def law(x: Tensor) -> np.ndarray:
    place = V ** torch.arange(L - 1, -1, -1)
    return (x * place).sum(1).bincount(minlength=V**L).double().numpy() / len(x)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_exact_weights_give_the_conditional_sampler(label: int):
    """The tilted marginals are those of p(x_0 | x_t, y); so from the same noise the very samples."""
    guided = gk.sample(MODEL, 300, steps=5, guides=[DCBG(exact, label=label)])
    conditional = gk.sample(MODEL, 300, steps=5, cond=label)
    assert torch.equal(guided.x, conditional.x)
    assert not torch.equal(guided.x, gk.sample(MODEL, 300, steps=5).x)


def test_many_steps_reach_p_of_x_given_y():
    n = 3000
    x = gk.sample(MODEL, n, steps=24, guides=[DCBG(exact, label=1)]).x
    target = MODEL.table[2].exp().numpy()
    distance = 0.5 * np.abs(law(x) - target).sum()
    # of n draws sum sqrt(2 p/(pi n))/2 is expected; the factorised kernel adds some 0.3/24
    assert distance < 0.5 * np.sqrt(2 * target / np.pi / n).sum() + 0.03
    assert 0.5 * np.abs(MODEL.table[0].exp().numpy() - target).sum() > 0.3


def test_one_position_at_a_time_is_p_of_x_given_y_at_any_power():
    """At t = 1 with all masked, one token: the kernel of the paper by enumeration, gamma = 2.5."""
    gamma, n = 2.5, 4
    run = gk.Run(MODEL, n, steps=4, guides=[DCBG(exact, gamma, label=2)])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            kernel = MODEL.process.kernel(pop.x, pop.predictions, run.moves[index])
            for row in range(n):
                for i in range(L):
                    if pop.x[row, i] < V:
                        continue
                    weights = []
                    p = MODEL(pop.x, run.moves[index].t, None)[row, i].exp()
                    for v in range(V):
                        changed = pop.x[row].clone()
                        changed[i] = v
                        weights.append(p[v] * exact(changed[None], torch.ones(1)).softmax(1)[0, 2] ** gamma)
                    expected = torch.stack(weights) / sum(weights)
                    leaving = 1 - run.moves[index].s / run.moves[index].t
                    assert torch.allclose(kernel.log_probs[row, i, :V].exp(), leaving * expected, rtol=1e-9)
            pop = run.advance(pop, index)


WEIGHTS = torch.randn(L, V + 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def linear(x: Tensor, t: Tensor) -> Tensor:
    """log p(y | x) of one-hot states, up to a constant: linear."""
    return (x * WEIGHTS).sum((1, 2))


def test_tag_equals_the_exact_weights_where_the_classifier_is_linear():
    def on_tokens(x, t):
        return linear(torch.nn.functional.one_hot(x, V + 1).double(), t)

    tag, full = (gk.sample(MODEL, 300, steps=6, guides=[g]) for g in (TAG(linear, 1.4), DCBG(on_tokens, 1.4)))
    assert torch.equal(tag.x, full.x)
    run, other = (gk.Run(MODEL, 5, steps=6, guides=[g]) for g in (TAG(linear, 1.4), DCBG(on_tokens, 1.4)))
    with torch.no_grad():
        one, two = run.start(), other.start()
    assert torch.allclose(one.predictions[0], two.predictions[0], rtol=1e-12, atol=1e-12)
    assert (tag.x != gk.sample(MODEL, 300, steps=6).x).any()


def test_tag_is_the_gradient_in_the_one_hot_states():
    def bent(x, t):
        return (x * WEIGHTS).sum((1, 2)).tanh()

    def on_tokens(x, t):
        return bent(torch.nn.functional.one_hot(x, V + 1).double(), t)

    masks = torch.full((1, L), V)
    with torch.no_grad():
        tag, full = (
            gk.Run(MODEL, 1, steps=6, guides=[g]).start().predictions[0].log_softmax(-1)
            for g in (TAG(bent), DCBG(on_tokens))
        )
    states = torch.nn.functional.one_hot(masks, V + 1).double().requires_grad_()
    (slope,) = torch.autograd.grad(bent(states, None).sum(), states)
    by_hand = (MODEL(masks, 1.0, None) + slope[..., :V] - slope[..., V:]).log_softmax(-1)
    assert torch.allclose(tag, by_hand, rtol=1e-10)
    assert (tag - full).abs().max() > 0.01


@pytest.mark.usefixtures("every_row")
def test_the_classifier_sees_masked_positions_alone_and_in_parts():
    seen = []

    def watch(x, t):
        seen.append((x.clone(), t))
        return exact(x, t)

    plain = gk.Run(MODEL, 10, steps=4, guides=[])
    masked = []
    with torch.no_grad():
        pop = plain.start()
        for index in range(4):
            masked.append(int((pop.x == V).sum()))
            pop = plain.advance(pop, index)
    result = gk.sample(MODEL, 10, steps=4, guides=[DCBG(watch, lambda t: 1e-12, label=0)])
    assert torch.equal(result.x, pop.x)
    assert [sum(len(x) for x, t in seen if t[0] == s) for s in (1.0, 0.75, 0.5, 0.25)] == [V * m for m in masked]
    assert result.cost.network_rows == 40
    assert all(not (x == V).all(1).any() for x, _ in seen)
    seen.clear()
    parts = gk.sample(MODEL, 10, steps=4, guides=[DCBG(watch, label=0)], batch_size=7)
    assert max(len(x) for x, _ in seen) <= 7
    assert torch.equal(parts.x, gk.sample(MODEL, 10, steps=4, guides=[DCBG(exact, label=0)]).x)


def test_labels_of_groups_and_scales_of_zero():
    result = gk.sample(MODEL, 200, steps=5, guides=[DCBG(exact, label=[2, 0])], cond=[None, None])
    for g, label in enumerate((2, 0)):
        assert torch.equal(result.x[result.group == g], gk.sample(MODEL, 200, steps=5, cond=label).x)
    plain = gk.sample(MODEL, 20, steps=5).x
    for guide in (DCBG(exact, 0.0, 1), TAG(linear, 0.0), DCBG(lambda x, t: torch.zeros(len(x)))):
        assert torch.equal(gk.sample(MODEL, 20, steps=5, guides=[guide]).x, plain)


def test_steering_leaves_the_law_as_it_is():
    """Proposals with the weights p/q, against the plain chain."""
    result = gk.sample(MODEL, 4000, steps=5, guides=[DCBG(exact, 0.5, 1, steer=True)])
    plain = gk.sample(MODEL, 4000, steps=5, seed=1)
    x = (result.x[:, 0] == 2).double()
    w = result.log_weights.exp()
    error = np.hypot(float((w * x).std()), float((plain.x[:, 0] == 2).double().std())) / 4000**0.5
    assert abs(float((w * x).mean()) - float((plain.x[:, 0] == 2).double().mean())) < 4.5 * error
    assert w.std() > 0.1


def test_impossible_tokens_are_never_drawn_and_impossible_states_do_no_harm():
    def never_two(x, t):
        return torch.where((x == 2).any(1), -torch.inf, 0.0)

    assert (gk.sample(MODEL, 500, steps=4, guides=[DCBG(never_two)]).x < 2).all()
    nothing = gk.sample(MODEL, 50, steps=4, guides=[DCBG(lambda x, t: torch.full((len(x),), -torch.inf))])
    assert torch.equal(nothing.x, gk.sample(MODEL, 50, steps=4).x)


def test_what_cannot_work_says_so():
    for kind in (DCBG, TAG):
        with pytest.raises(ValueError, match=r"use gk\.ClassifierGuidance"):
            gk.Run(PROBLEMS["vp-1d"].model, 2, steps=3, guides=[kind(exact, label=0)])
        with pytest.raises(ValueError, match="masked tokens; under Uniform noise"):
            gk.Run(PROBLEMS["uniform"].model, 2, steps=3, guides=[kind(exact, label=0)])

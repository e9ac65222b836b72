"""Classifier guidance of tokens, against a table with classes: exact weights give the conditional law, and one gradient
gives them where log p(y | x) is linear."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit import DCBG, TAG

from .problems import PROBLEMS, chain_of_moves, independently, marginals_of_tokens, posterior_of_tokens

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


# kernels that are reweighted, against an enumeration of their chains -------------------------------------------------

UNIFORM = gk.analytic.TokenTable(MODEL.table[0].view(V, V, V), "uniform", MODEL.table[1:].view(3, V, V, V))
MODELS = {"masked": MODEL, "uniform": UNIFORM}


def reverse(p: np.ndarray, x: int, t: float, s: float, uniform: bool) -> np.ndarray:
    """q(x_s | x_t) of one position: Bayes' rule for every x_0, then the mean over x_0."""
    if not uniform:
        return np.append((1 - s / t) * p, s / t) if x == V else np.eye(V + 1)[x]
    up = np.array([(1 - t) / (1 - s) * (v == x) + (1 - (1 - t) / (1 - s)) / V for v in range(V)])
    down = np.array([[(1 - s) * (v == w) + s / V for w in range(V)] for v in range(V)])
    return sum(p[w] * up * down[:, w] / (up @ down[:, w]) for w in range(V))


def chain(noising: str, steps: int, kernel) -> np.ndarray:
    """The law of x_0 where kernel(x, t, s, i) is that of a position."""

    def moved(states: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
        return independently(states, np.stack([kernel(x, t, s, i) for i in range(L)]))

    return chain_of_moves(noising == "uniform", steps, moved)


def plain(noising: str, x: np.ndarray, t: float, s: float, i: int, label: int | None = None) -> np.ndarray:
    uniform = noising == "uniform"
    table = MODEL.table[0 if label is None else label + 1].exp().numpy()
    return reverse(marginals_of_tokens(table, x, t, uniform)[i], x[i], t, s, uniform)


@lru_cache
def of_label(noising: str, x: tuple[int, ...], t: float, label: int) -> float:
    """p(y | x_t) by enumeration of x_0."""
    post = posterior_of_tokens(MODEL.table[0].exp().numpy(), np.array(x), t, noising == "uniform")
    given = (MODEL.table[label + 1].exp() * SHARES[label] / MODEL.table[0].exp()).numpy()
    return float(post @ given)


def factors(noising: str, x: np.ndarray, t: float, i: int, label: int, gamma: float) -> np.ndarray:
    """(p(y | x_t^{i -> v})/p(y | x_t))^gamma for every state v of a position."""
    symbols = V if noising == "uniform" else V + 1
    changed = [tuple(np.where(np.arange(L) == i, v, x)) for v in range(symbols)]
    return (
        np.array([of_label(noising, c, t, label) for c in changed]) / of_label(noising, tuple(x), t, label)
    ) ** gamma


def mixed(w: float):
    """D-CFG of uniform tokens: the kernels' powers."""

    def kernel(noising: str, x: np.ndarray, t: float, s: float, i: int) -> np.ndarray:
        q = plain(noising, x, t, s, i, 1) ** w * plain(noising, x, t, s, i) ** (1 - w)
        return q / q.sum()

    return kernel


def weighted(gamma: float):
    """D-CBG: the kernel times the classifier."""

    def kernel(noising: str, x: np.ndarray, t: float, s: float, i: int) -> np.ndarray:
        q = plain(noising, x, t, s, i)
        q = q * np.where(q > 0, factors(noising, x, t, i, 1, gamma), 0)
        return q / q.sum()

    return kernel


def sped(gamma: float):
    """Predictor guidance: rates times ratios."""

    def kernel(noising: str, x: np.ndarray, t: float, s: float, i: int) -> np.ndarray:
        q, own = plain(noising, x, t, s, i), int(x[i])
        if q[own] == 1:
            return q
        jumps = np.where(np.arange(len(q)) == own, 0, q)
        guided = jumps * np.where(jumps > 0, factors(noising, x, t, i, 1, gamma), 0)
        stay = q[own] ** (guided.sum() / jumps.sum())
        return guided / guided.sum() * (1 - stay) + stay * np.eye(len(q))[own]

    return kernel


def classifier(noising: str):
    """The exact log p(y, x_t), for a call of the guides."""
    if noising == "masked":
        return exact
    joint = MODEL.table[1:] + SHARES.log()[:, None]

    def found(x: Tensor, t: Tensor) -> Tensor:
        time = float(t[0])
        same = (x[:, None] == MODEL.states).double()
        fits = (same * (1 - time) + time / V).log().sum(-1)
        return (joint + fits[:, None]).logsumexp(-1)

    return found


BENT = {
    "D-CFG": (("uniform",), lambda c: gk.DCFG(2.2), mixed(2.2), 1),
    "D-CBG": (("masked", "uniform"), lambda c: DCBG(c, 1.8, 1, posterior=True), weighted(1.8), None),
    "predictor guidance": (("masked", "uniform"), lambda c: gk.PredictorGuidance(c, 1.8, 1), sped(1.8), None),
}
PAIRS = [(name, noising) for name, (noisings, *_) in BENT.items() for noising in noisings]


@pytest.mark.parametrize(("name", "noising"), PAIRS)
def test_samples_follow_the_chain_of_the_reweighted_kernels(name: str, noising: str):
    _, make, kernel, cond = BENT[name]
    n, steps = 8000, 3
    x = gk.sample(MODELS[noising], n, steps=steps, guides=[make(classifier(noising))], cond=cond, seed=3).x
    expected = n * chain(noising, steps, lambda *at: kernel(noising, *at))
    some = expected > 1  # all but this have a chi of their own
    assert (n * law(x) - expected)[~some].sum() < 12
    assert ((n * law(x) - expected)[some] ** 2 / expected[some]).sum() < 66  # at most 26 degrees of freedom
    base = chain(noising, steps, lambda x, t, s, i: plain(noising, x, t, s, i, cond))
    assert np.abs(expected / n - base).sum() / 2 > 0.1


def test_d_cfg_of_masked_tokens_is_cfg_and_of_uniform_ones_is_not():
    runs = [gk.sample(MODEL, 300, steps=5, cond=1, guides=[g]).x for g in (gk.CFG(2.2), gk.DCFG(2.2))]
    assert torch.equal(*runs)
    runs = [gk.sample(UNIFORM, 4000, steps=5, cond=1, guides=[g]).x for g in (gk.CFG(3.0), gk.DCFG(3.0))]
    assert np.abs(law(runs[0]) - law(runs[1])).sum() / 2 > 0.06  # two runs of one law: 0.03


@pytest.mark.slow
@pytest.mark.parametrize("guide", [DCBG, gk.PredictorGuidance], ids=["D-CBG", "predictor guidance"])
def test_exact_weights_of_uniform_tokens_reach_p_of_x_given_y_in_many_steps(guide):
    n, options = 3000, {"posterior": True} if guide is DCBG else {}
    x = gk.sample(UNIFORM, n, steps=32, guides=[guide(classifier("uniform"), 1.0, 1, **options)]).x
    target = MODEL.table[2].exp().numpy()
    distance = 0.5 * np.abs(law(x) - target).sum()
    assert distance < 0.5 * np.sqrt(2 * target / np.pi / n).sum() + 0.04


def test_predictor_guidance_of_masked_tokens_by_the_exact_classifier_is_the_conditional_model():
    guided = gk.sample(MODEL, 500, steps=5, guides=[gk.PredictorGuidance(exact, label=2)])
    conditional = gk.sample(MODEL, 500, steps=5, cond=2)
    assert (guided.x != conditional.x).double().mean() < 2e-3  # up to rounding


@pytest.mark.parametrize(("name", "noising"), PAIRS)
def test_weights_tilt_the_reweighted_chain_exactly(name: str, noising: str):
    """E[mean of w f] with four particles, where one guide is part of the target and another one steers."""
    _, make, kernel, cond = BENT[name]
    rewards = MODEL.states[:, 0].double() * 0.6 - (MODEL.states[:, 2] == 1) * 0.5

    def reward(x: Tensor) -> Tensor:
        return x[:, 0].double() * 0.6 - (x[:, 2] == 1) * 0.5

    groups, steps = 700, 2
    proposal = DCBG(classifier(noising), 0.5, 2, posterior=True, steer=True)
    guides = [make(classifier(noising)), proposal, gk.FKSteering(reward, 0.7, ess=0.9)]
    options = {"cond": [cond] * groups, "seed": list(range(groups))}
    result = gk.sample(MODELS[noising], 4, steps=steps, guides=guides, **options)
    truth = chain(noising, steps, lambda *at: kernel(noising, *at)) * (rewards / 0.7).exp().numpy()
    for feature in (lambda x: torch.ones(len(x)), lambda x: (x[:, 1] == 0).double(), lambda x: x[:, 2].double()):
        found = (result.log_weights.exp() * feature(result.x)).view(groups, 4).mean(1)
        error = (found.mean() - float(truth @ feature(MODEL.states).double().numpy())) / (found.std() / groups**0.5)
        assert abs(float(error)) < 4.5


KNOWN = gk.Keep(torch.zeros(3, dtype=torch.long), torch.arange(3) < 1)


@pytest.mark.parametrize(
    ("guides", "options", "message"),
    [
        ([gk.PredictorGuidance(exact, label=0), KNOWN], {}, "within a constraint"),
        ([DCBG(exact, label=0, posterior=True)], {"solver": gk.solvers.FirstHitting()}, "FirstHitting.*solver=None"),
    ],
)
def test_what_cannot_go_with_a_reweighted_kernel(guides, options, message: str):
    with pytest.raises(ValueError, match=message):
        gk.Run(MODEL, 2, steps=3, guides=guides, **options)


def test_gradients_reweight_kernels_of_uniform_tokens_where_the_classifier_is_linear():
    tokens = lambda x, t: linear(torch.nn.functional.one_hot(x, V + 1).double(), t)  # noqa: E731
    hot = lambda x, t: (x * WEIGHTS[:, :V]).sum((1, 2))  # noqa: E731
    guides = TAG(hot, 1.4, posterior=True), DCBG(tokens, 1.4, posterior=True)
    runs = [gk.sample(UNIFORM, 300, steps=6, guides=[guide]).x for guide in guides]
    assert torch.equal(*runs)


def test_the_noise_of_a_sample_makes_it_again():
    guide = gk.DCFG(2.0)
    x = torch.tensor([[2, 0, 1], [1, 1, 0]])
    noise = gk.invert(UNIFORM, x, cond=1, steps=4, guides=[guide])
    assert torch.equal(gk.sample(UNIFORM, 2, steps=4, cond=1, guides=[guide], noise=noise).x, x)

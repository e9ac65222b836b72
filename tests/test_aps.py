"""APS: its steps done again by hand, the law that they give by enumeration, and the posterior under weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk

V, L, NOISE, Y = 3, 2, 0.7, 1.1
made = torch.Generator().manual_seed(4)
TABLE = torch.randn(V, V, generator=made, dtype=torch.float64)
E = torch.tensor([[0.0, 0.3], [1.0, -0.2], [-0.8, 0.9]], dtype=torch.float64)
W = torch.tensor([[0.9, 0.4], [-0.3, 1.2]], dtype=torch.float64)  # of positions and of the embedding


def product(e: Tensor) -> Tensor:
    """A measurement that is not linear, of embedded sequences."""
    first, second = (e * W.to(e)).sum(-1).unbind(1)
    return (first + second + first * second)[:, None]


def measured(operator=product) -> gk.Measurement:
    return gk.Measurement(operator, torch.tensor([Y], dtype=torch.float64), NOISE)


def slope(u: np.ndarray) -> np.ndarray:
    """d log p(y | u)/du of the product, by hand."""
    a = (u * W.numpy()).sum(-1)
    rest = (Y - (a[0] + a[1] + a[0] * a[1])) / NOISE**2
    return rest * (1 + a[::-1])[:, None] * W.numpy()


def bent(p: np.ndarray, scale: float, iters: int, rate: float, quantised: bool) -> np.ndarray:
    """The probabilities after the steps, for one row (L, V)."""
    log_p = np.log(np.maximum(p, 1e-300))
    log_q, e = log_p.copy(), E.numpy()
    for _ in range(iters):
        q = np.exp(log_q)
        u = (q / q.sum(1, keepdims=True)) @ e
        if quantised:
            u = np.stack([min(e, key=lambda v, m=m: float(((v - m) ** 2).sum())) for m in u])
        log_q = (1 - rate) * log_q + rate * (log_p + scale * slope(u) @ e.T)
    q = np.exp(log_q - log_q.max(1, keepdims=True))
    return q / q.sum(1, keepdims=True)


def prediction(x: list[int | None]) -> np.ndarray:
    """p_i(v) of the table, given what is known."""
    p = TABLE.exp().numpy()
    if x[0] is not None:
        return np.stack([np.eye(V)[x[0]], p[x[0]] / p[x[0]].sum()])
    return np.stack([p.sum(1) / p.sum(), p.sum(0) / p.sum()])


@pytest.mark.parametrize("quantised", [True, False])
def test_the_samples_have_the_law_of_the_bent_predictions(quantised: bool):
    """From the left to the right, so that every prefix has one prediction, which the steps bend."""
    options = {"scale": 0.8, "iters": 3, "rate": 0.6, "quantised": quantised}
    guide, n = gk.APS(measured(), E, **options), 4000
    x = gk.sample(gk.analytic.TokenTable(TABLE, "ordered"), n, steps=2, guides=[guide]).x
    own = np.zeros((V, V))
    for a, b in itertools.product(range(V), repeat=2):
        own[a, b] = bent(prediction([None, None]), **options)[0, a] * bent(prediction([a, None]), **options)[1, b]
    share = np.bincount((x[:, 0] * V + x[:, 1]).numpy(), minlength=V * V) / n
    assert (np.abs(share - own.ravel()) < 4.5 * np.sqrt(own.ravel() / n) + 1e-9).all()
    plain = (TABLE.exp() / TABLE.exp().sum()).numpy()
    assert np.abs(own - plain).sum() > 0.2  # so that a guide without effect would be found


@pytest.mark.parametrize("noising, steps", [("ordered", 2), ("uniform", 20)])
def test_as_a_proposal_beside_weights_it_samples_the_posterior(noising: str, steps: int):
    model, n = gk.analytic.TokenTable(TABLE, noising), 3000
    on_tokens = measured(lambda x: product(E[x]))
    guides = [gk.APS(measured(), E, iters=2, rate=0.5, steer=True), gk.FKSteering(on_tokens, 1.0, ess=0.0)]
    found = gk.sample(model, n, steps=steps, guides=guides)
    p = model.table[0].exp() * on_tokens(model.states).exp()
    share = torch.zeros(V * V).double().index_add(0, found.x[:, 0] * V + found.x[:, 1], found.weights)
    chain = 0.0 if noising == "ordered" else 0.015  # of twenty steps
    assert ((share - p / p.sum()).abs() < 4.5 * (p / p.sum() / float(found.ess)).sqrt() + chain).all()
    assert abs(float(found.log_z - p.sum().log())) < 4.5 * float(found.log_z_error) + chain


def test_of_one_step_at_rate_1_of_the_mean_of_one_hot_rows_it_is_the_proposal_of_taylor_smc():
    m = gk.Measurement(lambda hot: hot[..., 1].sum(1, keepdim=True), torch.tensor([1.4]), 0.6)
    aps, taylor, seen = gk.APS(m, iters=1, rate=1.0, quantised=False), gk.TaylorSMC(m, 1.0), []

    class Both(gk.Guide):
        grad = "clean"

        def tilt(self, view):
            seen.append((view.x == V, aps.tilt(view), taylor.tilt(view)))
            return 0.0

    gk.sample(gk.analytic.TokenTable(TABLE), 20, steps=2, guides=[Both()])
    assert len(seen) == 2 and all(torch.allclose(a[hidden], b[hidden]) for hidden, a, b in seen)
    assert seen[0][1].abs().max() > 0.5


def test_anchored_remasking_reveals_what_the_measurement_decides():
    """Positions are independent and uniform, and the second is measured: `Confidence` reveals it first."""
    model = gk.analytic.TokenTable(torch.zeros(V, V, dtype=torch.float64))
    second = gk.Measurement(lambda e: e[:, 1], E[2], 0.3)
    shown = []
    watch = lambda population, step: shown.append(population.x)  # noqa: E731
    guides = [gk.APS(second, E, quantised=False)]
    gk.sample(model, 20, steps=2, guides=guides, solver=gk.solvers.Confidence(), callbacks=[watch])
    half = next(x for x in shown if (x == V).any() and (x != V).any())
    assert (half[:, 0] == V).all() and (half[:, 1] == 2).double().mean() > 0.9


def test_what_does_not_fit_is_said_before_the_network_is_called():
    def never(x, t, cond):
        raise AssertionError("the network was called")

    model = gk.MaskedModel(never, vocab_size=V, length=L)
    run = lambda guide, model=model: gk.sample(model, 2, steps=2, guides=[guide])  # noqa: E731
    with pytest.raises(ValueError, match=r"embedding \(V, d\) of the 3 tokens"):
        run(gk.APS(measured(), E[:2]))
    with pytest.raises(ValueError, match=r"y of shape \(1,\).*makes \(2,\)"):
        run(gk.APS(measured(lambda e: e.sum(-1)), E))
    with pytest.raises(ValueError, match="no gradient passes"):
        run(gk.APS(measured(lambda e: product(e.detach())), E))
    with pytest.raises(ValueError, match="noise=0"):
        gk.APS(gk.Measurement(product, torch.tensor([Y]), 0.0))
    with pytest.raises(ValueError, match="rate=0"):
        gk.APS(measured(), E, rate=0)
    with pytest.raises(ValueError, match="is for tokens"):
        run(gk.APS(measured(), E), gk.analytic.GaussianMixture([1.0], [0.0], [1.0]))


def test_a_sharp_measurement_is_followed_and_not_overshot():
    """x + .4 y = 1.5 +- .2 of two numbers on a grid: a few large steps go past it."""
    places = torch.linspace(-3.5, 3.5, 24)[:, None]
    at = torch.stack(torch.meshgrid(places[:, 0], places[:, 0], indexing="ij"), -1)
    law = gk.analytic.GaussianMixture([0.5, 0.5], [[-1.5, 1.0], [1.5, -1.0]], [0.7, 0.7])
    table = gk.analytic.TokenTable(law.log_prob(at.view(-1, 2)).view(24, 24))
    operator = lambda e: e[..., 0] @ torch.tensor([[1.0], [0.4]])  # noqa: E731
    m = gk.Measurement(operator, torch.tensor([1.5]), 0.2)
    near = {}
    for name, guides in {
        "plain": [],
        "large": [gk.APS(m, places, iters=5, rate=0.3)],
        "aps": [gk.APS(m, places)],
    }.items():
        x = gk.sample(table, 600, steps=12, guides=guides).x
        near[name] = float((m.rest(places[x]).abs() < 0.6).double().mean())
    assert near["aps"] > max(near["large"], near["plain"]) + 0.06, near  # a standard error is 0.02

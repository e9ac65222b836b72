"""Measurements one after the other: frames of a sequence from the last one, and where to measure next, both against
closed forms of Gaussians."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import guidekit as gk

VAR = torch.tensor([1.0, 0.9, 0.3, 0.6], dtype=torch.float64)
TIED = torch.tensor([[0, 0.9, 0, 0], [0.9, 0, 0, 0], [0, 0, 0, 0.2], [0, 0, 0.2, 0]], dtype=torch.float64)
COV = torch.diag(VAR) + TIED * (VAR[:, None] * VAR).sqrt()  # the second number nearly follows from the first
CENTRE = torch.tensor([0.4, -1.0, 0.2, 0.0], dtype=torch.float64)


def gaussian(cov: Tensor, centre: Tensor) -> gk.GaussianModel:
    """N(centre, cov) with its exact denoiser, E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)."""

    def net(x: Tensor, t: Tensor, cond) -> Tensor:
        alpha, sigma = math.cos(math.pi * float(t[0]) / 2), math.sin(math.pi * float(t[0]) / 2)
        gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(len(cov)).double())
        return centre + (x - alpha * centre) @ gain.mT

    return gk.GaussianModel(net, centre.shape, predicts="clean")


def variance(measured: list[int], noise: float) -> Tensor:
    """Of each number, given those that were measured."""
    if not measured:
        return COV.diagonal()
    K, own = COV[:, measured], COV[measured][:, measured] + noise**2 * torch.eye(len(measured)).double()
    return COV.diagonal() - (K @ torch.linalg.inv(own) * K).sum(1)


@pytest.mark.parametrize("criterion", ["entropy", "variance"])
def test_of_a_gaussian_the_number_of_the_largest_variance_is_next(criterion: str):
    noise, truth, asked = 0.1, torch.tensor([0.5, -0.6, 0.1, 0.3]), []
    found = gk.search.active(
        gaussian(COV, CENTRE), lambda a: (asked.append(a), truth)[1], torch.eye(4).bool(), lambda m: [gk.TMPD(m)], 300,
        budget=3, noise=noise, criterion=criterion, steps=25,
    )  # fmt: skip
    order, measured = [], []
    for _ in range(3):
        v = variance(measured, noise)
        v[measured] = -1
        order.append(int(v.argmax()))
        measured = [*measured, order[-1]]
    assert order == [0, 3, 2] == found.chosen == asked  # and not 0, 1, 3, by the variances of the model
    if criterion == "variance":
        for number, row in enumerate(found.information):
            known = variance(order[:number], noise)
            left = [i for i in range(4) if i not in order[:number]]
            assert (row[left] / known[left] - 1).abs().max() < 4.5 * (2 / 300) ** 0.5 + 0.1  # and 25 steps
    assert torch.equal(found.measurement.operator.where, torch.tensor([True, False, True, True]))
    last = variance(order, noise).sqrt()
    K = COV[:, [0, 2, 3]] @ torch.linalg.inv(COV[[0, 2, 3]][:, [0, 2, 3]] + noise**2 * torch.eye(3).double())
    mean = CENTRE + K @ (truth.double() - CENTRE)[[0, 2, 3]]
    assert ((found.result.x.double().mean(0) - mean).abs() < 4.5 * last / 300**0.5 + 0.03).all()


def test_the_entropy_is_that_of_the_formula_under_weights():
    x, w, noise = torch.tensor([[0.0, 1.0], [0.3, 1.0], [2.0, -1.0]]), torch.tensor([0.5, 0.3, 0.2]).double(), 0.4
    result = gk.sample(gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0]), 3, steps=2)
    result = replace(result, x=x, samples=x, log_weights=w.log())
    found = gk.search.information(result, [lambda x: x[:, :1], lambda x: x.sum(1, keepdim=True)], noise)
    for k, u in enumerate((x[:, 0].double(), x.sum(1).double())):
        near = [[math.exp(-(float(a - b) ** 2) / (2 * noise**2)) for b in u] for a in u]
        mixed = [sum(float(v) * k for v, k in zip(w, row, strict=True)) for row in near]
        own = -sum(float(v) * math.log(m) for v, m in zip(w, mixed, strict=True))
        assert float(found[k]) == pytest.approx(own, abs=1e-6)
    spread = gk.search.information(result, torch.eye(2).bool(), noise, "variance")
    assert torch.allclose(spread, w @ x.double().square() - (w @ x.double()).square(), atol=1e-6)


def test_a_frame_forgets_as_much_of_the_last_one_as_its_level_says():
    """Unit variance, so that PiGDM is exact; the flow ODE maps the noised samples of the last frame in closed form."""
    n, noise, level = 1500, 0.5, 0.6
    base = gk.analytic.GaussianMixture(torch.ones(1).double(), torch.zeros(1, 1).double(), torch.ones(1).double())
    frames = [gk.Measurement(torch.ones(1, 1).double(), torch.tensor([y]), noise) for y in (2.0, -1.0)]
    first, second = gk.search.sequential(
        base, frames, lambda m: [gk.PiGDM(m)], n, level=level, steps=80, solver=gk.solvers.DDIM()
    )
    c = noise**2 / (1 + noise**2)
    a, s = math.cos(math.pi * level / 2), math.sin(math.pi * level / 2)
    old, new = 2.0 / (1 + noise**2), -1.0 / (1 + noise**2)
    mean = new + (c / (a**2 * c + s**2)) ** 0.5 * a * (old - new)
    assert abs(float(first.x.mean()) - old) < 4.5 * (c / n) ** 0.5 + 0.03
    assert abs(float(second.x.mean()) - mean) < 4.5 * (c / n) ** 0.5 + 0.03
    assert mean - new > 0.3  # it lags, as the page says
    assert second.cost.network_rows == n * 48 and first.cost.network_rows == n * 80


def test_frames_follow_a_transition_and_weights_are_resampled():
    base = gk.analytic.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.2])
    frames = [gk.Measurement(torch.ones(1, 1), torch.tensor([y]), 0.4) for y in (1.0, -1.0)]
    seen = []

    def turned(x: Tensor) -> Tensor:
        seen.append(x)
        return -x

    weigh = lambda m: [gk.FKSteering(m, 1.0, ess=0.0)]  # noqa: E731
    first, second = gk.search.sequential(base, frames, weigh, 400, level=0.1, steps=20, transition=turned)
    even = float((seen[0] > 0).double().mean())  # as many as have the weight
    assert abs(even - float(first.weights @ (first.x[:, 0] > 0).double())) < 0.08 and even > 0.9
    assert float((second.x < 0).double().mean()) > 0.9  # at this level none goes from one side to the other


def test_what_cannot_be_is_refused():
    base = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    ask = lambda masks, **options: gk.search.active(base, lambda a: None, masks, lambda m: [], 4, **options)  # noqa: E731
    with pytest.raises(ValueError, match="boolean masks"):
        ask(torch.eye(2), budget=1)
    with pytest.raises(ValueError, match="an int from 1 to 2"):
        ask(torch.eye(2).bool(), budget=3)
    with pytest.raises(ValueError, match="there is entropy, variance"):
        ask(torch.eye(2).bool(), budget=1, criterion="size", steps=2)
    with pytest.raises(ValueError, match="noise=0"):
        ask(torch.eye(2).bool(), budget=1, noise=0, steps=2)
    with pytest.raises(ValueError, match=r"masks of \(3,\)"):
        ask(torch.eye(3).bool(), budget=1, steps=2)
    with pytest.raises(ValueError, match="frames is empty"):
        gk.search.sequential(base, [], lambda m: [], 4)
    with pytest.raises(ValueError, match="level=0"):
        gk.search.sequential(base, [None], lambda m: [], 4, level=0)

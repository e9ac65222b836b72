"""Noise that drifts to a degraded sample: laws against their equations, posteriors in closed form, weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk

LAWS = {
    "residual": gk.drifts.Residual(0.8),
    "mean-reverting": gk.drifts.MeanReverting(0.7, 5.0),
    "resfusion": gk.drifts.Resfusion(),
    "OUVE": gk.drifts.OUVE(3.0, 0.05, 1.5),
}
GAIN, SHIFT, STD = 0.6, 0.4, 0.5  # x_0 given y is N(GAIN y + SHIFT, STD^2)
every = pytest.mark.parametrize("name", LAWS)


def at(law: Any, t: float) -> tuple[float, float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return *map(float, law(time)), float(law.b(time))


@every
def test_a_law_begins_at_the_sample_and_its_signal_fades(name: str):
    assert at(LAWS[name], 0.0) == (1.0, 0.0, 0.0)
    snr = [a / s for a, s, _ in (at(LAWS[name], i / 20) for i in range(1, 21))]
    assert snr == sorted(snr, reverse=True)
    for t in (0.2, 1.0):
        alpha, sigma, b = at(LAWS[name], t)
        if name == "residual":  # x_0 + t (y - x_0), and noise
            assert (alpha + b, b, sigma) == pytest.approx((1.0, t, 0.8 * t))
        if name == "resfusion":  # c x_0 + (1 - c) (y - x_0), and noise that preserves c^2 + sigma^2
            assert (alpha + b, b**2 - 2 * b + 1 + sigma**2) == pytest.approx((1 - b, 1.0))


@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
@pytest.mark.parametrize("name", ["mean-reverting", "OUVE"])
def test_the_moments_solve_the_stochastic_differential_equation(name: str, t: float):
    """dx = theta' (y - x) dt + g dw: of the mean's two parts and of the variance."""
    law, h = LAWS[name], 1e-5
    rate = 3.0 if name == "OUVE" else 2 * 5.0 * t
    k = 1.5 / 0.05
    g2 = (0.05 * k**t) ** 2 * 2 * math.log(k) if name == "OUVE" else 2 * 0.7**2 * rate
    (a0, s0, b0), (a1, s1, b1), (a, s, b) = at(law, t - h), at(law, t + h), at(law, t)
    assert (a1 - a0) / (2 * h) == pytest.approx(-rate * a, rel=1e-5)
    assert (b1 - b0) / (2 * h) == pytest.approx(rate * (1 - b), rel=1e-5)
    assert (s1**2 - s0**2) / (2 * h) == pytest.approx(g2 - 2 * rate * s**2, rel=1e-5)


def model(name: str, predicts: str = "clean") -> gk.DriftingModel:
    """The exact denoiser, as a function of x_t itself."""
    law = LAWS[name]

    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha, sigma, b = at(law, float(t[0]))
        mean = GAIN * y + SHIFT
        clean = mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - b * y - alpha * mean)
        return clean if predicts == "clean" else (x - b * y - alpha * clean) / sigma

    return gk.DriftingModel(net, (1,), law, predicts, dtype=torch.float64)


Y = [torch.tensor([-1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]


@pytest.mark.parametrize("predicts", ["clean", "noise"])
@every
def test_samples_are_those_of_the_posterior_given_y(name: str, predicts: str):
    """By second-order steps, which are MR sampling's for the mean-reverting law; the prior lacks alpha(1) x_0."""
    n, own = 4000, model(name, predicts)
    x = gk.sample(own, n, steps=40, solver=gk.solvers.DPMpp(), cond=Y, seed=1).x.view(2, n)
    for group, y in zip(x, Y, strict=True):
        alpha, sigma, _ = at(LAWS[name], own.process.t_max)
        mean = GAIN * float(y) + SHIFT
        lost = STD * alpha * abs(mean) / math.hypot(alpha * STD, sigma)
        assert abs(float(group.mean()) - mean) < 4 * STD / n**0.5 + lost + 0.01
        assert abs(float(group.std()) - STD) < 4 * STD / (2 * n) ** 0.5 + 0.02


@every
def test_log_z_is_that_of_the_posterior(name: str):
    guides = [gk.FKSteering(lambda x: x[:, 0], alpha=0.8)]
    result = gk.sample(model(name), 4000, steps=50, cond=Y, guides=guides, seed=2)
    for found, y in zip(result.log_z, Y, strict=True):
        exact = (GAIN * float(y) + SHIFT) / 0.8 + 0.5 * (STD / 0.8) ** 2
        assert abs(float(found) - exact) < 0.06


def test_y_stays_where_a_condition_is_left_out():
    def net(x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return cond["y"] + cond["label"][:, None]

    null = {"y": torch.zeros(2), "label": torch.tensor(0.0)}
    own = gk.DriftingModel(net, (2,), gk.drifts.Residual(), "clean", None, lambda c: {"y": c[0], "label": c[1]}, null)
    cond = torch.tensor([3.0, -1.0]), torch.tensor(1.0)
    plain = gk.sample(own, 1, steps=3, cond=[cond]).x
    doubled = gk.sample(own, 1, steps=3, cond=[cond], guides=[gk.CFG(2.0)]).x
    torch.testing.assert_close(plain, torch.tensor([[4.0, 0.0]]))
    torch.testing.assert_close(doubled, torch.tensor([[5.0, 1.0]]))


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"law=Cosine\(\): a schedule with a drift b\(t\) is needed"):
        gk.DriftingModel(lambda x, t, y: x, (1,), gk.schedules.Cosine())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a drifting model needs the sample y as its condition"):
        gk.sample(model("residual"), 2, steps=3)
    with pytest.raises(ValueError, match=r"drifts to has shape \(2, 3\); \(2, 1\) is needed"):
        gk.sample(model("residual"), 2, steps=3, cond=torch.zeros(3))

"""Reflected diffusion: folded normals, and the exact law of densities that are sums of cosines."""

from __future__ import annotations

import math

import pytest
import torch

import guidekit as gk
from guidekit.process.reflected import Folded, fold
from guidekit.solvers import DDIM, DDPM, Move, SDEDPMpp

A, B, LOW, HIGH = 0.7, -0.25, -1.0, 2.0  # p(u) = 1 + A cos(pi u) + B cos(2 pi u), u = (x - LOW)/(HIGH - LOW)
LENGTH = HIGH - LOW


def score(x, t, cond):
    """Of the density whose cosines have decayed with the heat kernel."""
    sigma = gk.schedules.EDM(sigma_max=9.0)(t.double())[1][:, None] / LENGTH
    u = (x - LOW) / LENGTH * math.pi
    a, b = A * (-((math.pi * sigma) ** 2) / 2).exp(), B * (-((2 * math.pi * sigma) ** 2) / 2).exp()
    density = 1 + a * u.cos() + b * (2 * u).cos()
    return -(a * u.sin() + 2 * b * (2 * u).sin()) * math.pi / LENGTH / density


def cdf(x):
    u = (x - LOW) / LENGTH
    return u + A * (math.pi * u).sin() / math.pi + B * (2 * math.pi * u).sin() / (2 * math.pi)


def model():
    return gk.ReflectedModel(score, (1,), LOW, HIGH, gk.schedules.EDM(sigma_max=9.0), dtype=torch.float64)


@pytest.mark.parametrize("solver", [DDPM(times="karras"), SDEDPMpp(2, times="karras"), DDIM(times="karras")], ids=repr)
def test_samples_have_the_law_of_the_data(solver):
    n = 8000
    x = gk.sample(model(), n, steps=80, solver=solver, seed=3).x[:, 0].sort().values
    assert x[0] >= LOW and x[-1] <= HIGH
    distance = (cdf(x) - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
    assert distance < 1.63 / n**0.5 + 0.006  # the 1 % point of Kolmogorov and Smirnov, and the steps


def test_log_z_is_that_of_the_data_and_proposals_are_corrected_for():
    """Of exp(x); the gradient of the reward bends the proposal, whose folded kernel the weights divide by."""
    x = torch.linspace(LOW, HIGH, 20_001, dtype=torch.float64)
    density = torch.gradient(cdf(x), spacing=(x,))[0]
    exact = torch.trapezoid(density * x.exp(), x).log()
    run = {"steps": 60, "solver": DDPM(times="karras")}
    found = gk.sample(model(), 4000, guides=[gk.FKSteering(lambda v: v[:, 0], 1.0)], **run)
    assert abs(float(found.log_z) - exact) < 0.05
    steered = gk.sample(model(), 4000, guides=[gk.TDS(lambda v: v[:, 0], 1.0)], **run)
    assert abs(float(steered.log_z) - exact) < 0.05
    assert float(steered.x.min()) >= LOW and float(steered.x.max()) <= HIGH


@pytest.mark.parametrize("c", [0.05, 0.8, 2.5, 7.0])
def test_folded_kernels_are_densities_of_their_samples(c):
    x = torch.tensor([[0.4]], dtype=torch.float64)
    kernel = Folded(x, (x + 5.0,), Move(0.5, 0.4, 0.7, (0.5,), c), LOW, HIGH)
    grid = torch.linspace(LOW, HIGH, 4001, dtype=torch.float64)
    own = Folded(x.expand(4001, 1), (x.expand(4001, 1) + 5.0,), kernel.move, LOW, HIGH)
    density = own.log_prob(grid[:, None]).exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-5)
    z = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = (
        Folded(x.expand(40_000, 1), (x.expand(40_000, 1) + 5.0,), kernel.move, LOW, HIGH).push(z).sort(0).values[:, 0]
    )
    below = torch.cumulative_trapezoid(density, grid)
    at = below[(torch.searchsorted(grid, drawn) - 1).clamp(0, 3999)]
    assert (at - (torch.arange(40_000) + 0.5) / 40_000).abs().max() < 1.63 / 200 + 1e-3


def test_reflections_are_even_and_periodic():
    x = torch.tensor([0.2, -0.2, 4.2, -3.8, 2.5, 3.9], dtype=torch.float64)
    torch.testing.assert_close(fold(x, 0.0, 2.0), torch.tensor([0.2, 0.2, 0.2, 0.2, 1.5, 0.1], dtype=torch.float64))


def test_what_cannot_be_reflected_is_refused():
    with pytest.raises(ValueError, match=r"schedule=Cosine\(\): reflection needs exploding variance"):
        gk.ReflectedModel(score, (1,), schedule=gk.schedules.Cosine())
    with pytest.raises(ValueError, match="sigma of at least 2 at t = 1"):
        gk.ReflectedModel(score, (1,), schedule=gk.schedules.EDM(sigma_max=1.0))
    with pytest.raises(ValueError, match=r"low=1\.0, high=1\.0: an interval is needed"):
        gk.ReflectedModel(score, (1,), 1.0, 1.0)
    with pytest.raises(ValueError, match="log_prob is not there for reflected models"):
        model().log_prob(torch.zeros(1, 1))

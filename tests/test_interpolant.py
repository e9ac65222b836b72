"""Stochastic interpolants: the exact fields between two mixtures carry the one into the other, with any noise."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit.solvers import DDIM, DPMpp

F = torch.float64
MADE = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=F) for v in ([0.7, 0.3], [-1.5, 1.0], [0.4, 0.6])))
GIVEN = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=F) for v in ([0.4, 0.6], [0.0, 3.0], [0.5, 0.3])))
STRENGTH = 0.8


def fields(x, t):
    """E[x_0 | x_t], E[x_1 | x_t] and E[z | x_t], by the posterior of both components."""
    gamma2 = STRENGTH**2 * t * (1 - t)
    rho, means = [], []
    for w, m, s in zip(MADE.weights, MADE.means, MADE.stds, strict=True):
        for v, n, r in zip(GIVEN.weights, GIVEN.means, GIVEN.stds, strict=True):
            var = (1 - t) ** 2 * s**2 + t**2 * r**2 + gamma2
            off = x - (1 - t) * m - t * n
            rho.append((w * v / var.sqrt()).log() - 0.5 * off**2 / var)
            parts = m + (1 - t) * s**2 * off / var, n + t * r**2 * off / var, gamma2**0.5 * off / var
            means.append(torch.stack(parts))
    rho = torch.stack(rho).softmax(0)
    return (rho[:, None] * torch.stack(means)).sum(0)


def slope(t):
    return STRENGTH * (1 - 2 * t) / (2 * (t * (1 - t)) ** 0.5) if 0 < t < 1 else 0.0


def model(epsilon=0.5, predicts="clean"):
    def net(x, t, cond):
        t = float(t[0])
        clean, other, z = fields(x, t)
        return torch.stack([clean if predicts == "clean" else other - clean + slope(t) * z, z], 1)

    return gk.InterpolantModel(net, (1,), STRENGTH, epsilon, predicts, dtype=F)


def cdf(x):
    z = (x[:, None] - MADE.means[:, 0]) / MADE.stds
    return (MADE.weights * torch.special.ndtr(z)).sum(1)


@pytest.mark.parametrize("predicts", ["clean", "velocity"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_samples_of_one_data_set_become_samples_of_the_other(epsilon, predicts):
    n = 6000
    start = gk.StartFrom(GIVEN.exact_sample(n, seed=5), level=1.0)
    x = gk.sample(model(epsilon, predicts), n, steps=200, guides=[start]).x[:, 0].sort().values
    distance = (cdf(x) - (torch.arange(n, dtype=F) + 0.5) / n).abs().max()
    assert distance < 1.63 / n**0.5 + 0.01  # the 1 % point of Kolmogorov and Smirnov, and the steps


def test_weights_are_exact_on_the_way():
    exact = float(MADE.log_z(linear=1.0, alpha=0.8))
    start = gk.StartFrom(GIVEN.exact_sample(6000, seed=6), level=1.0)
    guides = [start, gk.FKSteering(lambda x: x[:, 0], alpha=0.8)]
    found = gk.sample(model(1.0), 6000, steps=100, guides=guides)
    mean = float(MADE.tilted(linear=1.0, alpha=0.8).exact_sample(100_000).mean())
    assert abs(float(found.log_z) - exact) < 0.08
    assert abs(float((found.weights * found.x[:, 0]).sum()) - mean) < 0.1


def test_both_kinds_of_fields_make_the_same_moves_and_the_clean_estimate_is_that_of_x_0():
    x = GIVEN.exact_sample(7, seed=1)
    for t in (0.8, 0.5, 0.1):
        a, b = model()(x, t, None), model(predicts="velocity")(x, t, None)
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(model().process.clean(a, x), fields(x, t)[0])


def test_bad_input_is_refused_before_the_network_is_called():
    start = gk.StartFrom(GIVEN.exact_sample(4), level=1.0)
    with pytest.raises(ValueError, match=r"begins with samples y of its other data set: give guides=\[gk.StartFrom"):
        gk.sample(model(), 4, steps=5)
    with pytest.raises(ValueError, match="an interpolant has moves of its own"):
        gk.Run(model(), 4, steps=5, guides=[start], solver=DPMpp())
    with pytest.raises(ValueError, match="from t = 1 down to 0"):
        gk.Run(model(), 4, steps=[0.8, 0.3, 0.0], guides=[start])
    with pytest.raises(ValueError, match="is deterministic"):
        gk.Run(model(0.0), 4, steps=5, guides=[start, gk.FKSteering(lambda x: x[:, 0], 1.0)])
    with pytest.raises(ValueError, match=r"strength=0\.0"):
        gk.InterpolantModel(lambda x, t, cond: x, (1,), 0.0)
    with pytest.raises(ValueError, match="there is 'clean' and 'velocity'"):
        gk.InterpolantModel(lambda x, t, cond: x, (1,), predicts="noise")
    assert not any(move.c for move in gk.Run(model(), 4, steps=5, guides=[start], solver=DDIM()).moves)

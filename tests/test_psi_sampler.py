"""PsiSampler: its moves keep the tilted noise, and its weights correct for a start that they have not reached."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import guidekit as gk

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
BASE = gk.analytic.GaussianMixture(
    *(torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.4], [-1.0, 1.5], [0.5, 0.7])), gk.schedules.Flow()
)
DDIM = gk.solvers.DDIM()


def reward(x):
    return x[:, 0] - 0.2 * x[:, 0].square()


def phi(z: np.ndarray, steps: int) -> np.ndarray:
    """r(D(z))/.5 by Euler steps of dx/dt = (x - d)/t, written out here."""
    x = z.copy()
    times = np.linspace(1, 0, steps + 1)
    for t, s in pairwise(times):
        a, pi, m, v = 1 - t, np.array([0.6, 0.4]), np.array([-1.0, 1.5]), np.array([0.25, 0.49])
        var = a**2 * v + t**2
        rho = pi * np.exp(-((x[:, None] - a * m) ** 2) / 2 / var) / np.sqrt(var)
        rho /= rho.sum(1, keepdims=True)
        d = (rho * (m + a * v / var * (x[:, None] - a * m))).sum(1)
        x = x + (s - t) * (x - d) / t
    return (x - 0.2 * x**2) / 0.5


def started(**options) -> gk.Population:
    run = gk.Run(BASE, 4000, steps=[1.0, 0.0], solver=DDIM, guides=[gk.PsiSampler(reward, 0.5, flow=3, **options)])
    with torch.no_grad():
        return run.start()


@pytest.mark.parametrize("gradient", [True, False])
def test_the_start_is_the_tilted_noise_and_its_weights_integrate_it(gradient: bool):
    """N(z; 0, 1) exp(phi(z)) on a grid: its integral and moments, from few tempers, by the weights."""
    pop = started(levels=4, rho=0.5, gradient=gradient)
    assert torch.allclose(pop.memos[0][0], torch.tensor(phi(pop.x[:, 0].numpy(), 3)), atol=1e-5)  # times in float32
    grid = np.linspace(-6, 6, 2001)
    mass = np.exp(phi(grid, 3) - grid**2 / 2) / np.sqrt(2 * np.pi) * (grid[1] - grid[0])
    w, z = pop.log_w.exp().numpy(), pop.x[:, 0].numpy()
    for f in (np.ones_like, np.array, np.square, lambda v: v > 1.0):
        own = w * f(z)
        assert abs(own.mean() - mass @ f(grid)) < 4.5 * own.std() / 4000**0.5  # fails by chance once in 10^5
    # the moves have done something: without them the weights are exp(phi)
    plain = started(levels=1, rho=0.999, gradient=gradient)
    assert float(pop.ess) > 1.15 * float(plain.ess)


@pytest.mark.parametrize("gradient", [True, False])
def test_a_move_keeps_the_tilted_noise(gradient: bool):
    """After many moves at the last temper the moments are those of the grid without the weights."""
    pop = started(levels=1, moves_each=40, rho=0.6, gradient=gradient)
    grid = np.linspace(-6, 6, 2001)
    mass = np.exp(phi(grid, 3) - grid**2 / 2)
    mass /= mass.sum()
    z = pop.x[:, 0].numpy()
    for f in (np.array, np.square, lambda v: v > 1.0):
        mean = mass @ f(grid)
        assert abs(f(z).mean() - mean) < 4.5 * np.sqrt(mass @ (f(grid) - mean) ** 2 / 4000)


def test_with_a_deterministic_solver_particles_are_more_even_than_by_importance_sampling():
    """And both have the same Z and mean, of the chain of 12 steps, which 3 steps only resemble."""
    found = {}
    for levels in (0, 6):
        guide = gk.PsiSampler(reward, 0.25, levels=levels, flow=3, rho=0.5)
        found[levels] = gk.sample(BASE, 3000, steps=12, guides=[guide], solver=DDIM)
    plain, psi = found[0], found[6]
    assert float(psi.ess) > 1.5 * float(plain.ess)
    for f in (torch.ones_like, lambda x: x, torch.square):
        one, two = (r.log_weights.exp() * f(r.x[:, 0]) for r in (plain, psi))
        error = ((one.var() + two.var()) / 3000).sqrt()
        assert abs(one.mean() - two.mean()) < 4.5 * error


def test_samples_that_cannot_be_scored_weigh_nothing_and_the_others_what_they_should():
    def partial(x):
        return torch.where(x[:, 0] < -1.5, torch.nan, reward(x))

    with pytest.warns(UserWarning, match="could not be scored"):
        guided = gk.sample(BASE, 3000, steps=12, solver=DDIM, guides=[gk.PsiSampler(partial, 0.5, levels=3, flow=2)])
    plain = gk.sample(BASE, 3000, steps=12, solver=DDIM, seed=1)
    one = torch.where(plain.x[:, 0] < -1.5, 0.0, (reward(plain.x) / 0.5).exp())
    two = guided.log_weights.exp()
    assert abs(one.mean() - two.mean()) < 4.5 * ((one.var() + two.var()) / 3000).sqrt()


def test_what_is_wrong_is_said_before_the_network_is_called():
    for wrong in ({"levels": -1}, {"rho": 1.0}, {"flow": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            gk.PsiSampler(reward, 1.0, **wrong)
    fixed = gk.StartFrom(torch.zeros(1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="both say where the run starts"):
        gk.Run(BASE, 4, guides=[gk.PsiSampler(reward, 1.0), fixed])
    with pytest.raises(ValueError, match="put PsiSampler before FKSteering"):
        gk.Run(BASE, 4, guides=[gk.FKSteering(reward, 1.0), gk.PsiSampler(reward, 1.0)])
    with pytest.raises(ValueError, match="tokens start from none"):
        gk.Run(gk.analytic.TokenTable(torch.zeros(2, 2)), 4, guides=[gk.PsiSampler(reward, 1.0)])

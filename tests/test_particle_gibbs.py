"""Particle Gibbs: chains reach the tilted law with so few particles that one run of them is far from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.search.particle_gibbs import first_stays, particle_gibbs

from .problems import chain_of_tokens

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
LOGITS = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
TABLE = gk.analytic.TokenTable(LOGITS)
BASE = gk.analytic.GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.5, 0.8])
ALPHA, CHAINS, STEPS = 0.5, 500, 3


def reward(x: torch.Tensor) -> torch.Tensor:
    return 0.8 * x[:, 0].double() - 0.7 * (x[:, 2].double() - 1) ** 2 + 0.3 * (x[:, 1] == 0)


def far(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0]


def truth() -> np.ndarray:
    p = chain_of_tokens(LOGITS.flatten().softmax(0).numpy(), False, STEPS)
    w = p * np.exp(reward(TABLE.states).numpy() / ALPHA)
    return w / w.sum()


def deviation(x: torch.Tensor) -> float:
    """The largest error of a share of states, in standard errors."""
    p = truth()
    found = np.array([float((x == s).all(1).double().mean()) for s in TABLE.states])
    return float(np.abs((found - p) / np.sqrt(p * (1 - p) / len(x))).max())


@pytest.mark.parametrize(
    "guide, particles", [(gk.FKSteering(reward, ALPHA), 2), (gk.FKSteering(reward, ALPHA, ess=1.0), 3)]
)
def test_chains_of_few_particles_reach_the_tilted_law(guide: gk.Guide, particles: int):
    found = particle_gibbs(TABLE, CHAINS, [guide], particles=particles, sweeps=14, steps=STEPS, seed=1)
    once = particle_gibbs(TABLE, CHAINS, [guide], particles=particles, sweeps=1, steps=STEPS, seed=1)
    assert deviation(found.x) < 4.5 < deviation(once.x)
    assert len(found) == CHAINS and not found.log_weights.any() and len(found.trace) == 14


def test_the_kept_path_comes_back_bit_for_bit():
    """With weights that are all on the kept path, every sweep ends in it, and the sample never changes."""
    guide = gk.FKSteering(reward, 1e-6)
    one, two = (particle_gibbs(TABLE, 3, [guide], particles=2, sweeps=k, steps=4, seed=2) for k in (1, 1))
    assert torch.equal(one.x, two.x)
    best = particle_gibbs(BASE, 4, [gk.FKSteering(far, 1e-6)], particles=8, sweeps=6, steps=5)
    rewards = best.trace["mean_reward"]
    assert (rewards.diff() >= 0).all() and rewards[-1] > rewards[0]
    kept = particle_gibbs(BASE, 4, [gk.FKSteering(far, 1e-6)], particles=8, sweeps=5, steps=5)
    still = best.x[:, 0] == kept.x[:, 0]
    assert still.any() and (best.x[:, 0] > kept.x[:, 0])[~still].all()
    assert float((~still).double().mean()) == best.trace["changed"][-1]


def test_of_conditions_and_gaussians():
    """Two conditions, whose chains follow the tilt of each: the mean of N(m, 1) tilted by exp(x) is m + 1."""

    def net(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        a, m = (1 - t)[:, None], cond[:, None]
        return m + a / (a**2 + (1 - a) ** 2) * (x - a * m)

    model = gk.GaussianModel(net, (1,), schedule=gk.schedules.Flow(), predicts="clean")
    found = particle_gibbs(
        model, 150, [gk.FKSteering(far, 1.0)], particles=4, sweeps=6, steps=12, cond=[-1.0, 2.0], seed=3
    )
    plain = gk.sample(model, 4000, steps=12, cond=[-1.0, 2.0], seed=5)
    w = (far(plain.x) / 1.0).double().exp().view(2, -1)
    mean = (w * plain.x.view(2, -1)).sum(1) / w.sum(1)
    spread = found.x.view(2, -1).double().std(1) / 150**0.5
    assert found.groups == 2 and ((found.x.view(2, -1).double().mean(1) - mean).abs() < 4.5 * spread).all()
    assert found.cost.network_rows == 6 * 2 * 150 * 4 * 12


def test_resampling_keeps_the_first_place_and_draws_the_others_by_weight():
    w = torch.tensor([[0.1, 0.6, 0.0, 0.3]], dtype=torch.float64)
    keys = random.fold(random.key([1]), torch.arange(3000))
    drawn = first_stays(w.expand(3000, -1), 4, keys)
    assert (drawn[:, 0] == 0).all()
    for place in range(1, 4):
        share = torch.bincount(drawn[:, place], minlength=4) / 3000
        assert ((share - w[0]).abs() <= 4.5 * (w[0] * (1 - w[0]) / 3000).sqrt()).all()


def test_guides_by_which_a_path_is_no_function_of_its_noise_are_refused():
    wrong: tuple[Any, ...] = (
        gk.SVDD(far, 0.5),
        gk.BestOfN(far, 2),
        gk.DAS(far, 0.5),
        gk.FKSteering(far, 0.5, value=gk.values.Rollout(far)),
        gk.StartFrom(torch.zeros(2, 1)),
    )
    for guide in wrong:
        with pytest.raises(ValueError, match="no function of its own noise"):
            particle_gibbs(BASE, 2, [guide], steps=3)
    with pytest.raises(ValueError, match="particles=1"):
        particle_gibbs(BASE, 2, [], particles=1)

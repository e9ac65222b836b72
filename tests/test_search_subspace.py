"""Subspace search: the Gaussian process and its expected improvement by other means, and what it gains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.search.gp import LENGTHS, NOISES, Process, expected_improvement

from .problems import PROBLEMS, STEPS
from .test_search import Killed, normal

S = gk.search
DDIM = {"steps": 3, "solver": gk.solvers.DDIM()}


def directions(*shape: int, seed: int = 0) -> Tensor:
    w = gk.random.normal(gk.random.key(seed), shape, torch.float64)
    return w / w.norm(dim=-1, keepdim=True)


def by_numpy(w: Tensor, y: Tensor, length: float, noise: float, at: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """mu, sd and the log-likelihood of the profile, with inverses written out."""
    seen = np.isfinite(y.numpy())
    w, at, y = w.numpy()[seen], at.numpy(), y.numpy()[seen]
    kernel = lambda a, b: np.exp(-(np.linalg.norm(a[:, None] - b, axis=-1) ** 2) / (2 * length**2))  # noqa: E731
    inverse = np.linalg.inv(kernel(w, w) + noise * np.eye(len(w)))
    one = np.ones(len(w))
    mean = one @ inverse @ y / (one @ inverse @ one)
    s2 = (y - mean) @ inverse @ (y - mean) / len(w)
    k = kernel(at, w)
    cov = s2 * np.linalg.inv(inverse)
    log_p = -0.5 * ((y - mean) @ np.linalg.inv(cov) @ (y - mean) + np.linalg.slogdet(2 * np.pi * cov)[1])
    return mean + k @ inverse @ (y - mean), np.sqrt(s2 * (1 - np.sum(k @ inverse * k, 1))), log_p


def test_the_posterior_and_its_likelihood_are_those_of_the_formulas_in_every_cell():
    w, y, at = (
        directions(3, 9, 4),
        gk.random.normal(gk.random.key(1), (3, 9), torch.float64),
        directions(3, 6, 4, seed=2),
    )
    y[0, 4] = y[2, :3] = -torch.inf  # not scored
    length, noise = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1e-2, 0.3, 1e-4]).double()
    process, log_p = Process.given(w, 5 * y - 3, length, noise)
    mu, sd = process.posterior(at)
    for cell in range(3):
        wanted = by_numpy(w[cell], 5 * y[cell] - 3, float(length[cell]), float(noise[cell]), at[cell])
        assert np.allclose(mu[cell], wanted[0]) and np.allclose(sd[cell], wanted[1], rtol=1e-6)
        count = int(y[cell].isfinite().sum())  # the constant that is left out
        assert float(log_p[cell]) - count / 2 * (1 + math.log(2 * math.pi)) == pytest.approx(wanted[2])


def test_length_and_noise_are_those_of_the_largest_likelihood():
    w = directions(2, 30, 4)
    smooth = w[0] @ torch.tensor([1.0, -2.0, 0.5, 0.3]).double()
    rough = gk.random.normal(gk.random.key(3), (30,), torch.float64)
    process = Process.fitted(w, torch.stack([smooth, rough]))
    for cell, y in enumerate((smooth, rough)):
        grid = {(l, g): by_numpy(w[cell], y, l, g, w[cell])[2] for l in LENGTHS for g in NOISES}
        best = max(grid, key=lambda key: grid[key])
        assert (float(process.length[cell]), float(process.noise[cell])) == best
    assert process.length[0] >= 2 and process.noise[0] == NOISES[0]
    assert process.length[1] <= 0.5 or process.noise[1] == NOISES[-1]


def test_expected_improvement_is_the_integral():
    mu, sd, best = torch.tensor([0.3, -1.0, 2.0]).double(), torch.tensor([0.5, 2.0, 0.1]).double(), torch.tensor(0.4)
    u = torch.linspace(-9, 9, 400_001, dtype=torch.float64)
    density = (-u.square() / 2).exp() / math.sqrt(2 * math.pi)
    wanted = [torch.trapezoid((m + s * u - best).clamp(min=0) * density, u) for m, s in zip(mu, sd, strict=True)]
    assert torch.allclose(expected_improvement(mu, sd, best), torch.stack(wanted), rtol=1e-6)


def test_the_first_round_asks_the_plain_noises_and_later_ones_unit_combinations_of_them():
    space = S.Space.of(gk.Run(normal(50), 3, **DDIM), None)
    search = S.Subspace(candidates=5, dims=4)
    search.begin(space)
    basis = search.ask()
    assert torch.equal(basis, space.draw(range(4)))
    assert torch.equal(basis[:, 0], gk.sample(normal(50), 3, **DDIM).noise)
    rewards = gk.random.normal(gk.random.key(4), (3, 4), torch.float64)
    search.tell(basis, rewards)
    z = search.ask()
    w = torch.linalg.lstsq(basis.mT, z.mT).solution.mT
    assert torch.allclose(w @ basis, z) and torch.allclose(w.norm(dim=-1), torch.ones(3, 5).double())
    assert torch.allclose(w, search.asked)
    apart = (w @ w.mT - 2 * torch.eye(5)).amax((1, 2))  # those of a round are not all in one place
    assert (apart < 0.999).all()
    assert torch.equal(search.ask(), z)  # the same after the same tells


def test_what_is_asked_has_the_largest_expected_improvement_and_what_failed_is_left_out():
    space = S.Space.of(gk.Run(normal(50), 2, **DDIM), None)
    search = S.Subspace(candidates=2, dims=4)
    search.begin(space)
    search.tell(search.ask(), torch.tensor([[0.0, 1.0, -torch.inf, 0.5], [-torch.inf] * 4]).double())
    pool = search._pool()
    asked = search._chosen(pool)
    w, y = torch.eye(4, dtype=torch.float64)[[0, 1, 3]], torch.tensor([0.0, 1.0, 0.5]).double()
    grid = {(l, g): by_numpy(w, y, l, g, w)[2] for l in LENGTHS for g in NOISES}
    setting = max(grid, key=lambda key: grid[key])
    for place in range(2):
        mu, sd, _ = by_numpy(w, y, *setting, pool[0])
        i = int(expected_improvement(torch.tensor(mu), torch.tensor(sd), y.max()).argmax())
        assert torch.allclose(asked[0, place], pool[0, i])
        w, y = torch.cat([w, pool[0, i, None]]), torch.cat([y, torch.tensor(mu[i : i + 1])])
    assert asked[1].isfinite().all()


def skewed(x: Tensor) -> Tensor:
    """Largest off the centre, with a ripple."""
    aim = torch.linspace(-1, 2, x.shape[1], dtype=x.dtype)
    return -(x - aim).square().mean(1) + 0.3 * (2 * x[:, ::3]).sin().mean(1)


@pytest.mark.slow
def test_a_few_dozen_evaluations_gain_more_than_as_many_fresh_noises():
    base = gk.analytic.GaussianMixture([0.7, 0.3], [[-0.1] * 64, [0.1] * 64], [1.0, 0.8])
    found = S.subspace(base, 100, skewed, rounds=6, candidates=4, dims=8, **DDIM)
    fresh = S.random(base, 100, skewed, rounds=1, candidates=28, **DDIM)
    assert found.cost.network_rows == fresh.cost.network_rows and found.cost.reward_calls == 100 * 28
    gain = found.rewards - fresh.rewards
    assert gain.mean() > 6 * gain.std() / 100**0.5
    plain = gk.sample(base, 100, reward=skewed, **DDIM)
    assert gain.mean() > 0.25 * (fresh.rewards - plain.rewards).mean()
    assert (found.noise.norm(dim=1) / 8 - 1).abs().max() < (8 / 64) ** 0.5 + 0.2


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_noise_gives_the_samples_and_conditions_are_apart(name: str):
    p, options = PROBLEMS[name], {"steps": STEPS, "cond": [PROBLEMS[name].cond, None], "seed": [3, 4]}
    go = lambda **o: S.subspace(p.model, 4, p.reward, rounds=3, candidates=3, dims=4, **o)  # noqa: E731
    found = go(**options)
    assert torch.equal(gk.sample(p.model, 4, noise=found.noise, **options).x, found.x)
    assert torch.allclose(found.rewards, p.reward(found.x).double())
    for g, cond in enumerate(options["cond"]):
        assert torch.equal(go(**options | {"cond": cond, "seed": 3 + g}).x, found.x[found.group == g])


def test_a_killed_search_goes_on_to_the_same_end(tmp_path: Path):
    p = PROBLEMS["flow-2d"]
    killed = Killed(p.reward, 4)
    options = {"rounds": 5, "candidates": 3, "dims": 5, "steps": STEPS, "cond": [1, None]}
    with pytest.raises(KeyboardInterrupt):
        S.subspace(p.model, 3, killed, folder=tmp_path, **options)
    resumed = S.subspace(p.model, 3, killed, folder=tmp_path, **options)
    whole = S.subspace(p.model, 3, p.reward, **options)
    assert torch.equal(resumed.noise, whole.noise) and torch.equal(resumed.rewards, whole.rewards)
    assert resumed.cost.network_rows == whole.cost.network_rows


def test_constant_rewards_and_bad_options():
    flat = S.subspace(normal(40), 2, lambda x: 0 * x[:, 0] + 7, rounds=3, **DDIM)
    assert flat.rewards.tolist() == [7, 7] and torch.equal(flat.x, gk.sample(normal(40), 2, **DDIM).x)
    for wrong in ({"dims": 1}, {"candidates": 0}, {"dims": 2.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            S.subspace(normal(40), 2, skewed, **wrong, **DDIM)

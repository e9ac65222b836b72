"""Amortised starts and proxies of rewards: exact with any network, better with one that was trained."""

from __future__ import annotations

import sys

import pytest
import torch

import guidekit as gk

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
BASE = gk.analytic.GaussianMixture(
    *(torch.tensor(v, dtype=torch.float64) for v in ([0.6, 0.4], [[-1.0, 0.3], [1.5, -0.5]], [0.5, 0.7])),
    gk.schedules.Flow(),
)
ALPHA = 0.5
SHORT = {"steps": 10, "solver": gk.solvers.DDIM()}


def reward(x):
    return x[:, 0] - 0.3 * x[:, 1].square()


def black(x):
    """The same, out of reach of torch."""
    return reward(x.detach()).numpy()


def moments(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """w f(x) of each row, for f = 1, x_0, x_0^2 and [x_1 > 0]."""
    return w[:, None] * torch.stack([torch.ones_like(w), x[:, 0], x[:, 0].square(), (x[:, 1] > 0).double()], 1)


def untilted(n: int, **options) -> torch.Tensor:
    x = gk.sample(BASE, n, seed=1, **options).x
    return moments(x, (reward(x) / ALPHA).exp())


def assert_alike(one: torch.Tensor, two: torch.Tensor) -> None:
    """Two estimates of E[f exp(r/alpha)]: 4.5 standard errors, which fails by chance once in 30,000 for 4 numbers."""
    error = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
    assert ((one.mean(0) - two.mean(0)).abs() < 4.5 * error).all(), (one.mean(0), two.mean(0), error)


def test_any_network_of_noise_gives_the_tilted_law():
    """Of the chain itself, which unguided samples of the same chain with their weights have, too."""
    net = gk.Couplings((2,), layers=2, width=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    result = gk.sample(BASE, 3000, guides=[gk.Amortised(reward, ALPHA, net=net)], **SHORT)
    assert_alike(moments(result.x, result.log_weights.exp()), untilted(3000, **SHORT))
    # and in several steps, with other potentials and another solver
    stepwise = gk.Amortised(reward, ALPHA, "difference", ess=0.0, net=net)
    result = gk.sample(BASE, 2000, steps=6, guides=[stepwise])
    assert_alike(moments(result.x, result.log_weights.exp()), untilted(2000, steps=6))


def test_couplings_know_their_volume():
    net = gk.Couplings((3,), layers=3, width=5).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    noise = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    z, log_det = net(noise)
    for row in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None])[0][0], noise[row])
        assert torch.allclose(jacobian.det().abs().log(), log_det[row], atol=1e-9)
    assert (z - noise).abs().min() > 1e-3


def test_training_makes_the_particles_more_even_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    options = {"flow": 3, "train": 60, "rows": 64, "lr": 0.03}
    guide = gk.search.amortise(BASE, reward, ALPHA, **options)
    plain = gk.Amortised(reward, ALPHA, net=gk.Couplings((2,)))
    before, after = (gk.sample(BASE, 1500, guides=[g], **SHORT) for g in (plain, guide))
    assert float(after.ess) > 1.4 * float(before.ess)
    assert_alike(moments(after.x, after.log_weights.exp()), untilted(4000, **SHORT))

    seen, of_noise = 0, sys.modules["guidekit.search.amortise"].of_noise

    def interrupted(*given):
        nonlocal seen
        seen += 1
        if seen == 31:
            raise KeyboardInterrupt
        return of_noise(*given)

    monkeypatch.setattr("guidekit.values.trained._EVERY", 20)
    monkeypatch.setattr(sys.modules["guidekit.search.amortise"], "of_noise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gk.search.amortise(BASE, reward, ALPHA, folder=tmp_path, **options)
    assert list(tmp_path.iterdir()) == [tmp_path / "amortise.safetensors"]
    resumed = gk.search.amortise(BASE, reward, ALPHA, folder=tmp_path, **options)
    assert seen == 31 + 40
    for one, two in zip(guide.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6)  # rounding apart
    with pytest.raises(gk.CheckpointError, match="belongs to another training"):
        gk.search.amortise(BASE, reward, 2 * ALPHA, folder=tmp_path, **options)


def test_a_proxy_gives_a_black_box_a_gradient_and_the_samples_are_weighed_by_the_box(tmp_path):
    found = gk.values.proxy(BASE, black, n=300, steps=10, train=200, folder=tmp_path)
    assert found.explained > 0.8
    again = gk.values.proxy(BASE, black, n=300, steps=10, train=200, folder=tmp_path)
    assert again.explained == found.explained
    guide = gk.TDS(black, ALPHA, scale=0.5, value=found, ess=0.0)
    result = gk.sample(BASE, 3000, steps=8, guides=[guide])
    assert_alike(moments(result.x, result.log_weights.exp()), untilted(4000, steps=8))
    with pytest.raises(gk.RewardError, match="no gradient reaches"):
        gk.sample(BASE, 8, steps=8, guides=[gk.TDS(black, ALPHA)])


def test_what_is_wrong_is_said_before_the_network_is_called():
    table = gk.analytic.TokenTable(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="a network of noise is needed"):
        gk.Run(BASE, 4, guides=[gk.Amortised(reward, ALPHA)])
    with pytest.raises(ValueError, match="tokens start from none"):
        gk.search.amortise(table, reward, ALPHA)
    with pytest.raises(ValueError, match="train=0"):
        gk.search.amortise(BASE, reward, ALPHA, train=0)
    with pytest.raises(ValueError, match="which Gaussian processes have"):
        gk.values.proxy(table, reward)
    with pytest.raises(ValueError, match="n=10"):
        gk.values.proxy(BASE, reward, n=10)
    wrong = gk.Amortised(reward, ALPHA, net=lambda noise: (noise, noise))
    with pytest.raises(gk.NetworkError, match="one log-determinant for each row"):
        gk.sample(BASE, 4, steps=4, guides=[wrong])

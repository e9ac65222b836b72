"""Physics of deepinv as operators: what they measure, their adjoints, pseudo-inverses and decompositions are used."""

from __future__ import annotations

import math

import pytest
import torch

import guidekit as gk
from guidekit.measurements.operators import as_operator

from .test_measurement_guides import looks

deepinv = pytest.importorskip("deepinv")
SHAPE = (1, 8, 8)
NAMES = ("inpainting", "blur", "valid blur", "down-sampling", "compressed sensing", "tomography", "MRI")
TOL = 1e-3  # of 30 iterations of conjugate gradients in float32


def physics() -> dict:
    """Of deepinv, by name."""
    p, mask = deepinv.physics, (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    lines, coils = torch.zeros(8, 8), torch.randn(1, 3, 8, 8, dtype=torch.complex64)
    lines[:, [0, 2, 3, 4, 6]] = 1
    kernel = p.blur.gaussian_blur(sigma=(0.7, 0.7))
    return {
        "inpainting": p.Inpainting(img_size=SHAPE, mask=mask),
        "blur": p.BlurFFT(img_size=SHAPE, filter=kernel),
        "valid blur": p.Blur(filter=kernel, padding="valid"),
        "down-sampling": p.Downsampling(img_size=SHAPE, factor=2, filter="gaussian"),
        "compressed sensing": p.CompressedSensing(m=30, img_size=SHAPE),
        "tomography": p.Tomography(angles=12, img_width=8, normalize=True),
        "MRI": p.MultiCoilMRI(mask=lines, coil_maps=coils, img_size=(8, 8)),
    }


@pytest.fixture(scope="module")
def given() -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return physics()


def net(x, t, cond):
    return torch.cos(torch.pi * t / 2).view(-1, 1, 1, 1) * x  # x_0 ~ N(0, 1)


MODEL = gk.GaussianModel(net, SHAPE, predicts="clean")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_a_physics_is_an_operator_with_its_adjoint(given, name: str):
    """PiGDM is exact for this model: with a dense matrix, E[x_0 | x_t, y] is a ridge regression on y and on x_t."""
    p, noise = given[name], 0.2
    shape = (2, 8, 8) if name == "MRI" else SHAPE
    y = p.A(torch.randn(1, *shape, generator=torch.Generator().manual_seed(1)))
    size = math.prod(shape)
    M = p.A(torch.eye(size).view(size, *shape)).flatten(1).T.double()
    model = gk.GaussianModel(net, shape, predicts="clean")
    for t, _, x, _, moved in looks(gk.PiGDM(gk.Measurement(p, y[0], noise)), model, 2, steps=4)[1:]:
        alpha, sigma = model.process.scales(t)
        right = alpha / sigma**2 * x.flatten(1).double() + y.flatten().double() @ M / noise**2
        precision = (1 + alpha**2 / sigma**2) * torch.eye(size).double() + M.T @ M / noise**2
        exact = right @ torch.linalg.inv(precision)
        assert (moved.flatten(1) - exact).abs().max() < TOL * exact.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_a_physics_that_is_not_linear_is_the_function_that_it_measures():
    """deepinv's phase retrieval names a vector-Jacobian product A_adjoint, and adds noise where it is called."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        p = deepinv.physics.RandomPhaseRetrieval(m=60, img_size=(1, 4, 4))
        p.noise_model = deepinv.physics.GaussianNoise(5.0)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    own = gk.Measurement(p, torch.zeros(60), 0.1)
    assert not own.linear and torch.equal(own.operator(x.to(torch.complex64)), p.A(x.to(torch.complex64)))
    model = gk.GaussianModel(net, (1, 4, 4), predicts="clean")
    with pytest.raises(ValueError, match="does not take samples of this model"):
        gk.sample(model, 2, steps=2, guides=[gk.DAPS(own)])  # which are real
    real = gk.Measurement(lambda x: p.A(x.to(torch.complex64)), torch.ones(60), 0.1)
    real.fits(model, gradient=True)
    exact = torch.distributions.Normal(p.A(x.to(torch.complex64)), 0.1).log_prob(real.y).sum(1)
    assert torch.allclose(real(x).float(), exact, rtol=1e-4)
    with pytest.raises(ValueError, match="TMPD needs a linear operator"):
        gk.sample(model, 2, steps=2, guides=[gk.TMPD(real)])


@pytest.mark.filterwarnings("ignore")
def test_decomposable_physics_give_their_singular_values_to_ddrm(given):
    for name in ("inpainting", "blur"):
        y = given[name].A(torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1)))
        x = gk.sample(MODEL, 10, steps=10, guides=[gk.DDRM(gk.Measurement(given[name], y[0], 0.0))]).x
        assert as_operator(given[name]).decomposed
        assert (given[name].A(x) - y).abs().max() < 0.02  # up to singular values below the cut
    with pytest.raises(ValueError, match="singular values"):
        gk.sample(
            MODEL, 2, steps=2, guides=[gk.DDRM(gk.Measurement(given["tomography"], _one(given["tomography"]), 0.1))]
        )


def _one(p) -> torch.Tensor:
    return p.A(torch.zeros(1, *SHAPE))[0]

"""Physics of deepinv as operators: what they measure, their adjoints, pseudo-inverses and decompositions are used."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit.measurements.operators import as_operator

deepinv = pytest.importorskip("deepinv")
SHAPE = (1, 8, 8)


def physics() -> dict:
    """Of deepinv, by name."""
    p, mask = deepinv.physics, (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    kernel = p.blur.gaussian_blur(sigma=(0.7, 0.7))
    return {
        "inpainting": p.Inpainting(img_size=SHAPE, mask=mask),
        "blur": p.BlurFFT(img_size=SHAPE, filter=kernel),
        "valid blur": p.Blur(filter=kernel, padding="valid"),
        "down-sampling": p.Downsampling(img_size=SHAPE, factor=2, filter="gaussian"),
        "compressed sensing": p.CompressedSensing(m=30, img_size=SHAPE),
        "tomography": p.Tomography(angles=12, img_width=8, normalize=True),
    }


@pytest.fixture(scope="module")
def given() -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return physics()


def net(x, t, cond):
    return torch.cos(torch.pi * t / 2).view(-1, 1, 1, 1) * x  # x_0 ~ N(0, 1)


MODEL = gk.GaussianModel(net, SHAPE, predicts="clean")


@pytest.mark.parametrize(
    "name", ["inpainting", "blur", "valid blur", "down-sampling", "compressed sensing", "tomography"]
)
@pytest.mark.filterwarnings("ignore")
def test_a_physics_is_an_operator_with_its_adjoint(given, name: str):
    """PiGDM is exact for this model: the mean of x_0 given y is the ridge regression, here solved with a dense
    matrix."""
    p = given[name]
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = p.A(x)
    M = p.A(torch.eye(64).view(64, *SHAPE)).flatten(1).T
    noise = 0.2
    exact = torch.linalg.solve(M.T @ M + noise**2 * torch.eye(64), M.T @ y.flatten()).view(SHAPE)
    measured = gk.Measurement(p, y[0], noise)
    found = gk.sample(MODEL, 150, steps=40, guides=[gk.PiGDM(measured)]).x.mean(0)
    # 150 samples of standard deviation 1 at most, and the steps
    assert (found - exact).abs().max() < 0.35 and (found - exact).square().mean().sqrt() < 0.1


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

"""Noise with a covariance, noise with a model of its own, and the gradients of likelihoods."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.measurements import Correlated, Downsample, Gaussian, Mask, Matrix, Poisson, Quantised, Structured
from guidekit.measurements.measurement import problem
from rewards import ByGroup

from .test_measurement_guides import EYE, WIDE, A, Y, looks

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
C = torch.tensor([[0.09, 0.05], [0.05, 0.16]], dtype=torch.float64)
COLOURED = gk.Measurement(A, Y, Correlated(C))


# likelihoods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [Gaussian(0.3), Poisson(4.0), Quantised(0.5, 0.3), Correlated(C)], ids=str)
def test_gradients_of_likelihoods_are_those_of_their_densities(noise):
    y = torch.tensor([0.75, 1.5] if isinstance(noise, Poisson) else [0.5, -1.0]).double()
    u = torch.tensor([[0.9, 1.1]], dtype=torch.float64, requires_grad=True)
    f = lambda u: gk.Measurement(lambda x: x, y, noise)(u)  # noqa: E731
    (slope,) = torch.autograd.grad(f(u).sum(), u)
    h = 1e-5
    moved = torch.stack([(f(u + h * e) - f(u - h * e)) / (2 * h) for e in torch.eye(2).double()], 1)
    assert torch.allclose(slope, moved, atol=1e-6)
    if isinstance(noise, Poisson):
        assert torch.allclose(slope, 4 * (y / u - 1))  # the score of a count is (count - mean)/u
    if isinstance(noise, Correlated):
        assert torch.allclose(slope, (y - u) @ torch.linalg.inv(C))


def test_the_score_of_a_measurement_with_counts_or_steps_has_mean_zero_at_the_truth():
    """E[d log p(y | u)/du] = 0 and E[score^2] = -E[curvature], over y given u; for counts that is gain/u."""
    u = torch.full((3000, 1), 1.3, dtype=torch.float64)
    for noise in (Poisson(4.0), Quantised(0.5, 0.3)):
        y = gk.Measurement(lambda x: x, torch.zeros(1), noise).simulate(u, seed=5)
        at = u.clone().requires_grad_()
        (slope,) = torch.autograd.grad(noise.log_prob(y, at).sum(), at, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), at)
        slope = slope.detach()
        error = float(slope.std()) / math.sqrt(len(u))
        assert abs(float(slope.mean())) < 5 * error
        fisher = slope.square() + curve
        assert abs(float(fisher.mean())) < 5 * float(fisher.std()) / math.sqrt(len(u))
        if isinstance(noise, Poisson):
            assert abs(float(slope.square().mean()) - 4 / 1.3) < 0.4


# noise with a covariance ---------------------------------------------------------------------------------------------


def test_correlated_noise_has_the_density_and_the_draws_of_its_covariance():
    u, y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0.3, -0.2]).double()
    exact = torch.distributions.MultivariateNormal(u, C).log_prob(y)
    assert torch.allclose(gk.Measurement(lambda x: x, y, Correlated(C))(u), exact)
    n = 20_000
    drawn = COLOURED.simulate(torch.zeros(n, 3).double(), seed=2)
    assert ((drawn.mT @ drawn / n - C).abs() < 5 * C.abs().max() * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("plain", [False, True], ids=["matrix", "operator"])
def test_methods_whiten_correlated_noise(plain: bool):
    """TMPD for one Gaussian is E[x_0 | x_t, y], whatever the covariance of the noise."""

    class Plain:
        def A(self, x: Tensor) -> Tensor:
            return x @ A.mT

        def adjoint(self, y: Tensor) -> Tensor:
            return y @ A

    base = gk.analytic.GaussianMixture(
        torch.ones(1).double(), torch.tensor([[0.5, -0.3, 0.2]]).double(), torch.tensor([0.8]).double()
    )
    m = gk.Measurement(Plain(), Y, Correlated(C)) if plain else COLOURED
    inverse = torch.linalg.inv(C)
    for t, _, x, _, moved in looks(gk.TMPD(m), base)[1:]:
        alpha, sigma = base.process.scales(t)
        precision = (1 / 0.64 + alpha**2 / sigma**2) * EYE + A.mT @ inverse @ A
        right = base.means / 0.64 + alpha / sigma**2 * x + Y @ inverse @ A
        assert torch.allclose(moved, right @ torch.linalg.inv(precision), atol=1e-6)
    own = problem("x", ByGroup([m, m.of(2 * Y)]), base)
    assert own.operator.decomposed is not plain and own.noise == 1.0
    white = torch.linalg.inv(torch.linalg.cholesky(C))
    assert torch.allclose(own.y, torch.stack([Y, 2 * Y]) @ white.mT)


def test_the_evidence_under_correlated_noise_is_exact():
    S = [s**2 * A @ A.mT + C for s in WIDE.stds]
    terms = [torch.distributions.MultivariateNormal(A @ m, c).log_prob(Y) for m, c in zip(WIDE.means, S, strict=True)]
    exact = (WIDE.weights.log() + torch.stack(terms)).logsumexp(0)
    guide = gk.TDS(COLOURED, 1.0, value=gk.values.Likelihood(COLOURED))
    z = gk.sample(WIDE, 40, steps=15, cond=[None] * 30, seed=list(range(30)), guides=[guide]).log_z
    ratio = (z - exact).exp()  # whose mean is 1
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / math.sqrt(30)
    assert float(ratio.std()) < 0.5


def test_covariances_that_are_none_are_refused():
    for bad, told in ((torch.ones(2, 3), r"shape \(2, 3\)"), (torch.ones(2, 2), "not positive")):
        with pytest.raises(ValueError, match=told):
            Correlated(bad)
    with pytest.raises(ValueError, match="a mask leaves some out"):
        gk.Measurement(Mask(torch.tensor([True, False])), torch.zeros(2), Correlated(torch.eye(2)))


# noise with a model --------------------------------------------------------------------------------------------------

HUM = gk.analytic.GaussianMixture([0.4, 0.6], torch.tensor([[1.0, -0.5], [-0.4, 0.6]]).double(), [0.3, 0.2])
PAIR = Structured(WIDE, HUM)


def test_a_pair_predicts_what_its_parts_predict_and_measures_their_sum():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    assert torch.allclose(PAIR(x, 0.4, None), torch.cat([WIDE(x[:, :3], 0.4, None), HUM(x[:, 3:], 0.4, None)], 1))
    m = PAIR.measurement(A, Y, 0.2)
    assert m.linear and torch.allclose(m.operator(x), x[:, :3] @ A.mT + x[:, 3:])
    bent = PAIR.measurement(lambda u: u[:, :2].square(), Y, 0.2)
    assert not bent.linear and torch.allclose(bent.operator(x), x[:, :2].square() + x[:, 3:])


def joint_posterior(std: float) -> tuple[Tensor, Tensor]:
    """log p(y) and E[(x, n) | y] of the two mixtures, over all pairs of components."""
    G = torch.cat([A, torch.eye(2).double()], 1)
    logs, means = [], []
    for w, m, s in zip(WIDE.weights, WIDE.means, WIDE.stds, strict=True):
        for v, c, r in zip(HUM.weights, HUM.means, HUM.stds, strict=True):
            mean, P = torch.cat([m, c]), torch.diag(torch.cat([s.expand(3), r.expand(2)]).square())
            S = G @ P @ G.mT + std**2 * torch.eye(2)
            logs.append(w.log() + v.log() + torch.distributions.MultivariateNormal(G @ mean, S).log_prob(Y))
            means.append(mean + P @ G.mT @ torch.linalg.inv(S) @ (Y - G @ mean))
    logs = torch.stack(logs)
    return logs.logsumexp(0), logs.softmax(0) @ torch.stack(means)


def test_signal_and_structured_noise_follow_their_joint_posterior():
    """Unbiased estimates of p(y) and of p(y) E[(x, n) | y], from 40 populations of 40."""
    m = PAIR.measurement(A, Y, 0.2)
    log_z, mean = joint_posterior(0.2)
    guide = gk.TDS(m, 1.0, value=gk.values.Likelihood(m))
    result = gk.sample(PAIR, 40, steps=12, cond=[None] * 40, seed=list(range(40)), guides=[guide])
    scale = (result.log_weights - log_z).exp()[:, None]
    found = (torch.cat([torch.ones(len(result.x), 1), result.x], 1) * scale).view(40, 40, 6).mean(1)
    z = (found.mean(0) - torch.cat([torch.ones(1), mean])) / (found.std(0) / math.sqrt(40))
    assert (z.abs() < 4.5).all() and float(found[:, 0].std()) < 0.5
    assert (mean[3:] - HUM.weights @ HUM.means).abs().max() > 0.1  # the measurement says something of the noise


def test_without_further_noise_signal_and_noise_add_up_to_the_measurement():
    m = PAIR.measurement(A, Y, 0.0)
    for guide in (gk.DDNM(m), gk.ReSample(m)):
        x, n = PAIR.split(gk.sample(PAIR, 20, steps=6, guides=[guide]).x)
        assert torch.allclose(x @ A.mT + n, Y.expand(20, 2), atol=1e-6)


def test_pairs_of_models_that_decode_pictures_are_linear_too():
    """Block means of 0.1 x + 0.5, and 0.3 n - 0.2; a mask besides. The residual is that of the decoded parts."""
    net = lambda x, t, cond: torch.cos(torch.pi * t / 2).view(-1, 1, 1, 1) * x  # noqa: E731
    signal = gk.GaussianModel(net, (1, 4, 4), predicts="clean", decode=lambda x: 0.1 * x + 0.5)
    for operator, shape in ((Downsample(2), (1, 2, 2)), (Mask(torch.arange(4) < 3), (1, 4, 4))):
        hum = gk.GaussianModel(net, shape, predicts="clean", decode=lambda n: 0.3 * n - 0.2)
        both = Structured(signal, hum)
        y = torch.rand(shape, generator=torch.Generator().manual_seed(2))
        m = both.measurement(operator, y, 0.02)
        result = gk.sample(both, 5, steps=10, guides=[gk.TMPD(m)])
        x, n = both.split(result.x)
        seen = torch.ones(shape, dtype=torch.bool) if operator.measured is None else operator.measured.expand(shape)
        rest = (y - operator.A(x) - n)[:, seen]
        assert torch.allclose(rest.square().mean(1).sqrt().double(), m.residual(result.x), atol=1e-5)
        assert float(m.residual(result.x).mean()) < 0.06  # 0.1 and more without the guide


def test_pairs_that_do_not_fit_are_refused():
    flow = gk.analytic.GaussianMixture([1.0], [[0.0, 0.0]], [1.0], gk.schedules.Flow())
    with pytest.raises(ValueError, match="two models of one schedule"):
        Structured(WIDE, flow)
    with pytest.raises(TypeError, match=r"Structured\(noise=...\) takes a Gaussian base model"):
        Structured(WIDE, 0.3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"gk.measurements.Structured\(signal, noise\)"):
        gk.Measurement(A, Y, HUM)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"makes \(3,\) of a signal, the noise has the shape \(2,\)"):
        PAIR.measurement(Matrix(EYE), Y)

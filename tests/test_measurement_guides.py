"""Posterior samplers, each against what it really computes: its formula done again with dense matrices, and
distributions where they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

import guidekit as gk
from guidekit.measurements import Downsample, Mask, Matrix
from guidekit.solvers import Move

from .test_measurement import BASE, MEASURED, ROW, closed_form

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
A = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.3, -1.0]], dtype=torch.float64)
Y = torch.tensor([1.2, -0.4], dtype=torch.float64)
NOISE = 0.3
EYE = torch.eye(3, dtype=torch.float64)
WIDE = gk.analytic.GaussianMixture(
    torch.tensor([0.7, 0.3]).double(), torch.tensor([[0.5, -0.3, 0.2], [-1.0, 0.8, 1.4]]).double(),
    torch.tensor([0.8, 0.5]).double(),
)  # fmt: skip
M, EXACT = gk.Measurement(A, Y, NOISE), gk.Measurement(A, Y, 0.0)


def looks(
    guide: gk.Guide, model: gk.Model = WIDE, n: int = 4, **options
) -> list[tuple[float, Move, Tensor, Tensor, Tensor]]:
    """t, the move, x_t, the network's clean mean and the guide's, of every look."""
    seen = []

    class Before(gk.Guide):
        def tilt(self, view):
            seen.append([view.t, view.step.move, view.x.detach(), view.prediction.detach()])
            return 0.0

    class After(gk.Guide):
        def finish(self, view, prediction):
            seen[-1].append(prediction.detach())
            return prediction

    gk.sample(model, n, **{"steps": 6} | options, guides=[Before(), guide, After()])
    return seen


def jacobian(model: gk.Model, x: Tensor, t: float) -> Tensor:
    """dd_i/dx_j of every row."""
    x = x.detach().requires_grad_()
    d = model(x, t, None)
    return torch.stack([torch.autograd.grad(d[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])], 1)


def test_pigdm_adds_the_score_of_a_gaussian_with_unit_covariance():
    for t, _, x, d, moved in looks(gk.PiGDM(M, scale=0.7))[1:]:
        alpha, sigma = WIDE.process.scales(t)
        r2 = sigma**2 / (alpha**2 + sigma**2)
        u = (Y - d @ A.mT) @ torch.linalg.inv(r2 * A @ A.mT + NOISE**2 * torch.eye(2)) @ A
        J = jacobian(WIDE, x, t)
        assert torch.allclose(moved, d + 0.7 * sigma**2 / alpha * (J.mT @ u[..., None])[..., 0], atol=1e-6)


def test_pigdm_without_noise_takes_the_pseudo_inverse():
    for t, _, x, d, moved in looks(gk.PiGDM(EXACT))[1:]:
        alpha, sigma = WIDE.process.scales(t)
        u = (Y - d @ A.mT) @ torch.linalg.pinv(A).mT * (alpha**2 + sigma**2) / sigma**2
        J = jacobian(WIDE, x, t)
        assert torch.allclose(moved, d + sigma**2 / alpha * (J.mT @ u[..., None])[..., 0], atol=1e-6)


def test_tmpd_adds_the_gain_of_the_true_covariance():
    for t, _, x, d, moved in looks(gk.TMPD(M, iters=2))[1:]:  # of two measurements, two steps are exact
        alpha, sigma = WIDE.process.scales(t)
        C = sigma**2 / alpha * jacobian(WIDE, x, t)
        gain = C @ A.mT @ torch.linalg.inv(A @ C @ A.mT + NOISE**2 * torch.eye(2))
        assert torch.allclose(moved, d + (gain @ (Y - d @ A.mT)[..., None])[..., 0], atol=1e-7)


def one_gaussian(std: float) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture(
        torch.ones(1).double(), torch.tensor([[0.5, -0.3, 0.2]]).double(), torch.tensor([std]).double()
    )


@pytest.mark.parametrize("make, std", [(gk.TMPD, 0.8), (gk.PiGDM, 1.0)])
def test_for_one_gaussian_the_clean_mean_is_that_of_the_posterior(make, std: float):
    """E[x_0 | x_t, y], with the covariance of x_0 given x_t, (1/std^2 + alpha^2/sigma^2)^-1: of TMPD for any
    Gaussian, of PiGDM for unit variance."""
    base = one_gaussian(std)
    for t, _, x, _, moved in looks(make(M), base)[1:]:
        alpha, sigma = base.process.scales(t)
        precision = (1 / std**2 + alpha**2 / sigma**2) * EYE + A.mT @ A / NOISE**2
        right = base.means / std**2 + alpha / sigma**2 * x + Y @ A / NOISE**2
        assert torch.allclose(moved, right @ torch.linalg.inv(precision), atol=1e-6)


@pytest.mark.slow
def test_for_one_gaussian_tmpd_samples_the_posterior():
    base, steps = one_gaussian(0.8), 400
    x = gk.sample(base, 3000, steps=steps, guides=[gk.TMPD(M)]).x
    C = torch.linalg.inv(EYE / 0.64 + A.mT @ A / NOISE**2)
    white = (x - (base.means / 0.64 + Y @ A / NOISE**2) @ C) @ torch.linalg.inv(torch.linalg.cholesky(C)).mT
    # 9,000 numbers; 400 steps move the distribution function by less than 0.02
    assert kstest(white.flatten().numpy(), "norm").statistic < 1.63 / math.sqrt(9000) + 0.02
    assert (white.mT @ white / 3000 - EYE).abs().max() < 5 / math.sqrt(3000) + 0.05


def test_dds_is_conjugate_gradients_for_the_proximal_point():
    for _, _, _, d, moved in looks(gk.DDS(M, gamma=3.0, iters=3)):  # three numbers: three steps are exact
        exact = (Y @ A + d / 3) @ torch.linalg.inv(A.mT @ A + EYE / 3)
        assert torch.allclose(moved, exact, atol=1e-9)
    for _, _, _, d, moved in looks(gk.DDS(M, gamma=3.0, iters=1)):  # one is the steepest descent from d
        K = A.mT @ A + EYE / 3
        r = Y @ A + d / 3 - d @ K
        step = (r * r).sum(1, keepdim=True) / ((r @ K) * r).sum(1, keepdim=True)
        assert torch.allclose(moved, d + step * r, atol=1e-9)


def test_diffpir_is_a_proximal_point_and_renews_a_share_of_the_noise():
    zeta = 0.4
    for t, move, _, d, moved in looks(gk.DiffPIR(M, 2.0, zeta)):
        alpha, sigma = WIDE.process.scales(t)
        rho = max(2.0 * NOISE**2 * alpha**2 / sigma**2, 1e-6)
        exact = (Y @ A + rho * d) @ torch.linalg.inv(A.mT @ A + rho * EYE)
        assert torch.allclose(moved, exact, atol=1e-6)
        a_s, s_s = WIDE.process.scales(move.s)
        old = (1 - zeta) ** 0.5 * s_s / sigma
        assert np.allclose([move.a, move.b[0], move.c], [old, a_s - old * alpha, zeta**0.5 * s_s])


@pytest.mark.parametrize("solver", [None, gk.solvers.DPMpp(2), gk.solvers.Heun()])
def test_ddnm_without_noise_fits_the_measurement_with_any_solver_and_keeps_the_null_space(solver):
    for _, _, _, d, moved in looks(gk.DDNM(EXACT), solver=solver):
        P = torch.linalg.pinv(A) @ A
        assert torch.allclose(moved, d @ (EYE - P) + torch.linalg.pinv(A) @ Y, atol=1e-9)
    x = gk.sample(WIDE, 50, steps=6, solver=solver, guides=[gk.DDNM(EXACT)]).x
    assert torch.allclose(x @ A.mT, Y.expand(50, 2), atol=1e-9)


def test_ddnm_with_noise_gives_every_component_the_noise_of_the_move():
    """Over draws of the noise in y, x_s - (its mean for y without noise) has the variance c^2 of the move in the
    components that can hold it, and these are corrected by lambda."""
    rows, noise = 4000, 0.5
    op = Matrix(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.3, 0.0]]).double())
    clean = torch.tensor([0.8, -0.2], dtype=torch.float64)
    means = torch.tensor([[0.5, -0.3, 0.2]]).double()
    model = gk.GaussianModel(lambda x, t, cond: means.expand(len(x), 3), (3,), predicts="clean", dtype=torch.float64)
    for t, s in ((0.8, 0.6), (0.3, 0.2)):
        m = gk.Measurement(op, clean, noise)
        drawn = m.simulate(torch.tensor([[0.8, -0.2 / 0.3, 0.0]]).double().expand(rows, 3), seed=5)
        many = gk.Run(model, 1, steps=[1.0, t, s, 0.0], cond=[None] * rows, seed=list(range(rows)),
                      guides=[gk.DDNM(_by_group(m, drawn))])  # fmt: skip
        pop = many.start()
        pop = many.advance(pop, 0)
        before = pop.x
        x = many.move(pop, 1).x
        move = many.moves[1]
        sv = torch.tensor([1.0, 0.3, 0.0]).double()
        lam = (move.c * sv / (move.b[0] * noise)).clamp(max=1)
        pulled = torch.where(sv > 0, lam * (torch.tensor([0.8, -0.2 / 0.3, 0.0]) - means[0]), 0.0)
        rest = x - (move.a * before + move.b[0] * (means + pulled))
        # 4,000 draws: standard errors of c/63 and of c^2/45
        assert (rest.mean(0).abs() < 5 * move.c / math.sqrt(rows)).all()
        assert ((rest.var(0) / move.c**2 - 1).abs() < 5 * math.sqrt(2 / rows)).all()
        assert bool((lam[1] < 1).all())


def _by_group(m: gk.Measurement, drawn: Tensor):
    from rewards import ByGroup

    return ByGroup([m.of(y) for y in drawn])


def test_ddrm_makes_the_three_moves_of_the_paper():
    """Diagonal A: a component not measured, one with less noise than x_s, and one with more."""
    eta, eta_b, noise = 0.6, 0.8, 0.5
    op, y = Matrix(torch.diag(torch.tensor([2.0, 0.4, 0.0])).double()[:2]), torch.tensor([1.0, 0.3]).double()
    guide = gk.DDRM(gk.Measurement(op, y, noise), eta, eta_b)
    n = 5000
    run = gk.Run(WIDE, n, steps=[1.0, 0.6, 0.3, 0.0], guides=[guide])
    pop = run.advance(run.start(), 0)
    x, d = pop.x, pop.predictions[0]
    (a_t, s_t), (a_s, s_s) = WIDE.process.scales(0.6), WIDE.process.scales(0.3)
    new = run.move(pop, 1).x
    bar, pinv, r = s_s / a_s, torch.tensor([0.5, 0.75]).double(), torch.tensor([0.25, 1.25]).double()
    assert r[0] < bar < r[1]
    means = torch.stack([
        (1 - eta_b) * d[:, 0] + eta_b * pinv[0],
        d[:, 1] + (1 - eta**2) ** 0.5 * bar * (pinv[1] - d[:, 1]) / r[1],
        d[:, 2] + (1 - eta**2) ** 0.5 * bar * (x[:, 2] - a_t * d[:, 2]) / s_t,
    ], 1)  # fmt: skip
    stds = torch.tensor([math.sqrt(bar**2 - eta_b**2 * 0.25**2), eta * bar, eta * bar]).double()
    z = (new / a_s - means) / stds
    assert (z.mean(0).abs() < 5 / math.sqrt(n)).all() and ((z.var(0) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


def test_ddrm_starts_from_the_measurement_and_ends_in_it_without_noise():
    base = gk.analytic.GaussianMixture(WIDE.weights, WIDE.means, WIDE.stds, gk.schedules.EDM(sigma_max=2.0))
    op, n = Matrix(torch.tensor([[2.0, 0.0, 0.0]]).double()), 4000
    x = gk.Run(base, n, steps=4, guides=[gk.DDRM(gk.Measurement(op, torch.tensor([6.0]), 0.5))]).start().x
    stds = torch.tensor([math.sqrt(4 - 0.25**2), 2.0, 2.0])
    z = (x - torch.tensor([3.0, 0.0, 0.0])) / stds
    assert (z.mean(0).abs() < 5 / math.sqrt(n)).all() and ((z.var(0) - 1).abs() < 5 * math.sqrt(2 / n)).all()
    x = gk.sample(WIDE, 50, steps=6, guides=[gk.DDRM(EXACT)]).x
    assert torch.allclose(x @ A.mT, Y.expand(50, 2), atol=1e-9)


def test_daps_draws_by_langevin_dynamics_around_the_end_of_the_ode():
    """Of one Gaussian the ODE is affine in x_t, and so is the chain of Langevin steps, whose moments are known."""
    n, iters, step = 6000, 7, 0.4
    base = gk.analytic.GaussianMixture(torch.ones(1).double(), torch.tensor([[0.5]]).double(), torch.tensor([0.8]))
    m = gk.Measurement(torch.tensor([[1.5]]).double(), torch.tensor([1.2]), 0.6)
    for t, move, x, d, x_0 in looks(gk.DAPS(m, inner=3, iters=iters, step=step), base, n, steps=3):
        scales = [base.process.scales(t * (1 - j / 3)) for j in range(3)]
        for i in (1, 2):
            (a_t, s_t), (a_s, s_s) = scales[i - 1], scales[i]
            x = a_s * d + s_s * (x - a_t * d) / s_t
            d = base(x, t * (1 - i / 3), None)
        alpha, sigma = scales[0]
        r2, curve = sigma**2 / (alpha**2 + sigma**2), (1.5 / 0.6) ** 2
        h = step / (1 / r2 + curve)
        mean, var = d, 0.0
        for _ in range(iters):
            mean = mean + h * ((d - mean) / r2 + 1.5 * (1.2 - 1.5 * mean) / 0.36)
            var = (1 - h * (1 / r2 + curve)) ** 2 * var + 2 * h
        z = (x_0 - mean) / var**0.5
        assert abs(float(z.mean())) < 5 / math.sqrt(n) and abs(float(z.var()) - 1) < 5 * math.sqrt(2 / n)
        a_s, s_s = base.process.scales(move.s)
        assert (move.a, move.b, move.c) == (0.0, (a_s,), s_s)


def test_daps_takes_operators_that_are_not_linear_and_any_likelihood():
    """y = x^2 and a positive prior mean: both signs fit, and the samples take them."""
    base = gk.analytic.GaussianMixture([0.5, 0.5], [[1.0], [-1.0]], [0.4, 0.4])
    for noise, curvature in ((0.1, None), (gk.measurements.Quantised(0.1, 0.1), 500.0)):
        m = gk.Measurement(lambda x: x.square(), torch.tensor([1.44]), noise)
        x = gk.sample(base, 300, steps=15, guides=[gk.DAPS(m, iters=20, curvature=curvature)]).x[:, 0]
        assert abs(float(x.abs().mean()) - 1.2) < 0.05  # 0.1/(2 * 1.2) is the spread that the noise allows
        assert 0.35 < float((x > 0).double().mean()) < 0.65


def test_repaint_is_keep_with_the_measured_entries():
    where = torch.tensor([True, False, True])
    m = gk.Measurement(Mask(where), torch.tensor([0.4, 7.0, -0.6]), 0.0)
    one = gk.sample(WIDE, 20, steps=12, guides=[gk.RePaint(m, recur=3, jump=4)])
    keep = gk.Keep(torch.tensor([0.4, 0.0, -0.6]).double(), where, method="repaint", recur=3, jump=4)
    other = gk.sample(WIDE, 20, steps=12, guides=[keep])
    assert torch.equal(one.x, other.x) and torch.equal(one.x[:, 0], torch.full((20,), 0.4).double())
    assert one.cost.network_rows == other.cost.network_rows > 20 * 12


@pytest.mark.parametrize("make", [gk.PiGDM, gk.TMPD, gk.DDRM, gk.DDNM, gk.DiffPIR, gk.DDS])
def test_methods_work_on_pictures_that_are_decoded(make):
    """x ~ N(0, 1) and samples 0.1 x + 0.5: block means have the variance 0.05^2 before the measurement, and shrink by
    0.05^2/(0.05^2 + 0.02^2) towards 0.5 in the mean of the posterior, which PiGDM and TMPD have exactly here."""

    def net(x, t, cond):
        return torch.cos(torch.pi * t / 2).view(-1, 1, 1, 1) * x

    model = gk.GaussianModel(net, (1, 4, 4), predicts="clean", decode=lambda x: (0.1 * x + 0.5).clamp(0, 1))
    y = torch.tensor([[[0.62, 0.38], [0.5, 0.57]]])
    m = gk.Measurement(Downsample(2), y, 0.02)
    samples = gk.sample(model, 60, steps=40, guides=[make(m)]).samples
    found = Downsample(2).A(samples)
    assert float(m.residual(samples).mean()) < 0.05 < 0.06 < float(m.residual(gk.sample(model, 60).samples).mean())
    if make in (gk.PiGDM, gk.TMPD):
        exact = 0.5 + 25 / 29 * (y - 0.5)
        sd = 0.05 * 0.02 / (0.05**2 + 0.02**2) ** 0.5
        assert ((found.mean(0) - exact).abs() < 5 * sd / math.sqrt(60) + 0.002).all()  # and 40 steps


@pytest.mark.parametrize("make", [gk.PiGDM, gk.DDS, gk.DDRM])
def test_measurements_of_conditions_are_run_side_by_side(make):
    m = _by_group(MEASURED, torch.tensor([[0.7], [-0.9]]))
    both = gk.sample(BASE, 6, steps=5, cond=[None, None], guides=[make(m)])
    for g, one in enumerate(m.rewards):
        alone = gk.sample(BASE, 6, steps=5, guides=[make(one)])
        assert torch.allclose(both.x[both.group == g], alone.x, atol=1e-12)
    search = gk.search.random(BASE, 2, MEASURED, rounds=1, candidates=2, steps=3, guides=[make(MEASURED)])
    assert search.rewards is not None and bool(search.rewards.isfinite().all())


@pytest.mark.slow
def test_the_likelihood_twist_is_good_with_few_particles_where_that_of_the_estimate_is_not():
    """log Z-hat of 8 particles: its mean square error around log p(y) is less than a quarter."""
    log_z = closed_form(ROW, MEASURED.y, 0.1)[0]
    m = gk.Measurement(ROW, MEASURED.y, 0.1)
    errors = {}
    for name, value in (("estimate", None), ("likelihood", gk.values.Likelihood(m))):
        guides = [gk.TDS(m, 1.0, value=value)]
        result = gk.sample(BASE, 8, steps=60, cond=[None] * 200, seed=list(range(200)), guides=guides)
        errors[name] = float((result.log_z - log_z).square().mean())
    assert errors["likelihood"] < errors["estimate"] / 4

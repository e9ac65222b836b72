"""Solvers that are measured or fitted on the model: DPM-Solver-v3, DC-Solver and USF."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

import guidekit as gk
from guidekit.solvers import (
    DDIM,
    DEIS,
    USF,
    AnalyticDPM,
    DCSolver,
    DPMpp,
    DPMv3,
    Statistics,
    UniPC,
    compensated,
    searched,
    statistics,
    times,
)
from guidekit.solvers.usf import AMONG

from .test_solvers import ASYMMETRIC, SCHEDULES, denoiser, error, follow, quantile, scales

GAUSS = ([1.0], [1.3], [0.6])
some = pytest.mark.parametrize(
    "schedule", [pytest.param(s, marks=() if k == "flow" else pytest.mark.slow, id=k) for k, s in SCHEDULES.items()]
)


def mixture(schedule, law=ASYMMETRIC):
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in law), schedule=schedule)


@some
def test_the_statistics_of_a_gaussian_are_those_of_the_formula(schedule):
    """d = m + k (x - alpha m), so that l = 1 - alpha k = 1/(1 + S^2 e^(2 lambda)), f = -m l, s = l'/l = -2 (1 - l)."""
    found = statistics(mixture(schedule, GAUSS), n=4, points=128)
    lam = np.array(found.log_snr)
    assert f"levels={len(lam)}, l={np.mean(found.l):.9f}" in repr(DPMv3(found)) and len(repr(found)) < 80
    assert len(lam) >= 127 and (np.diff(lam) > 0).all()
    exact = 1 / (1 + 0.36 * np.exp(2 * lam))
    np.testing.assert_allclose(found.l, exact, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.s[1:-1], -2 * (1 - exact[1:-1]), atol=0.015)  # s^3 h^2/6 by differences


@some
@pytest.mark.parametrize("eta", [1.0, 0.4, 0.0])
def test_with_the_analytic_variance_every_state_of_a_gaussian_has_its_distribution(schedule, eta):
    """In a few uneven steps, of which DDPM's lack variance; l is that of the formula, on a fine grid."""
    m, s = GAUSS[1][0], GAUSS[2][0]
    lam = np.linspace(-9.0, 9.0, 721)
    exact = Statistics(tuple(lam), tuple(1 / (1 + s**2 * np.exp(2 * lam))), (0.0,) * len(lam))
    grid = [0.999, 0.8, 0.45, 0.3, 0.1, 0.0]

    def spreads(solver):
        moves = solver.moves(schedule, grid)
        alpha, sigma = scales(schedule, grid[0])
        x = np.zeros(len(moves) + 2)  # the mean, and the weights of the independent noises
        x[:2] = alpha * m, math.hypot(alpha * s, sigma)

        def denoise(x, t):
            alpha, sigma = scales(schedule, t)
            gain = alpha * s**2 / ((alpha * s) ** 2 + sigma**2)
            found = gain * x
            found[0] += m * (1 - alpha * gain)
            return found

        states = follow(moves, denoise, x, np.eye(len(moves), len(x), 2))
        return [(v[0], (v[1:] ** 2).sum()) for v in states[:-1]]

    for (mean, variance), t in zip(spreads(AnalyticDPM(exact, eta)), grid, strict=False):
        alpha, sigma = scales(schedule, t)
        assert mean == pytest.approx(alpha * m, rel=1e-6)
        assert variance == pytest.approx((alpha * s) ** 2 + sigma**2, rel=1e-4)
    alpha, sigma = scales(schedule, grid[-2])
    assert spreads(DDIM(eta))[-1][1] < 0.9 * ((alpha * s) ** 2 + sigma**2)


def test_from_pure_noise_the_analytic_step_has_the_variance_of_the_data():
    schedule = SCHEDULES["flow"]
    (move,) = AnalyticDPM(statistics(mixture(schedule, GAUSS), n=4, points=128)).moves(schedule, [1.0, 0.7])
    assert (move.a, *move.b) == pytest.approx((0.0, 0.3)) and move.c**2 == pytest.approx(0.49 + 0.09 * 0.36, rel=1e-3)


def test_in_few_steps_the_analytic_variance_brings_the_distribution_of_a_mixture_nearer():
    """E[exp(x)] by 20,000 samples, with a relative deviation of 0.011; DDPM's error is 8 of these."""
    base = mixture(SCHEDULES["flow"])
    exact = float(base.log_z(linear=torch.ones(1, dtype=torch.float64)))
    measured = statistics(base)
    off = {
        v: abs(float(gk.sample(base, 20_000, steps=8, solver=v, seed=3).x[:, 0].exp().mean().log()) - exact)
        for v in (AnalyticDPM(measured), DDIM(1.0))
    }
    ours, theirs = off.values()
    assert ours < 0.5 * theirs and theirs > 0.08


@some
def test_one_step_of_first_order_is_exact_for_a_gaussian(schedule):
    solver = DPMv3(statistics(mixture(schedule, GAUSS), n=4, points=128), 1)
    grid = [0.9, 0.1]
    found = {v: error(v, schedule, grid, [GAUSS]) for v in (solver, DDIM())}
    assert found[solver] < 2e-3 < 0.1 < found[DDIM()]


def test_the_statistics_of_a_mixture_are_averages_over_the_flow():
    """1 - l is (alpha/sigma)^2 E[Var(x_0|x_t)], by Tweedie's formula of the second order."""
    schedule = SCHEDULES["flow"]
    found = statistics(mixture(schedule), n=1024)
    w, m, s = (np.asarray(v) for v in ASYMMETRIC)
    for i in (15, 31, 45):
        t = times.time_of(schedule, math.exp(-found.log_snr[i]))
        alpha, sigma = scales(schedule, t)
        var = (alpha * s) ** 2 + sigma**2
        u = np.random.default_rng(i).normal(size=(200_000, 2))
        part = np.random.default_rng(i + 1).choice(3, size=len(u), p=w)
        x = alpha * (m[part] + s[part] * u[:, 0]) + sigma * u[:, 1]
        gap = x[:, None] - alpha * m
        rho = w * np.exp(-(gap**2) / (2 * var)) / var**0.5
        rho /= rho.sum(1, keepdims=True)
        means = m + alpha * s**2 * gap / var
        d = (rho * means).sum(1)
        spread = (rho * (means**2 + (s * sigma) ** 2 / var)).sum(1) - d**2
        slopes = (alpha / sigma) ** 2 * spread  # alpha dd/dx
        deviation = slopes.std() * (1 / 1024 + 1 / len(u)) ** 0.5
        assert found.l[i] == pytest.approx(1 - slopes.mean(), abs=5 * deviation + 0.01)  # finite probes
        assert abs(slopes.mean() - 0.5) > 0.05  # no value that would do for any model


def test_dpm_solver_v3_is_nearer_to_the_flow_than_the_same_order_without_statistics():
    schedule = SCHEDULES["flow"]
    measured = statistics(mixture(schedule))
    for steps in (8, 12, 20):
        grid = times.make(steps, "uniform", schedule, 1.0)
        first, second, ddim, pp = (
            error(v, schedule, grid, [ASYMMETRIC])
            for v in (DPMv3(measured, 1, False), DPMv3(measured, 2, False), DDIM(), DPMpp(2))
        )
        assert first < 0.9 * ddim and second < 0.75 * pp


def test_fitted_ratios_make_unipc_more_accurate_on_other_noises_than_those_of_the_fit():
    base = mixture(SCHEDULES["cosine"])
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    fine = gk.sample(base, 400, steps=100, solver=UniPC(3), noise=noise).x
    solver = compensated(base, 8, times="log_snr", n=128)
    assert isinstance(solver.ratios, tuple) and len(solver.ratios) == 5 and set(solver.ratios) != {1.0}
    off = {
        v: (gk.sample(base, 400, steps=8, solver=v, noise=noise).x - fine).square().mean().sqrt()
        for v in (solver, UniPC(2, times="log_snr"))
    }
    ours, theirs = off.values()
    assert ours < 0.8 * theirs
    moved = tuple(2 - r for r in solver.ratios)  # away from where they were put
    other = gk.sample(base, 400, steps=8, solver=DCSolver(moved, 2, times="log_snr"), noise=noise).x
    assert (other - fine).square().mean().sqrt() > theirs


@some
@pytest.mark.parametrize("solver", [DPMpp(3), DEIS(3, "rho"), DEIS(2)], ids=["dpmpp3", "rho3", "deis2"])
def test_usf_with_the_same_solver_in_every_step_is_that_solver(schedule, solver):
    grid = [1.0, 0.8, 0.65, 0.5, 0.3, 0.12, 0.0]
    x = scales(schedule, 1.0)[1] * np.linspace(-2, 2, 9)
    states = [follow(v.moves(schedule, grid), denoiser(schedule), x) for v in (solver, USF((solver,) * 5))]
    np.testing.assert_allclose(states[1], states[0], rtol=1e-9, atol=1e-10)


def area(weight, u, nodes, j, start, end):
    """int weight(w) L_j(u(w)) dw."""

    def value(w):
        return weight(w) * np.prod([(u(w) - b) / (nodes[j] - b) for k, b in enumerate(nodes) if k != j])

    return integrate.quad(value, start, end, epsabs=1e-11)[0]


@some
def test_usf_changes_between_clean_means_and_noises_as_it_is_told(schedule):
    """Each step by quadrature of the polynomial through the last predictions of its kind, in y = x/alpha."""
    grid = [0.9, 0.8, 0.68, 0.55, 0.4, 0.28, 0.0]
    plan = ((DDIM(), 1), (DEIS(2, "rho"), 2), (DPMpp(3), 3), (DEIS(3, "log_rho"), 3), (DPMpp(3), 3))
    denoise, x = denoiser(schedule), quantile(np.linspace(0.1, 0.9, 9), schedule, grid[0])
    found = follow(USF(tuple(solver for solver, _ in plan)).moves(schedule, grid), denoise, x)
    means, noises, levels = [], [], []
    for i, ((solver, order), (t, s)) in enumerate(zip(plan, pairwise(grid), strict=False)):
        (alpha, sigma), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
        d = denoise(x, t)
        means, noises, levels = [d, *means], [(x - alpha * d) / sigma, *noises], [sigma / alpha, *levels]
        u = (lambda w: w) if "'rho'" in repr(solver) else np.log
        nodes, ends = [u(w) for w in levels[:order]], (sigma / alpha, sigma_s / alpha_s)
        if isinstance(solver, DPMpp):  # d(x/sigma) = d d(1/w)
            x = sigma_s * (
                x / sigma + sum(area(lambda w: -1 / w**2, u, nodes, j, *ends) * means[j] for j in range(order))
            )
        else:  # d(x/alpha) = e dw
            x = alpha_s * (x / alpha + sum(area(lambda w: 1.0, u, nodes, j, *ends) * noises[j] for j in range(order)))
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-7, atol=1e-8)


def test_a_search_of_the_solver_of_each_step_beats_every_one_of_them():
    base = mixture(SCHEDULES["cosine"])
    noise = torch.randn(400, 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    def sampled(solver, steps):
        return gk.sample(base, 400, steps=steps, solver=solver, noise=noise).x

    fine = sampled(UniPC(3), 100)
    found = searched(base, 8, n=128, times="log_snr")
    errors = [
        float((sampled(v, 8) - fine).square().mean())
        for v in (found, *(type(v)(**{**vars(v), "times": "log_snr"}) for v in AMONG))
    ]
    assert errors[0] < 0.8 * min(errors[1:])


class Pictures(torch.nn.Module):
    """The exact clean mean of two modes at +-c in each entry, with c by entry and by condition, of any shape."""

    def forward(self, x, t, cond):
        alpha, sigma = SCHEDULES["flow"](t)
        c = (torch.linspace(0.5, 2.0, x[0].numel(), dtype=x.dtype) + cond[:, None]).reshape(x.shape)
        shape = (-1, *(1,) * (x.ndim - 1))
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype).reshape(shape) for v in (alpha, sigma))
        return c * torch.tanh(alpha * c * x / sigma**2)


def test_images_under_guidance_are_measured_as_their_entries_are():
    found = []
    for shape in ((6,), (1, 2, 3)):
        base = gk.GaussianModel(
            Pictures(), shape, SCHEDULES["flow"], "clean", encode_cond=torch.tensor, null=0.5, dtype=torch.float64
        )
        options = {"cond": [0.0, 1.0], "guidance": 2.0, "n": 8}
        measured = statistics(base, **options, points=12)
        found.append([measured.l, measured.s, compensated(base, 6, **options).ratios])
        found.append(searched(base, 5, **options).solvers)
    np.testing.assert_allclose(sum(found[0], ()), sum(found[2], ()))
    assert found[1] == found[3] and len(set(found[1])) > 1


def test_the_cost_of_a_fit_is_what_it_says():
    rows = []

    class Counted(gk.analytic.GaussianMixture):
        def __call__(self, x, t, cond=None):
            rows.append(len(x))
            return super().__call__(x, t, cond)

    counted = Counted(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=SCHEDULES["flow"])
    compensated(counted, 6, n=3)
    assert sum(rows) == 3 * (28 * 6 - 45)
    rows.clear()
    statistics(counted, n=3, points=16)
    assert sum(rows) == 3 * (2 * 16 - 1)  # pure noise has no log-SNR, and no probe
    rows.clear()
    searched(counted, 6, n=3, beam=2)
    assert 3 * (6 * 12 + 1 + 5) < sum(rows) <= 3 * 6 * (2 + 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: statistics(base, points=4), r"statistics\(points=4\): an int of at least 8"),
        (lambda base: statistics(base, n=1.5), r"statistics\(n=1.5\): an int of at least 1"),
        (
            lambda base: statistics(gk.analytic.TokenTable(torch.zeros(2, 2))),
            "are for Gaussian processes",
        ),
        (lambda base: compensated(base, 3), r"compensated\(steps=3\): the first ratio is that of the third step"),
        (lambda base: searched(base, 1), r"searched\(steps=1\): the last step is no choice"),
        (lambda base: searched(base, 6, [UniPC(2)]), r"USF\(UniPC.*a step is one of DDIM\(\), DPMpp\(\) and DEIS\(\)"),
        (lambda base: gk.sample(base, 2, steps=8, solver=USF((DDIM(),) * 4)), r"for steps=5, and there are 8"),
        (lambda base: AnalyticDPM(base), r"AnalyticDPM.*give gk.solvers.statistics\(model\)"),
        (lambda base: AnalyticDPM(Statistics((0.0,), (0.5,), (0.0,)), 2.0), r"eta=2.0\): eta lies in \[0, 1\]"),
        (lambda base: compensated(base, 6, n=0), r"n=0\): an int of at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_first_call(make, message):
    with pytest.raises(ValueError, match=message):
        make(mixture(SCHEDULES["flow"]))

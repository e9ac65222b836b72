"""Laws of the solvers' tables: which kernel they are, which order they have, and where they go exactly.

The references are written here by hand in numpy: joint Gaussian conditioning, the published algorithms, and the exact
solution of the probability-flow ODE in one dimension, which moves every particle along its quantile: F_t(x_t) stays.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp, ndtr

import guidekit as gk
from guidekit.solvers import BDIA, BELM, DDIM, DDPM, DPMpp, Euler, Heun, SDEDPMpp, Solver, times
from guidekit.solvers.base import starting_at
from guidekit.solvers.schedules import EDM, VE, Cosine, Flow, Linear

SCHEDULES = {"cosine": Cosine(), "linear": Linear(), "flow": Flow(), "edm": EDM(), "ve": VE(0.002, 50.0)}
DETERMINISTIC = {"euler": Euler(), "ddim": DDIM(), "heun": Heun(), "dpmpp1": DPMpp(1), "dpmpp2": DPMpp(2)}
STOCHASTIC = {"ddpm": DDPM(), "ddim.5": DDIM(0.5), "ddim1": DDIM(1.0), "sde1": SDEDPMpp(1), "sde2": SDEDPMpp(2)}
SOLVERS = DETERMINISTIC | STOCHASTIC
INNER = {"cosine": (0.95, 0.1), "linear": (0.9, 0.1), "flow": (0.95, 0.1), "edm": (0.7, 0.25), "ve": (0.8, 0.5)}
ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])  # weights, means, stds
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def scales(schedule, t):
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)


def log_snr(schedule, t):
    alpha, sigma = scales(schedule, t)
    return math.log(alpha / sigma)


def denoiser(schedule, mixture=ASYMMETRIC):
    """(x, t) -> E[x_0 | x_t] of a mixture, in numpy."""
    w, m, s = (np.asarray(v) for v in mixture)

    def denoise(x, t):
        alpha, sigma = scales(schedule, t)
        var, gap = (alpha * s) ** 2 + sigma**2, x[:, None] - alpha * m
        log_p = np.log(w) - gap**2 / (2 * var) - np.log(var) / 2
        rho = np.exp(log_p - logsumexp(log_p, 1, keepdims=True))
        return (rho * (m + alpha * s**2 * gap / var)).sum(1)

    return denoise


def quantile(u, schedule, t, mixture=ASYMMETRIC):
    """The quantiles of x_t, by bisection of its distribution function."""
    w, m, s = (np.asarray(v) for v in mixture)
    alpha, sigma = scales(schedule, t)
    sd = np.sqrt((alpha * s) ** 2 + sigma**2)
    low, high = np.full(len(u), (alpha * m - 12 * sd).min()), np.full(len(u), (alpha * m + 12 * sd).max())
    for _ in range(100):
        x = (low + high) / 2
        below = (w * ndtr((x[:, None] - alpha * m) / sd)).sum(1) < u
        low, high = np.where(below, x, low), np.where(below, high, x)
    return x


def follow(moves, denoise, x, noise=None):
    """Apply a table: the meaning of its rows, in numpy. Returns every state."""
    states, history = [x], [denoise(x, moves[0].t)]
    for i, move in enumerate(moves):
        found = [x, *history]
        if move.keep is not None:
            history = [sum(k * v for k, v in zip(line, found, strict=False)) for line in move.keep]
        x = move.a * x + sum(b * d for b, d in zip(move.b, found[1:], strict=False))
        if move.c:
            x = x + move.c * noise[i]
        states.append(x)
        if move.s > 0:
            history = [denoise(x, move.s), *history]
    return states


# kernels ---------------------------------------------------------------------------------------------------------


@every_schedule
@pytest.mark.parametrize("solver", [DDPM(), DDIM(1.0), SDEDPMpp(1)], ids=["ddpm", "ddim1", "sde1"])
@pytest.mark.parametrize("grid", [[1.0, 0.7, 0.35, 0.2, 0.01, 0.0], [0.999, 0.998, 0.5, 1e-3, 0.0]])
def test_ancestral_moves_are_the_posterior_of_the_forward_process_given_clean_data(schedule, solver, grid):
    for (t, s), move in zip(pairwise(grid), solver.moves(schedule, grid), strict=True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
        # given x_0: x_s = alpha_s x_0 + sigma_s z, and x_t = g x_s + noise up to the variance sigma_t^2
        g = alpha_t / alpha_s
        covariance = np.array([[sigma_s**2, g * sigma_s**2], [g * sigma_s**2, sigma_t**2]])  # of (x_s, x_t)
        gain = covariance[0, 1] / covariance[1, 1]
        variance = covariance[0, 0] - gain * covariance[1, 0]
        assert (move.t, move.s) == (t, s)
        assert move.a == pytest.approx(gain, rel=1e-10, abs=1e-14)
        assert move.b == pytest.approx([alpha_s - gain * alpha_t], rel=1e-10, abs=1e-14)
        assert move.c**2 == pytest.approx(variance, rel=1e-9, abs=1e-14)


@every_schedule
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(
    "grid", ["uniform", "log_snr", [1.0, 0.5, 0.3, 0.6, 0.45, 0.2, 0.8, 0.0]], ids=["u", "l", "up"]
)
def test_exact_data_in_the_predictions_keeps_the_marginal_law(schedule, solver, grid):
    steps, name = (9, grid) if isinstance(grid, str) else (grid, "uniform")
    moves = solver.moves(schedule, times.make(steps, name, schedule, 1.0))
    for move in moves:  # x_t ~ N(alpha_t x_0, sigma_t^2) and d = x_0 make x_s ~ N(alpha_s x_0, sigma_s^2)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, move.t), scales(schedule, move.s)
        assert move.a * alpha_t + sum(move.b) == pytest.approx(alpha_s, abs=1e-12)
        assert (move.a * sigma_t) ** 2 + move.c**2 == pytest.approx(sigma_s**2, rel=1e-9, abs=1e-12)


@every_schedule
def test_ddim_splits_the_noise_by_eta_between_the_old_and_the_new(schedule):
    grid = [0.9, 0.6, 0.2]
    full = DDIM(1.0).moves(schedule, grid)
    for eta in (0.0, 0.3, 0.8):
        for move, ancestral in zip(DDIM(eta).moves(schedule, grid), full, strict=True):
            _, sigma_t = scales(schedule, move.t)
            _, sigma_s = scales(schedule, move.s)
            assert move.c == pytest.approx(eta * ancestral.c, rel=1e-12)
            assert move.a == pytest.approx(math.sqrt(sigma_s**2 - move.c**2) / sigma_t, rel=1e-12)


@every_schedule
@pytest.mark.parametrize("grid", ["uniform", "karras"])
@pytest.mark.parametrize(
    ("one", "other"),
    [(SDEDPMpp(1), DDPM()), (DDIM(1.0), DDPM()), (DPMpp(1), DDIM(0.0)), (Euler(), DDIM(0.0))],
    ids=["sde1=ddpm", "ddim1=ddpm", "dpmpp1=ddim", "euler=ddim"],
)
def test_solvers_that_are_the_same_method_have_the_same_table(schedule, grid, one, other):
    made = times.make(12, grid, schedule, 1.0)
    for p, q in zip(one.moves(schedule, made), other.moves(schedule, made), strict=True):
        assert (*p[:3], *p.b, p.c) == pytest.approx((*q[:3], *q.b, q.c), rel=1e-12, abs=1e-14)


@every_schedule
def test_a_deterministic_solver_has_no_noise_in_any_row_and_a_stochastic_one_in_all_but_the_last(schedule):
    made = times.make(10, "uniform", schedule, 1.0)
    for solver in DETERMINISTIC.values():
        assert not solver.stochastic
        assert all(move.c == 0 for move in solver.moves(schedule, made))
    for solver in STOCHASTIC.values():
        assert solver.stochastic
        moves = solver.moves(schedule, made)
        assert all(move.c > 0 for move in moves[:-1])
        assert moves[-1].c == 0


UP = {  # the forward kernel from t to s, from each process's own differential equation
    "cosine": lambda t, s: (math.cos(math.pi * s / 2) / math.cos(math.pi * t / 2), None),
    "linear": lambda t, s: (math.exp(-0.5 * ((s - t) * 0.1 + (s**2 - t**2) / 2 * 19.9)), None),
    "flow": lambda t, s: ((1 - s) / (1 - t), s**2 - ((1 - s) / (1 - t) * t) ** 2),
    "edm": lambda t, s: (1.0, scales(EDM(), s)[1] ** 2 - scales(EDM(), t)[1] ** 2),
    "ve": lambda t, s: (1.0, scales(VE(0.002, 50.0), s)[1] ** 2 - scales(VE(0.002, 50.0), t)[1] ** 2),
}


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("name", UP)
def test_a_move_up_in_time_is_the_forward_process_for_every_solver(name, solver):
    moves = solver.moves(SCHEDULES[name], [0.9, 0.3, 0.7, 0.2, 0.0, 0.4, 0.0])
    rising = [m for m in moves if m.s > m.t]
    assert [(m.t, m.s) for m in rising] == [(0.3, 0.7), (0.0, 0.4)]
    for m in rising:
        decay, variance = UP[name](m.t, m.s)
        variance = 1 - decay**2 if variance is None else variance  # variance preserving
        assert m.a == pytest.approx(decay, rel=1e-12)
        assert m.c**2 == pytest.approx(variance, rel=1e-9)
        assert sum(m.b) == 0


@every_schedule
@pytest.mark.parametrize("solver", [DPMpp(2), SDEDPMpp(2)], ids=["dpmpp2", "sde2"])
def test_a_multistep_solver_forgets_its_history_where_time_has_gone_up(schedule, solver):
    moves = solver.moves(schedule, [0.9, 0.6, 0.4, 0.7, 0.5, 0.3, 0.0])
    assert [len(m.b) for m in moves if m.s < m.t] == [1, 2, 1, 2, 1]
    first_order = type(solver)(1).moves(schedule, [0.7, 0.5])
    assert moves[3] == first_order[0]


@every_schedule
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("grid", times.GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 40])
def test_tables_are_finite_from_pure_noise_to_data_and_the_last_row_returns_the_prediction(
    schedule, solver, grid, steps
):
    moves = solver.moves(schedule, times.make(steps, grid, schedule, 1.0))
    assert all(math.isfinite(v) for m in moves for v in (m.a, *m.b, m.c))
    assert moves[-1].a == moves[-1].c == 0
    assert moves[-1].b == (1.0,)


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=["cosine", "flow"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_where_nothing_of_the_data_is_left_the_first_row_makes_x_s_from_the_prediction_and_its_noise(schedule, solver):
    first = solver.moves(schedule, [1.0, 0.6, 0.3, 0.0])[0]
    alpha, sigma = scales(schedule, 0.6)
    assert scales(schedule, 1.0)[0] == pytest.approx(0, abs=1e-15)
    assert first.b == pytest.approx([alpha], rel=1e-12)
    eta = {"ddim.5": 0.5}.get(next(k for k, v in SOLVERS.items() if v is solver), float(solver.stochastic))
    assert first.c == pytest.approx(eta * sigma, rel=1e-12)  # x_t says nothing of x_0: ancestral noise is all new
    assert first.a == pytest.approx(math.sqrt(1 - eta**2) * sigma, rel=1e-7, abs=1e-15)


# published algorithms by hand ------------------------------------------------------------------------------------


def test_heun_on_edm_is_algorithm_1_of_karras_et_al():
    steps, schedule = 12, EDM()
    denoise, x = denoiser(schedule), np.linspace(-100, 100, 23)
    sigma = np.append((80.0 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7, 0)
    grid = [1 - i / (steps - 1) for i in range(steps - 1)] + [1e-13, 0.0]
    found = follow(Heun().moves(schedule, grid), denoise, x)
    assert len(found) == 2 * steps  # the start, two rows a step and one in the last
    for i in range(steps):
        slope = (x - denoise(x, grid[i])) / sigma[i]
        euler = x + (sigma[i + 1] - sigma[i]) * slope
        x = euler
        if sigma[i + 1] > 0:
            slope_there = (euler - denoise(euler, grid[i + 1])) / sigma[i + 1]
            x = found[2 * i] + (sigma[i + 1] - sigma[i]) * (slope + slope_there) / 2
            np.testing.assert_allclose(found[2 * i + 1], euler, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(found[2 * i + 2], x, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found[-1], x, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
def test_on_a_flow_euler_and_heun_are_those_of_the_velocity_field(solver):
    grid, schedule = [0.97, 0.8, 0.65, 0.3, 0.12], Flow()
    denoise, x = denoiser(schedule), np.linspace(-3, 3, 23)

    def velocity(x, t):  # E[z - x_0 | x_t] with z = (x_t - (1 - t) x_0) / t
        return (x - (1 - t) * denoise(x, t)) / t - denoise(x, t)

    found = follow(solver.moves(schedule, grid), denoise, x)[-1]
    for t, s in pairwise(grid):
        euler = x + (s - t) * velocity(x, t)
        x = euler if solver == Euler() else x + (s - t) * (velocity(x, t) + velocity(euler, s)) / 2
    np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-13)


@every_schedule
@pytest.mark.parametrize("grid", [[0.95, 0.8, 0.7, 0.4, 0.3, 0.05, 0.0], [0.9, 0.45, 0.4, 0.1]], ids=["to0", "inner"])
def test_second_order_dpm_solver_is_the_textbook_multistep_formula_in_lambda(schedule, grid):
    denoise, x = denoiser(schedule), quantile(np.linspace(0.05, 0.95, 19), schedule, grid[0])
    found = follow(DPMpp(2).moves(schedule, grid), denoise, x)
    before = last = None
    for i, (t, s) in enumerate(pairwise(grid)):  # algorithm 2 of arXiv 2211.01095
        d = denoise(x, t)
        if s == 0:
            x = d  # h is infinite
        else:
            (_, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
            h = log_snr(schedule, s) - log_snr(schedule, t)
            big = d
            if last is not None:
                r = (log_snr(schedule, t) - log_snr(schedule, last)) / h
                big = (1 + 1 / (2 * r)) * d - before / (2 * r)
            x = sigma_s / sigma_t * x - alpha_s * (math.exp(-h) - 1) * big
        before, last = d, t
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-9, atol=1e-10)


@every_schedule
def test_second_order_sde_dpm_solver_is_its_published_formula_in_lambda(schedule):
    grid, denoise = [0.95, 0.8, 0.7, 0.4, 0.3, 0.05], denoiser(schedule)
    x = quantile(np.linspace(0.05, 0.95, 19), schedule, grid[0])
    noise = np.random.default_rng(0).normal(size=(5, 19))
    found = follow(SDEDPMpp(2).moves(schedule, grid), denoise, x, noise)
    before = last = None
    for i, (t, s) in enumerate(pairwise(grid)):  # SDE-DPM-Solver++(2M) of arXiv 2211.01095, midpoint form
        (_, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
        h, d = log_snr(schedule, s) - log_snr(schedule, t), denoise(x, t)
        x = sigma_s / sigma_t * math.exp(-h) * x + alpha_s * (1 - math.exp(-2 * h)) * d
        if last is not None:
            slope = (d - before) / (log_snr(schedule, t) - log_snr(schedule, last))
            x = x + alpha_s * (1 - math.exp(-2 * h)) / 2 * slope * h
        x = x + sigma_s * math.sqrt(1 - math.exp(-2 * h)) * noise[i]
        before, last = d, t
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-9, atol=1e-10)


# order -----------------------------------------------------------------------------------------------------------

GAUSSIANS = [([1.0], [m], [s]) for m, s in ((0.7, 0.5), (-1.0, 1.2), (2.0, 0.3))]
TARGETS = {"single Gaussians": GAUSSIANS, "asymmetric mixture": [ASYMMETRIC]}
ORDERS = [(Euler(), 1), (DDIM(), 1), (DPMpp(1), 1), (Heun(), 2), (DPMpp(2), 2)]


def error(solver, schedule, grid, mixtures):
    """Root mean square distance from the exact probability flow, over quantiles."""
    u = np.linspace(0.03, 0.97, 41)
    gaps = [
        follow(solver.moves(schedule, grid), denoiser(schedule, m), quantile(u, schedule, grid[0], m))[-1]
        - quantile(u, schedule, grid[-1], m)
        for m in mixtures
    ]
    return np.sqrt(np.mean(np.square(gaps)))


def slope(numbers, errors):
    return -np.polyfit(np.log(numbers), np.log(errors), 1)[0]


def test_the_quantile_is_the_closed_form_of_the_flow_where_there_is_one():
    u = np.linspace(0.03, 0.97, 41)
    ((m,), (s,)) = GAUSSIANS[0][1:]
    for schedule in SCHEDULES.values():  # x_t = alpha m + sqrt(alpha^2 s^2 + sigma^2) times a constant
        alpha, sigma = scales(schedule, 0.4)
        exact = alpha * m + math.hypot(alpha * s, sigma) * stats.norm.ppf(u)
        np.testing.assert_allclose(quantile(u, schedule, 0.4, GAUSSIANS[0]), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=["euler", "ddim", "dpmpp1", "heun", "dpmpp2"])
def test_the_error_falls_with_the_declared_order_inside_the_time_range(name, target, solver, order):
    (high, low), numbers = INNER[name], [48, 96, 192]
    errors = [error(solver, SCHEDULES[name], np.linspace(high, low, n + 1).tolist(), TARGETS[target]) for n in numbers]
    assert (
        abs(slope(numbers, errors) - order) < 0.15
    )  # higher terms bend it by up to a tenth; a wrong order is off by 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=["euler", "ddim", "dpmpp1", "heun", "dpmpp2"])
def test_the_error_of_a_whole_run_to_data_falls_with_the_declared_order(name, target, solver, order):
    schedule, numbers = SCHEDULES[name], [48, 96, 192]
    errors = [error(solver, schedule, times.make(n, "log_snr", schedule, 1.0), TARGETS[target]) for n in numbers]
    assert errors[-1] < 0.05 / order**4  # it goes to the right point, not only somewhere at the right speed
    assert abs(slope(numbers, errors) - order) < 0.2


@pytest.mark.parametrize("name", ["cosine", "flow", "edm", "ve"])
def test_heun_has_second_order_on_even_times_as_well_because_its_paths_are_straight(name):
    schedule, numbers = SCHEDULES[name], [48, 96, 192]
    errors = [error(Heun(), schedule, times.make(n, "uniform", schedule, 1.0), [ASYMMETRIC]) for n in numbers]
    assert abs(slope(numbers, errors) - 2) < 0.15


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDPM(), 1), (SDEDPMpp(1), 1), (SDEDPMpp(2), 2)],
    ids=["ddpm", "sde1", "sde2"],
)
def test_mean_and_variance_of_a_stochastic_solver_converge_with_its_weak_order(name, solver, order):
    schedule, (high, low), numbers = SCHEDULES[name], INNER[name], [48, 96, 192]
    m, s = 0.7, 0.5
    errors = []
    for n in numbers:
        grid = np.linspace(high, low, n + 1).tolist()
        moves = solver.moves(schedule, grid)
        # every state is linear in the independent noises: column 0 holds its mean, column i the weight of noise i
        x = np.zeros(n + 2)
        alpha, sigma = scales(schedule, high)
        x[0], x[1] = alpha * m, math.hypot(alpha * s, sigma)
        history = []
        for i, move in enumerate(moves):
            alpha, sigma = scales(schedule, move.t)
            gain = alpha * s**2 / ((alpha * s) ** 2 + sigma**2)
            d = gain * x
            d[0] += m * (1 - alpha * gain)
            history = [d, *history]
            x = move.a * x + sum(b * d for b, d in zip(move.b, history, strict=False))
            x[i + 2] += move.c
        alpha, sigma = scales(schedule, low)
        errors.append(abs((x[1:] ** 2).sum() / ((alpha * s) ** 2 + sigma**2) - 1))
        assert x[0] == pytest.approx(alpha * m, abs=0.05)
    assert errors[-1] < 0.03 / order**2
    assert abs(slope(numbers, errors) - order) < 0.2


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("times_of", ["inner", "log_snr"])
def test_belm_has_second_order_inside_the_time_range_and_in_a_whole_run(name, times_of):
    schedule, (high, low), numbers = SCHEDULES[name], INNER[name], [48, 96, 192]
    inner = times_of == "inner"
    grids = [np.linspace(high, low, n + 1) if inner else times.make(n, "log_snr", schedule, 1.0) for n in numbers]
    errors = [error(BELM(), schedule, list(map(float, grid)), [ASYMMETRIC]) for grid in grids]
    assert errors[-1] < (3e-4 if inner else 1e-3) and abs(slope(numbers, errors) - 2) < 0.15


@every_schedule
@pytest.mark.parametrize("grid", ["uniform", [1.0, 0.93, 0.6, 0.55, 0.1, 0.0]], ids=["even", "uneven"])
def test_belm_keeps_to_the_straight_path_between_data_and_noise(schedule, grid):
    """If d and z stay the same, x_t = alpha d + sigma z, f = m, and nothing is added to the step of DDIM."""
    made = times.make(6, grid, schedule, 1.0) if isinstance(grid, str) else grid
    d, z = np.array([0.3, -1.2]), np.array([1.1, 0.4])
    alpha, sigma = scales(schedule, 1.0)
    states = follow(BELM().moves(schedule, made), lambda x, t: d, alpha * d + sigma * z)
    for t, x in zip(made, states, strict=True):
        alpha, sigma = scales(schedule, t)
        np.testing.assert_allclose(x, alpha * d + sigma * z, rtol=1e-9, atol=1e-9)


def test_belm_is_the_published_formula_where_steps_shrink_and_bdia_where_they_grow():
    """With alpha = 1: equation 18 of the paper for the noise e = (x - d)/sigma, and gamma = 1 of BDIA."""
    schedule, grid = SCHEDULES["ve"], [0.9, 0.8, 0.7, 0.35, 0.3, 0.0]
    states = follow(BELM().moves(schedule, grid), denoiser(schedule), np.array([1.9, -30.0, 4.0]))
    kinds = set()
    for (x_b, x, x_s), now in zip(
        zip(states, states[1:], states[2:], strict=False), pairwise(pairwise(grid)), strict=True
    ):
        (b, t), (_, s) = now
        s_b, s_t, s_s = (scales(schedule, v)[1] for v in (b, t, s))
        h, up, e = s_t - s_s, s_b - s_t, (x - denoiser(schedule)(x, t)) / s_t
        belm = h**2 / up**2 * x_b + (up**2 - h**2) / up**2 * x - h * (h + up) / up * e
        bdia = x_b - (x + up * e) + (x - h * e)
        kinds.add(h < up)
        np.testing.assert_allclose(x_s, belm if h < up else bdia, rtol=1e-9)
    assert kinds == {True, False}


@pytest.mark.parametrize("name", ["cosine", "flow", "ve"])
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_bdia_is_ddim_down_and_what_ddim_up_misses_of_the_state_before(name, gamma):
    schedule, grid, denoise = SCHEDULES[name], [0.9, 0.8, 0.7, 0.35, 0.3, 0.0], denoiser(SCHEDULES[name])
    start = scales(schedule, 0.9)[1] * np.array([1.1, -0.7, 0.2])
    states = follow(BDIA(gamma).moves(schedule, grid), denoise, start)
    first = follow(DDIM().moves(schedule, grid), denoise, start)[1]
    np.testing.assert_allclose(states[1], first, rtol=1e-12)
    for b, t, s, x_b, x, x_s in zip(grid, grid[1:], grid[2:], states, states[1:], states[2:], strict=False):
        alpha, sigma = scales(schedule, t)
        d = denoise(x, t)
        up, down = (v[0] * d + v[1] * (x - alpha * d) / sigma for v in (scales(schedule, b), scales(schedule, s)))
        np.testing.assert_allclose(x_s, down + gamma * (x_b - up), rtol=1e-9)


def test_bdia_has_second_order_with_gamma_one_on_even_steps_and_first_order_otherwise():
    schedule, (high, low), numbers = Flow(), INNER["flow"], [32, 64, 128]
    for gamma, order in ((1.0, 2), (0.5, 1)):
        grids = [np.linspace(high, low, n + 1).tolist() for n in numbers]
        errors = [error(BDIA(gamma), schedule, grid, [ASYMMETRIC]) for grid in grids]
        assert errors[-1] < 0.02 / 10 ** (order - 1) and abs(slope(numbers, errors) - order) < 0.25


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_belm_starts_afresh_where_a_run_begins_later(name):
    """The first step is that of DDIM, takes no second part of the noise, and is remembered as the line it was."""
    schedule, grid = SCHEDULES[name], [1.0, 0.7, 0.5, 0.2, 0.0]
    x = np.array([0.4, -1.3])
    cut = starting_at(BELM().moves(schedule, grid), 2)
    states, own = (follow(table, denoiser(schedule), x) for table in (cut, BELM().moves(schedule, grid[2:])))
    first = follow(DDIM().moves(schedule, grid[2:]), denoiser(schedule), x)
    np.testing.assert_allclose(states, own, rtol=1e-12)
    np.testing.assert_allclose(states[1], first[1], rtol=1e-12)
    assert abs(states[2] - first[2]).min() > 1e-3 and len(cut[0].b) == 1


# in the engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "flow", "edm"])
@pytest.mark.parametrize("solver", [*SOLVERS.values(), BELM()], ids=[*SOLVERS, "belm"])
@pytest.mark.parametrize("steps", [7, [1.0, 0.6, 0.4, 0.7, 0.3, 0.1, 0.0]], ids=["down", "up"])
def test_a_run_applies_the_table_with_its_own_history_and_noise(name, solver, steps):
    schedule, rows = SCHEDULES[name], 11
    base = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=schedule)
    moves = base.process.moves(steps, solver)
    noise = torch.tensor(np.random.default_rng(1).normal(size=(len(moves) + 1, rows, 1)))
    found = gk.sample(base, rows, steps=steps, solver=solver, noise=noise).x[:, 0].numpy()
    z = noise[..., 0].numpy()
    expected = follow(moves, denoiser(schedule), z[0] * scales(schedule, 1.0)[1], z[1:])[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "linear", "flow", "edm", "ve"])
@pytest.mark.parametrize(
    "solver",
    [DDPM(times="log_snr"), DDIM(0.5, times="log_snr"), SDEDPMpp(2, times="log_snr")],
    ids=["ddpm", "ddim.5", "sde2"],
)
def test_the_law_of_a_stochastic_solver_becomes_that_of_the_data_as_steps_grow(name, solver):
    n, base = 10_000, gk.analytic.GaussianMixture(*ASYMMETRIC, schedule=SCHEDULES[name])

    def law(x):
        w, m, s = (np.asarray(v) for v in ASYMMETRIC)
        return (w * ndtr((x[:, None] - m) / s)).sum(1)

    gap = {
        steps: stats.kstest(
            gk.sample(base, n, steps=steps, solver=solver, seed=5).x[:, 0].double().numpy(), law
        ).statistic
        for steps in (4, 250)
    }
    assert gap[4] > 0.04  # few steps are visibly wrong, so the next line has content
    assert gap[250] < 1.95 / math.sqrt(n)  # P = 1e-3 for exact samples


# what is refused -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Early:
    """Nothing of the data is left from t = 0.8 on."""

    def __call__(self, t):
        return (1 - t / 0.8).clamp(min=0), (t / 0.8).clamp(max=1)


def test_time_cannot_go_up_from_where_nothing_but_noise_is_left():
    with pytest.raises(ValueError, match=r"go up from t=0.9 where nothing but noise"):
        DDPM().moves(Early(), [0.9, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(1.5), r"DDIM\(eta=1.5\): eta lies in \[0, 1\]"),
        (lambda: DDIM(-0.1), r"DDIM\(eta=-0.1\): eta lies in \[0, 1\]"),
        (lambda: DPMpp(4), r"DPMpp\(order=4\): there is order 1, order 2 and order 3"),
        (lambda: SDEDPMpp(0), r"SDEDPMpp\(order=0\): there is order 1 and order 2"),
        (lambda: BDIA(0.0), r"BDIA\(gamma=0.0\): gamma lies in \(0, 1\]"),
        (lambda: BELM().moves(Cosine(), [1.0, 0.0]), r"BELM\(times='uniform'\) needs two steps at least"),
        (lambda: BELM().moves(Cosine(), [0.5, 0.7, 0.0]), r"a first one that goes down in time"),
    ],
)
def test_parameters_outside_their_range_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_solver_without_a_step_says_so():
    with pytest.raises(NotImplementedError, match="Solver does not say how to step"):
        Solver().moves(Cosine(), [1.0, 0.0])

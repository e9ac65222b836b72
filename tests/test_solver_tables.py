"""The further solvers of Gaussian processes: their order, the methods that they equal, the published algorithms, and
what they remember."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import expit, ndtr

import guidekit as gk
from guidekit.solvers import (
    CPS,
    DDIM,
    DDPM,
    DEIS,
    ERSDE,
    GHVB,
    PNDM,
    UCGM,
    AcceleratedDDIM,
    AcceleratedDDPM,
    AnalyticDPM,
    Churn,
    Conjugate,
    Consistency,
    DCSolver,
    DPMpp,
    DPMv3,
    DualFast,
    ExponentialHeun,
    HeavyBall,
    Heun,
    Langevin,
    PseudoHeun,
    SASolver,
    SDEDPMpp,
    Statistics,
    UniPC,
    starting_at,
    times,
)
from guidekit.solvers.schedules import Cosine, Flow

from .test_solvers import ASYMMETRIC, SCHEDULES, denoiser, error, follow, quantile, scales, slope

LEVELS = np.linspace(-5.0, 5.0, 21)
SMOOTH = Statistics(*(tuple(v.tolist()) for v in (LEVELS, expit(-LEVELS), -expit(LEVELS - 1))))  # of no model
DETERMINISTIC = {
    "deis2": DEIS(2),
    "deis3": DEIS(3),
    "deis4": DEIS(4),
    "rho3": DEIS(3, "rho"),
    "log_rho3": DEIS(3, "log_rho"),
    "pndm": PNDM(),
    "unipc1": UniPC(1),
    "unipc2": UniPC(2),
    "unipc3": UniPC(3),
    "dpmpp3": DPMpp(3),
    "ball": HeavyBall(DPMpp(), 0.7),
    "ball3": HeavyBall(DEIS(3), 0.7),
    "dual": DualFast(DPMpp(), 0.3),
    "dual3": DualFast(DEIS(3), 0.3),
    "ghvb1": GHVB(1, 0.7),
    "ghvb2": GHVB(2, 0.7),
    "ghvb3": GHVB(3, 0.7),
    "exponential": ExponentialHeun(),
    "pseudo": PseudoHeun(),
    "sa0": SASolver(0.0),
    "ucgm": UCGM(),
    "accelerated": AcceleratedDDIM(),
    "conjugate": Conjugate(-0.3),
    "dc": DCSolver(0.9),
    "v3_2": DPMv3(SMOOTH, 2),
    "v3_3": DPMv3(SMOOTH, 3, False),
}
STOCHASTIC = {
    "er1": ERSDE(1),
    "er2": ERSDE(2),
    "er3": ERSDE(3),
    "sa": SASolver(1.0),
    "sa.4": SASolver(0.4, 3),
    "cps": CPS(0.5),
    "jump": Consistency(),
    "langevin": Langevin(),
    "langevin3": Langevin(DPMpp(3), 0.2, 2),
    "churn": Churn(noise=1.0),
    "ucgm0": UCGM(0.0, 0.3),
    "ucgm.3": UCGM(0.3, 0.3),
    "half": AcceleratedDDPM(),
    "analytic": AnalyticDPM(SMOOTH),
}
SOLVERS = DETERMINISTIC | STOCHASTIC
ORDERS = {
    "deis2": 2, "deis3": 3, "deis4": 4, "rho3": 3, "log_rho3": 3, "pndm": 2, "unipc1": 2, "unipc2": 3, "unipc3": 4,
    "dpmpp3": 3, "ball": 1, "ball3": 1, "dual": 1, "dual3": 1, "ghvb1": 1, "ghvb2": 2, "exponential": 2,
    "pseudo": 2, "sa0": 3,
    "ucgm": 2, "accelerated": 2, "conjugate": 1, "dc": 1, "v3_2": 3, "v3_3": 3,
}  # fmt: skip
OTHER = {
    "conjugate",
    "v3_2",
    "v3_3",
    "half",
    "ucgm.3",
    "analytic",
}  # which treat more than d, or more noise than sigma, as given
WANDERING = [0.9, 0.7, 0.5, 0.35, 0.2, 0.6, 0.45, 0.3, 0.1, 0.05, 0.0]
solvers = pytest.mark.parametrize("name", SOLVERS)
lawful = pytest.mark.parametrize("name", [name for name in SOLVERS if name not in OTHER])
some = pytest.mark.parametrize(  # the default run takes one schedule, the slow one all
    "schedule", [pytest.param(s, marks=() if k == "flow" else pytest.mark.slow, id=k) for k, s in SCHEDULES.items()]
)


# order -----------------------------------------------------------------------------------------------------------


RANGES = {"cosine": (0.85, 0.2), "linear": (0.8, 0.2), "flow": (0.8, 0.2), "edm": (0.6, 0.3), "ve": (0.75, 0.55)}


def inner(schedule):
    return RANGES[next(k for k, v in SCHEDULES.items() if v is schedule)]


def eased(high, low, n):
    """An even grid after small steps that grow by a quarter each, so that the start has no part in the error."""
    first = (high - low) / n * np.cumsum(1.25 ** -np.arange(20.0, 0.0, -1.0))
    return [high, *(high - first[:-1]).tolist(), *np.linspace(high - first[-1], low, n).tolist()]


@some
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_declared_order(name, schedule):
    more = {"rho3": 4, "deis4": 1.25, "accelerated": 1.25}.get(name, 1)  # of whose errors the next term vanishes later
    (high, low), numbers = inner(schedule), [round(n * more) for n in (48, 96, 192)]
    errors = [error(SOLVERS[name], schedule, eased(high, low, n), [ASYMMETRIC]) for n in numbers]
    assert errors[-1] < 0.04 / 4 ** (ORDERS[name] - 1)
    assert abs(slope(numbers, errors) - ORDERS[name]) < 0.25


def edm_times(w):
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return ((w ** (1 / 7) - low) / (high - low)).tolist()


@pytest.mark.parametrize(("solver", "order"), [(GHVB(3, 0.7), 3), (PNDM(), 3)], ids=["ghvb3", "pndm"])
def test_constant_weights_have_their_order_on_steps_that_are_even_in_the_noise_level(solver, order):
    """On EDM the levels are w themselves. The start (two steps of lower order) keeps PNDM at 3."""
    schedule, numbers = SCHEDULES["edm"], [32, 64, 128]
    grids = [edm_times(np.linspace(4.0, 0.2, n + 1)) for n in numbers]
    errors = [error(solver, schedule, grid, [ASYMMETRIC]) for grid in grids]
    assert slope(numbers, errors) > order - 0.25


@pytest.mark.parametrize("name", ["deis3", "unipc2", "dpmpp3", "pseudo", "exponential", "pndm"])
@some
def test_whole_runs_to_data_are_more_accurate_than_those_of_first_order(name, schedule):
    grid = times.make(32, "log_snr", schedule, 1.0)
    plain = error(DDIM(), schedule, grid, [ASYMMETRIC])
    assert error(SOLVERS[name], schedule, grid, [ASYMMETRIC]) < plain / 3


def spread(solver, schedule, grid, m=0.7, s=0.5):
    """Mean and variance of the last state for one Gaussian, whose denoiser is linear: exact, without sampling. States
    are weights of the independent noises, behind their means."""
    moves = solver.moves(schedule, grid)
    alpha, sigma = scales(schedule, grid[0])
    x = np.zeros(len(moves) + 2)
    x[:2] = alpha * m, math.hypot(alpha * s, sigma)

    def denoise(x, t):
        alpha, sigma = scales(schedule, t)
        gain = alpha * s**2 / ((alpha * s) ** 2 + sigma**2)
        found = gain * x
        found[0] += m * (1 - alpha * gain)
        return found

    last = follow(moves, denoise, x, np.eye(len(moves), len(x), 2))[-1]
    return last[0], (last[1:] ** 2).sum()


@some
@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (ERSDE(1), 1),
        (ERSDE(2), 2),
        (SASolver(1.0, 1, False), 1),
        (SASolver(1.0, 2, False), 2),
        (CPS(0.0), 1),
        (AcceleratedDDPM(), 2),
    ],
    ids=["er1", "er2", "sa1", "sa2", "cps0", "half"],
)
def test_mean_and_variance_of_a_stochastic_solver_converge_with_its_weak_order(solver, order, schedule):
    (high, low), numbers = inner(schedule), [192, 384, 768]
    alpha, sigma = scales(schedule, low)
    exact = (alpha * 0.5) ** 2 + sigma**2
    found = [spread(solver, schedule, eased(high, low, n)) for n in numbers]
    errors = [abs(var / exact - 1) for _, var in found]
    assert errors[-1] < 0.05 / order**2
    assert abs(found[-1][0] - alpha * 0.7) < 0.02
    assert abs(slope(numbers, errors) - order) < 0.25


@some
def test_higher_orders_of_the_stochastic_solvers_are_more_accurate_at_the_same_cost(schedule):
    def off(solver):
        grid = times.make(24, "log_snr", schedule, 1.0)
        return abs(spread(solver, schedule, grid)[1] / 0.25 - 1)

    assert off(ERSDE(3)) < off(ERSDE(2)) < off(ERSDE(1))
    assert off(SASolver(1.0, 2)) < off(SASolver(1.0, 2, False)) < off(SASolver(1.0, 1, False))


# laws that all keep -----------------------------------------------------------------------------------------------


@some
@lawful
@pytest.mark.parametrize("grid", ["uniform", "log_snr", WANDERING], ids=["u", "l", "up"])
def test_exact_data_in_the_predictions_keeps_the_marginal_law(schedule, name, grid):
    """With d = x_0 every state is alpha_s x_0 + sigma_s z: what is remembered included. Column 0 is x_0."""
    made = times.make(11, grid, schedule, 1.0) if isinstance(grid, str) else grid
    moves = SOLVERS[name].moves(schedule, made)
    x = np.zeros(len(moves) + 2)
    x[:2] = scales(schedule, made[0])
    data = np.eye(1, len(x))[0]
    states = follow(moves, lambda x, t: data, x, np.eye(len(moves), len(x), 2))
    for move, state in zip(moves, states[1:], strict=True):
        alpha, sigma = scales(schedule, move.s)
        assert state[0] == pytest.approx(alpha, abs=1e-7)
        assert (state[1:] ** 2).sum() == pytest.approx(sigma**2, rel=1e-6, abs=1e-10)


@some
@solvers
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12])
def test_tables_are_finite_from_pure_noise_to_data_and_the_last_row_returns_the_prediction(schedule, name, steps):
    for grid in times.GRIDS:
        moves = SOLVERS[name].moves(schedule, times.make(steps, grid, schedule, 1.0))
        keeps = [k for m in moves for line in m.keep or () for k in line]
        assert all(math.isfinite(v) for m in moves for v in (m.a, *m.b, m.c)) and np.isfinite(keeps).all()
        assert moves[-1].a == moves[-1].c == 0
        assert moves[-1].b[0] == 1 and not any(moves[-1].b[1:])


@some
def test_noise_is_where_it_is_declared(schedule):
    grid = times.make(10, "uniform", schedule, 1.0)
    for name, solver in SOLVERS.items():
        moves = solver.moves(schedule, grid)
        assert solver.stochastic == (name in STOCHASTIC) == any(move.c > 0 for move in moves)
    for name in ("er1", "er2", "er3", "sa", "sa.4", "cps", "jump", "ucgm0", "half"):
        assert all(move.c > 0 for move in STOCHASTIC[name].moves(schedule, grid)[:-1])


@some
@solvers
def test_time_that_has_gone_up_is_a_new_start(schedule, name):
    moves = SOLVERS[name].moves(schedule, WANDERING)
    up = next(i for i, move in enumerate(moves) if (move.t, move.s) == (0.2, 0.6) and not move.b)
    fresh = SOLVERS[name].moves(schedule, WANDERING[5:])
    if name == "churn":  # which counts the steps of the whole run
        assert moves[up + 1].b == fresh[0].b
    else:
        assert moves[up + 1 :] == fresh


@some
@solvers
@pytest.mark.parametrize("steps", [pytest.param(7, marks=pytest.mark.slow), WANDERING], ids=["down", "up"])
def test_a_run_applies_the_table_with_what_it_remembers(schedule, name, steps):
    rows = 5
    base = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=schedule)
    moves = base.process.moves(steps, SOLVERS[name])
    noise = torch.tensor(np.random.default_rng(1).normal(size=(len(moves) + 1, rows, 1)))
    found = gk.sample(base, rows, steps=steps, solver=SOLVERS[name], noise=noise).x[:, 0].numpy()
    z = noise[..., 0].numpy()
    start = z[0] * scales(schedule, moves[0].t)[1]
    expected = follow(moves, denoiser(schedule), start, z[1:])[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


@some
@pytest.mark.parametrize("name", [*DETERMINISTIC, "er3", "sa.4", "langevin3"])
@pytest.mark.parametrize("row", [1, 6])
def test_a_table_that_starts_later_starts_as_if_it_had_stood_still(schedule, name, row):
    """Exact data stay on their path from there, and the path of the mixture is left by a step of first order only."""
    solver = SOLVERS[name]
    grid = times.make(24, "log_snr", schedule, 1.0)
    whole = solver.moves(schedule, grid)
    downs = [i for i, move in enumerate(whole) if move.s < move.t]
    table = starting_at(whole, downs[row])
    data = np.eye(1, len(table) + 2)[0]
    x = np.zeros(len(table) + 2)
    x[:2] = scales(schedule, table[0].t)
    states = follow(table, lambda x, t: data, x, np.eye(len(table), len(x), 2))
    for move, state in zip(table, states[1:], strict=True):
        if name in OTHER:
            break
        alpha, sigma = scales(schedule, move.s)
        assert state[0] == pytest.approx(alpha, abs=1e-7)
        assert (state[1:] ** 2).sum() == pytest.approx(sigma**2, rel=1e-6, abs=1e-10)
    if name in DETERMINISTIC and ORDERS.get(name, 2) > 1:
        u = np.linspace(0.05, 0.95, 11)
        found = follow(table, denoiser(schedule), quantile(u, schedule, table[0].t))[-1]
        assert np.sqrt(np.mean((found - quantile(u, schedule, 0.0)) ** 2)) < 0.25


@some
@pytest.mark.parametrize("name", ["half", "cps", "er2"])
@pytest.mark.parametrize("row", [1, 6])
def test_noise_that_is_added_early_is_made_up_for_where_a_table_starts_later(schedule, name, row):
    """States have the same variance as in the whole run; a start at sigma without that has less with "half"."""
    grid = times.make(12, "log_snr", schedule, 1.0)
    whole = SOLVERS[name].moves(schedule, grid)

    def variances(table):
        x, data = np.zeros(len(table) + 2), np.eye(1, len(table) + 2)[0]
        x[:2] = scales(schedule, table[0].t)
        return [(v[1:] ** 2).sum() for v in follow(table, lambda x, t: data, x, np.eye(len(table), len(x), 2))]

    later = starting_at(whole, row)
    assert variances(later)[1:] == pytest.approx(variances(whole)[row + 1 :], rel=1e-6, abs=1e-12)
    if name == "half":
        assert variances(whole[row:])[1] < 0.98 * variances(whole)[row + 1]
    else:
        assert later[0].c == whole[row].c


# methods that are others -------------------------------------------------------------------------------------------


def same(one, other, schedule, grid, **close):
    """Both go through the same states, with the same noise."""
    (p, q), denoise = (solver.moves(schedule, grid) for solver in (one, other)), denoiser(schedule)
    assert [m[:2] for m in p] == [m[:2] for m in q]
    x = scales(schedule, grid[0])[1] * np.linspace(-2, 2, 9)
    z = np.random.default_rng(3).normal(size=(len(p), 9))
    for a, b in zip(follow(p, denoise, x, z), follow(q, denoise, x, z), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-8, "atol": 1e-9} | close)


def known(l, s):
    return Statistics(tuple(LEVELS.tolist()), (l,) * len(LEVELS), (s,) * len(LEVELS))


def squared(w):
    return w**2


def half_more(w):
    return w**1.5


@some
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (DEIS(1), DDIM()),
        (DEIS(1, "rho"), DDIM()),
        (DEIS(1, "log_rho"), DDIM()),
        (SASolver(0.0, 1, False), DDIM()),
        (SASolver(1.0, 1, False), DDPM()),
        (ERSDE(1, squared), DDPM()),
        (SASolver(0.5**0.5, 1, False), ERSDE(1, half_more)),
        (HeavyBall(DPMpp(2), 1.0), DPMpp(2)),
        (HeavyBall(DPMpp(3), 1.0), DPMpp(3)),
        (HeavyBall(DEIS(3), 1.0), DEIS(3)),
        (HeavyBall(DDIM(), 0.6), GHVB(1, 0.6)),
        (GHVB(1, 1.0), DDIM()),
        (DualFast(DPMpp(3), 0.0), DPMpp(3)),
        (DualFast(DEIS(3), 0.0), DEIS(3)),
        (DualFast(DDIM(), lambda t: 0.5), GHVB(2, 1.0)),
        (CPS(0.0), DDIM()),
        (CPS(1.0), Consistency()),
        (UCGM(0.0), DDIM()),
        (UCGM(0.0, math.sin(0.2 * math.pi) ** 2), CPS(0.4)),
        (Conjugate(0.0), DDIM()),
        (DCSolver(1.0, 2), UniPC(2)),
        (DCSolver((1.0,) * 4, 3), UniPC(3)),
        (DPMv3(known(1.0, 0.0), 1, False), DDIM()),
        (DPMv3(known(1.0, 0.0), 3, False), SASolver(0.0, 3, False)),
        (DPMv3(known(1.0, 0.0), 2), SASolver(0.0, 2)),
        (DPMv3(known(0.0, -1.0), 3, False), DEIS(3, "log_rho")),
    ],
    ids=lambda solver: re.sub(r" at 0x\w+", "", str(solver).split(", phi=")[0].split("statistics=")[0]),
)
def test_solvers_that_are_the_same_method_go_the_same_way(schedule, one, other):
    grid = [0.97, 0.8, 0.65, 0.5, 0.3, 0.12, 0.04, 0.0]
    same(one, other, schedule, grid)


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=["cosine", "flow"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_corrects_the_step_from_pure_noise_as_one_from_nearly_pure_noise(schedule, order):
    pure, nearly = (UniPC(order).moves(schedule, [t, 0.8, 0.6, 0.3])[:2] for t in (1.0, 1 - 1e-9))
    for p, q in zip(pure, nearly, strict=True):
        assert (p.a, *p.b) == pytest.approx((q.a, *q.b), abs=0.02 if p.t < 0.9 and order > 1 else 1e-6)
    assert pure[1].b[1] < -0.05


@some
def test_third_orders_in_the_same_variable_have_the_same_rows_after_their_starts(schedule):
    grid = [0.97, 0.8, 0.65, 0.5, 0.3, 0.12, 0.04]
    ours, adams = (solver.moves(schedule, grid)[2:] for solver in (DPMpp(3), SASolver(0.0, 3, False)))
    for p, q in zip(ours, adams, strict=True):
        assert (*p[:3], *p.b, p.c) == pytest.approx((*q[:3], *q.b, q.c), rel=1e-10, abs=1e-12)


@some
def test_many_steps_of_cps_leave_less_variance_and_those_of_ddim_do_not(schedule):
    """The share of signal is nearly 1 in the last steps, where (1 + k)/2 is left, and that is what comes out."""
    grid = times.make(256, "log_snr", schedule, 1.0)
    for eta in (0.3, 0.5):
        left = (1 + math.cos(math.pi * eta / 2)) / 2
        assert spread(CPS(eta), schedule, grid)[1] / 0.25 == pytest.approx(left, abs=0.03)
        assert spread(DDIM(eta), schedule, grid)[1] / 0.25 > 0.95


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_without_momentum_ghvb_is_adams_bashforth_and_deis_on_steps_that_are_even_in_the_noise_level(order):
    schedule = SCHEDULES["edm"]
    grid = edm_times(np.linspace(30.0, 3.0, 10))
    same(GHVB(order, 1.0), DEIS(order, "rho"), schedule, grid, rtol=1e-6)


@some
def test_a_langevin_step_of_the_greatest_length_is_a_jump(schedule):
    moves = Langevin(DDIM(), 0.5**0.5).moves(schedule, [0.97, 0.5, 0.3, 0.04, 0.0])  # k = 1
    for move in (m for m in moves if m.s == m.t):
        (jump,) = Consistency().moves(schedule, [0.97, move.s])
        assert (move.a, *move.b, move.c) == pytest.approx((jump.a, *jump.b, jump.c), abs=1e-12)


def test_the_weights_of_ghvb_are_those_of_the_paper():
    from guidekit.solvers.ghvb import weights

    for b in (0.3, 0.8, 1.0):  # table of appendix E
        assert weights(1, b) == pytest.approx([1])
        assert weights(2, b) == pytest.approx([(2 + b) / (2 * b), -(2 - b) / (2 * b)])
        assert weights(3, b) == pytest.approx([(18 + 5 * b) / (12 * b), -(24 - 8 * b) / (12 * b), (6 - b) / (12 * b)])
        published = [46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)]
        assert weights(4, b) == pytest.approx([v / (24 * b) for v in published])


def test_pseudo_heun_is_adams_bashforth_on_even_steps_of_a_flow():
    grid = np.linspace(0.9, 0.2, 8).tolist()
    schedule, denoise, x = Flow(), denoiser(Flow()), np.linspace(-2, 2, 9)
    found = follow(PseudoHeun().moves(schedule, grid), denoise, x)
    before = None
    for i, (t, s) in enumerate(pairwise(grid)):
        v = (x - denoise(x, t)) / t
        x = x + (s - t) * (v if before is None else 1.5 * v - 0.5 * before)
        before = v
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-10, atol=1e-12)


def test_on_a_flow_cps_is_its_published_step():
    x, d, z = np.linspace(-2, 2, 5), np.linspace(1, 3, 5), np.linspace(3, -1, 5)
    for eta in (0.0, 0.3, 1.0):
        (move,) = CPS(eta).moves(Flow(), [0.7, 0.4])
        e = x + (1 - 0.7) * (x - d) / 0.7  # x_t + (1 - t) v, the noise that the velocity implies
        expected = 0.6 * d + 0.4 * (math.cos(eta * math.pi / 2) * e + math.sin(eta * math.pi / 2) * z)
        np.testing.assert_allclose(move.a * x + move.b[0] * d + move.c * z, expected, rtol=1e-12)


@some
def test_er_sde_of_second_order_is_its_published_formula(schedule):
    grid, denoise = [0.95, 0.8, 0.7, 0.4, 0.3, 0.05], denoiser(schedule)
    x = quantile(np.linspace(0.05, 0.95, 19), schedule, grid[0])
    noise = np.random.default_rng(0).normal(size=(5, 19))
    found = follow(ERSDE(2).moves(schedule, grid), denoise, x, noise)

    def phi(w):
        return w * (math.exp(w**0.3) + 10)

    before = last = None
    for i, (t, s) in enumerate(pairwise(grid)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
        w_t, w_s, d = sigma_t / alpha_t, sigma_s / alpha_s, denoise(x, t)
        r = phi(w_s) / phi(w_t)
        x = alpha_s / alpha_t * r * x + alpha_s * (1 - r) * d
        if last is not None:
            area = integrate.quad(lambda v: math.exp(v) / phi(math.exp(v)), math.log(w_s), math.log(w_t))[0]
            x = x + alpha_s * (w_s - w_t + area * phi(w_s)) * (d - before) / (w_t - last)
        x = x + alpha_s * math.sqrt(w_s**2 - w_t**2 * r**2) * noise[i]
        before, last = d, w_t
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-7, atol=1e-9)


@some
def test_extrapolation_by_another_share_than_a_third_is_of_first_order(schedule):
    (high, low), numbers = inner(schedule), [48, 96, 192]
    for kappa in (0.0, 0.5):
        errors = [error(UCGM(kappa), schedule, eased(high, low, n), [ASYMMETRIC]) for n in numbers]
        assert slope(numbers, errors) < 1.25


def test_on_a_flow_ucgm_is_its_published_step():
    denoise, grid = denoiser(Flow()), [0.9, 0.7, 0.4, 0.3, 0.1]
    x, noise = np.linspace(-2, 2, 7), np.random.default_rng(4).normal(size=(4, 7))
    found = follow(UCGM(0.4, 0.2).moves(Flow(), grid), denoise, x, noise)
    before = None
    for i, (t, s) in enumerate(pairwise(grid)):
        now = np.stack([denoise(x, t), (x - (1 - t) * denoise(x, t)) / t])
        data, e = now if before is None else now + 0.4 * (now - before)
        x = (1 - s) * data + s * (math.sqrt(0.8) * e + math.sqrt(0.2) * noise[i])
        before = now
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-10, atol=1e-12)


@some
def test_dualfast_replaces_the_noise_in_the_first_order_term_of_dpm_solver(schedule):
    """Of 2M, whose other term is a difference of clean predictions; c grows towards data."""
    grid, denoise = [0.95, 0.8, 0.7, 0.4, 0.3, 0.05], denoiser(schedule)
    x = quantile(np.linspace(0.05, 0.95, 19), schedule, grid[0])
    found = follow(DualFast(DPMpp(2), 0.4).moves(schedule, grid), denoise, x)
    before = None
    for i, (t, s) in enumerate(pairwise(grid)):
        (alpha, sigma), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
        d, h = denoise(x, t), math.log(alpha_s / sigma_s) - math.log(alpha / sigma)
        e, c = (x - alpha * d) / sigma, 0.4 * (1 - t)
        clean = d if before is None else (x - sigma * ((1 + c) * e - c * before[1])) / alpha
        change = 0.0 if before is None else (d - before[0]) * h / before[2] / 2
        x, before = sigma_s / sigma * x + alpha_s * (1 - math.exp(-h)) * (clean + change), (d, e, h)
        np.testing.assert_allclose(found[i + 1], x, rtol=1e-8, atol=1e-10)


@some
def test_the_accelerated_ddpm_is_the_published_one_with_the_noise_that_exact_data_need(schedule):
    """Li et al. write it with a score, half of the noise before and half after. Theirs is more by the second order."""
    grid = [*np.linspace(*inner(schedule), 5).tolist(), 0.0]
    table = AcceleratedDDPM().moves(schedule, grid)
    levels = [scales(schedule, t) for t in grid]
    steps = [(a / a_s, sigma**2 - (a / a_s * sigma_s) ** 2) for (a, sigma), (a_s, sigma_s) in pairwise(levels)]
    early = [0.0, *(noise / 2 for _, noise in steps[1:-1]), 0.0, 0.0]
    data, x = np.eye(1, len(table) + 2)[0], np.zeros(len(table) + 2)
    x[:2] = levels[0]
    states = follow(table, lambda x, t: data, x, np.eye(len(table), len(x), 2))
    for i, (move, (ratio, noise)) in enumerate(zip(table, steps, strict=True)):
        (alpha, sigma), (alpha_s, sigma_s) = levels[i : i + 2]
        assert move.a == pytest.approx((1 - noise / sigma**2) / ratio, rel=1e-8, abs=1e-12)  # (x + noise score)/ratio
        assert move.b == pytest.approx([noise * alpha / sigma**2 / ratio], rel=1e-8)
        ours = move.c**2 - early[i + 1]
        if early[i]:
            assert ours == pytest.approx(noise / 2 * (1 / ratio**2 - (1 / ratio - move.a) ** 2), rel=1e-7)
        else:
            assert ours == pytest.approx(noise * move.a / ratio, rel=1e-7, abs=1e-12)  # DDPM's
        assert states[i + 1][0] == pytest.approx(alpha_s, rel=1e-9)
        assert (states[i + 1][1:] ** 2).sum() == pytest.approx(sigma_s**2 + early[i + 1], rel=1e-8, abs=1e-12)


@some
def test_the_accelerated_ddim_is_the_published_one_up_to_the_third_order(schedule):
    """In y = x/alpha, v = (sigma/alpha)^2 the flow is dy/dv = -S/2, S = (d - y)/v. The paper's step is Adams and
    Bashforth's of second order, whose value above is predicted at Euler's point."""
    high, low = inner(schedule)
    denoise, gaps, middle = denoiser(schedule), [], (high + low) / 2
    for h in (0.04, 0.02, 0.01):
        u, t, s = middle + h * (high - low), middle, middle - h * (high - low)
        x = quantile(np.linspace(0.1, 0.9, 9), schedule, t)
        up, down = AcceleratedDDIM().moves(schedule, [u, t, s])[1:]
        found = follow([up, down], denoise, x)[-1]
        (alpha_u, v_u), (_, v_t), (alpha_s, v_s) = (
            (alpha, (sigma / alpha) ** 2) for alpha, sigma in (scales(schedule, r) for r in (u, t, s))
        )
        y = x / scales(schedule, t)[0]
        now = (denoise(x, t) - y) / v_t
        above = y - (v_u - v_t) / 2 * now
        then = (denoise(alpha_u * above, u) - above) / v_u
        wide, ago = (v_t - v_s) / 2, (v_u - v_t) / 2
        gaps.append(np.abs(found - alpha_s * (y + wide * now + wide**2 / (2 * ago) * (now - then))).max())
    assert gaps[0] < 0.05 and 6 < gaps[0] / gaps[1] < 10 and 6 < gaps[1] / gaps[2] < 10


@some
@pytest.mark.parametrize("k", [-0.5, 1.0, 0.7])
def test_a_conjugate_integrator_is_eulers_step_in_its_coordinates(schedule, k):
    t, s = inner(schedule)
    denoise, x = denoiser(schedule), np.linspace(-2, 2, 7)
    (alpha, sigma), (alpha_s, sigma_s) = scales(schedule, t), scales(schedule, s)
    start, end = math.log(alpha / sigma), math.log(alpha_s / sigma_s)
    e = (x - alpha * denoise(x, t)) / sigma
    y = math.exp(k * start) * x / alpha
    area = integrate.quad(lambda v: math.exp((k - 1) * v), start, end)[0]
    expected = alpha_s * math.exp(-k * end) * (y + (end - start) * k * y - e * area)
    found = follow(Conjugate(k).moves(schedule, [t, s]), denoise, x)[-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@some
@pytest.mark.parametrize("order", [2, 3])
def test_dc_solver_is_unipc_that_remembers_moved_predictions(schedule, order):
    """The published loop: predict, evaluate, correct, replace the newest prediction, and so on."""
    from guidekit.solvers.base import Point
    from guidekit.solvers.unipc import corrector, predictor

    grid, ratios = [0.9, 0.8, 0.68, 0.55, 0.4, 0.28], (0.7, 1.3)
    denoise = denoiser(schedule)
    x = quantile(np.linspace(0.1, 0.9, 9), schedule, grid[0])
    found = follow(DCSolver(ratios, order).moves(schedule, grid), denoise, x)
    points = [Point(t, *scales(schedule, t)) for t in grid]
    memory = [denoise(x, grid[0])]
    for i, (t, s) in enumerate(pairwise(points)):
        if 2 <= i < 2 + len(ratios):
            moved, nodes = (
                ratios[i - 2] * grid[i] + (1 - ratios[i - 2]) * grid[i - 1],
                (grid[i], grid[i - 1], grid[i - 2]),
            )
            weights = [np.prod([(moved - b) / (a - b) for b in nodes if b != a]) for a in nodes]
            memory[0] = sum(w * d for w, d in zip(weights, memory[:3], strict=True))
        past, base = points[i::-1][:order], s.sigma / t.sigma * x
        predicted = base + sum(w * d for w, d in zip(predictor(s, past), memory, strict=False))
        np.testing.assert_allclose(found[i + 1], predicted, rtol=1e-9, atol=1e-10)
        new = denoise(predicted, s.t)
        x = base + sum(w * d for w, d in zip(corrector(s, past), [new, *memory], strict=False))
        memory = [new, *memory]


def test_the_sde_of_flow_grpo_is_a_stochastic_adams_method_of_constant_tau():
    """Its noise g = a sqrt(t/(1 - t)) is tau = a/sqrt(2): Euler-Maruyama's row, -h (v + g^2/(2 t) e) and g sqrt(h) z
    with v = (x - d)/t and the noise e = (x - (1 - t) d)/t, differs in the second order of h."""
    for a, t in ((0.7, 0.8), (1.0, 0.3)):
        g2, gaps = a**2 * t / (1 - t), []
        for h in (2e-3, 1e-3):
            (move,) = SASolver(a / math.sqrt(2), 1, False).moves(Flow(), [t, t - h])
            euler = 1 - h * (1 / t + g2 / (2 * t) / t), h * (1 / t + g2 / (2 * t) * (1 - t) / t), g2 * h
            gaps.append(np.abs(np.subtract((move.a, move.b[0], move.c**2), euler)))
        assert np.all(gaps[0] < 5e-4) and np.all(gaps[0] / gaps[1] > 3.5)


def test_churn_is_algorithm_2_of_karras_et_al():
    schedule, n = SCHEDULES["edm"], 12
    solver = Churn(amount=3.0, low=0.05, high=30.0, noise=1.1)
    grid = times.make(n, "karras", schedule, 1.0)
    table, denoise = solver.moves(schedule, grid), denoiser(schedule)
    sigma = [scales(schedule, t)[1] for t in grid]
    z = np.random.default_rng(2).normal(size=(len(table), 7))
    states = follow(table, denoise, 80 * np.linspace(-1, 1, 7), z)
    x, row = 80 * np.linspace(-1, 1, 7), -1
    for i in range(n):
        level = sigma[i]
        if i and 0.05 <= level <= 30:
            raised = level * (1 + min(3.0 / n, math.sqrt(2) - 1))
            x = x + math.sqrt(raised**2 - level**2) * 1.1 * z[row]
            level = raised
            np.testing.assert_allclose(states[row + 1], x, rtol=1e-7, atol=1e-8)
        t = times.time_of(schedule, level)
        slope_here = (x - denoise(x, t)) / level
        euler = x + (sigma[i + 1] - level) * slope_here
        if sigma[i + 1] == 0:
            x = euler
        else:
            there = (euler - denoise(euler, grid[i + 1])) / sigma[i + 1]
            x = x + (sigma[i + 1] - level) * (slope_here + there) / 2
        row += 1 if sigma[i + 1] == 0 else 2
    np.testing.assert_allclose(states[-1], x, rtol=1e-6, atol=1e-7)
    assert len(table) == 2 * n - 1  # no evaluations besides Heun's


# beside diffusers ----------------------------------------------------------------------------------------------------

quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Levels:
    """The levels of a scheduler as a schedule that is asked at the times of the grid alone."""

    def __init__(self, levels):
        self.levels = dict(zip(np.linspace(1, 0, len(levels)).tolist(), levels, strict=True))
        self.grid = list(self.levels)

    def __call__(self, t):
        alpha, sigma = self.levels[float(t)]
        return torch.tensor(alpha), torch.tensor(sigma)


def states_of(scheduler, levels, rows, calls, noise=None, **options):
    """The states of a diffusers scheduler that predicts noise, with the exact denoiser, and with this noise in every
    step."""
    schedule = Levels(levels)
    denoise, found = denoiser(schedule), [rows]
    x = rows
    for t, call in calls:
        alpha, sigma = schedule.levels[schedule.grid[call]]
        e = (x - alpha * denoise(x, schedule.grid[call])) / sigma
        own = {} if noise is None else {"variance_noise": torch.tensor(noise[call])[:, None]}
        x = scheduler.step(torch.tensor(e)[:, None], t, torch.tensor(x)[:, None], **own, **options)
        x = x.prev_sample[:, 0].numpy()
        found.append(x)
    return found, schedule


@quiet
@pytest.mark.parametrize(
    ("name", "options", "solver", "checked"),
    [
        ("DEISMultistepScheduler", {"solver_order": 2}, DEIS(2, "log_rho"), 20),
        ("DEISMultistepScheduler", {"solver_order": 3}, DEIS(3, "log_rho"), 20),
        ("UniPCMultistepScheduler", {"solver_order": 1}, UniPC(1), 20),
        ("UniPCMultistepScheduler", {"solver_order": 2}, UniPC(2), 20),
        ("UniPCMultistepScheduler", {"solver_order": 3}, UniPC(3), 18),  # whose last but one step is of order 2 there
        ("DPMSolverMultistepScheduler", {"solver_order": 2}, DPMpp(2), 20),
    ],
    ids=["deis2", "deis3", "unipc1", "unipc2", "unipc3", "dpmpp2"],
)
def test_the_states_are_those_of_diffusers(name, options, solver, checked):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(**VP | options)
    scheduler.set_timesteps(20)
    ratio = scheduler.sigmas.double().numpy()
    levels = [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratio]
    rows = np.linspace(-2, 2, 9)
    theirs, schedule = states_of(scheduler, levels, rows, zip(scheduler.timesteps, range(20), strict=True))
    ours = follow(solver.moves(schedule, schedule.grid), denoiser(schedule), rows)
    for a, b in zip(ours[: checked + 1], theirs[: checked + 1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@quiet
@pytest.mark.parametrize("order", [1, 2])
def test_with_the_same_noise_the_states_of_the_sde_solver_are_those_of_diffusers(order):
    diffusers = pytest.importorskip("diffusers")
    options = {"solver_order": order, "algorithm_type": "sde-dpmsolver++"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**VP | options)
    scheduler.set_timesteps(20)
    levels = [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in scheduler.sigmas.double().numpy()]
    rows, noise = np.linspace(-2, 2, 9), np.random.default_rng(5).normal(size=(20, 9))
    theirs, schedule = states_of(scheduler, levels, rows, zip(scheduler.timesteps, range(20), strict=True), noise)
    ours = follow(SDEDPMpp(order).moves(schedule, schedule.grid), denoiser(schedule), rows, noise)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@quiet
@pytest.mark.parametrize("solver", [DDIM(), DDIM(0.5), DDPM()], ids=["ddim", "ddim.5", "ddpm"])
def test_with_the_same_noise_the_states_of_ddim_are_those_of_diffusers(solver):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**VP, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    kept = [*(scheduler.alphas_cumprod[t].double().item() for t in scheduler.timesteps), 1.0]
    levels = [(a**0.5, (1 - a) ** 0.5) for a in kept]
    rows, noise = np.linspace(-2, 2, 9), np.random.default_rng(5).normal(size=(20, 9))
    calls, eta = zip(scheduler.timesteps, range(20), strict=True), 1.0 if solver == DDPM() else solver.eta
    theirs, schedule = states_of(scheduler, levels, rows, calls, noise if eta else None, eta=eta)
    ours = follow(solver.moves(schedule, schedule.grid), denoiser(schedule), rows, noise)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@quiet
def test_the_states_of_pndm_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(**VP, skip_prk_steps=True, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    stamps = scheduler.timesteps.tolist()
    assert stamps[1] == stamps[2] and len(stamps) == 21  # the second one is evaluated twice
    once = [stamps[0], *stamps[2:], stamps[-1] - 50]
    kept = [scheduler.alphas_cumprod[max(t, 0)].double().item() for t in once]
    levels = [(a**0.5, (1 - a) ** 0.5) for a in kept]
    rows = np.linspace(-2, 2, 9)
    calls = zip(stamps, [0, 1, *range(1, 20)], strict=True)
    theirs, schedule = states_of(scheduler, levels, rows, calls)
    ours = follow(PNDM().moves(schedule, schedule.grid), denoiser(schedule), rows)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@quiet
def test_the_third_order_of_diffusers_is_ours_with_half_of_the_second_derivative():
    """Which is why the error of theirs falls with the square of the steps."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(**VP, solver_order=3)
    scheduler.set_timesteps(20)
    ratio = scheduler.sigmas.double().numpy()
    levels = [(1 / math.hypot(1, r), r / math.hypot(1, r)) for r in ratio]
    rows = np.linspace(-2, 2, 9)
    theirs, schedule = states_of(scheduler, levels, rows, zip(scheduler.timesteps, range(20), strict=True))
    table = list(DPMpp(3).moves(schedule, schedule.grid))
    for i in range(2, 19):
        lam = [-math.log(ratio[j]) for j in (i, i - 1, i - 2, i + 1)]
        h, below = lam[3] - lam[0], np.array(lam[:3])
        second = np.array([1 / np.prod([a - b for b in below if b != a]) for a in below])  # half of d''
        term = levels[i + 1][0] * (h**2 - 2 * h + 2 - 2 * math.exp(-h))  # alpha_s int_0^h exp(v - h) v^2 dv
        table[i] = table[i]._replace(b=tuple(np.array(table[i].b) - term * second / 2))
    ours = follow(table, denoiser(schedule), rows)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# in the engine ---------------------------------------------------------------------------------------------------


late = [pytest.param(name, marks=pytest.mark.slow) for name in ("sa", "churn", "er3", "half")]


@pytest.mark.parametrize("name", ["er2", *late, pytest.param("langevin", marks=pytest.mark.slow)])
def test_the_law_of_a_stochastic_solver_becomes_that_of_the_data_as_steps_grow(name):
    n, base = 10_000, gk.analytic.GaussianMixture(*ASYMMETRIC, schedule=Flow())
    solver = type(STOCHASTIC[name])(**{**vars(STOCHASTIC[name]), "times": "log_snr"})

    def law(x):
        w, m, s = (np.asarray(v) for v in ASYMMETRIC)
        return (w * ndtr((x[:, None] - m) / s)).sum(1)

    gap = {
        steps: stats.kstest(
            gk.sample(base, n, steps=steps, solver=solver, seed=5).x[:, 0].double().numpy(), law
        ).statistic
        for steps in (3, 100)
    }
    assert gap[3] > 0.04  # few steps are visibly wrong, so the next line has content
    assert gap[100] < 1.95 / math.sqrt(n)  # P = 1e-3 for exact samples


slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("cps", "ucgm.3", "analytic")]


@pytest.mark.parametrize("name", ["er2", "langevin3", *late, *slow])
def test_steered_proposals_and_weights_are_exact_with_the_stochastic_solvers(name):
    """Z of p exp(r/alpha) in the chain itself: the weights of an untilted run and of a steered one agree."""
    base = gk.analytic.GaussianMixture(*ASYMMETRIC, schedule=Flow())
    n, steps, solver = 8_000, 8, STOCHASTIC[name]
    plain = gk.sample(base, n, steps=steps, solver=solver, seed=1).x[:, 0].double()
    w = (0.8 * plain).exp()
    exact, deviation = w.mean().log().item(), (w.std() / w.mean()).item()
    for guide in (gk.FKSteering(lambda x: 0.8 * x[:, 0], 1.0), gk.TDS(lambda x: 0.8 * x[:, 0], 1.0)):
        found = gk.sample(base, n, steps=steps, solver=solver, guides=[guide], seed=2).log_z.item()
        assert found == pytest.approx(exact, abs=5 * deviation * (2 / n) ** 0.5)


# what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DEIS(0), r"DEIS\(order=0\): there is order 1 \(DDIM\) to 4"),
        (lambda: DEIS(3, "x"), r"DEIS\(space='x'\): there is 't', 'rho', 'log_rho'"),
        (lambda: UniPC(5), r"UniPC\(order=5\): there is order 1 to 4"),
        (lambda: ERSDE(4), r"ERSDE\(order=4\): there is order 1 to 3"),
        (lambda: SASolver(-1.0), r"SASolver\(tau=-1.0\): tau is at least 0"),
        (lambda: SASolver(order=0), r"SASolver\(order=0\): there is order 1 to 4"),
        (lambda: GHVB(5), r"GHVB\(order=5\): there is order 1 to 4"),
        (lambda: GHVB(2, 0.0), r"GHVB\(beta=0.0\): beta lies in \(0, 1\]"),
        (lambda: HeavyBall(DDPM(), 0.5), r"HeavyBall.*momentum is for deterministic solvers"),
        (lambda: HeavyBall(DDIM(), 1.5), r"HeavyBall\(beta=1.5\): beta lies in \(0, 1\]"),
        (lambda: DualFast(DDPM()), r"DualFast.*it is for deterministic solvers"),
        (lambda: DualFast(DDIM(), 1.5), r"DualFast\(c=1.5\): c lies in \[0, 1\]"),
        (lambda: Langevin(DDIM(), 0.8), r"snr lies in \(0, 0.7\]"),
        (lambda: Langevin(DDIM(), 0.1, 0), r"count is at least 1"),
        (lambda: Langevin(AcceleratedDDPM()), r"adds noise early, which a Langevin step would take away"),
        (lambda: Churn(low=3.0, high=2.0), r"0 <= low < high"),
        (lambda: CPS(1.2), r"CPS\(eta=1.2\): eta lies in \[0, 1\]"),
        (lambda: UCGM(1.2), r"UCGM.*kappa=1.2.*lie in \[0, 1\]"),
        (lambda: Conjugate(3.0), r"Conjugate\(k=3.0\): k lies in \[-2, 2\]"),
        (lambda: DCSolver(order=4), r"DCSolver\(order=4\): there is order 1 to 3"),
        (lambda: DPMv3(SMOOTH, 4), r"DPMv3\(order=4\): there is order 1 to 3"),
        (lambda: DPMv3(gk.zoo), r"DPMv3.*give gk.solvers.statistics\(model\)"),
        (lambda: DCSolver((1.0, 0.9)).moves(Cosine(), [0.9, 0.5, 0.0]), r"fitted for steps=5, and there are 2"),
    ],
)
def test_parameters_outside_their_range_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("around", [HeavyBall, DualFast])
def test_what_is_put_around_a_solver_with_two_evaluations_per_step_is_refused(around):
    with pytest.raises(ValueError, match="needs one evaluation per step"):
        around(Heun()).moves(Cosine(), [1.0, 0.5, 0.0])


def test_a_noise_scale_that_falls_is_refused():
    with pytest.raises(ValueError, match=r"phi\(w\)/w must rise with w"):
        ERSDE(2, np.sqrt).moves(Cosine(), [0.9, 0.5, 0.0])

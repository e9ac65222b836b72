"""Laws of the noise schedules and of the time grids."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import guidekit as gk
from guidekit.solvers import schedules, times
from guidekit.solvers.schedules import EDM, VE, Cosine, Flow, Linear

SCHEDULES = {
    "cosine": Cosine(),
    "linear": Linear(),
    "linear2": Linear(0.3, 12.0),
    "flow": Flow(),
    "ve": VE(),
    "ve2": VE(0.05, 20.0),
    "edm": EDM(),
    "edm2": EDM(0.01, 30.0, 5.0),
}
VARIANCE_PRESERVING = ("cosine", "linear", "linear2")
TO_PURE_NOISE = ("cosine", "flow")  # alpha(1) = 0
everywhere = pytest.mark.parametrize("name", SCHEDULES)


def alpha_sigma(name, t):
    """The published formulas, in numpy."""
    t = np.asarray(t, dtype=np.float64)
    one = np.ones_like(t)
    if name == "cosine":
        return np.sin(np.pi / 2 * (1 - t)), np.sin(np.pi / 2 * t)
    if name.startswith("linear"):
        low, high = (0.1, 20.0) if name == "linear" else (0.3, 12.0)  # beta(t) = low + t (high - low)
        area = np.array([integrate.quad(lambda u: low + u * (high - low), 0, end)[0] for end in t])
        return np.exp(-area / 2), np.sqrt(1 - np.exp(-area))
    if name == "flow":
        return 1 - t, t
    if name.startswith("ve"):
        low, high = (0.01, 50.0) if name == "ve" else (0.05, 20.0)
        return one, np.exp((1 - t) * np.log(low) + t * np.log(high))
    low, high, rho = (0.002, 80.0, 7.0) if name == "edm" else (0.01, 30.0, 5.0)
    return one, ((1 - t) * low ** (1 / rho) + t * high ** (1 / rho)) ** rho


# schedules -------------------------------------------------------------------------------------------------------


@everywhere
def test_alpha_and_sigma_follow_the_published_formula(name):
    t = np.linspace(1e-3, 1, 57)
    alpha, sigma = SCHEDULES[name](torch.tensor(t))
    expected = alpha_sigma(name, t)
    np.testing.assert_allclose(alpha, expected[0], rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(sigma, expected[1], rtol=1e-10)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_zero_is_data_exactly(name, dtype):
    alpha, sigma = SCHEDULES[name](torch.tensor([0.0, 0.5, 0.0], dtype=dtype))
    assert alpha.dtype == sigma.dtype == dtype
    assert alpha[0] == alpha[2] == 1
    assert sigma[0] == sigma[2] == 0
    assert sigma[1] > 0
    assert schedules.scales(SCHEDULES[name], 0.0) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["ve", "ve2", "edm", "edm2"])
def test_noise_begins_at_sigma_min_and_ends_at_sigma_max(name):
    schedule = SCHEDULES[name]
    assert schedules.scales(schedule, 1e-12)[1] == pytest.approx(schedule.sigma_min, rel=1e-9)
    assert schedules.scales(schedule, 1.0)[1] == pytest.approx(schedule.sigma_max, rel=1e-12)


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
def test_variance_preserving_schedules_keep_the_sum_of_squares_at_one(name):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha, sigma = SCHEDULES[name](t)
    assert (alpha**2 + sigma**2 - 1).abs().max() < 1e-14


@pytest.mark.parametrize("name", TO_PURE_NOISE)
def test_nothing_of_the_data_is_left_at_time_one(name):
    assert schedules.scales(SCHEDULES[name], 1.0) == (0.0, 1.0)


@everywhere
def test_the_signal_to_noise_ratio_falls_in_time(name):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:-1]
    alpha, sigma = SCHEDULES[name](t)
    assert ((alpha / sigma).diff() < 0).all()
    assert (alpha >= 0).all()
    assert (sigma > 0).all()


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_edm_with_the_karras_grid_gives_the_noise_levels_of_karras_et_al(steps):
    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0
    i = np.arange(steps)  # equation 5 of arXiv 2206.00364
    published = (sigma_max ** (1 / rho) + i / (steps - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    grid = times.make(steps, "karras", EDM(), 1.0)
    sigma = [schedules.scales(EDM(), t)[1] for t in grid]
    np.testing.assert_allclose(sigma[:-1], published, rtol=1e-6)  # the grid's last time is sought above 1e-9
    assert sigma[-1] == 0


@everywhere
def test_a_schedule_is_hashable_and_equal_to_its_copy(name):
    again = type(SCHEDULES[name])(**vars(SCHEDULES[name]))
    assert (again, hash(again)) == (SCHEDULES[name], hash(SCHEDULES[name]))
    assert isinstance(again, schedules.Schedule)
    assert len(set(SCHEDULES.values())) == len(SCHEDULES)


# grids -----------------------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 51])
@pytest.mark.parametrize("grid", times.GRIDS)
@pytest.mark.parametrize("t_max", [1.0, 0.999, 0.4])
def test_a_grid_falls_from_t_max_to_exactly_zero_in_as_many_steps_as_asked(name, steps, grid, t_max):
    made = times.make(steps, grid, SCHEDULES[name], t_max)
    assert len(made) == steps + 1
    assert (made[0], made[-1]) == (t_max, 0.0)
    assert (np.diff(made) < 0).all()
    assert all(isinstance(t, float) for t in made)


@pytest.mark.parametrize("t_max", [1.0, 0.7])
def test_uniform_and_cosine_grids_follow_their_formulas(t_max):
    i = np.arange(13)
    np.testing.assert_allclose(times.make(12, "uniform", None, t_max), np.linspace(t_max, 0, 13), atol=1e-15)
    np.testing.assert_allclose(times.make(12, "cosine", None, t_max), t_max * np.sin(np.pi * (12 - i) / 24), atol=1e-15)


def ratios(name, made):
    alpha, sigma = alpha_sigma(name, made)
    with np.errstate(divide="ignore"):
        return np.where(alpha > 1e-12, sigma / alpha, np.inf)


@everywhere
@pytest.mark.parametrize("t_max", [1.0, 0.9])
@pytest.mark.parametrize(
    ("grid", "scale"),
    [("log_snr", np.log), ("karras", lambda ratio: ratio ** (1 / 7)), ("arctan", np.arctan)],
    ids=["log_snr", "karras", "arctan"],
)
def test_inner_times_are_evenly_spaced_in_log_snr_or_in_the_seventh_root_of_the_noise_level(name, grid, scale, t_max):
    steps = 11
    found = ratios(name, times.make(steps, grid, SCHEDULES[name], t_max)[:-1])
    assert math.isinf(found[0]) == (name in TO_PURE_NOISE and t_max == 1)
    if math.isinf(found[0]):
        found[0] = 200.0  # what the module's docstring puts for infinity
    low = 0.002 if not name.startswith(("ve", "edm")) else SCHEDULES[name].sigma_min
    assert found[-1] == pytest.approx(low, rel=1e-6)
    spacing = np.diff(scale(found))
    np.testing.assert_allclose(spacing, spacing.mean(), rtol=1e-5)


def test_beta_quadratic_and_shifted_grids_follow_their_formulas():
    share = stats.beta.cdf(times.make(9, "beta", None, 1.0), 0.6, 0.6)  # which is even at the quantiles
    np.testing.assert_allclose(share, np.linspace(1, 0, 10), atol=1e-12)
    np.testing.assert_allclose(times.make(9, "quadratic", None, 0.8), 0.8 * np.linspace(1, 0, 10) ** 2, atol=1e-15)
    np.testing.assert_allclose(times.make(9, times.shifted(1.0), None, 1.0), np.linspace(1, 0, 10), atol=1e-15)
    moved = times.make(9, times.shifted(3.0), Flow(), 1.0)[1:-1]  # a flow at three times the noise-to-signal ratio
    even = np.linspace(1, 0, 10)[1:-1]
    np.testing.assert_allclose(np.array(moved) / (1 - np.array(moved)), 3 * even / (1 - even), rtol=1e-12)
    with pytest.raises(ValueError, match=r"shifted\(0\): the scale is a positive number"):
        times.shifted(0)


def test_a_grid_that_is_even_in_the_angle_is_even_in_the_time_of_a_cosine_schedule():
    made = times.make(9, "arctan", Cosine(), 1.0)
    ends = 2 / math.pi * np.arctan([200.0, 0.002])
    np.testing.assert_allclose(made[1:-1], np.linspace(*ends, 9)[1:], rtol=1e-9)


def test_a_grid_may_be_a_function_of_schedule_steps_and_t_max():
    seen = []

    def grid(schedule, steps, t_max):
        seen.append((schedule, steps, t_max))
        return [1, 0.25, 0]

    assert times.make(2, grid, Flow(), 1.0) == [1.0, 0.25, 0.0]
    assert seen == [(Flow(), 2, 1.0)]
    moves = gk.process.Gaussian(Flow()).moves(2, gk.solvers.DDPM(times=grid))
    assert [(m.t, m.s) for m in moves] == [(1.0, 0.25), (0.25, 0.0)]


@pytest.mark.parametrize("given", [[1, 0.5, 0], (0.3, 0.8, 0.1, 0.0), [1.0, 0.4, 0.6, 0.0, 0.2, 0.0], [1e-9, 0]])
def test_explicit_times_are_taken_as_they_are_also_where_they_go_up(given):
    made = times.make(given, "uniform", None, 1.0)
    assert made == [float(t) for t in given]
    for array in (np.array(given, dtype=float), torch.tensor(given, dtype=torch.float64)):
        assert times.make(array, "uniform", None, 1.0) == made
    for process in (gk.process.Gaussian(Cosine()), gk.process.Masked(3), gk.process.Uniform(3)):
        moves = process.moves(given, None)
        assert [m.t for m in moves] + [moves[-1].s] == made
        assert all(a.s == b.t for a, b in pairwise(moves))


@pytest.mark.parametrize(
    ("steps", "grid", "error", "message"),
    [
        (True, "uniform", TypeError, "number of steps or a sequence of times, not True"),
        (10.0, "uniform", TypeError, "number of steps or a sequence of times, not 10.0"),
        (None, "uniform", TypeError, "number of steps or a sequence of times, not None"),
        ("10", "uniform", TypeError, "number of steps or a sequence of times, not '10'"),
        (0, "uniform", ValueError, "steps=0: at least one step"),
        (-3, "uniform", ValueError, "steps=-3: at least one step"),
        (
            5,
            "lunar",
            ValueError,
            "times='lunar': there is uniform, cosine, log_snr, karras, arctan, beta, quadratic, or a function",
        ),
        (5, "log_snr", ValueError, "'log_snr' needs a noise schedule; for tokens take 'uniform' or 'cosine'"),
        (5, "karras", ValueError, "'karras' needs a noise schedule"),
        ([0.0], "uniform", ValueError, "start above 0, stay within"),
        ([], "uniform", ValueError, "start above 0, stay within"),
        ([0.0, 1.0, 0.0], "uniform", ValueError, "start above 0, stay within"),
        ([1.0, 0.5], "uniform", ValueError, r"end at 0; given \[1.0, 0.5\]"),
        ([1.5, 0.5, 0.0], "uniform", ValueError, r"stay within \[0, 1\]"),
        ([1.0, -0.5, 0.0], "uniform", ValueError, r"stay within \[0, 1\]"),
        ([1.0, math.nan, 0.0], "uniform", ValueError, r"stay within \[0, 1\]"),
        ([1.0, 0.5, 0.5, 0.0], "uniform", ValueError, "neighbouring times must differ"),
        (3, lambda schedule, steps, t_max: [1.0, 0.5], ValueError, r"end at 0; given \[1.0, 0.5\]"),
    ],
)
def test_times_that_make_no_sense_are_refused_with_what_was_given(steps, grid, error, message):
    with pytest.raises(error, match=message):
        times.make(steps, grid, None, 1.0)


@pytest.mark.parametrize("steps", [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], 2])
def test_times_above_the_last_one_at_which_a_prediction_means_something_are_refused(steps):
    grid = (lambda schedule, steps, t_max: [1.0, 0.5, 0.0]) if steps == 2 else "uniform"
    with pytest.raises(ValueError, match=r"times go up to 1.0, but where alpha vanishes .* start at 0.999"):
        times.make(steps, grid, Cosine(), 0.999)

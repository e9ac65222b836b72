"""Networks that are told another time: a clock that is wrong is put right, one is fitted, and rows find their own."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit.solvers import DDIM, DDPM, UniPC
from guidekit.solvers.schedules import Cosine, Flow

ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])


def exact(schedule, clock=lambda t: t, predicts="clean"):
    """The exact network of a mixture, which takes clock(t) for the time."""
    base = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=schedule)

    def net(x, t, cond):
        parts = []
        for row, s in zip(x, t.tolist(), strict=True):
            alpha, sigma = base.process.scales(clock(s))
            d = base(row[None], clock(s), None)
            parts.append(d if predicts == "clean" else (row - alpha * d) / sigma)
        return torch.cat(parts)

    return gk.GaussianModel(net, (1,), schedule, predicts, dtype=torch.float64)


@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=["ddim", "ddpm"])
def test_a_clock_puts_right_a_network_that_takes_another_time(solver):
    run = {"steps": 8, "solver": solver, "seed": 1}
    right = gk.sample(exact(Flow()), 6, **run).x
    wrong = exact(Flow(), lambda t: t**2)  # is right at sqrt(t)
    assert (gk.sample(wrong, 6, **run).x - right).abs().max() > 0.1
    times = tuple(i / 8 for i in range(9))
    found = gk.Retimed(wrong, gk.Clock(times, tuple(t**0.5 for t in times)))
    torch.testing.assert_close(gk.sample(found, 6, **run).x, right, rtol=0, atol=1e-9)
    torch.testing.assert_close(gk.parallel(found, 6, tolerance=0.0, **run).x, right, rtol=0, atol=1e-9)


def test_noise_is_read_at_the_time_of_the_solver_and_not_at_the_one_that_is_told():
    net = gk.GaussianModel(lambda x, t, cond: t[:, None] * x, (2,), Flow(), "noise", dtype=torch.float64)
    x = torch.ones(1, 2, dtype=torch.float64)
    found = gk.Retimed(net, gk.Clock((0.0, 1.0), (0.2, 0.2)))(x, 0.6, None)
    torch.testing.assert_close(found, (x - 0.6 * 0.2 * x) / 0.4)


def test_a_fitted_clock_comes_nearer_to_the_flow_on_new_noise():
    model = gk.GaussianModel(_batched, (1,), Cosine(), "clean", dtype=torch.float64)
    noise = torch.randn(100, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fine = gk.sample(model, 100, steps=150, solver=UniPC(3), noise=noise).x
    found = gk.search.align(model, DDIM(), 6, n=100, seed=4)
    plain, own = (gk.sample(m, 100, steps=6, solver=DDIM(), noise=noise).x for m in (model, found))
    assert (own - fine).square().mean() < 0.5 * (plain - fine).square().mean()


MIXTURE = gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule=Cosine())


def _batched(x, t, cond):
    return MIXTURE(x, float(t[0]), cond)


def test_rows_are_told_the_time_that_their_variance_says():
    """Data of variance 1/4 in 4,000 numbers, at noise levels beside that of t."""
    z, x = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    clock, process = gk.TimeShift(window=0.2, variance=0.25, count=41), gk.process.Gaussian(Flow())
    at = torch.tensor([0.55, 0.6, 0.66], dtype=torch.float64)[:, None]
    state = (1 - at) * 0.5 * x + at * z
    assert clock.rows(process, state, 0.6) == pytest.approx([0.55, 0.6, 0.66], abs=0.012)
    assert clock.rows(process, state, 0.9) == pytest.approx([0.8, 0.8, 0.8])  # the end of the window
    assert clock.rows(process, state, 0.3) == [0.3] * 3
    net = gk.GaussianModel(lambda x, t, cond: 0 * x + t[:, None], (4000,), Flow(), "clean", dtype=torch.float64)
    told = gk.Retimed(net, clock)(state, 0.6, None)[:, 0]
    assert told.tolist() == pytest.approx(clock.rows(process, state, 0.6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gk.Clock((0.5, 0.2), (0.1, 0.2)), "rising times in"),
        (lambda: gk.Clock((0.5,), (1.2,)), "rising times in"),
        (lambda: gk.TimeShift(window=0.0), r"window in \(0, 1\]"),
        (lambda: gk.Retimed(MIXTURE, gk.TimeShift()), "a gk.GaussianModel is needed"),
        (lambda: gk.Retimed(exact(Flow()), lambda t: t), "clock=.*is needed"),
        (lambda: gk.search.align(exact(Flow()), DDPM(), 4), "a deterministic solver with one evaluation"),
        (lambda: gk.search.align(exact(Flow()), DDIM(), 4, n=0), r"align\(n=0\): an int of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

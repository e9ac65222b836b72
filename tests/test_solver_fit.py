"""Tables that are fitted to a model: nearer to the probability flow, at the cost that is said, of use everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.jobs.config import ConfigError
from guidekit.jobs.names import make_solver
from guidekit.solvers import DDIM, DDPM, DEIS, DPMpp, Heun, Table, UniPC, fit
from guidekit.solvers.fit import network_rows
from guidekit.solvers.fitting import flow
from guidekit.solvers.schedules import EDM, VE, Cosine, Flow

ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
SMALL = {"n": 256, "points": 16, "inside": 6}


def mixture(schedule, **more):
    return gk.analytic.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC), schedule, **more)


def distance(model, solver, steps, n=200, **options):
    """Root mean square distance of a run to the fine solution from the same, new noise."""
    noise = torch.randn(n, 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    fine = gk.sample(model, n, steps=160, solver=UniPC(3), noise=noise, **options).x
    return (gk.sample(model, n, steps=steps, solver=solver, noise=noise, **options).x - fine).square().mean() ** 0.5


def noises(model, seed, n=256):
    """The noises of a fit with this seed."""
    keys = random.fold(random.fold(random.key(seed), "fit"), torch.arange(n))
    return model.process.noise(keys, (1,), torch.float64)


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(Cosine(), marks=pytest.mark.slow), Flow(), pytest.param(EDM(), marks=pytest.mark.slow)],
    ids=["cosine", "flow", "edm"],
)
def test_at_8_steps_a_fitted_table_has_less_than_half_of_the_error_on_new_noise(schedule):
    model, plain = mixture(schedule), DPMpp(2)
    error = distance(model, plain, 8)
    times, numbers, both = (fit(model, plain, 8, what, **SMALL) for what in ("times", "coefficients", "both"))
    assert distance(model, times, 8) < error
    assert distance(model, numbers, 8) < error / 2
    assert distance(model, both, 8) < min(error / 4, distance(model, numbers, 8) * 1.05)
    assert not both.stochastic


def test_the_error_that_is_said_is_that_of_the_run():
    """On the noises of the fit, against the reference at data."""
    model = mixture(Flow())
    noise = noises(model, 4)
    fine = gk.sample(model, 256, steps=400, solver=UniPC(3), noise=noise).x
    for what in ("times", "coefficients", "both"):
        fitted = fit(model, DPMpp(2), 6, what, seed=4, **SMALL | {"inside": 12})
        run = gk.sample(model, 256, steps=6, solver=fitted, noise=noise).x
        assert (run - fine).square().mean().sqrt().item() == pytest.approx(fitted.about["error"], rel=0.02, abs=1e-4)


def test_fitted_times_carry_the_rows_of_the_solver_between_them():
    for solver in (DPMpp(2), DEIS(3), UniPC(3)):
        fitted = fit(mixture(Cosine()), solver, 5, "times", **SMALL)
        grid = [*(move.t for move in fitted.table), 0.0]
        for own, row in zip(solver.moves(Cosine(), grid), fitted.table, strict=True):
            assert own[:2] == row[:2]
            assert (own.a, *own.b) == pytest.approx((row.a, *row.b), rel=1e-12, abs=1e-14)


def test_the_path_is_that_of_the_recursion_written_out():
    """v_k(j) = the nearest candidate to the reference at j from any v_{k-1}(i), for Euler's steps on a flow."""
    model, steps, points = mixture(Flow()), 3, 9
    grid = np.linspace(1, 0, points + 1)
    fitted = fit(model, DPMpp(1), steps, "times", n=256, points=points, inside=20)
    noise = noises(model, 0)
    reference = [noise]
    for j in range(1, points + 1):
        times = [1.0 - i / (points * 40) for i in range(40 * j + 1)]
        x, predictions = noise, (model(noise, 1.0, None),)
        for move in UniPC(3).moves(Flow(), times):
            x = model.process.kernel(x, predictions, move).push(None)
            predictions = (model(x, move.s, None), *predictions[:3]) if move.s > 0 else ()
        reference.append(x)
    best = {0: (noise, [0])}
    for k in range(1, steps + 1):
        found = {}
        for j in [points] if k == steps else range(k, points - (steps - k) + 1):
            tried = []
            for i, (x, path) in best.items():
                if i < j:
                    d = model(x, grid[i], None)
                    y = (1 - grid[j]) * d + grid[j] * (x - (1 - grid[i]) * d) / grid[i]
                    tried.append(((y - reference[j]).square().mean().item(), i, y, [*path, j]))
            found[j] = min(tried, key=lambda v: v[:2])[2:]
        best = found
    assert [*(move.t for move in fitted.table), 0.0] == pytest.approx(grid[best[points][1]].tolist())


def test_no_other_coefficients_of_the_last_row_come_nearer_on_the_noises_of_the_fit():
    model = mixture(Cosine())
    fitted = fit(model, DPMpp(2), 5, "coefficients", seed=2, **SMALL)
    noise = noises(model, 2)
    fine = gk.sample(model, 256, steps=400, solver=UniPC(3), noise=noise).x

    def error(table):
        return (gk.sample(model, 256, steps=5, solver=table, noise=noise).x - fine).square().mean().item()

    last = fitted.table[-1]
    for i in range(len(last.b) + 1):
        for change in (0.01, -0.01):
            a, *b = (v + change * (i == j) for j, v in enumerate((last.a, *last.b)))
            assert error(replace(fitted, table=(*fitted.table[:-1], last._replace(a=a, b=tuple(b))))) > error(fitted)


def test_a_gaussian_is_solved_exactly_since_its_flow_is_linear():
    model = gk.analytic.GaussianMixture(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, 0.0, 0.4)), Flow())
    assert distance(model, DPMpp(2), 2) > 0.02
    assert distance(model, fit(model, DPMpp(2), 2, "coefficients", **SMALL), 2) < 1e-3


def test_the_reference_of_many_steps_is_the_flow_down_to_data():
    """Of one Gaussian N(m, s^2) the flow takes pure noise x to x_0 = m + s x. In the last of 50 steps the prediction
    still changes by sigma^2/(s^2 + sigma^2) (x_0 - m), which is 0.016 for the largest noise."""
    m, s, schedule = 0.7, 0.2, Cosine()
    model = gk.analytic.GaussianMixture(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, m, s)), schedule)
    noise = noises(model, 3)
    found = flow(model.process, lambda x, t: model(x, t, None), noise, np.linspace(1, 0, 51).tolist(), inside=6)
    assert (found[-1] - (m + s * noise)).abs().max() < 5e-4


@pytest.mark.parametrize("what", ["times", "coefficients", "both"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_network_is_asked_for_as_many_rows_as_are_said(what, guidance):
    model = mixture(Flow(), labels=[1, 0, 1])
    rows, call = [], type(model).__call__

    class Counted(type(model)):
        def __call__(self, x, t, cond):
            rows.append(len(x))
            return call(self, x, t, cond)

    model.__class__ = Counted
    fit(model, DPMpp(2), 4, what, cond=1, guidance=guidance, batch_size=10, n=24, points=8, inside=2)
    said = network_rows(4, what, 24, *((4, 4) if what == "coefficients" else (8, 2)), guidance)
    assert sum(rows) == said if what != "both" else said / 2 < sum(rows) <= said
    assert max(rows) <= 10


def test_a_table_that_is_fitted_under_guidance_serves_guided_runs():
    model = mixture(Cosine(), labels=[1, 0, 1])
    run = {"cond": 1, "guides": [gk.CFG(2.0)]}
    own, other = (fit(model, DPMpp(2), 6, cond=1, guidance=w, **SMALL) for w in (2.0, 1.0))
    plain = distance(model, DPMpp(2), 6, **run)
    assert distance(model, own, 6, **run) < min(plain / 3, distance(model, other, 6, **run))


def ratio(levels):
    return torch.tensor([v / a if a else 200.0 for a, v in levels], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [Cosine(), EDM()], ids=["cosine", "edm"])
def test_of_one_gaussian_the_times_of_least_divergence_are_a_geometric_sequence(schedule):
    """The Riemann sum of m = c^2/(1 + c^2 g) is least where 1 + c^2 g is geometric, from the start to `low`."""
    c, low = 0.5, 0.05
    model = gk.analytic.GaussianMixture(*(torch.tensor([v], dtype=torch.float64) for v in (1.0, 0.7, c)), schedule)
    fitted = fit(model, DDPM(), 6, "kl", low=low, n=8192, batch_size=8192)
    g = [*ratio(fitted.levels[:-1]).pow(-2).tolist(), low**-2]
    gaps = torch.tensor(g, dtype=torch.float64).mul(c**2).log1p().diff()
    assert (gaps - gaps.mean()).abs().max() < 0.05 * gaps.mean()
    assert fitted.stochastic and fitted.table == tuple(DDPM().moves(schedule, [*(m.t for m in fitted.table), 0.0]))


@pytest.mark.slow
def test_the_times_of_least_divergence_are_the_best_by_quadrature_too():
    """The bound as the paper has it: of each step, the integral of E|D_rho - D_i|^2 rho^-3, in one dimension."""
    model, low = mixture(Flow()), 0.03
    levels = torch.logspace(math.log10(200), math.log10(low), 250, dtype=torch.float64)
    z = torch.linspace(-8, 8, 301, dtype=torch.float64)[:, None]

    def square(rho):  # E D^2, by the density of y = x_0 + rho z on a grid around each component
        total = 0.0
        for weight, mean, std in zip(model.weights, model.means, model.stds, strict=True):
            y = mean + z * (std**2 + rho**2).sqrt()
            d = model(y / (1 + rho), float(rho / (1 + rho)), None)
            density = (-0.5 * z.square()).exp() / (2 * math.pi) ** 0.5
            total = total + weight * torch.trapezoid((d.square() * density)[:, 0], z[:, 0])
        return total

    seen = torch.stack([square(rho) for rho in levels])

    def bound(at):
        start = torch.searchsorted(-levels, -at).clamp(max=len(levels) - 1)
        own = torch.bucketize(torch.arange(len(levels)), start, right=True) - 1
        gap = (seen - seen[start[own]]) * levels**-2  # in d log rho; D is a martingale
        return -torch.trapezoid(gap, levels.log()).item()

    found = ratio(fit(model, gk.solvers.ERSDE(2), 6, "kl", low=low, points=40).levels[:-1]).clamp(max=200)
    best = bound(found)
    for grid in ("uniform", "log_snr", "karras", "arctan"):
        times = [m.t for m in DDIM(times=grid).moves(Flow(), times_of(grid))]
        assert best < 0.9 * bound(torch.tensor([t / (1 - t) if t < 1 else 200.0 for t in times], dtype=torch.float64))
    for k in range(1, 6):
        for factor in (0.8, 1.25):
            moved = found.clone()
            moved[k] *= factor
            assert best < bound(moved)


def times_of(grid):
    return gk.times.make(6, grid, Flow(), 1.0)


def test_the_divergence_costs_what_is_said():
    model, rows = mixture(Flow()), []
    call = type(model).__call__

    class Counted(type(model)):
        def __call__(self, x, t, cond):
            rows.append(len(x))
            return call(self, x, t, cond)

    model.__class__ = Counted
    fit(model, DDPM(), 4, "kl", n=24, points=8, inside=2)
    assert sum(rows) == network_rows(4, "kl", 24, 8, 2)


def test_the_same_seed_gives_the_same_table_and_conditions_share_the_noises():
    model = mixture(Flow(), labels=[1, 0, 1])
    one, again = (fit(model, DPMpp(2), 4, "coefficients", cond=[1, 0], **SMALL) for _ in range(2))
    assert one == again
    assert one != fit(model, DPMpp(2), 4, "coefficients", cond=[1, 1], **SMALL)
    assert one != fit(model, DPMpp(2), 4, "coefficients", cond=[1, 0], seed=1, **SMALL)


def test_networks_are_in_evaluation_mode_and_then_as_they_were():
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x, t, cond):
            seen.append(self.training)
            return x * self.scale

    net = Net().train()
    fitted = fit(gk.GaussianModel(net, (2,), Flow(), predicts="clean"), DPMpp(2), 2, "coefficients", n=8, points=4)
    assert net.training and not any(seen) and len(fitted.table) == 2


# files and errors --------------------------------------------------------------------------------------------------


def test_a_table_is_saved_printed_and_read_again(tmp_path):
    model = mixture(Cosine())
    for fitted in (fit(model, DEIS(3), 4, "times", **SMALL), fit(model, DPMpp(2), 4, **SMALL)):
        file = fitted.save(tmp_path / "four.json")
        for again in (Table.load(file), make_solver(str(file))):
            assert again == fitted
            assert again.about == fitted.about
            run = {"steps": 4, "seed": 3}
            assert torch.equal(gk.sample(model, 5, solver=again, **run).x, gk.sample(model, 5, solver=fitted, **run).x)
        assert len(str(fitted).splitlines()) == 2 + 4
        assert "steps=4" in repr(fitted) and "table" not in repr(fitted)
    assert not list(tmp_path.glob("*.part"))


def test_a_table_serves_its_own_steps_and_schedule_alone(tmp_path):
    fitted = fit(mixture(Cosine()), DPMpp(2), 4, "coefficients", **SMALL)
    with pytest.raises(ValueError, match="steps=50: this table was fitted for steps=4"):
        gk.sample(mixture(Cosine()), 2, solver=fitted)
    with pytest.raises(ValueError, match=r"fitted on another noise schedule: at t=0\.75 it has alpha and sigma"):
        gk.sample(mixture(Flow()), 2, steps=4, solver=fitted)
    with pytest.raises(ValueError, match="give steps=4, not a list of times"):
        gk.sample(mixture(Cosine()), 2, steps=[1.0, 0.8, 0.4, 0.2, 0.0], solver=fitted)
    with pytest.raises(ConfigError, match="no such file"):
        make_solver(str(tmp_path / "absent.json"))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"other\.json is not a table of gk\.solvers\.fit"):
        make_solver(str(tmp_path / "other.json"))


@pytest.mark.parametrize("schedule", [Cosine(), VE()], ids=["cosine", "ve"])
def test_fits_of_one_step_and_two_are_finite_and_have_as_many_rows(schedule):
    """With fewer steps than the order of the solver, and an infinite signal-to-noise ratio at an end."""
    for what in ("times", "coefficients", "both", "kl"):
        for steps in (1, 2):
            fitted = fit(mixture(schedule), UniPC(3), steps, what, n=32, points=6, inside=2)
            assert len(fitted.table) == steps
            assert all(math.isfinite(v) for row in fitted.table for v in (row.t, row.s, row.a, *row.b, row.c))
            assert gk.sample(mixture(schedule), 4, steps=steps, solver=fitted).x.isfinite().all()


class Stop(Exception):
    pass


def stopping(model, calls):
    """The model, which raises after so many calls; and the rows that it is asked for."""
    rows, call = [], type(model).__call__

    class Stopping(type(model)):
        def __call__(self, x, t, cond):
            if len(rows) == calls:
                raise Stop
            rows.append(len(x))
            return call(self, x, t, cond)

    model.__class__ = Stopping
    return rows


@pytest.mark.parametrize("what", ["both", "kl"])
def test_a_fit_that_was_interrupted_goes_on_to_the_same_table(what, tmp_path):
    file, options = tmp_path / "fit", {"what": what, "n": 32, "points": 8, "inside": 2, "seed": 5}
    whole = fit(mixture(Cosine()), DPMpp(2), 4, **options)
    first = mixture(Cosine())
    stopping(first, 20)
    with pytest.raises(Stop):
        fit(first, DPMpp(2), 4, checkpoint=file, **options)
    with file.open("ab") as half:
        half.write(b"of a prediction that a kill cut short")
    model = mixture(Cosine())
    rows = stopping(model, None)
    assert fit(model, DPMpp(2), 4, checkpoint=file, **options) == whole
    every = mixture(Cosine())
    asked = stopping(every, None)
    fit(every, DPMpp(2), 4, **options)
    assert len(rows) == len(asked) - 20 + 1 and not file.exists()  # one to see that the network is the same


def test_a_file_of_another_fit_or_model_is_refused(tmp_path):
    file, options = tmp_path / "fit", {"n": 16, "points": 8, "inside": 2, "checkpoint": tmp_path / "fit"}
    first = mixture(Cosine())
    stopping(first, 3)
    with pytest.raises(Stop):
        fit(first, DPMpp(2), 4, **options)
    with pytest.raises(gk.CheckpointError, match="is of another fit"):
        fit(mixture(Cosine()), DPMpp(2), 5, **options)
    other = gk.analytic.GaussianMixture([0.5, 0.5], torch.tensor([-1.0, 4.0], dtype=torch.float64), [0.2, 0.2])
    with pytest.raises(gk.CheckpointError, match="of another model"):
        fit(other, DPMpp(2), 4, **options)
    with pytest.raises(gk.CheckpointError, match="cannot be written"):
        fit(mixture(Cosine()), DPMpp(2), 4, **options | {"checkpoint": tmp_path / "absent" / "fit"})
    assert file.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"what": "all"}, r"fit\(what='all'\): there is 'times', 'coefficients', 'both', 'kl'"),
        ({"steps": 0}, r"fit\(steps=0\): an int of at least 1"),
        ({"n": 2.5}, r"fit\(n=2.5\): an int of at least 1"),
        ({"solver": gk.solvers.DDPM()}, r"fit\(solver=DDPM.*a deterministic solver is needed"),
        ({"what": "kl", "guidance": 2.0}, r"under guidance a prediction is no denoiser"),
        ({"what": "kl", "low": 0.0}, r"fit\(low=0.0\): a level of noise above 0"),
        ({"solver": "dpmpp"}, r"fit\(solver='dpmpp'\): a deterministic solver is needed"),
        ({"solver": Heun(), "what": "times"}, r"one evaluation per step"),
        ({"steps": 20, "points": 10}, r"fit\(points=10, steps=20\): the fine grid has fewer steps than the table"),
        ({"model": gk.analytic.TokenTable(torch.zeros(2, 2))}, r"tables are for Gaussian processes"),
    ],
    ids=str,
)
def test_what_cannot_be_fitted_is_refused_before_the_first_call(given, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"model": mixture(Flow()), "solver": DPMpp(2), "steps": 4, **given})


def test_solvers_within_solvers_have_names_on_the_command_line():
    assert make_solver("heavyball:solver=dpmpp,beta=0.7") == gk.solvers.HeavyBall(DPMpp(), 0.7)
    assert make_solver("langevin(solver=unipc(order=3), snr=0.2)") == gk.solvers.Langevin(UniPC(3), 0.2)

"""gk.parallel: the samples of gk.sample, in fewer forwards one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.models.base import Mixed
from guidekit.solvers import DDIM, DDPM, GHVB, Churn, DPMpp, Heun, UniPC, times
from guidekit.solvers.schedules import EDM, Cosine, Flow

ASYMMETRIC = ([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
GUIDED: dict[str, Any] = {"cond": [1, 0], "guides": [gk.CFG(2.0, start=0.3), gk.EpsilonScaling(1.01)]}


def mixture(schedule: Any = None) -> Any:
    values = (torch.tensor(v, dtype=torch.float64) for v in ASYMMETRIC)
    return gk.analytic.GaussianMixture(*values, schedule, labels=[1, 0, 1])


def counted(model: Any) -> list[int]:
    """The rows of each forward of this model from now on."""
    rows: list[int] = []

    class Counted(type(model)):
        def __call__(self, x, t, cond):
            rows.append(len(x))
            return super().__call__(x, t, cond)

        def mixed(self, x, times, cond):
            rows.append(len(x))
            return super().mixed(x, times, cond)

    model.__class__ = Counted
    return rows


@pytest.mark.parametrize("solver", [DDPM(), DDIM(), UniPC(3), GHVB(2), Heun(), Churn()], ids=lambda s: type(s).__name__)
def test_without_tolerance_samples_are_those_of_the_run(solver):
    """Also of solvers that remember predictions or more, and with noise on the way."""
    run = {"steps": 14, "solver": solver, "seed": 3, **GUIDED}
    plain, found = gk.sample(mixture(), 5, **run), gk.parallel(mixture(), 5, window=9, tolerance=0.0, **run)
    torch.testing.assert_close(found.x, plain.x, rtol=0, atol=1e-12)
    assert torch.equal(found.noise, plain.noise) and len(found.trace) == len(plain.trace)
    assert torch.equal(found.trace["t"], plain.trace["t"])


@pytest.mark.parametrize("steps", [times.restart(8), [1.0, 0.4, 0.0], 1], ids=["restart", "two", "one"])
def test_times_that_go_up_and_runs_shorter_than_the_window(steps):
    run = {"steps": steps, "solver": DPMpp(2), **GUIDED}
    plain, found = gk.sample(mixture(EDM()), 5, **run), gk.parallel(mixture(EDM()), 5, tolerance=0.0, **run)
    torch.testing.assert_close(found.x, plain.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [DDIM(), DDPM()], ids=["DDIM", "DDPM"])
def test_with_tolerance_the_samples_are_near_and_forwards_are_fewer(solver):
    model = mixture(Cosine())
    plain = gk.sample(model, 8, steps=100, solver=solver, cond=1)
    rows = counted(model)
    found = gk.parallel(model, 8, steps=100, solver=solver, cond=1)
    rounds = found.config["parallel"]["rounds"]
    assert 0 < (found.x - plain.x).abs().max() < 0.02
    assert rounds < 40
    assert len(rows) == found.cost.network_calls == rounds + 1  # one of them asks whether times are read
    assert sum(rows) == found.cost.network_rows and max(rows) == 16 * 8
    fewer = gk.parallel(model, 8, steps=100, solver=solver, cond=1, tolerance=0.03)
    assert fewer.config["parallel"]["rounds"] < rounds


def test_the_tolerance_is_held_by_every_row():
    """A row that is still moving holds back those that have come to rest."""
    model = mixture(Flow())
    noise = torch.tensor([[0.0], [1.7]], dtype=torch.float64)
    run = {"steps": 60, "solver": DDIM(), "tolerance": 0.003}
    alone = [gk.parallel(model, 1, noise=z[None], **run).config["parallel"]["rounds"] for z in noise]
    both = gk.parallel(model, 2, noise=noise, **run).config["parallel"]["rounds"]
    assert both >= max(alone) and alone[0] != alone[1]


def test_a_batch_size_bounds_the_rows_of_a_forward_and_changes_no_sample():
    model = mixture()
    run = {"steps": 12, "window": 6, "tolerance": 0.0, **GUIDED}
    whole = gk.parallel(model, 5, **run)
    rows = counted(model)
    parts = gk.parallel(model, 5, batch_size=14, **run)
    assert max(rows) <= 14 and parts.config["parallel"] == whole.config["parallel"]
    torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("predicts", ["clean", "noise", "score", "velocity", "flow"])
def test_rows_of_several_times_are_predicted_as_those_of_one(predicts):
    def net(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return t[:, None] * x + y.square()

    kinds = [
        gk.GaussianModel(net, (2,), Flow(), predicts, dtype=torch.float64),
        gk.DriftingModel(net, (2,), gk.drifts.Residual(0.7), predicts, dtype=torch.float64),
    ]
    x, y = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spans = [(0.9, slice(0, 2)), (0.3, slice(2, 5))]
    for model in kinds:
        apart = torch.cat([model(x[rows], t, y[rows]) for t, rows in spans])
        torch.testing.assert_close(model.mixed(x, Mixed(((0.9, 2), (0.3, 3))), y), apart, rtol=1e-12, atol=0)


def test_a_network_that_reads_one_time_of_a_batch_is_found_out():
    deaf = gk.GaussianModel(lambda x, t, cond: x * (1 - t[0]), (2,), predicts="clean")
    with pytest.raises(gk.NetworkError, match=r"it must read the time of each row, and not t\[0\]"):
        gk.parallel(deaf, 3, steps=10)
    gk.parallel(gk.GaussianModel(lambda x, t, cond: x * (1 - t[:, None]), (2,), predicts="clean"), 3, steps=10)


def reward(x: Tensor) -> Tensor:
    return x[:, 0]


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tokens": (gk.analytic.TokenTable(torch.zeros(2, 2)), {}, "parallel is for Gaussian processes, not for Masked"),
    "window": (mixture(), {"window": 0}, r"parallel\(window=0\): states in one forward"),
    "tolerance": (mixture(), {"tolerance": -1.0}, r"parallel\(tolerance=-1.0\): a number of at least 0"),
    "weights": (mixture(), {"guides": [gk.FKSteering(reward, 1.0)]}, "FKSteering has log_weight.*take gk.sample"),
    "gradients": (mixture(), {"guides": [gk.DPS(reward, 1.0)]}, "take gk.sample"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_in_parallel_is_refused_before_the_first_call(name):
    model, options, message = WRONG[name]
    rows = counted(model)
    with pytest.raises(ValueError, match=message):
        gk.parallel(model, 3, steps=5, **options)
    assert not rows


def test_a_model_that_knows_one_time_in_each_forward_is_refused():
    with pytest.raises(ValueError, match="Stitched evaluates its network at one time in each forward"):
        gk.parallel(gk.Stitched(mixture(), mixture(), 0.5), 3, steps=5)
    with pytest.raises(ValueError, match="Stitched evaluates its network at one time in each forward"):
        gk.Stitched(mixture(), mixture(), 0.5).mixed(torch.zeros(1, 1), Mixed(((0.5, 1),)), None)


@pytest.mark.slow
def test_a_pipeline_of_diffusers_in_parallel_makes_its_own_pictures():
    pytest.importorskip("diffusers")
    from guidekit.integrations.diffusers.tiny import tiny

    model = gk.from_diffusers(tiny())
    run = {"steps": 6, "cond": "a cat", "guides": [gk.CFG(3.0)], "solver": DDIM()}
    plain, found = gk.sample(model, 2, **run), gk.parallel(model, 2, tolerance=0.0, **run)
    torch.testing.assert_close(found.x, plain.x, rtol=1e-3, atol=1e-3)

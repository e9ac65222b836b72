"""FlowOpt: contraction of linear flows, steps by Barzilai and Borwein with their safeguards, inversion and editing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.search.flowopt import State, moved

from .problems import PROBLEMS

S = gk.search
DDIM = {"steps": 12, "solver": gk.solvers.DDIM()}
MEAN, VAR = torch.tensor([0.5, -1.0, 2.0]).double(), torch.tensor([0.1, 0.6, 2.5]).double()


class Denoiser:
    """That of N(MEAN, diag var), so that the flow is m + A z with a diagonal A; described alike whatever it calls."""

    def __init__(self, calls: Any, var: Tensor):
        self.calls, self.var = calls, var

    def identity(self) -> str:
        return "denoiser"

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls()
        alpha, sigma = (f(math.pi / 2 * t)[:, None] for f in (torch.cos, torch.sin))
        return MEAN + alpha * self.var / (alpha**2 * self.var + sigma**2) * (x - alpha * MEAN)


def gaussian(calls: Any = lambda: None, var: Tensor = VAR) -> gk.GaussianModel:
    return gk.GaussianModel(Denoiser(calls, var), (3,), predicts="clean", dtype=torch.float64)


def flow() -> tuple[Tensor, Tensor]:
    """m and the diagonal of A, by four runs."""
    x = gk.sample(gaussian(), 4, noise=torch.cat([torch.zeros(1, 3), torch.eye(3)]).double(), **DDIM).x
    assert (x[1:] - x[0] - torch.diag(torch.diag(x[1:] - x[0]))).abs().max() < 1e-12
    return x[0], torch.diag(x[1:] - x[0])


TARGET = MEAN + torch.tensor([[0.3, -0.5, 1.0], [-0.2, 1.0, -2.0]]).double()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_linear_flow_contracts_by_one_minus_rate_times_its_eigenvalues(share: float):
    a = flow()[1]
    rate = share * 2 / float(a.max())
    found = S.flowopt(gaussian(), TARGET, rounds=9, rate=rate, **DDIM)
    off = gk.sample(gaussian(), 2, **DDIM).x - TARGET
    for error in found.rounds["error"]:
        assert torch.allclose(error.double(), off.square().mean(1).sqrt(), rtol=1e-5)
        off = (1 - rate * a) * off
    assert (1 - rate * a).abs().max() < 1


def test_it_converges_to_the_noise_of_the_target_and_not_beyond_the_bound():
    m, a = flow()
    wanted = (TARGET - m) / a
    for rate in (0.9 * 2 / float(a.max()), None):
        found = S.flowopt(gaussian(), TARGET, rounds=250 if rate else 40, rate=rate, **DDIM)
        assert torch.allclose(found.noise, wanted, atol=1e-6)
        assert torch.allclose(found.x, TARGET, atol=1e-8) and found.rewards.max() <= 0
    far = S.flowopt(gaussian(), TARGET, rounds=12, rate=1.2 * 2 / float(a.max()), **DDIM).rounds["error"]
    assert (far[-1] > 5 * far[0]).all()
    with pytest.raises(ValueError, match="rate=9: too large"):
        S.flowopt(gaussian(), TARGET, rounds=40, rate=9, **DDIM)


def test_rates_are_those_of_barzilai_and_borwein_with_their_safeguards():
    """Five rows: the plain rate; a negative product; too large a rate; an iterate that is taken back; a better one."""
    last, last_off = torch.tensor([[1.0, 2.0]] * 5).double(), torch.tensor([[1.0, -1.0]] * 5).double()
    s = torch.tensor([[0.1, 0.2], [0.1, 0.0], [1.0, 0.0], [-2.0, 2.0], [0.5, 0.5]]).double()
    g = torch.tensor([[0.2, 0.1], [-0.1, 0.0], [0.01, 0.0], [-8.0, 4.0], [-0.5, 0.9]]).double()
    rate, best_off = torch.full((5,), 0.5).double(), torch.tensor([[0.9, -0.9]] * 5).double()
    state = moved(State(last + s, rate, last, last_off, last - 7, best_off), last_off + g, None)
    wanted = torch.tensor([0.04 / 0.05, 0.25, 5.0, 0.25, 0.2 / 1.06]).double()
    wanted[3] = min(24 / 80, 0.25)
    assert torch.allclose(state.rate, wanted)
    at, off = last + s, last_off + g
    at[3], off[3] = last[3] - 7, best_off[3]
    assert torch.allclose(state.z, at - wanted[:, None] * off)
    assert torch.equal(state.last, at) and torch.equal(state.last_off, off)
    best = torch.tensor([False, False, False, False, True])
    assert torch.equal(state.best, torch.where(best[:, None], at, last - 7))
    nan = torch.full((2,), torch.nan).double()
    z = torch.tensor([[3.0, 4.0], [3.0, 4.0]]).double()
    off = torch.tensor([[0.0, 2.0], [30.0, 40.0]]).double()
    begun = moved(State(z, nan, z, z, z, z), off, None)
    assert begun.rate.tolist() == [1.0, 0.1] and torch.equal(begun.best_off, off)
    assert torch.allclose(begun.z, torch.tensor([[3.0, 2.0], [0.0, 0.0]]).double())


def mixture(labels: list[int] | None = None) -> gk.analytic.GaussianMixture:
    means = torch.tensor([[-1.5, 0.3, 0.0], [1.5, 1.0, -0.5], [0.2, -1.8, 0.4]]).double()
    return gk.analytic.GaussianMixture([0.5, 0.3, 0.2], means, [0.6, 0.4, 0.5], labels=labels)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [gk.solvers.DDIM(), gk.solvers.DPMpp(2), gk.solvers.Heun()], ids=["1", "2", "heun"])
def test_samples_of_a_mixture_are_inverted(solver: gk.solvers.Solver):
    options = {"steps": 16, "solver": solver}
    y = mixture().exact_sample(40)
    found = S.flowopt(mixture(), y, rounds=60, **options)
    assert (found.x - y).square().mean(1).sqrt().max() < 1e-3
    assert torch.allclose(found.rewards, -(found.x - y).square().mean(1).sqrt())
    assert torch.equal(gk.sample(mixture(), 40, noise=found.noise, **options).x, found.x)
    best = found.rounds["error"].double().cummin(0).values
    assert torch.allclose(best[-1], -found.rewards)
    fixed = S.flowopt(mixture(), y, rounds=60, rate=0.5, **options)
    assert fixed.rewards.mean() < found.rewards.mean()


def test_an_edit_moves_to_the_new_condition_and_stays_nearer_to_its_source_than_a_fresh_sample():
    base, n = mixture(labels=[0, 1, 1]), 60
    options = {"steps": 16, "solver": gk.solvers.DDIM()}
    source = gk.sample(base, n, cond=0, seed=5, **options).x
    inverted = S.flowopt(base, source, rounds=60, cond=0, **options)
    edits = {
        rounds: S.flowopt(base, source, rounds=rounds, rate=0.3, start=inverted.noise, cond=1, **options)
        for rounds in (1, 3, 6)
    }
    fresh = gk.sample(base, n, cond=1, seed=6, **options).x
    near = lambda x: float((x - source).norm(dim=1).mean())  # noqa: E731
    likely = lambda x: float(base.responsibilities(x, 1e-3)[:, 1:].sum(1).mean())  # noqa: E731
    first = gk.sample(base, n, cond=1, noise=inverted.noise, **options).x
    assert torch.equal(edits[1].x, first)  # the start alone: the edit by plain inversion
    assert near(edits[6].x) < near(edits[3].x) < near(first) < 0.9 * near(fresh)
    assert likely(edits[3].x) > 0.5 > 0.1 > likely(source)


def test_conditions_are_apart_and_guides_bend_the_flow():
    p = PROBLEMS["flow-2d"]
    options = {"steps": 8, "solver": gk.solvers.DPMpp(2), "guides": [gk.CFG(1.5)]}
    y = torch.tensor([[0.2, -0.4], [1.0, 0.1], [-0.6, 0.8]])
    both = S.flowopt(p.model, torch.cat([y, y + 0.1]), rounds=25, cond=[1, None], **options)
    for g, cond in enumerate([1, None]):
        alone = S.flowopt(p.model, y + 0.1 * g, rounds=25, cond=cond, **options)
        assert torch.allclose(alone.noise, both.noise[both.group == g], atol=1e-5)
    assert torch.equal(gk.sample(p.model, 3, noise=both.noise, cond=[1, None], **options).x, both.x)
    assert both.cost.network_rows == 6 * 26 * 8 * 2 and both.cost.reward_calls == 0
    short = S.flowopt(p.model, y, budget=S.Budget(target=-0.01, rounds=500), cond=1, **options)
    assert len(short.rounds) < 500 and short.rewards.min() >= -0.01


@pytest.mark.parametrize("whole_rounds", [1, 4])
def test_a_killed_search_goes_on_to_the_same_end(whole_rounds: int, tmp_path: Path):
    """The model is so narrow that the first rates are held back, and the last one decides what the next may be."""
    calls: list[int] = []

    def dies():
        calls.append(1)
        if len(calls) == whole_rounds * 12 + 5:
            raise KeyboardInterrupt

    narrow, target = 1e-4 * VAR, MEAN + 0.01 * (TARGET - MEAN)
    model = gaussian(dies, narrow)
    with pytest.raises(KeyboardInterrupt):
        S.flowopt(model, target, rounds=9, folder=tmp_path, **DDIM)
    done = len(calls)
    with pytest.raises(gk.CheckpointError, match="another search"):
        S.flowopt(model, target + 1, rounds=9, folder=tmp_path, **DDIM)
    resumed = S.flowopt(model, target, rounds=9, folder=tmp_path, **DDIM)
    assert len(calls) - done == (9 - whole_rounds) * 12 + 12
    whole = S.flowopt(gaussian(var=narrow), target, rounds=9, **DDIM)
    assert torch.equal(resumed.noise, whole.noise) and torch.equal(resumed.rewards, whole.rewards)
    assert torch.equal(resumed.rounds["error"], whole.rounds["error"])
    assert resumed.cost.network_rows == whole.cost.network_rows


def test_what_is_wrong_is_said_before_the_first_network_call():
    calls: list[int] = []
    model, table = gaussian(lambda: calls.append(1)), gk.analytic.TokenTable(torch.zeros(3, 3))
    for message, given in (
        ("deterministic solver.*solver=None", {"solver": None}),
        ("deterministic solver", {"solver": gk.solvers.DDPM()}),
        ("rate=0", {"rate": 0}),
        ("rate=nan", {"rate": math.nan}),
        ("over='chain'", {"over": "chain"}),
        (r"target is \(2, 4\)", {"target": torch.zeros(2, 4)}),
        ("sample 0 of 1", {"target": [1.0]}),
        ("target has NaN", {"target": TARGET * torch.nan}),
        (r"start is \(2, 2\)", {"start": TARGET[:, :2]}),
        ("start has 1 rows, and target 2", {"start": TARGET[:1]}),
        ("is smaller than one round", {"budget": S.Budget(rows=30)}),
    ):
        given = {"model": model, "target": TARGET, **DDIM} | given
        with pytest.raises(ValueError, match=message):
            S.flowopt(**given)
    with pytest.raises(ValueError, match="of tokens"):
        S.flowopt(table, torch.zeros(2, 2))
    with pytest.raises(TypeError, match="base model"):
        S.flowopt(len, TARGET, **DDIM)
    with pytest.raises(TypeError, match="got candidates"):
        S.flowopt(model, TARGET, candidates=3, **DDIM)
    assert not calls

"""Solvers whose positions jump at rates, for masked and uniform noise, against an enumeration of the chain."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch

import guidekit as gk

from .problems import (
    PROBLEMS,
    L,
    V,
    chain_of_moves,
    chain_of_tokens,
    deviations,
    estimates,
    independently,
    marginals_of_tokens,
    populations,
)

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
STEPS = 4
Rates = Callable[[np.ndarray, int, float, float], np.ndarray]


def table_of(noising: str) -> np.ndarray:
    """The table that the problem samples."""
    return PROBLEMS[noising].model.table[1].exp().numpy()


def held(p: np.ndarray, x: int, t: float, s: float) -> np.ndarray:
    """The rates of jumps that reverse noising, by their definition, times the length of the step."""
    if x == V:
        return (t - s) * p / t
    q = np.array([[(1 - t) * (v == w) + t / V for w in range(V)] for v in range(V)])
    return (t - s) / (V * (1 - t)) * (q / q[x]) @ p


def integrated(p: np.ndarray, x: int, t: float, s: float) -> np.ndarray:
    """The rates to the prediction, integrated by quadrature."""
    u = np.linspace(s, t, 20_001)
    return (t - s) * np.mean(2 / (u[1:] + u[:-1])) * p


def leapt(rates: Rates, p: np.ndarray, x: int, t: float, s: float, symbols: int) -> np.ndarray:
    """The kernel of one position: the first jump, if there is one."""
    if symbols > V and x < V:
        return np.eye(symbols)[x]
    jumps = np.append(rates(p, x, t, s), np.zeros(symbols - V))
    jumps[x] = 0
    total = jumps.sum()
    return jumps / total * (1 - np.exp(-total)) + np.exp(-total) * np.eye(symbols)[x]


CASES: dict[str, tuple[gk.solvers.Solver, str, Rates]] = {
    "tau-leaping of masks": (gk.solvers.TauLeaping(), "masked", held),
    "tau-leaping": (gk.solvers.TauLeaping(), "uniform", held),
    "FS-DFM": (gk.solvers.FSDFM(), "uniform", integrated),
}


@lru_cache
def law(name: str) -> np.ndarray:
    """The law of x_0 of four steps. The last move draws from the prediction; the first one of tau-leaping under uniform
    noise is ancestral: from x_1, of which x_0 is independent, every position is (1 - s) p + s/V."""
    _, noising, rates = CASES[name]
    table, uniform = table_of(noising), noising == "uniform"

    def moved(states: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
        p, symbols = marginals_of_tokens(table, x, t, uniform), V if uniform else V + 1
        if s == 0:
            last = [p[i] if uniform else np.append(p[i], 0) if x[i] == V else np.eye(symbols)[x[i]] for i in range(L)]
            return independently(states, np.stack(last))
        if t == 1 and name == "tau-leaping":
            return independently(states, (1 - s) * p + s / V)
        return independently(states, np.stack([leapt(rates, p[i], x[i], t, s, symbols) for i in range(L)]))

    return chain_of_moves(uniform, STEPS, moved)


@pytest.mark.parametrize("name", CASES)
def test_samples_follow_the_enumerated_chain(name: str):
    solver, noising, _ = CASES[name]
    n, problem = 30_000, PROBLEMS[noising]
    x = gk.sample(problem.model, n, steps=STEPS, solver=solver, cond=problem.cond, seed=5).x
    found = np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)
    expected = n * law(name)
    assert ((found - expected) ** 2 / expected).sum() < 66  # of 26 degrees of freedom: by chance once in 2 10^4
    ancestral = chain_of_tokens(table_of(noising), noising == "uniform", STEPS)
    assert np.abs(ancestral - law(name)).sum() > 0.01  # and it is another chain


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "guides",
    [
        lambda p: [gk.SVDD(p.reward, p.alpha, candidates=3)],
        lambda p: [gk.FKSteering(p.reward, p.alpha, ess=0.9), gk.CFG(2.0, steer=True)],
    ],
    ids=["SVDD", "FK and a proposal"],
)
def test_weighted_means_are_unbiased_with_four_particles(name: str, guides):
    solver, noising, _ = CASES[name]
    problem = PROBLEMS[noising]
    found = estimates(problem, populations(problem, 3000, 4, guides(problem), steps=STEPS, solver=solver))
    x = torch.as_tensor(problem.model.states)
    w = law(name) * np.exp(problem.reward(x).double().numpy() / problem.alpha)
    truth = (w[:, None] * problem.features(x).double().numpy()).sum(0)
    assert np.abs(deviations(found, truth, np.zeros(4))).max() < 4.5  # by chance once in 10^4


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_the_first_jump_at_the_rates(name: str):
    solver, noising, rates = CASES[name]
    process = PROBLEMS[noising].model.process
    p = np.random.default_rng(3).dirichlet(np.ones(V), L)
    x = torch.tensor([[1, 0, 2]] if noising == "uniform" else [[V, V, 1]])
    move = process.moves([1.0, 0.7, 0.4, 0.0], solver)[1]
    log_probs = process.kernel(x, (torch.as_tensor(p).log()[None],), move).log_probs[0]
    for i in range(L):
        expected = leapt(rates, p[i], int(x[0, i]), move.t, move.s, log_probs.shape[-1])
        assert np.allclose(log_probs[i].exp().numpy(), expected, atol=1e-9)  # the quadrature's error is below


@pytest.mark.parametrize("noising", ["masked", "uniform"])
@pytest.mark.parametrize("solver", [gk.solvers.TauLeaping(), gk.solvers.FSDFM()], ids=["tau", "FS-DFM"])
def test_probabilities_sum_to_one_where_a_prediction_is_certain_too(noising: str, solver):
    process = PROBLEMS[noising].model.process
    p = torch.tensor([[[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    x = torch.tensor([[0, 1, 2]]) if noising == "uniform" else torch.tensor([[V, V, V]])
    for move in process.moves(STEPS, solver):
        log_p = process.kernel(x, (p.log().clamp(min=-1e3),), move).log_probs
        assert torch.allclose(log_p.exp().sum(-1), torch.ones(1, L, dtype=torch.float64), atol=1e-12)


def test_leaps_come_near_the_table_with_many_steps_and_masks_of_fs_dfm_are_ancestral():
    for solver, noising in ((gk.solvers.TauLeaping(), "masked"), (gk.solvers.FSDFM(), "uniform")):
        problem, n = PROBLEMS[noising], 4000
        x = gk.sample(problem.model, n, steps=64, solver=solver, cond=problem.cond).x
        place = (x * V ** torch.arange(L - 1, -1, -1)).sum(1)
        own = problem.model.table[1].exp()
        floor = 0.5 * float((2 * own / np.pi / n).sqrt().sum())  # the mean distance of n exact samples
        distance = float((place.bincount(minlength=V**L) / n - own).abs().sum() / 2)
        assert distance < floor + 0.025
    model = PROBLEMS["masked"].model
    runs = [gk.sample(model, 2000, steps=5, cond=0, solver=s).x for s in (None, gk.solvers.FSDFM())]
    assert (runs[0] != runs[1]).double().mean() < 1e-3  # up to rounding


@pytest.mark.parametrize("solver", [gk.solvers.TauLeaping(), gk.solvers.FSDFM()], ids=["tau", "FS-DFM"])
def test_what_leaps_cannot_serve_is_refused(solver):
    model = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, V), V, L, ordered=True)
    with pytest.raises(ValueError, match=r"masked or uniform noise.*is ordered"):
        gk.sample(model, 4, solver=solver)
    with pytest.raises(ValueError, match=r"token processes.*DDPM"):
        gk.sample(PROBLEMS["vp-1d"].model, 4, solver=solver)
    with pytest.raises(ValueError, match=r"Sites draws tokens.*FirstHitting"):
        gk.sample(PROBLEMS["masked"].model, 4, cond=0, solver=solver, guides=[gk.Sites(forbidden=[[0, 1]])])

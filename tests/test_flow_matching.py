"""Discrete flow matching: velocities of the path, a chain enumerated, weights that stay exact, times and clocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit.process import Masked, Uniform
from guidekit.solvers import FlowMatching

from .problems import (
    PROBLEMS,
    L,
    V,
    chain_of_moves,
    deviations,
    estimates,
    independently,
    marginals_of_tokens,
    populations,
)

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
P = np.array([0.6, 0.3, 0.1])
STEPS, BETA = 4, 0.8
SOLVER = FlowMatching(kappa=2, corrector=BETA)


def law_at(t: float) -> np.ndarray:
    return (1 - t) * P + t / V


def posterior(x: int, t: float) -> np.ndarray:
    p = P * ((1 - t) * (np.arange(V) == x) + t / V)
    return p / p.sum()


@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_velocity_is_that_of_the_path_for_every_corrector(t: float, beta: float):
    """Of one position with the exact posterior, by one short step: the continuity equation of p_t."""
    h, x = 1e-5, torch.arange(V)[:, None]
    p = torch.as_tensor(np.stack([posterior(v, t) for v in range(V)])).log()[:, None]
    move = FlowMatching(corrector=beta).move(t, t - h)
    q = Uniform(V).kernel(x, (p,), move).log_probs[:, 0].exp().numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose((law_at(t) @ q - law_at(t)) / h, (law_at(t - h) - law_at(t)) / h, atol=2e-3)
    if beta:
        less = Uniform(V).kernel(x, (p,), FlowMatching().move(t, t - h)).log_probs[:, 0].exp().numpy()  # type: ignore
        assert (q.diagonal() < less.diagonal() - 1e-7).all()  # and tokens jump more often


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.7, 0.4), (0.3, 0.2), (0.2, 0.0)])
def test_masked_steps_have_the_marginals_of_the_path_exactly_and_remask_as_the_corrector_says(t: float, s: float):
    states = torch.arange(V + 1)[:, None]
    p = torch.as_tensor(P).log().expand(V + 1, 1, V)
    q = Masked(V).kernel(states, (p,), FlowMatching(corrector=BETA).move(t, s)).log_probs[:, 0].exp().numpy()  # type: ignore
    before, after = (np.append((1 - u) * P, u) for u in (t, s))
    np.testing.assert_allclose(before @ q, after, atol=1e-12)
    again = min(1 - ((1 - t) / (1 - s)) ** BETA, s / (1 - t) if t < 1 else 1.0)
    np.testing.assert_allclose(q[:V, V], again, atol=1e-12)


def chain() -> np.ndarray:
    """The law of x_0 of four steps with uniform noise, rates integrated by quadrature."""
    table = PROBLEMS["uniform"].model.table[1].exp().numpy()

    def moved(states: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
        p = marginals_of_tokens(table, x, t, True)
        return independently(states, np.stack([p[i] if s == 0 else leapt(p[i], x[i], t, s) for i in range(L)]))

    def on_grid(states: np.ndarray, x: np.ndarray, t: float, s: float) -> np.ndarray:
        t, s = (1 - (1 - v) ** 2 for v in (t, s))  # the steps of kappa = tau^2, of a chain with even ones
        return moved(states, x, t, s)

    return chain_of_moves(True, STEPS, on_grid)


def leapt(p: np.ndarray, x: int, t: float, s: float) -> np.ndarray:
    u = np.linspace(s, t, 20_001)
    u = (u[1:] + u[:-1]) / 2
    jumps = (1 + BETA) * (t - s) * np.mean(1 / u) * p
    kept = (1 - u) / (1 - u + u / V)  # of a token that is the clean one, how likely it is not from the source
    jumps = jumps + BETA * (t - s) * np.mean(kept / (1 - u)) * p[x] / V
    jumps[x] = 0
    total = jumps.sum()
    return jumps / total * -np.expm1(-total) + np.exp(-total) * np.eye(V)[x]


def test_samples_follow_the_enumerated_chain():
    n, problem = 30_000, PROBLEMS["uniform"]
    x = gk.sample(problem.model, n, steps=STEPS, solver=SOLVER, cond=problem.cond, seed=5).x
    found = np.bincount((x * V ** torch.arange(L - 1, -1, -1)).sum(1).numpy(), minlength=V**L)
    expected = n * chain()
    assert ((found - expected) ** 2 / expected).sum() < 66  # of 26 degrees of freedom: by chance once in 2 10^4


@pytest.mark.slow
def test_weighted_means_are_unbiased_with_four_particles():
    problem = PROBLEMS["uniform"]
    guides = [gk.FKSteering(problem.reward, problem.alpha, ess=0.9), gk.CFG(2.0, steer=True)]
    found = estimates(problem, populations(problem, 3000, 4, guides, steps=STEPS, solver=SOLVER))
    x = torch.as_tensor(problem.model.states)
    w = chain() * np.exp(problem.reward(x).double().numpy() / problem.alpha)
    truth = (w[:, None] * problem.features(x).double().numpy()).sum(0)
    assert np.abs(deviations(found, truth, np.zeros(4))).max() < 4.5  # by chance once in 10^4


def test_without_a_corrector_masks_are_revealed_as_by_ancestral_at_the_same_times():
    model = PROBLEMS["masked"].model
    own = gk.sample(model, 200, steps=5, cond=0, solver=FlowMatching(kappa=2))
    times = [1 - (i / 5) ** 2 for i in range(6)]
    assert torch.equal(own.x, gk.sample(model, 200, steps=times, cond=0).x)


def test_the_network_hears_the_time_of_its_path():
    told: list[float] = []
    path = FlowMatching(kappa=lambda tau: 3 * tau**2 - 2 * tau**3)

    def net(x: torch.Tensor, t: torch.Tensor, cond: object) -> torch.Tensor:
        told.append(float(path.clock(t)[0]))
        return torch.zeros(*x.shape, V)

    gk.sample(gk.UniformModel(net, V, L), 2, steps=4, solver=path)
    assert told == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=1e-6)


def test_bad_settings_are_refused():
    for options, text in (
        ({"kappa": -1.0}, "the exponent of tau is positive"),
        ({"kappa": lambda tau: 1 - tau}, "it rises from 0 to 1"),
        ({"corrector": -0.5}, "beta is 0 or more"),
    ):
        with pytest.raises(ValueError, match=text):
            FlowMatching(**options)  # type: ignore
    with pytest.raises(ValueError, match=r"masked or uniform noise.*is ordered"):
        gk.sample(gk.MaskedModel(lambda x, t, c: x, V, L, ordered=True), 2, solver=FlowMatching())

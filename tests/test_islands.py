"""Populations side by side that meet every few steps, against enumeration; where they select, and who may meet whom."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import guidekit as gk

from .problems import PROBLEMS, STEPS, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")  # strong rewards, few particles
N, ISLANDS = 6, gk.Islands(3, every=4)


@pytest.mark.parametrize("name, make", [
    ("masked", lambda p: gk.FKSteering(p.reward, p.alpha / 2, ess=1.0)),
    ("uniform", lambda p: gk.SVDD(p.reward, p.alpha / 2, candidates=2)),
])  # fmt: skip
def test_the_mean_weight_is_unbiased_however_seldom_islands_meet(name, make):
    """E[mean of w f] = E[f exp(r/alpha)] of the plain chain, by enumeration: six particles on three islands, where a
    weight that is shared out over all of them, or reset on an island, shows by tens of standard errors."""
    problem = PROBLEMS[name]
    found = estimates(problem, populations(problem, 1500, N, [make(problem)], islands=ISLANDS))
    states, p = problem.law()
    x = torch.as_tensor(states)
    w = p * np.exp(problem.reward(x).double().numpy() / (problem.alpha / 2))
    truth = (w[:, None] * problem.features(x).double().numpy()).sum(0)
    assert np.abs(deviations(found, truth, np.zeros_like(truth))).max() < 4


def test_nobody_leaves_an_island_between_two_meetings():
    problem, addresses = PROBLEMS["masked"], []
    options = {"islands": ISLANDS, "callbacks": [lambda population, step: addresses.append(population.slot)]}
    steering = gk.FKSteering(problem.reward, 0.1, ess=1.0)
    result = populations(problem, 20, N, [steering], **options)
    home = (torch.arange(20 * N) % N) // (N // 3)
    crossed = [bool((home[parents] != home).any()) for parents in result.ancestors]
    assert crossed == [False, False, False, True, False, True]  # after 4 moves, and at the end
    assert all(parents.ne(torch.arange(20 * N)).any() for parents in result.ancestors[1:])  # and yet they select
    assert all(torch.equal(slot, torch.arange(20 * N) % N) for slot in addresses)  # no two share their noise


def test_islands_draw_by_themselves():
    """Of two equal islands, the survivors are drawn by numbers of their own: the same places would be chosen always."""
    problem = PROBLEMS["vp-1d"]
    run = gk.Run(problem.model, 16, steps=STEPS, cond=1)
    chosen = gk.Islands(2, 9).select(_Anew(), run.start(), run.step(1))
    places = chosen.root.view(2, 8) - torch.tensor([[0], [8]])
    assert bool((places >= 0).all()) and bool((places < 8).all())
    assert not torch.equal(places[0], places[1])


class _Anew(gk.Guide):
    """Draws survivors multinomially, whatever their weights."""

    def select(self, population: gk.Population, step: gk.Step) -> gk.Population:
        log_w = population.by_group(population.log_w)
        return population.select(gk.resampling.multinomial(log_w.softmax(-1), step.n, step.key), log_w)


def test_one_island_is_the_population():
    problem = PROBLEMS["masked"]
    guides = [gk.FKSteering(problem.reward, 0.5)]
    plain, one = (gk.sample(problem.model, 5, steps=4, guides=guides, islands=i) for i in (None, gk.Islands(1, 3)))
    assert torch.equal(plain.x, one.x) and torch.equal(plain.log_weights, one.log_weights)
    assert plain.config == one.config


def test_what_cannot_be_divided_is_refused():
    model = PROBLEMS["vp-1d"].model
    with pytest.raises(ValueError, match="7 particles of each condition live at some step, which 2 islands"):
        gk.sample(model, 7, islands=gk.Islands(2))
    with pytest.raises(TypeError, match=r"islands=2: gk.Islands\(count, every\)"):
        gk.sample(model, 4, islands=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Islands\(every=0\)"):
        gk.Islands(2, every=0)

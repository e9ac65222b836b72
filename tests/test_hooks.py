"""The hooks that no shipped guide uses yet, each proven by a small guide with a known law."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import guidekit as gk
from guidekit import random
from guidekit.engine.population import log_mean_exp

from .problems import PROBLEMS, STEPS, Problem, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
every = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


@dataclass(frozen=True)
class Nested(gk.Guide):
    """Branch, then keep one child of each parent with probability proportional to exp(V/alpha)."""

    reward: Any
    alpha: float
    k: int = 4

    def plan(self, n, step):
        return n, self.k

    def log_weight(self, view, memo):
        now = view.score(self.reward) / self.alpha
        return now - (0.0 if memo is None else memo), now

    def select(self, population, step):
        log_w = population.log_w.view(population.groups, -1, population.branch)
        keys = random.fold(step.key[:, None], torch.arange(log_w.shape[1]))
        child = (log_w + random.gumbel(keys, (population.branch,))).argmax(-1)
        index = torch.arange(log_w.shape[1]) * population.branch + child
        return population.select(index, log_mean_exp(log_w))


@dataclass(frozen=True)
class Greedy(gk.Guide):
    """n independent chains for each particle, of which the best sample is kept."""

    reward: Any
    copies: int = 4

    def plan(self, n, step):
        return self.copies * n, 1

    def select(self, population, step):
        if not step.last:
            return population
        scores = population.rewards.view(population.groups, -1, step.n)
        index = torch.arange(step.n) + scores.argmax(1) * step.n
        return population.select(index, torch.zeros_like(index, dtype=torch.float64))


@dataclass(frozen=True)
class Twisted(gk.Guide):
    """The gradient of the reward of the clean estimate as a tilt, in its own row only."""

    reward: Any
    scale: float
    _: KW_ONLY
    steer: bool = True

    grad = True

    def tilt(self, view):
        value = view.score(self.reward)
        (slope,) = torch.autograd.grad(value.sum(), view.x, retain_graph=True)
        alpha, sigma = view.model.process.scales(view.t)
        return self.scale * sigma**2 / max(alpha, 0.1) * slope


@dataclass(frozen=True)
class Memory(gk.Guide):
    """A tuple of memos: the state before, and a count of looks."""

    def log_weight(self, view, memo):
        count = view.zeros() if memo is None else memo[1][0]
        return 0.0, (view.x, (count + 1, None))


@every
@pytest.mark.parametrize("children", [1, 3])
@pytest.mark.usefixtures("every_row")
def test_branch_and_nested_selection_are_unbiased(problem: Problem, children: int):
    guides = [Nested(problem.reward, problem.alpha, children)]
    result = populations(problem, 4000, 6, guides)
    # 4,000 independent populations, 4 features, 4.5 standard errors
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5
    assert result.cost.network_rows == 4000 * 6 * (1 + children * (STEPS - 1))  # survivors are not evaluated again


@every
def test_local_then_global_selection_is_unbiased(problem: Problem):
    guides = [Nested(problem.reward, problem.alpha, 3), gk.Resample(ess=0.9)]
    result = populations(problem, 4000, 6, guides)
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5
    assert result.trace["resampled"].any()


@every
def test_global_selection_among_all_children_is_unbiased(problem: Problem):
    """Resampling that comes first thins the children of the whole group."""
    guides = [Branch(), gk.FKSteering(problem.reward, problem.alpha, ess=0.0)]
    result = populations(problem, 4000, 6, guides)
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5


@dataclass(frozen=True)
class Branch(gk.Guide):
    """Children, and no opinion on which of them live."""

    def plan(self, n, step):
        return n, 3


@pytest.mark.parametrize("name", ["vp-1d", "masked"])
def test_resampling_that_is_not_due_still_thins_the_children_it_meets(name: str):
    problem = PROBLEMS[name]
    for guides in (
        [Branch(), gk.FKSteering(problem.reward, problem.alpha, every=4)],
        [Branch(stop=0.5), gk.Resample()],
    ):
        result = populations(problem, 4000, 6, guides)
        truth = problem.tilted(reward=isinstance(guides[1], gk.FKSteering))
        assert np.abs(deviations(estimates(problem, result), *truth)).max() < 4.5


def test_children_of_one_parent_differ_and_share_all_that_is_the_parents():
    problem = PROBLEMS["vp-1d"]
    run = gk.Run(problem.model, 5, steps=STEPS, guides=[Nested(problem.reward, 1.0, 4)], cond=1)
    with torch.no_grad():
        pop = run.start()
        children = run.branch(pop, 0)
        moved = run.move(children, 0)
    assert torch.equal(children.x, pop.x.repeat_interleave(4, 0))
    assert torch.equal(children.parent, torch.arange(5).repeat_interleave(4))
    assert torch.equal(children.slot, (torch.arange(5)[:, None] + 5 * torch.arange(4)).flatten())  # 0, 5, 10, ...
    assert torch.equal(children.memos[0], pop.memos[0].repeat_interleave(4))
    assert len(moved.x.unique()) == 20


def test_branching_without_selection_is_an_error():
    with pytest.raises(ValueError, match="15 of 15 rows per group are left where 5 were asked for"):
        gk.sample(PROBLEMS["vp-1d"].model, 5, steps=3, cond=1, guides=[Branch()])


@pytest.mark.parametrize("name", ["vp-1d", "masked"])
@pytest.mark.usefixtures("every_row")
def test_copies_give_best_of_n_rows_that_are_those_of_a_plain_run(name: str):
    problem = PROBLEMS[name]
    best = gk.sample(problem.model, 50, steps=STEPS, cond=problem.cond, guides=[Greedy(problem.reward)])
    plain = gk.sample(problem.model, 200, steps=STEPS, cond=problem.cond, reward=problem.reward)
    rewards = plain.rewards.view(4, 50)
    assert torch.equal(best.rewards, rewards.amax(0))
    assert torch.equal(best.x, plain.x.view(4, 50, -1)[rewards.argmax(0), torch.arange(50)])
    assert best.cost.network_rows == 200 * STEPS
    assert best.ancestors.shape == (STEPS, 200)
    assert torch.equal(best.lineage()[0], torch.arange(50) + rewards.argmax(0) * 50)


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
@pytest.mark.parametrize("ess", [0.0, 0.7])
def test_a_gradient_proposal_is_corrected_exactly(name: str, ess: float):
    """TDS: the tilt of the proposal beside the potentials that correct it."""
    problem = PROBLEMS[name]
    guides = [Twisted(problem.reward, 0.5), gk.FKSteering(problem.reward, problem.alpha, ess=ess)]
    result = populations(problem, 4000, 6, guides)
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5
    assert result.cost.reward_calls == 4000 * 6 * (STEPS + 1)  # the score of the tilt serves the potential


def test_a_gradient_proposal_lowers_the_variance():
    problem = PROBLEMS["flow-2d"]
    weigh = gk.FKSteering(problem.reward, problem.alpha, ess=0.0)
    plain, twisted = (
        estimates(problem, populations(problem, 2000, 6, guides)).var(0)[0]
        for guides in ([weigh], [Twisted(problem.reward, 0.5), weigh])
    )
    assert twisted < 0.8 * plain


def test_gradients_are_per_row_and_bounded_by_the_micro_batch():
    problem = PROBLEMS["flow-2d"]
    guides = [Twisted(problem.reward, 1.0, steer=False)]
    whole = gk.sample(problem.model, 11, steps=STEPS, cond=1, guides=guides)
    parts = gk.sample(problem.model, 11, steps=STEPS, cond=1, guides=guides, batch_size=2)
    first = gk.sample(problem.model, 3, steps=STEPS, cond=1, guides=guides)
    assert torch.allclose(whole.x, parts.x, rtol=1e-12)
    assert torch.allclose(whole.x[:3], first.x, rtol=1e-12)
    assert not whole.x.requires_grad


def test_gradient_tilts_see_the_estimate_that_other_tilts_have_made():
    """And so the order of the list does not matter, though the gradient depends on CFG."""
    problem = PROBLEMS["flow-2d"]
    cfg, gradient = gk.CFG(2.0), Twisted(problem.reward, 1.0, steer=False)
    one = gk.sample(problem.model, 8, steps=STEPS, cond=1, guides=[cfg, gradient])
    two = gk.sample(problem.model, 8, steps=STEPS, cond=1, guides=[gradient, cfg])
    assert torch.equal(one.x, two.x)
    run = gk.Run(problem.model, 4, steps=STEPS, cond=1, guides=[gradient, cfg])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):  # at t = 1/2, where the estimate depends on x
            pop = run.advance(pop, index)
    t = run.moves[3].t
    with torch.enable_grad():
        x = pop.x.clone().requires_grad_()
        c, n = (problem.model(x, t, torch.full((4,), label)) for label in (1, -1))
        clean = n + 2.0 * (c - n)
        (slope,) = torch.autograd.grad(problem.reward(clean).sum(), x)
    assert slope.abs().min() > 1e-3
    assert torch.allclose(pop.predictions[0], clean.detach() + t**2 / (1 - t) * slope, rtol=1e-10)


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.SDEDPMpp(order=2)], ids=["ddpm", "sde-dpmpp-2m"])
def test_tuple_memos_and_solver_history_follow_their_particle(solver):
    problem = PROBLEMS["vp-1d"]
    guides = [Memory(), gk.FKSteering(problem.reward, 0.2, ess=1.0)]
    run = gk.Run(problem.model, 32, steps=STEPS, cond=1, guides=guides, solver=solver)
    moved = False
    with torch.no_grad():
        pop = run.start()
        for index in range(STEPS):
            before, pop = pop, run.advance(pop, index)
            moved |= bool((pop.parent != torch.arange(32)).any())
            assert torch.equal(pop.memos[0][0], pop.x)
            assert torch.equal(pop.memos[0][1][0], torch.full((32,), index + 2.0, dtype=torch.float64))
            if len(pop.predictions) == 2 and run.step(index + 1).t > 0:  # the parent's prediction
                assert torch.equal(pop.predictions[1], before.predictions[0][pop.parent])
    assert moved


@pytest.mark.slow
def test_multistep_stochastic_solver_with_steering_is_unbiased_for_its_own_chain():
    """History is part of the state: weights of p/q use each prediction's own history."""
    problem = PROBLEMS["vp-1d"]
    solver = gk.solvers.SDEDPMpp(order=2)
    plain = populations(problem, 4000, 64, [], solver=solver)
    f = problem.features(plain.x)
    w = (problem.reward(plain.x) / problem.alpha).exp()[:, None]
    truth, error = (w * f).mean(0).numpy(), ((w * f).std(0) / len(f) ** 0.5).numpy()
    guides = [gk.CFG(1.4, steer=True), gk.FKSteering(problem.reward, problem.alpha, ess=0.8)]
    found = estimates(problem, populations(problem, 4000, 6, guides, first=90_000, solver=solver))
    assert np.abs(deviations(found, truth, error)).max() < 4.5


def test_a_tilt_reads_its_own_memo_of_the_look_before():
    seen = []

    @dataclass(frozen=True)
    class Momentum(gk.Guide):
        def tilt(self, view):
            seen.append((view.memo, view.x))
            return 0.0

        def log_weight(self, view, memo):
            return 0.0, view.x

    problem = PROBLEMS["vp-1d"]
    guides = [Memory(), Momentum(), gk.FKSteering(problem.reward, 0.2, ess=1.0)]
    result = gk.sample(problem.model, 16, steps=STEPS, cond=1, guides=guides)
    assert seen[0][0] is None
    assert result.trace["resampled"].any()
    for (_, before), (memo, _) in pairwise(seen):
        assert torch.isin(memo, before).all()  # the parent's state, wherever selections have moved it since


def test_a_memo_that_is_no_tree_of_tensors_is_an_error():
    @dataclass(frozen=True)
    class Sloppy(gk.Guide):
        def log_weight(self, view, memo):
            return 0.0, {"x": view.x}

    with pytest.raises(TypeError, match="not dict"):
        gk.sample(PROBLEMS["vp-1d"].model, 5, steps=3, cond=1, guides=[Sloppy()])


def test_a_guides_own_randomness_is_addressed():
    @dataclass(frozen=True)
    class Jitter(gk.Guide):
        def tilt(self, view):
            return 0.1 * random.normal(view.key, view.x.shape[1:], view.x.dtype)

    model = PROBLEMS["flow-2d"].model
    once = gk.sample(model, 9, steps=STEPS, cond=1, guides=[Jitter()])
    parts = gk.sample(model, 9, steps=STEPS, cond=1, guides=[Jitter()], batch_size=4)
    twice = gk.sample(model, 9, steps=STEPS, cond=1, guides=[Jitter(), Jitter()])
    plain = gk.sample(model, 9, steps=STEPS, cond=1)
    assert torch.allclose(once.x, parts.x, rtol=1e-12)
    assert not torch.allclose(once.x, plain.x)
    assert not torch.allclose(twice.x - plain.x, 2 * (once.x - plain.x))  # two of a kind have different noise

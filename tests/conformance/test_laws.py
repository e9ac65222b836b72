"""The laws of design.md, for every guide on every process that it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

import guidekit as gk

from ..problems import PROBLEMS, STEPS, Problem, deviations, estimates, populations
from .cases import CASES, Case, N

# The particles of small populations degenerate on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def where(applies: Callable[[Case], bool]):
    """The cases that a law speaks of, in the default run on one problem each, in turn."""
    found = []
    for i, case in enumerate(c for c in CASES if applies(c)):
        for j, name in enumerate(case.processes):
            marks = [pytest.mark.slow] if (i - j) % len(case.processes) else []
            found.append(pytest.param(case, case.on(name), marks=marks, id=f"{case.name}-{name}"))
    return pytest.mark.parametrize("case, problem", found)


every = where(lambda case: True)
steered = where(lambda case: case.target == "tilted")


WATCH = [lambda population, step: None]  # rows that nobody reads are evaluated where somebody watches


def run(problem: Problem, guides=(), n: int = N, **options) -> gk.Result:
    return gk.sample(problem.model, n, **{"steps": STEPS, "cond": problem.cond} | options, guides=guides)


def assert_same(a: gk.Result, b: gk.Result) -> None:
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.log_weights, b.log_weights)
    assert torch.equal(a.ancestors, b.ancestors)


@where(lambda case: case.idle is not None)
def test_idle_settings_give_the_unguided_sampler_bit_for_bit(case: Case, problem: Problem):
    assert case.idle is not None
    plain, idle = run(problem), run(problem, [case.idle(problem)])
    assert torch.equal(plain.x, idle.x)
    assert torch.equal(plain.ancestors, idle.ancestors)
    assert idle.log_weights.std() < 1e-12


@where(
    lambda case: case.name not in ("Resample", "EntropicAnnealing", "StartFrom")
)  # without weights, or from pure noise
def test_the_guide_does_something_at_usual_settings(case: Case, problem: Problem):
    plain, guided = run(problem, n=64), run(problem, [case.make(problem)], n=64)
    assert not torch.equal(plain.x, guided.x) or guided.log_weights.std() > 1e-3


@where(lambda case: case.target != "own")
def test_the_weighted_law_and_z_are_unbiased_at_eight_particles(case: Case, problem: Problem):
    """E[mean of w f] = E[f exp(r/alpha)] under the unguided chain, f = 1 being Z: for all N, so also for N = 8."""
    result = populations(problem, 4000, 8, [case.make(problem)])
    truth, error = problem.tilted(reward=case.target == "tilted")
    # 4 features, each a mean of 4,000 independent populations: 4.5 standard errors fail by chance once in 10^4 runs
    assert np.abs(deviations(estimates(problem, result), truth, error)).max() < 4.5


@steered
def test_a_shift_of_the_reward_changes_log_z_alone(case: Case, problem: Problem):
    guide = case.make(problem)
    plain = run(problem, [guide])
    shifted = run(problem, [replace(guide, reward=lambda x: problem.reward(x) + 3.0)])
    assert torch.equal(plain.x, shifted.x)
    # sums of some ten float64 terms of size 10
    assert torch.allclose(shifted.log_z - plain.log_z, torch.tensor(3.0 / problem.alpha).double(), atol=1e-9)


@steered
def test_reward_and_temperature_scale_together(case: Case, problem: Problem):
    guide = case.make(problem)
    plain = run(problem, [guide])
    scaled = run(problem, [replace(guide, reward=lambda x: 4 * problem.reward(x), alpha=4 * guide.alpha)])
    assert_same(plain, scaled)  # powers of two: exact


@every
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 5])
@pytest.mark.usefixtures("every_row")
def test_a_row_does_not_depend_on_its_micro_batch(case: Case, problem: Problem, batch_size: int):
    guides = [case.make(problem)]
    whole, parts = run(problem, guides), run(problem, guides, batch_size=batch_size)
    assert torch.equal(whole.ancestors, parts.ancestors)
    assert torch.allclose(whole.x.double(), parts.x.double(), rtol=1e-10, atol=1e-10)  # float64 throughout
    assert torch.allclose(whole.log_weights, parts.log_weights, rtol=1e-11, atol=1e-11)
    assert whole.cost.network_rows == parts.cost.network_rows
    assert whole.cost.reward_calls == parts.cost.reward_calls


def alone(case: Case) -> bool:
    """Whether particles live or die without regard to the others, and all are samples in the end."""
    guide = case.make(case.on(case.processes[0]))
    return getattr(guide, "ess", 0) == 0 and not isinstance(guide, gk.BeamSearch | gk.BestOfN | gk.CoDe)


@where(alone)
def test_a_row_does_not_depend_on_the_number_of_rows(case: Case, problem: Problem):
    """Children of a particle have addresses of their own, whatever the number of particles."""
    few, more = (run(problem, [case.make(problem)], n=n) for n in (N, N + 5))
    assert torch.allclose(few.x.double(), more.x[:N].double(), rtol=1e-10, atol=1e-10)
    assert torch.allclose(few.log_weights, more.log_weights[:N], rtol=1e-11, atol=1e-11)


@every
def test_groups_equal_runs_of_their_own(case: Case, problem: Problem):
    guides = [case.make(problem)]
    conds = [problem.cond, None, problem.cond]
    seeds = [3, 3, 8]
    together = gk.sample(problem.model, N, steps=STEPS, guides=guides, cond=conds, seed=seeds)
    stepper = gk.Run(problem.model, N, steps=STEPS, guides=guides)
    for i, (cond, seed) in enumerate(zip(conds, seeds, strict=True)):
        alone = run(problem, guides, cond=cond, seed=seed)
        mine = together.group == i
        # float64; rounding depends on the number of rows, and a guide may magnify it 10^5 times in pure noise
        assert torch.allclose(together.x[mine].double(), alone.x.double(), rtol=1e-10, atol=1e-10)
        assert torch.allclose(together.log_weights[mine], alone.log_weights, rtol=1e-11, atol=1e-11)
        widths = torch.tensor([stepper.step(j).n for j in range(len(stepper.moves) + 1)])
        assert torch.equal(together.lineage()[:, mine] - i * widths[:, None], alone.lineage())
        assert torch.allclose(together.log_z[i], alone.log_z[0], rtol=1e-11)


@every
@pytest.mark.usefixtures("every_row")
def test_rows_and_reward_calls_are_what_the_guide_declares(case: Case, problem: Problem):
    result = run(problem, [case.make(problem)], n=N)
    assert result.cost.network_rows == case.rows(N, STEPS)
    assert result.cost.network_calls == case.forwards(STEPS)  # all branches of a step in one forward
    calls = case.calls(N, STEPS)
    if problem.model.process.noise_shape(problem.model.shape) == problem.model.shape:
        assert result.cost.reward_calls == calls
    else:  # equal tokens are scored once
        assert (calls > 0) <= result.cost.reward_calls <= calls


@every
@pytest.mark.parametrize("stop_at", [2, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_equals_uninterrupted(case: Case, problem: Problem, stop_at: int, tmp_path):
    class Kill(Exception):
        pass

    def kill(population, step):
        if step.index == min(stop_at, step.total):
            raise Kill

    guides, file = [case.make(problem)], tmp_path / "run.safetensors"
    whole = run(problem, guides, callbacks=WATCH)
    with pytest.raises(Kill):
        run(problem, guides, checkpoint=file, callbacks=[kill])
    resumed = run(problem, guides, checkpoint=file, callbacks=WATCH)
    assert_same(whole, resumed)
    assert [row["ess"] for row in whole.trace] == [row["ess"] for row in resumed.trace]
    assert resumed.cost.network_rows == whole.cost.network_rows
    if problem.name in ("masked", "uniform"):  # tokens that were scored before the kill may be scored again
        assert resumed.cost.reward_calls >= whole.cost.reward_calls
    else:
        assert resumed.cost.reward_calls == whole.cost.reward_calls


@where(lambda case: not case.memory)
def test_all_state_follows_its_particle(case: Case, problem: Problem):
    """After every selection, what a particle carries is what a fresh look at its x would give."""
    guide = case.make(problem)
    stepper = gk.Run(problem.model, 64, steps=STEPS, guides=[guide], cond=problem.cond)
    blank = gk.Run(problem.model, 64, steps=STEPS, guides=[guide], cond=problem.cond)
    with torch.no_grad():
        pop = stepper.start()
        for index in range(len(stepper.moves)):
            pop = stepper.advance(pop, index)
            fresh = blank.look(pop, index + 1)
            for kept, new in zip(pop.predictions[:1], fresh.predictions[:1], strict=True):
                assert torch.allclose(kept, new, rtol=1e-12, atol=1e-12)
            for kept, new in zip(pop.proposals[:1], fresh.proposals[:1], strict=True):
                assert torch.allclose(kept, new, rtol=1e-12, atol=1e-12)
            known = ~pop.rewards.isnan()
            scored = isinstance(guide, gk.FKSteering) and guide.due(stepper.step(index + 1))
            if scored and (guide.potential != "final" or index + 1 == STEPS):
                clean = pop.x
                if stepper.step(index + 1).t > 0:
                    clean = problem.model.process.clean(pop.predictions[0], pop.x)
                assert known.all()
                assert torch.allclose(pop.rewards, problem.reward(clean).double(), atol=1e-12)
                if guide.potential == "difference" and guide.tempering == 1:
                    assert torch.allclose(pop.memos[0][0], pop.rewards / guide.alpha, atol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_order_of_four_guides_does_not_matter(problem: Problem):
    """Tilts add and every guide has randomness of its own."""
    guides = [
        gk.CFG(1.5),
        gk.CFG(0.7, steer=True),
        gk.CFG(lambda t: 1 + t, stop=0.6),
        gk.FKSteering(problem.reward, problem.alpha),
    ]
    results = [run(problem, order) for order in permutations(guides)]
    for other in results[1:]:
        assert torch.equal(results[0].ancestors, other.ancestors)
        assert torch.allclose(results[0].x.double(), other.x.double(), rtol=1e-11, atol=1e-11)
        assert torch.allclose(results[0].log_weights, other.log_weights, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("ess", [0.0, 0.5, 1.0])
def test_steering_beside_a_reward_leaves_the_tilted_target_unchanged(problem: Problem, ess: float):
    """CFG bends the proposal, FK weighs: together still p exp(r/alpha), with its Z."""
    guides = [gk.CFG(1.4, steer=True), gk.FKSteering(problem.reward, problem.alpha, ess=ess)]
    result = populations(problem, 4000, 8, guides, first=50_000)
    truth, error = problem.tilted()
    assert np.abs(deviations(estimates(problem, result), truth, error)).max() < 4.5  # as above

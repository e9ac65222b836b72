"""Beams: who survives is checked against a sort written out here, and the law against a simulation in numpy."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from scipy.stats import ks_2samp, kstest

import guidekit as gk

from .problems import PROBLEMS, STEPS, Problem

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
LEVEL = 1e-3  # of p: one true test in 1000 fails


def normal() -> gk.Model:
    """N(0, 1) by its true kernels; VP, so that x_t ~ N(0, 1) at all times and corr(x_s, x_t) = alpha_t/alpha_s."""
    parts = (torch.tensor(v, dtype=torch.float64) for v in ([1.0], [0.0], [1.0]))
    return gk.analytic.GaussianMixture(*parts).exact()


def estimate(problem: Problem, x: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """The clean estimate: the mean, or the most likely tokens where they are masked (or everywhere)."""
    if prediction.dim() == x.dim():
        return prediction
    mode = prediction.argmax(-1)
    return torch.where(x == problem.model.vocab_size, mode, x) if problem.name == "masked" else mode


def best_rows(scores: np.ndarray, parents: np.ndarray, width: int, places: int) -> list[int]:
    """Highest score first; of equal ones the first children of all parents, in their order, before the second ones."""
    seen: dict[int, int] = {}
    rank = []
    for row, parent in enumerate(parents):
        seen[parent] = seen.get(parent, -1) + 1
        rank.append((-scores[row], seen[parent], parent, row))
    best = [row for *_, row in sorted(rank)][:width]
    return [best[i % len(best)] for i in range(places)]


CONFIGURATIONS = {
    "n = width": (4, lambda r: gk.BeamSearch(r, 4, 3)),
    "n < width": (2, lambda r: gk.BeamSearch(r, 6, 2)),
    "n > width": (7, lambda r: gk.BeamSearch(r, 3, 2)),
    "width 1": (3, lambda r: gk.BeamSearch(r, 1, 4)),
    "list of steps": (3, lambda r: gk.BeamSearch(r, 5, 3, every=[2, 3])),
    "every other": (3, lambda r: gk.BeamSearch(r, 5, 2, every=2)),
    "interval": (3, lambda r: gk.BeamSearch(r, 5, 2, start=0.3, stop=0.7)),
    "narrowing": (2, lambda r: gk.DSearch(r, (9, 3), 2)),
    "widening": (2, lambda r: gk.BeamSearch(r, lambda f: 2 + round(6 * f), lambda f: 3 - round(2 * f))),
    "narrowing now and then": (2, lambda r: gk.DSearch(r, (9, 2), 2, "sigmoid", every=2)),
}
# children of each particle in the six moves, and the rows of a group after them, by hand
NUMBERS = {
    "n = width": ([3] * 6, [4] * 6),
    "n < width": ([2] * 6, [6] * 5 + [2]),
    "n > width": ([2] * 6, [7] * 6),
    "width 1": ([4] * 6, [3] * 6),
    "list of steps": ([1, 3, 3, 1, 1, 3], [5] * 5 + [3]),
    "every other": ([1, 2, 1, 2, 1, 2], [5] * 5 + [3]),
    "interval": ([1, 2, 2, 2, 1, 1], [5] * 5 + [3]),  # they arrive at the fractions 2/6, 3/6 and 4/6
    "narrowing": ([2, 2, 3, 3, 4, 4], [8, 7, 6, 5, 4, 2]),  # 18 over 9, 8, 7, 6, 5, 4
    "widening": ([3, 3, 2, 2, 2, 1], [3, 4, 5, 6, 7, 2]),
    "narrowing now and then": ([1, 2, 1, 3, 1, 6], [8, 7, 6, 4, 3, 2]),  # 18 over 8, 6, 3 where children are drawn
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", ["flow-2d", "masked", "uniform"])
def test_survivors_are_the_best_of_the_whole_group(name: str, configuration: str):
    """Step by step, in three groups with different conditions, and with all that belongs to them."""
    problem, (n, make) = PROBLEMS[name], CONFIGURATIONS[configuration]
    guide = make(problem.reward)
    run = gk.Run(problem.model, n, steps=STEPS, guides=[guide], cond=[problem.cond, None, problem.cond], seed=[1, 1, 2])
    random_end = name != "flow-2d"  # the last move of a Gaussian solver draws nothing
    conds = [problem.model.encode(c) for c in run.conditions]
    standing = [None] * 3  # scores of the particles where they were last scored
    with torch.no_grad():
        pop = run.start()
        for index, (children, after) in enumerate(zip(*NUMBERS[configuration], strict=True)):
            born = run.look(run.move(run.branch(pop, index), index), index + 1)
            k = 1 if index == STEPS - 1 and not random_end else children
            assert len(born) == k * len(pop)
            last, t = index + 1 == STEPS, run.moves[index].s
            due = children > 1 or last
            rows, keep = [], []
            for g, cond in enumerate(conds):
                own = (born.group == g).nonzero()[:, 0]
                x, parents = born.x[own], born.parent[own].numpy()
                if not last:
                    prediction = problem.model(x, t, cond.expand(len(own)))
                    assert torch.allclose(prediction, born.predictions[0][own], rtol=1e-12, atol=1e-12)
                scores = problem.reward(x if last else estimate(problem, x, prediction)).double().numpy()
                if not due:
                    scores = np.zeros(len(own)) if standing[g] is None else standing[g]
                width = guide.width if isinstance(guide.width, int) else guide.width((index + 1) / STEPS)
                if due or len(own) != after:
                    best = best_rows(scores, parents, after if last else width, after)
                else:
                    best = list(range(len(own)))
                standing[g] = scores[best] if due or standing[g] is not None else None
                rows += own[best].tolist()
                keep.append(scores[best])
            before, pop = born, run.select(born, index + 1)
            rows = torch.tensor(rows)
            assert len(pop) == 3 * after
            assert torch.equal(pop.x, before.x[rows])
            assert torch.equal(pop.parent, before.parent[rows])
            assert torch.equal(pop.root, before.root[rows])
            assert torch.equal(pop.group, torch.arange(3).repeat_interleave(after))
            assert torch.equal(pop.slot, torch.arange(after).repeat(3))
            for kept, old in zip(pop.predictions, before.predictions, strict=True):
                assert torch.equal(kept, old[rows])
            if standing[0] is not None:  # the memo is the score
                assert torch.allclose(pop.memos[0], torch.as_tensor(np.concatenate(keep)), atol=1e-12)
        stepped = run.result(pop)
    whole = gk.sample(
        problem.model, n, steps=STEPS, guides=[guide], cond=[problem.cond, None, problem.cond], seed=[1, 1, 2]
    )
    assert torch.equal(stepped.x, whole.x)
    assert torch.equal(stepped.ancestors, whole.ancestors)
    assert torch.equal(whole.rewards, problem.reward(whole.x).double())
    best_first = whole.rewards.view(3, n)
    assert (best_first.diff(dim=1) <= 0).all()
    assert torch.equal(whole.log_weights, torch.zeros(3 * n, dtype=torch.float64))


def test_parents_are_recorded_through_widths_that_change():
    """Each sample's lineage leads, step by step, through the states that the run really had."""
    problem, states = PROBLEMS["flow-2d"], []
    result = gk.sample(
        problem.model, 3, steps=STEPS, cond=[1, 1], seed=[4, 5], guides=[gk.DSearch(problem.reward, (10, 3), 2)],
        callbacks=[lambda population, step: states.append((population.x, population.group))],
    )  # fmt: skip
    lineage = result.lineage()
    assert lineage.shape == (STEPS + 1, 6)
    rows = [20, *(len(x) for x, _ in states)]
    assert rows == [20, 18, 16, 12, 10, 8, 6]  # two groups of 10, 8.83, 7.67, 6.5 (rounds to even), 5.33, 4.17 and 3
    for (_, group), row in zip(states, lineage[1:], strict=True):
        assert torch.equal(group[row], result.group)
    assert torch.equal(states[-1][0][lineage[-1]], result.x)
    assert (result.ancestors[-1, 6:] == -1).all()


@pytest.mark.parametrize("width, branch, n", [(1, 8, 1), (4, 2, 1), (3, 4, 2)])
def test_one_step_is_best_of_width_times_branch(width: int, branch: int, n: int):
    """From pure noise all children are independent samples, so the first is the largest and the j-th the j-th."""
    groups, total = 4000, width * branch
    result = gk.sample(
        normal(), n, steps=1, guides=[gk.BeamSearch(lambda x: x[:, 0], width, branch)], cond=[None] * groups,
        seed=list(range(groups)),
    )  # fmt: skip
    x = result.x.view(groups, n).numpy()
    assert kstest(x[:, 0], lambda v: ndtr(v) ** total).pvalue > LEVEL
    if n == 2:  # the second largest: at most one of all is larger
        assert (
            kstest(x[:, 1], lambda v: ndtr(v) ** total + total * ndtr(v) ** (total - 1) * (1 - ndtr(v))).pvalue > LEVEL
        )
    assert kstest(x[:, 0], lambda v: ndtr(v) ** (total - 1)).statistic > 0.02


@pytest.mark.parametrize("local", [False, True], ids=["beam", "svdd"])
def test_the_law_of_three_steps_by_a_simulation_in_numpy(local: bool):
    """A beam lets one parent have all survivors; SVDD, beside it, keeps one child of each."""
    groups, width, branch, steps = 6000, 3, 4, 3
    guide = gk.SVDD(lambda x: x[:, 0], 0.0, branch) if local else gk.BeamSearch(lambda x: x[:, 0], width, branch)
    result = gk.sample(normal(), width, steps=steps, guides=[guide], cond=[None] * groups, seed=list(range(groups)))
    rng = np.random.default_rng(1)
    alpha = [math.cos(math.pi / 2 * (1 - i / steps)) for i in range(steps + 1)]
    x = rng.standard_normal((groups, width))
    for before, after in pairwise(alpha):  # the estimate alpha x rises in x
        c = before / after
        y = c * x[..., None] + math.sqrt(1 - c * c) * rng.standard_normal((groups, width, branch))
        x = y.max(-1) if local else -np.sort(-y.reshape(groups, -1), 1)[:, :width]
    found = result.x.view(groups, width).numpy()
    if local:
        assert ks_2samp(found.ravel(), x.ravel()).pvalue > LEVEL
        return
    for j in range(width):
        assert ks_2samp(found[:, j], x[:, j]).pvalue > LEVEL
    # and so jointly: correlation of the two best, known to 1/sqrt(6000) = .013 in each
    assert abs(np.corrcoef(found[:, :2].T)[0, 1] - np.corrcoef(x[:, :2].T)[0, 1]) < 4.5 * 0.013 * math.sqrt(2)


def test_the_more_the_beam_is_given_the_better_its_best():
    problem = PROBLEMS["vp-1d"]
    guides = [gk.BeamSearch(lambda x: x[:, 0], w, b) for w, b in ((1, 1), (1, 2), (2, 2), (4, 4), (16, 8))]
    means = []
    for guide in guides:
        result = gk.sample(problem.model, 1, steps=STEPS, cond=[1] * 400, seed=list(range(400)), guides=[guide])
        means.append(float(result.rewards.mean()))
    assert abs(means[0] - problem.law()[0].mean()) < 4.5 * problem.law()[0].std() / 20  # one child is plain sampling
    # but for the first, known to .1, their standard deviation is below 1: 400 populations know them to .05
    assert (np.diff(means) > [0.5, 0.2, 0.2, 0.2]).all(), means


# cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("name", ["flow-2d", "uniform"])
@pytest.mark.usefixtures("every_row")
def test_network_rows_are_those_of_the_children(name: str, configuration: str):
    problem, (n, make) = PROBLEMS[name], CONFIGURATIONS[configuration]
    children, after = NUMBERS[configuration]
    guide = make(problem.reward)
    result = gk.sample(problem.model, n, steps=STEPS, guides=[guide], cond=problem.cond)
    before = [max(n, guide.width if isinstance(guide.width, int) else guide.width(0.0)), *after]
    born = [b * c for b, c in zip(before, children, strict=False)]
    assert result.cost.network_rows == before[0] + sum(born[:-1])  # nothing is predicted of final samples
    if name == "flow-2d":  # of tokens equal ones are scored once
        due = [c > 1 for c in children[:-1]]
        assert result.cost.reward_calls == sum(b for b, d in zip(born[:-1], due, strict=True) if d) + before[-2]


@pytest.mark.parametrize("depth, k", [(1, 1), (2, 3)])
def test_the_look_ahead_of_dsearch_costs_k_depth_rows_a_child(depth: int, k: int):
    problem = PROBLEMS["flow-2d"]
    plain = gk.sample(problem.model, 2, steps=STEPS, cond=1, guides=[gk.DSearch(problem.reward, (4, 4), 2)])
    deep = gk.sample(
        problem.model, 2, steps=STEPS, cond=1, guides=[gk.DSearch(problem.reward, (4, 4), 2, depth=depth, k=k)]
    )
    looked = 8 * (STEPS - 1)  # children before the last step, which is scored as it is
    assert deep.cost.network_rows == plain.cost.network_rows + looked * k * depth
    assert deep.cost.reward_calls == looked * k + 4
    assert not torch.equal(plain.x, deep.x)


def test_the_look_ahead_of_dsearch_is_the_mean_over_samples_that_the_model_draws():
    """On N(0, 1) in exact steps V is E[r(x_0) | x_t] and a Monte Carlo error; for r = x^2, alpha^2 x^2 + sigma^2."""
    t, k = 0.5, 20_000
    guide = gk.DSearch(lambda x: x[:, 0].square(), (3, 3), 1, depth=2, k=k)
    run = gk.Run(normal(), 3, steps=[1.0, t, 0.0], guides=[guide])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
    a2, s2 = math.cos(math.pi * t / 2) ** 2, math.sin(math.pi * t / 2) ** 2
    expected = a2 * pop.x[:, 0].square() + s2
    # r has variance 2 s^4 + 4 a^2 x^2 s^2 < 10; mean of 20,000 samples, 4.5 standard errors
    assert (pop.memos[0] - expected).abs().max() < 4.5 * math.sqrt(10 / k)
    assert expected.max() - expected.min() > 0.5


def test_a_value_that_reads_x_alone_saves_the_rows_of_those_who_die():
    class OfX:
        sees_prediction = False

        def __call__(self, view):
            return PROBLEMS["flow-2d"].reward(view.x).double()

    problem = PROBLEMS["flow-2d"]
    result = gk.sample(problem.model, 2, steps=STEPS, cond=1, guides=[gk.BeamSearch(problem.reward, 4, 5, OfX())])
    assert result.cost.network_rows == 4 * STEPS


# limits ------------------------------------------------------------------------------------------------------------


def constant(x):
    return x.flatten(1)[:, 0] * 0.0 + 0.25


@every_problem
@pytest.mark.parametrize(
    "make",
    [
        lambda n: gk.BeamSearch(constant, n, 3),
        lambda n: gk.BeamSearch(constant, n, lambda f: 1 + round(3 * f), every=[2, 5]),
        lambda n: gk.DSearch(constant, (n, n), 3, "sigmoid", every=2),
    ],
    ids=["beam", "schedule", "dsearch"],
)
def test_a_constant_reward_with_width_n_is_plain_sampling_bit_for_bit(problem: Problem, make):
    plain = gk.sample(problem.model, 6, steps=STEPS, cond=[problem.cond, None])
    beam = gk.sample(problem.model, 6, steps=STEPS, cond=[problem.cond, None], guides=[make(6)])
    assert torch.equal(plain.x, beam.x)
    assert torch.equal(plain.ancestors, beam.ancestors)


@pytest.mark.parametrize("name", ["vp-1d", "masked"])
def test_with_one_child_and_the_width_of_n_it_only_sorts(name: str):
    problem = PROBLEMS[name]
    guide = gk.BeamSearch(problem.reward, 9, 1, every=[STEPS])
    beam = gk.sample(problem.model, 9, steps=STEPS, cond=problem.cond, guides=[guide])
    plain = gk.sample(problem.model, 9, steps=STEPS, cond=problem.cond, reward=problem.reward)
    order = plain.rewards.sort(descending=True, stable=True).indices
    assert torch.equal(beam.x, plain.x[order])
    assert not torch.equal(order, torch.arange(9))


@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_a_group_does_not_depend_on_the_others(name: str):
    problem = PROBLEMS[name]
    run = partial(gk.sample, problem.model, 3, steps=STEPS, guides=[gk.DSearch(problem.reward, (8, 3), 2)])
    together = run(cond=[problem.cond, None, problem.cond], seed=[7, 8, 9])
    for g, (cond, seed) in enumerate([(problem.cond, 7), (None, 8), (problem.cond, 9)]):
        alone = run(cond=cond, seed=seed)
        assert torch.equal(together.x[together.group == g], alone.x)


def test_children_without_a_score_die_and_samples_without_one_weigh_nothing():
    problem = PROBLEMS["flow-2d"]

    def partial_reward(x):
        return torch.where(x[:, 0] > 0.2, torch.nan, x[:, 0])

    beam = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=[gk.BeamSearch(partial_reward, 8, 4)])
    assert (beam.x[:, 0] <= 0.2).all()
    assert torch.equal(beam.log_weights, torch.zeros(4, dtype=torch.float64))

    def only_one(x):  # scores the lowest alone, and only at the end
        known = (x[:, 0] == x[:, 0].min()) | (len(x) != 8)
        return torch.where(known, -x[:, 0], torch.nan)

    with pytest.warns(UserWarning, match="3 of 4 samples could not be scored"):
        beam = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=[gk.BeamSearch(only_one, 8, 2)])
    assert torch.equal(beam.log_weights == -torch.inf, torch.tensor([False, True, True, True]))
    assert torch.equal(beam.rewards.isnan(), torch.tensor([False, True, True, True]))


# schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule, widths",
    [
        ("linear", [20, 16, 12, 8, 4]),
        ("quadratic", [20, 19, 16, 11, 4]),
        ("exponential", [20, 19, 17, 13, 4]),  # (e^.75 - 1)/(e^3 - 1) = .0585, .1824, .4448
        ("sigmoid", [20, 18, 12, 6, 4]),  # tanh(.75)/tanh(1.5) = .7017: .1491, .5, .8509
        (lambda f: float(f > 0.3), [20, 20, 4, 4, 4]),
    ],
    ids=["linear", "quadratic", "exponential", "sigmoid", "function"],
)
def test_widths_and_branches_of_dsearch(schedule, widths):
    guide = gk.DSearch(len, (20, 4), 2, schedule)
    assert [guide.width(i / 4) for i in range(5)] == widths
    assert [guide.branch(i / 4) for i in range(5)] == [round(40 / w) for w in widths]
    run = gk.Run(PROBLEMS["masked"].model, 7, steps=4, guides=[guide])
    assert [step.n for step in run.steps] == [max(7, w) for w in widths]
    exact = [20 - 16 * f for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert schedule != "linear" or widths == exact


def test_a_beam_of_constant_width_is_a_dsearch():
    problem = PROBLEMS["flow-2d"]
    one, two = (
        gk.sample(problem.model, 3, steps=STEPS, cond=1, guides=[guide])
        for guide in (gk.DSearch(problem.reward, (6, 6), 3), gk.BeamSearch(problem.reward, 6, 3))
    )
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.ancestors, two.ancestors)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: gk.BeamSearch(constant, 0, 2), r"BeamSearch\(width=0\): a count, at least 1"),
        (lambda: gk.BeamSearch(constant, 2, 1.5), r"BeamSearch\(branch=1.5\): a count, at least 1"),
        (lambda: gk.BeamSearch(constant, lambda f: 2 - 2 * int(f), 2), r"BeamSearch\(width=0\)"),
        (lambda: gk.BeamSearch(constant, 2, 2, every=0), "a number of steps, at least 1, or a list of steps"),
        (lambda: gk.BeamSearch(constant, 2, 2, every=[1, -2]), "a number of steps, at least 1, or a list of steps"),
        (lambda: gk.DSearch(constant, 5), r"DSearch\(width=5\): two counts"),
        (lambda: gk.DSearch(constant, (5, 0)), "two counts"),
        (lambda: gk.DSearch(constant, (5, 2), schedule="cubic"), "there is linear, quadratic, exponential, sigmoid"),
        (lambda: gk.DSearch(constant, (5, 2), depth=-1), "at least 0 steps of look-ahead"),
        (lambda: gk.DSearch(constant, (5, 2), depth=1, value=constant), "no value= beside them"),
    ],
)
def test_bad_input_is_an_error_at_construction(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_beams_branch_and_so_need_noise():
    with pytest.raises(ValueError, match="is deterministic: copies would stay equal"):
        gk.Run(PROBLEMS["vp-1d"].model, 4, cond=1, guides=[gk.BeamSearch(constant, 4, 2)], solver=gk.solvers.DDIM())

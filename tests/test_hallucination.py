"""The variance of late clean estimates: what it is, that it finds samples between modes, and what guides make of it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

import guidekit as gk
from guidekit.guides.hallucination import Hallucination, hallucination

from .problems import PROBLEMS

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

MODES = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


EXACT = gk.analytic.GaussianMixture(torch.ones(3, dtype=torch.float64), MODES, 0.05 * torch.ones(3).double())


def smoothed(width: float) -> gk.GaussianModel:
    """The 1-D mixture of the paper, with the exact denoiser blurred: the mean of d(x + width u), u ~ N(0, 1)."""
    u, w = np.polynomial.hermite_e.hermegauss(31)
    grid = np.linspace(-5, 7, 361)

    @lru_cache(maxsize=256)
    def table(t: float) -> np.ndarray:
        near = torch.tensor(grid[:, None] + width * u).view(-1, 1)
        return EXACT(near, t, None).view(-1, 31).numpy() @ (w / w.sum())

    def net(x, t, cond):
        return torch.tensor(np.interp(x[:, 0].numpy(), grid, table(float(t[0]))))[:, None]

    return gk.GaussianModel(net, (1,), EXACT.schedule, "clean", dtype=torch.float64)


def parts(result) -> tuple[torch.Tensor, torch.Tensor]:
    """Which samples are between the modes, five standard deviations away or more, and which in them."""
    away = (result.x - MODES).abs().amin(1)
    return away > 0.25, away < 0.15


# what the paper shows ----------------------------------------------------------------------------------------------


def test_samples_between_modes_have_a_large_variance():
    """A blurred denoiser interpolates, the exact one does not; the variance tells these samples from the others."""
    blurred, exact = (gk.sample(m, 3000, steps=100, guides=[Hallucination(10)]) for m in (smoothed(0.15), EXACT))
    between, within = parts(blurred)
    assert between.sum() > 20 and not parts(exact)[0].any()
    hal = hallucination(blurred).numpy()
    auc = mannwhitneyu(hal[between], hal[within]).statistic / (between.sum() * within.sum())
    assert auc > 0.9  # .94 here, with a standard error of .03; a small trained network gave .94 to .95


def test_a_threshold_removes_most_of_them_and_few_others():
    model = smoothed(0.1)
    found = gk.sample(model, 4000, steps=100, guides=[Hallucination(8)])
    limit = float(hallucination(found).quantile(0.95))
    kept = gk.sample(model, 4000, steps=100, guides=[Hallucination(8, limit)])
    between, within = parts(kept)
    weights = kept.log_weights.exp()
    assert torch.equal(kept.x, found.x)
    assert between.sum() >= 10 and weights[between].mean() < 0.2 and weights[within].mean() > 0.95


def test_best_of_n_by_steadiness_leaves_few_between_modes():
    model = smoothed(0.15)
    steady = Hallucination(10)
    plain = gk.sample(model, 1500, steps=50)
    best = gk.sample(model, 1500, steps=50, guides=[steady, gk.BestOfN(steady.steadiness, 3)])
    assert parts(plain)[0].sum() > 20
    assert parts(best)[0].sum() < 0.3 * parts(plain)[0].sum()
    assert torch.equal(best.rewards, -hallucination(best))
    assert best.cost.reward_calls == 0


# what it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ess", [0.0, 1.0])
@pytest.mark.parametrize("window", [2, 4, 6])
def test_it_is_the_variance_of_the_last_guided_predictions_along_the_lineage(window, ess):
    problem = PROBLEMS["flow-2d"]
    guides = [gk.CFG(2.0), Hallucination(window), gk.FKSteering(problem.reward, 0.3, ess=ess)]
    run = gk.Run(problem.model, 16, steps=6, cond=1, guides=guides)
    predictions = []
    with torch.no_grad():
        pop = run.start()
        for index in range(6):
            predictions.append(pop.predictions[0])  # of the survivors of look `index`
            pop = run.advance(pop, index)
    result = run.result(pop)
    rows = result.lineage()
    along = torch.stack([p[rows[i]] for i, p in enumerate(predictions)])[-window:]
    expected = along.var(0, correction=0).mean(1)
    assert torch.allclose(hallucination(result), expected, rtol=1e-10, atol=1e-14)
    assert result.trace["resampled"].any() == (ess > 0)


def test_alone_it_changes_nothing_and_costs_nothing():
    for name in ("vp-1d", "flow-2d", "edm-1d"):
        problem = PROBLEMS[name]
        options = {"n": 12, "steps": 6, "cond": 1}
        plain, seen = (gk.sample(problem.model, **options, guides=g) for g in ((), [Hallucination(4)]))
        assert torch.equal(plain.x, seen.x)
        assert torch.equal(plain.log_weights, seen.log_weights)
        assert plain.cost.network_rows == seen.cost.network_rows
        assert hallucination(seen).min() > 0


def test_weights_are_what_the_arguments_say():
    problem = PROBLEMS["flow-2d"]
    options = {"n": 40, "steps": 6, "cond": [1, 0], "seed": [1, 2]}
    hal = hallucination(gk.sample(problem.model, **options, guides=[Hallucination(4)]))
    soft = gk.sample(problem.model, **options, guides=[Hallucination(4, alpha=0.3)])
    assert torch.allclose(soft.log_weights, -hal / 0.3, rtol=1e-12)
    limit = float(hal.median())
    both = gk.sample(problem.model, **options, guides=[Hallucination(4, limit, 0.3)])
    assert torch.allclose(both.log_weights, torch.where(hal > limit, -torch.inf, -hal / 0.3))


def test_steadiness_is_a_reward_for_feynman_kac_steering():
    """exp(-Hal/alpha) as the target's factor, by steps and at the end; the log-weights telescope to the same."""
    problem = PROBLEMS["flow-2d"]
    options = {"n": 40, "steps": 6, "cond": 1}
    for potential in ("final", "difference"):
        steady = Hallucination(4)
        steered = gk.FKSteering(steady.steadiness, 0.3, potential=potential, ess=0.0)
        result = gk.sample(problem.model, **options, guides=[steady, steered])
        assert torch.allclose(result.log_weights, -hallucination(result) / 0.3, rtol=1e-9)
        assert torch.equal(result.best(1).rewards, -hallucination(result).amin()[None])
    plain = gk.sample(problem.model, 200, steps=20, cond=1, guides=[Hallucination(10)])
    steady = Hallucination(10)
    chosen = gk.sample(problem.model, 200, steps=20, cond=1, guides=[steady, gk.SVDD(steady.steadiness, candidates=4)])
    assert hallucination(chosen).mean() < 0.6 * hallucination(plain).mean()


def test_rows_do_not_depend_on_batch_size_or_groups():
    problem = PROBLEMS["edm-1d"]
    guides = [Hallucination(4, alpha=0.3), gk.FKSteering(problem.reward, 0.5, ess=0.9)]
    whole = gk.sample(problem.model, 10, steps=6, cond=[1, 0], seed=[3, 8], guides=guides)
    small = gk.sample(problem.model, 10, steps=6, cond=[1, 0], seed=[3, 8], guides=guides, batch_size=3)
    alone = gk.sample(problem.model, 10, steps=6, cond=0, seed=8, guides=guides)
    assert whole.trace["resampled"].any()
    assert torch.allclose(hallucination(whole), hallucination(small), rtol=1e-9)
    assert torch.allclose(hallucination(whole)[10:], hallucination(alone), rtol=1e-9)


def test_it_follows_best_and_resample_and_is_saved(tmp_path):
    problem = PROBLEMS["flow-2d"]
    guides = [gk.CFG(1.5), Hallucination(4, alpha=0.2)]
    result = gk.sample(problem.model, 20, steps=6, cond=1, guides=guides, reward=problem.reward)
    order = result.rewards.sort(descending=True).indices
    assert torch.equal(hallucination(result.best(5)), hallucination(result)[order[:5]])
    assert torch.equal(hallucination(result.resample(1)), hallucination(result)[result.resample(1).row])
    result.save(tmp_path / "run")
    assert torch.equal(hallucination(gk.load_result(tmp_path / "run")), hallucination(result))
    steadiest = replace(result, rewards=-hallucination(result)).best(1)
    assert hallucination(steadiest) == hallucination(result).min()


def test_moves_that_a_guide_cuts_shorten_the_window():
    """Four of six moves are left where the window asked for six predictions: it has four."""

    class Late(gk.Guide):
        def moves(self, model, moves):
            return moves[2:]

    problem = PROBLEMS["flow-2d"]
    guides = [Late(), Hallucination(6)]
    run = gk.Run(problem.model, 5, steps=6, cond=1, guides=guides)
    with torch.no_grad():
        pop, seen = run.start(), []
        for index in range(4):
            seen.append(pop.predictions[0])
            pop = run.advance(pop, index)
    expected = torch.stack(seen).var(0, correction=0).mean(1)
    assert torch.allclose(hallucination(run.result(pop)), expected, rtol=1e-10)


def test_bad_input_is_an_error_that_says_what_to_do():
    model = PROBLEMS["vp-1d"].model
    for wrong, match in (
        (lambda: Hallucination(1), "2 predictions or more"),
        (lambda: Hallucination(True), "2 predictions or more"),
        (lambda: Hallucination(5, -1.0), "both are positive"),
        (lambda: Hallucination(5, alpha=0.0), "both are positive"),
        (lambda: gk.Run(model, 2, steps=5, cond=1, guides=[Hallucination(6)]), "makes 5 predictions"),
        (lambda: gk.Run(model, 2, steps=5, cond=1, guides=[Hallucination(3, start=0.5)]), "no start or stop"),
        (lambda: gk.Run(PROBLEMS["masked"].model, 2, cond=0, guides=[Hallucination(3)]), "tokens have none"),
        (lambda: hallucination(gk.sample(model, 2, steps=2, cond=1)), "had no gk.Hallucination"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    steady = Hallucination(3)
    with pytest.raises(gk.RewardError, match="before the guide that uses it"):
        gk.sample(model, 4, steps=4, cond=1, guides=[gk.BestOfN(steady.steadiness, 2), steady])


@pytest.mark.parametrize("ess", [0.0, 1.0])
def test_the_trace_has_its_mean_over_those_who_live(ess: float, tmp_path):
    """Also after a kill. The window opens at step 3 of 6, and two predictions are known from step 4 on."""
    problem = PROBLEMS["vp-1d"]
    guides = [gk.FKSteering(problem.reward, 0.3, ess=ess), Hallucination(3)]
    options = {"steps": 6, "cond": [1, None], "guides": guides}
    run = gk.Run(problem.model, 16, **options)
    with torch.no_grad():
        pop, expected = run.start(), []
        seen = pop.predictions[0][:, None]  # along the path of each particle
        for index in range(6):
            pop = run.advance(pop, index)
            seen = seen[pop.parent]
            if index < 5:
                seen = torch.cat([seen, pop.predictions[0][:, None]], 1)
            late = seen[:, 3:]
            known = late.shape[1] > 1
            hal = late.var(1, correction=0).mean(1) if known else torch.full((32,), torch.nan).double()
            expected.append(hal.view(2, 16).mean(1))
    expected = torch.stack(expected)
    result = run.result(pop)
    assert expected[:3].isnan().all() and not expected[3:].isnan().any()
    assert torch.allclose(result.trace["hallucination"].double(), expected, rtol=1e-6, equal_nan=True)

    def kill(population, step):
        if step.index == 5:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        gk.sample(problem.model, 16, checkpoint=file, callbacks=[kill], **options)
    again = gk.sample(problem.model, 16, checkpoint=file, **options)
    assert torch.allclose(again.trace["hallucination"].double(), expected, rtol=1e-6, equal_nan=True)

"""Refinement, evolution and restart sampling: what is kept, from where, and the laws where there are some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import guidekit as gk

from .problems import PROBLEMS, STEPS, deviations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
every = pytest.mark.parametrize("name", PROBLEMS)


def first(name: str, n: int = 24, groups: int = 1) -> gk.Result:
    p = PROBLEMS[name]
    return gk.sample(p.model, n, steps=STEPS, cond=[p.cond] * groups, reward=p.reward, seed=list(range(groups)))


@every
@pytest.mark.usefixtures("every_row")
def test_each_round_is_a_guided_run_from_the_noised_samples_and_keeps_what_is_better(name: str):
    p, start = PROBLEMS[name], first(name)
    guides = [gk.SVDD(p.reward, candidates=2)]
    options = {"level": 0.4, "steps": 5, "cond": p.cond, "guides": guides, "seed": 3}
    one = gk.refine(p.model, start, p.reward, rounds=1, **options)
    always = gk.refine(p.model, start, p.reward, rounds=1, keep="always", **options)
    better = always.rewards > start.rewards
    assert 0 < better.sum() < len(better)  # a coin for each row
    kept = torch.where(better.view(-1, *[1] * (start.x.dim() - 1)), always.x, start.x)
    assert torch.equal(one.x, kept)
    assert torch.equal(one.rewards, torch.where(better, always.rewards, start.rewards))
    assert torch.equal(one.rewards, p.reward(one.x).double())
    two = gk.refine(p.model, one, p.reward, rounds=1, **options)
    assert (two.rewards >= one.rewards).all()
    rounds = gk.refine(p.model, start, p.reward, rounds=6, **options)
    assert rounds.rewards.mean() > one.rewards.mean()
    assert rounds.trace["mean_reward"].diff(dim=0).min() >= 0
    assert rounds.cost.network_rows == 6 * 24 * (1 + 2 * 4)
    assert rounds.ancestors.shape == (6, 24)


def test_without_guides_and_choice_a_round_leaves_the_law_as_it_is():
    """Noising and the exact reverse kernel together keep p: Kolmogorov-Smirnov against exact samples."""
    base = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    x = base.exact_sample(20_000, seed=1)
    again = gk.refine(base.exact(), x, lambda x: x[:, 0], rounds=3, level=0.5, steps=4, keep="always").x
    assert not torch.equal(x, again)
    cdf = (torch.special.ndtr((again.sort(0).values - base.means[:, 0]) / base.stds) * base.weights).sum(1)
    # level .001 of 20,000 samples: 1.95/sqrt(20000) = .0138
    assert (cdf - torch.arange(1, 20_001) / 20_000).abs().max() < 0.0138
    # the samples remember where they were: correlation over one round by the noised share of the data
    assert 0.1 < float(torch.corrcoef(torch.cat([x, again], 1).T)[0, 1]) < 0.9


def test_refined_rows_descend_from_their_own_even_where_particles_are_resampled():
    """With steering inside, a row is replaced by its own descendant only, and by the best of them."""
    p, start = PROBLEMS["vp-1d"], first("vp-1d")
    guides = [gk.FKSteering(p.reward, 0.1, ess=1.0)]
    one = gk.refine(p.model, start, p.reward, rounds=1, level=0.4, steps=5, cond=p.cond, guides=guides, seed=3)
    key = gk.random.fold(gk.random.fold(gk.random.key(3), "refine"), 1)
    times = [0.4 * (1 - i / 5) for i in range(5)] + [0.0]
    inner = gk.sample(
        p.model, 24, steps=times, cond=p.cond, reward=p.reward, guides=[gk.StartFrom(start.x), *guides], seed=int(key)
    )
    roots = inner.lineage()[0]
    assert len(roots.unique()) < 20
    for row in range(24):
        own = inner.rewards[roots == row]
        best = max([float(start.rewards[row]), *own.tolist()])
        assert float(one.rewards[row]) == best


@every
def test_evolution_keeps_the_best_different_ones_of_each_group(name: str):
    p, start = PROBLEMS[name], first(name, 10, groups=2)
    options = {"level": 0.5, "steps": 4, "cond": [p.cond] * 2, "seed": 5}
    result = gk.evolve(p.model, start, p.reward, rounds=1, offspring=2, **options)
    key = gk.random.fold(gk.random.fold(gk.random.key(5), "refine"), 1)
    x = start.x.view(2, 10, -1).repeat_interleave(2, 1).flatten(0, 1)
    times = [0.5 * (1 - i / 4) for i in range(4)] + [0.0]
    inner = gk.sample(p.model, 20, steps=times, cond=[p.cond] * 2, guides=[gk.StartFrom(x)], seed=int(key))
    for group in range(2):
        pool = torch.cat([start.x[start.group == group], inner.x[inner.group == group]])
        different = pool.unique(dim=0)
        wanted = p.reward(different).double().sort(descending=True).values[:10]
        mine = result.rewards[result.group == group]
        assert torch.allclose(mine[: len(wanted)], wanted)
        parents = result.ancestors[0][result.group == group]
        assert ((parents >= 10 * group) & (parents < 10 * group + 10)).all()
    longer = gk.evolve(p.model, start, p.reward, rounds=8, **options)
    assert longer.trace["max_reward"].diff(dim=0).min() >= 0
    assert longer.rewards.mean() > start.rewards.mean() + 0.1


def test_equal_samples_fill_a_group_only_where_there_are_no_others():
    p = PROBLEMS["masked"]
    result = gk.evolve(p.model, 12, p.reward, rounds=12, level=0.7, steps=4, cond=p.cond)
    best = p.reward(p.model.states).double().sort(descending=True).values[:12]
    assert len(result.x.unique(dim=0)) == 12
    assert result.rewards.sum() > 0.9 * best.sum()  # 27 states in all


def test_the_start_may_be_a_number_states_or_a_result_and_is_scored():
    p = PROBLEMS["flow-2d"]
    drawn = gk.refine(p.model, 5, p.reward, rounds=0, steps=6, cond=[p.cond, None])
    assert drawn.x.shape == (10, 2) and torch.equal(drawn.rewards, p.reward(drawn.x).double())
    given = gk.refine(p.model, drawn.x, p.reward, rounds=0, cond=[p.cond, None])
    assert torch.equal(given.rewards, drawn.rewards) and given.cost.network_rows == 0
    assert given.group.tolist() == [0] * 5 + [1] * 5
    assert len(given.trace) == 0


def test_unscored_samples_never_win():
    p = PROBLEMS["vp-1d"]

    def picky(x):
        return torch.where(x[:, 0] > 0.5, torch.nan, x[:, 0])

    start = gk.sample(p.model, 40, steps=STEPS, cond=p.cond)
    lost = picky(start.x).isnan()
    with pytest.warns(UserWarning, match="could not be scored"):
        result = gk.refine(p.model, start, picky, rounds=6, level=0.6, steps=4, cond=p.cond)
    assert 0 < lost.sum() < 40
    assert not result.rewards[~lost].isnan().any()
    assert result.rewards.isnan().sum() < lost.sum()


@pytest.mark.parametrize("search", [gk.refine, gk.evolve], ids=["refine", "evolve"])
@pytest.mark.parametrize("name", ["flow-2d", "masked"])
def test_a_killed_search_continues_to_the_same_result(search, name: str, tmp_path: Path):
    p = PROBLEMS[name]
    options = {"level": 0.5, "steps": 4, "cond": p.cond, "seed": 1}
    whole = search(p.model, 8, p.reward, rounds=5, **options)
    part = search(p.model, 8, p.reward, rounds=2, checkpoint=tmp_path / "run", **options)
    resumed = search(p.model, 8, p.reward, rounds=5, checkpoint=tmp_path / "run", **options)
    assert len(part.trace) == 2 and len(resumed.trace) == 5
    assert torch.equal(whole.x, resumed.x) and torch.equal(whole.rewards, resumed.rewards)
    assert torch.equal(whole.ancestors, resumed.ancestors)
    assert whole.cost.network_rows == resumed.cost.network_rows
    done = search(p.model, 8, p.reward, rounds=5, checkpoint=tmp_path / "run", **options)
    assert torch.equal(done.x, whole.x)
    with pytest.raises(gk.CheckpointError, match=r"of another search: level was 0\.5 and is 0\.4"):
        search(p.model, 8, p.reward, rounds=5, checkpoint=tmp_path / "run", **options | {"level": 0.4})


def test_what_is_wrong_is_said_before_the_first_network_call():
    calls = []

    def net(x, t, cond):
        calls.append(1)
        return x

    model = gk.GaussianModel(net, (2,), predicts="clean")
    reward = lambda x: x[:, 0]  # noqa: E731
    x = torch.zeros(4, 2)
    for message, start, options in (
        ("level=1.0", x, {"level": 1.0}),
        ("level=0", x, {"level": 0}),
        ("rounds=-1", x, {"rounds": -1}),
        ("steps=0", x, {"steps": 0}),
        ("keep='best'", x, {"keep": "best"}),
        ("StartFrom", x, {"guides": [gk.StartFrom(x)]}),
        (r"start of shape \(4, 3\)", torch.zeros(4, 3), {}),
        (r"3 conditions", x, {"cond": [0, 1, 2]}),
    ):
        with pytest.raises(ValueError, match=message):
            gk.refine(model, start, reward, **options)
    with pytest.raises(TypeError, match="reward=3"):
        gk.refine(model, x, 3)
    with pytest.raises(ValueError, match="offspring=0"):
        gk.evolve(model, x, reward, offspring=0)
    assert not calls


# restart sampling -----------------------------------------------------------------------------------------------------


def distance(x: torch.Tensor, base: gk.analytic.GaussianMixture) -> float:
    """Kolmogorov-Smirnov."""
    x = x[:, 0].sort().values
    cdf = (torch.special.ndtr((x[:, None] - base.means[:, 0]) / base.stds) * base.weights).sum(1)
    return float((cdf - (torch.arange(len(x)) + 0.5) / len(x)).abs().max())


def test_restarts_undo_the_errors_of_a_coarse_deterministic_solver():
    base = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    solver = gk.solvers.DDIM()
    plain = gk.sample(base, 20_000, steps=10, solver=solver)
    times = gk.times.restart(10, low=0.2, high=0.8, count=2, inner=6)
    again = gk.sample(base, 20_000, steps=times, solver=solver)
    assert again.cost.network_rows == 20_000 * (len(times) - 1)
    # both have a Monte Carlo error of about 1/sqrt(20000) = .007
    assert distance(plain.x, base) > 0.03
    assert distance(again.x, base) < 0.75 * distance(plain.x, base)


def test_restarts_of_the_exact_kernels_change_nothing():
    base = gk.analytic.GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    times = gk.times.restart(5, low=0.3, high=0.7, count=3, inner=2)
    x = gk.sample(base.exact(), 20_000, steps=times).x
    assert distance(x, base) < 1.95 / 20_000**0.5  # level .001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp-1d", "masked"])
def test_steering_is_exact_where_times_go_up(name: str):
    """The target is that of the chain with its restarts: against plain importance sampling of the same chain."""
    p = PROBLEMS[name]
    times = gk.times.restart(4, low=0.3, high=0.6, count=2, inner=2)
    plain = gk.sample(p.model, 200_000, steps=times, cond=p.cond, seed=9)
    f, w = p.features(plain.x).double(), (p.reward(plain.x).double() / p.alpha).exp()[:, None]
    truth, error = (w * f).mean(0).numpy(), ((w * f).std(0) / len(f) ** 0.5).numpy()
    for guide in (gk.FKSteering(p.reward, p.alpha, ess=0.9), gk.SVDD(p.reward, p.alpha, 3)):
        result = gk.sample(p.model, 8, steps=times, guides=[guide], cond=[p.cond] * 3000, seed=list(range(3000)))
        g = p.features(result.x).double() * result.log_weights.exp()[:, None]
        found = g.view(3000, 8, -1).mean(1).numpy()
        assert np.abs(deviations(found, truth, error)).max() < 4.5


def test_restart_grids_are_checked():
    assert gk.times.restart(4, low=0.25, high=0.5, count=0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    for bad in ({"low": 0.5, "high": 0.4}, {"low": 0.0}, {"high": 1.0}, {"count": -1}, {"inner": 0}):
        with pytest.raises(ValueError, match="restart"):
            gk.times.restart(10, **bad)

"""Several runs as one population."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import guidekit as gk

from .problems import PROBLEMS, STEPS


def runs(sizes=(3, 8, 5), name: str = "masked") -> list[gk.Result]:
    problem = PROBLEMS[name]
    guides = [gk.FKSteering(problem.reward, 0.5, ess=0.7)]
    given = {"steps": STEPS, "guides": guides, "cond": [problem.cond, None], "holdout": lambda x: x[:, 0].double()}
    return [gk.sample(problem.model, n, **given, seed=n) for n in sizes]


def test_each_run_counts_by_its_estimate_of_z():
    parts = runs()
    whole = gk.join(parts)
    n = torch.tensor([3.0, 8.0, 5.0], dtype=torch.float64)[:, None]
    z = torch.stack([part.log_z.exp() for part in parts])
    assert torch.allclose(whole.log_z.exp(), (n * z).sum(0) / 16)
    share = n * z / (n * z).sum(0)
    means = [(p.weights * p.holdout).view(2, -1).sum(1) for p in parts]
    assert torch.allclose((whole.weights * whole.holdout).view(2, -1).sum(1), (share * torch.stack(means)).sum(0))


def test_the_error_of_log_z_is_that_of_independent_runs():
    parts = runs((16, 32), "vp-1d")
    whole = gk.join(parts)
    z = torch.stack([part.log_z.exp() * n / 48 for part, n in zip(parts, (16, 32), strict=True)])
    errors = torch.stack([part.log_z_error for part in parts])
    assert bool(errors.isfinite().all())
    assert torch.allclose(whole.log_z_error, (z * errors).square().sum(0).sqrt() / z.sum(0))


def test_rows_stay_with_what_belongs_to_them():
    parts = runs()
    whole, n = gk.join(parts), (3, 8, 5)
    assert torch.equal(whole.group, torch.tensor([0] * 16 + [1] * 16))
    assert whole.cost.network_rows == sum(part.cost.network_rows for part in parts)
    lineage, places = whole.lineage(), {}
    for g in (0, 1):
        for r, part in enumerate(parts):
            own = torch.arange(n[r]) + g * n[r]
            here = torch.arange(n[r]) + 16 * g + sum(n[:r])
            places[g, r] = here
            for k in ("x", "log_weights", "rewards", "holdout", "noise"):
                assert torch.equal(getattr(whole, k)[here], getattr(part, k)[own]), k
            assert torch.equal(whole.memos[0][0][here], part.memos[0][0][own])
            assert torch.equal(lineage[:, here] - 2 * sum(n[:r]), part.lineage()[:, own])
    assert sorted(torch.cat(list(places.values())).tolist()) == list(range(32))


def test_a_joined_result_is_saved_selected_and_joined_again(tmp_path):
    a, b, c = runs()
    whole = gk.join([gk.join([a, b]), c])
    assert torch.equal(whole.log_z, gk.join([a, b, c]).log_z)
    again = gk.load_result(whole.save(tmp_path / "all"))
    assert torch.equal(again.log_weights, whole.log_weights)
    assert torch.equal(again.best(2).x, whole.best(2).x)
    assert whole.summary()[0]["n"] == 16
    assert whole.trace[-1]["distinct"][0] == sum(part.trace[-1]["distinct"][0] for part in (a, b, c))


def test_runs_that_share_the_seed_of_a_group_or_are_inside_another_are_refused():
    def run(n, seed):
        return gk.sample(PROBLEMS["vp-1d"].model, n, steps=3, cond=[0, 1], seed=seed)

    a, b = run(3, [3, 4]), run(4, [4, 3])
    both = gk.join([a, b])  # group by group, all seeds differ
    for other in (run(5, [5, 3]), run(5, 4), a, gk.join([b, run(5, 9)])):
        with pytest.raises(ValueError, match="runs 0 and 1 have the same seed"):
            gk.join([both, other])
    assert len(gk.join([both, run(5, [5, 6])])) == 24


def test_islands_estimate_the_same_z_and_may_be_joined():
    problem = PROBLEMS["masked"]
    given = {"steps": STEPS, "guides": [gk.FKSteering(problem.reward, 0.5)]}
    islands = [None, gk.Islands(2, 3), gk.Islands(4, 3)]
    parts = [gk.sample(problem.model, 8, **given, seed=s, islands=i) for s, i in enumerate(islands)]
    assert torch.allclose(gk.join(parts).log_z.exp(), sum(part.log_z.exp() for part in parts) / 3)


def test_samples_without_copies_are_joined():
    """One run was made again for more samples, the other was not: both estimate the same Z."""
    model = PROBLEMS["masked"].model
    parts = [gk.sample(model, n, steps=STEPS, seed=n, unique=True) for n in (1, 19)]
    assert "unique" in parts[1].config and "unique" not in parts[0].config
    assert len(gk.join(parts)) == 20


def test_what_cannot_be_joined_is_refused():
    a, b = runs((3, 4))
    with pytest.raises(ValueError, match="runs 0 and 1 have the same seed"):
        gk.join([a, a])
    with pytest.raises(ValueError, match="not of one kind: moves"):
        gk.join([a, replace(b, config=b.config | {"moves": b.config["moves"][1:]})])
    with pytest.raises(ValueError, match=r"not of one kind: guides\[0\].alpha is 0.5 and 0.6"):
        problem = PROBLEMS["masked"]
        steering = gk.FKSteering(problem.reward, 0.6, ess=0.7)
        gk.join([a, gk.sample(problem.model, 4, steps=STEPS, guides=[steering], cond=[problem.cond, None], seed=9)])
    with pytest.raises(ValueError, match="a list of results"):
        gk.join([])

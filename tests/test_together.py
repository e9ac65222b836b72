"""Guides in one list: none makes another one idle, counts a reward twice, or pays for what it does not do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import guidekit as gk

N = 4000
TIMES = [0.3, 0.2, 0.1, 0.05, 0.0]


def first(x: Tensor) -> Tensor:
    return x[:, 0]


def away(x: Tensor) -> Tensor:
    return -x[:, 0].abs()


def normal(**options) -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([1.0], [0.0], [1.0], **options)


def labelled() -> gk.analytic.GaussianMixture:
    return gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5], labels=[0, 1])


def mean(guides, steps=20) -> float:
    result = gk.sample(normal(), N, steps=steps, guides=guides)
    return float((result.weights * result.x[:, 0]).sum())


# those who choose, and those who resample -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chooser", [gk.BestOfN(first, 4), gk.SVDD(first, 0.0, 4), gk.BeamSearch(first, N, 4)], ids=["best", "svdd", "beam"]
)
@pytest.mark.parametrize("resampler", [gk.Resample(), gk.FKSteering(away, 1.0, ess=0.9)], ids=["plain", "fk"])
def test_a_resampler_before_a_chooser_is_one_behind_it(chooser, resampler):
    """It would thin at random what was to be chosen from."""
    before, behind = mean([resampler, chooser]), mean([chooser, resampler])
    assert before == pytest.approx(behind, abs=1e-12)
    if isinstance(resampler, gk.Resample):  # weights are equal: it does nothing
        assert before == pytest.approx(mean([chooser]), abs=1e-12)
        assert before > 0.8


def test_the_best_of_four_beside_a_resampler_is_that_of_four_normal_numbers():
    """E of the largest of four, 1.0294, by the exact reverse kernel of one step; standard error .7/sqrt(4000)."""
    base = normal().exact()
    result = gk.sample(base, N, steps=[1.0, 0.0], guides=[gk.Resample(), gk.BestOfN(first, 4)])
    assert abs(float(result.x.mean()) - 1.0294) < 4.5 * 0.7 / math.sqrt(N)


@pytest.mark.parametrize("order", [1, -1])
def test_two_guides_that_choose_among_children_are_refused(order: int):
    guides = [gk.SVDD(first, 1.0, 2), gk.BeamSearch(first, 4, 2)][::order]
    with pytest.raises(ValueError, match="each draw children and choose among them"):
        gk.Run(normal(), 4, steps=5, guides=guides)


# rewards that are equal -------------------------------------------------------------------------------------------


class Oracle:
    def score(self, x: Tensor) -> Tensor:
        return x[:, 0]


def test_a_bound_method_is_one_reward_however_often_it_is_taken():
    oracle = Oracle()
    guides = [gk.SVDD(oracle.score, 1.0, 2), gk.FKSteering(oracle.score, 1.0)]
    twice = gk.sample(normal(), 1000, steps=10, guides=guides)
    once = gk.sample(normal(), 1000, steps=10, guides=[gk.SVDD(first, 1.0, 2), gk.FKSteering(first, 1.0)])
    assert torch.equal(twice.log_z, once.log_z)
    assert torch.equal(twice.x, once.x)
    other = [gk.SVDD(Oracle().score, 1.0, 2), gk.FKSteering(oracle.score, 1.0)]  # of another object: another reward
    assert float(gk.sample(normal(), 1000, steps=10, guides=other).log_z) > float(once.log_z) + 0.5


def test_a_reward_that_cannot_be_hashed_is_equal_to_itself_alone():
    @dataclass
    class Shifted:
        by: float

        def __call__(self, x: Tensor) -> Tensor:
            return x[:, 0] + self.by

    one, same = Shifted(0.0), Shifted(0.0)
    runs = [
        gk.sample(normal(), 500, steps=8, guides=[gk.FKSteering(one, 1.0), gk.SVDD(r, 1.0, 2)]) for r in (one, same)
    ]
    assert float(runs[1].log_z) > float(runs[0].log_z) + 0.2


# paths of Feynman-Kac correctors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "guides, why",
    [
        ([gk.FKC.cfg(1.8), gk.CFG(1.5)], "changes the target that the weights are for"),
        ([gk.FKC.anneal(2.0), gk.FKC.tilt(first, 1.0)], "weighs a path of its own"),
        ([gk.FKC.tilt(first, 0.5), gk.FKSteering(first, 0.5)], "weigh by the same reward"),
        ([gk.StartFrom(torch.zeros(1, 1)), gk.FKC.anneal(2.0)], "a start of its own"),
        ([gk.BoostAndSkip(2.0), gk.FKC.tilt(first, 1.0)], "a start of its own"),
        ([gk.StartFrom(torch.zeros(1, 1)), gk.BoostAndSkip(2.0)], "overwrite the other"),
        ([gk.StartFrom(torch.zeros(1, 1)), gk.StartFrom(torch.zeros(1, 1))], "starts once"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_what_cannot_be_right_together_is_refused_in_either_order(guides, why: str, order: int):
    with pytest.raises(ValueError, match=f"in one list: .*{why}"):
        gk.Run(labelled(), 4, steps=10, cond=1, guides=guides[::order])


@pytest.mark.parametrize(
    "guides, swapped, why",
    [
        ([gk.CADS(), gk.Switch(1)], [gk.Switch(1), gk.CADS()], "put CADS behind it"),
        (
            [gk.TFG(first, 0.1), gk.BoostAndSkip(2.0, 2)],
            [gk.BoostAndSkip(2.0, 2), gk.TFG(first, 0.1)],
            "put BoostAndSkip before it",
        ),
    ],
)
def test_an_order_that_loses_a_guide_is_refused_and_the_other_one_is_not(guides, swapped, why: str):
    with pytest.raises(ValueError, match=why):
        gk.Run(labelled(), 4, steps=10, cond=1, guides=guides)
    gk.Run(labelled(), 4, steps=10, cond=1, guides=swapped)


@pytest.mark.parametrize("schedule", [gk.schedules.Cosine(), gk.schedules.VE(sigma_max=4.0)], ids=["vp", "ve"])
def test_a_tilt_that_begins_on_the_way_counts_the_reward_of_its_start(schedule):
    """Z = exp(b^2/2) of N(0, 1) and r = b x, from x_t ~ p_t with x_0 ~ p. Without the first weight it is .86 and 1.1 of
    1.075 and 1.092; eight populations of 4,000 know it to about .3 %."""
    b, n, base = 0.4, 4000, normal(schedule=schedule)
    x = base.exact_sample(8 * n, seed=3)
    guide = gk.FKC.tilt(lambda x: b * x[:, 0], 1.0, ess=0.0)
    times = [0.3 * (1 - i / 30) for i in range(31)]
    result = gk.sample(
        base, n, steps=times, guides=[gk.StartFrom(x), guide], cond=[None] * 8, seed=list(range(8)),
        solver=gk.solvers.DDPM(),
    )  # fmt: skip
    z = result.log_z.exp()
    assert abs(float(z.mean()) - math.exp(b**2 / 2)) < 4.5 * float(z.std()) / math.sqrt(8) + 0.004  # and of the steps


# what is not done is not paid -------------------------------------------------------------------------------------


def test_recurrences_keep_to_the_window_and_do_not_move_that_of_others():
    free = gk.FreeDoM(first, 0.1, recur=3, start=1.0, stop=1.0)
    plain = gk.sample(normal(), 8, steps=10)
    idle = gk.sample(normal(), 8, steps=10, guides=[free])
    assert idle.cost.network_rows == plain.cost.network_rows == 80
    assert torch.equal(idle.x, plain.x)
    half = gk.FreeDoM(first, 0.1, recur=3, stop=0.5)  # steps 0 to 4, alpha = 0 at the first
    run = gk.Run(normal(), 8, steps=10, guides=[half])
    rows = [move.t for move in run.moves]
    assert [rows.count(t) for t in dict.fromkeys(rows)] == [1, 3, 3, 3, 3, 1, 1, 1, 1, 1]
    fractions = dict(zip(rows, [step.fraction for step in run.steps], strict=False))
    assert list(fractions.values()) == pytest.approx([i / 10 for i in range(10)])
    assert run.steps[-1].fraction == 1


def test_of_heuns_rows_only_those_that_move_count_in_fractions():
    run = gk.Run(normal(), 2, steps=4, solver=gk.solvers.Heun())
    assert [step.fraction for step in run.steps] == [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]


def test_guides_that_are_off_do_not_make_micro_batches_smaller():
    off = gk.CFG(2.0, start=1.0, stop=1.0)
    plain = gk.sample(labelled(), 16, steps=10, cond=1, batch_size=16)
    other = gk.sample(labelled(), 16, steps=10, cond=1, batch_size=16, guides=[off])
    assert other.cost.network_calls == plain.cost.network_calls == 10
    half = gk.sample(labelled(), 16, steps=10, cond=1, batch_size=16, guides=[gk.CFG(2.0, stop=0.5)])
    assert half.cost.network_calls == 5 * 2 + 5


NEUTRAL = {
    "CFG": lambda w: gk.CFG(w),
    "APG": lambda w: gk.APG(w),
    "CFGZero": lambda w: gk.CFGZero(w, zero=0.0),
    "TCFG": lambda w: gk.TCFG(w),
    "MagnitudeAware": lambda w: gk.MagnitudeAware(w),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_weight_of_one_costs_nothing_where_it_is_one(name: str):
    make, base = NEUTRAL[name], labelled()
    plain = gk.sample(base, 8, steps=10, cond=1)
    one = gk.sample(base, 8, steps=10, cond=1, guides=[make(1.0)])
    assert one.cost.network_rows == plain.cost.network_rows
    assert torch.equal(one.x, plain.x)
    late = gk.sample(base, 8, steps=10, cond=1, guides=[make(lambda t: 2.0 if t <= 0.55 else 1.0)])
    window = gk.sample(base, 8, steps=10, cond=1, guides=[make(2.0)])
    assert late.cost.network_rows == 8 * 10 + 8 * 5 < window.cost.network_rows == 160


def test_networks_in_rewards_are_in_evaluation_mode_while_a_run_lasts():
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
    )
    before = {k: v.clone() for k, v in net.state_dict().items()}
    guides = [gk.FKSteering(lambda x: net(x)[:, 0], 0.5)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = gk.sample(normal(), 64, steps=8, guides=guides)
        torch.manual_seed(1)
        two = gk.sample(normal(), 64, steps=8, guides=guides)
    assert torch.equal(one.x, two.x)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

"""Whatever is wrong is said clearly: wrong calls before the network is called, wrong networks and rewards with what,
where and in which rows; and a few values that are not numbers cost no more than their rows."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from rewards import RewardWarning

from .problems import PROBLEMS, STEPS, deviations, estimates, populations

N = 4


class Net:
    """A network that counts its calls."""

    calls = 0

    def __call__(self, x, t, cond):
        self.calls += 1
        return x / 2


def gaussian(net, **options) -> gk.GaussianModel:
    return gk.GaussianModel(net, (2,), **{"predicts": "clean", "null": 0} | options)


def score(x):
    return x[:, 0]


# wrong calls -------------------------------------------------------------------------------------------------------

NAN = math.nan
WRONG: dict[str, tuple[dict, type[Exception], str]] = {
    # counts
    "no samples": ({"n": 0}, ValueError, r"n=0.*at least 1"),
    "fewer samples": ({"n": -3}, ValueError, r"n=-3.*at least 1"),
    "parts of samples": ({"n": 2.5}, ValueError, r"n=2\.5.*int"),
    "true samples": ({"n": True}, ValueError, r"n=True.*int"),
    "no batch": ({"batch_size": 0}, ValueError, r"batch_size=0.*at least 1"),
    "half a batch": ({"batch_size": 0.5}, ValueError, r"batch_size=0\.5.*at least 1"),
    # times
    "no steps": ({"steps": 0}, ValueError, r"steps=0.*at least one"),
    "fewer steps": ({"steps": -1}, ValueError, r"steps=-1.*at least one"),
    "parts of steps": ({"steps": 2.5}, TypeError, r"steps.*number of steps.*2\.5"),
    "true steps": ({"steps": True}, TypeError, r"steps.*number of steps.*True"),
    "no times": ({"steps": []}, ValueError, r"times.*end at 0.*\[\]"),
    "one time": ({"steps": [0.0]}, ValueError, r"times.*end at 0"),
    "times that do not end at 0": ({"steps": [1.0, 0.5]}, ValueError, r"times.*end at 0.*0\.5"),
    "times above 1": ({"steps": [2.0, 0.5, 0.0]}, ValueError, r"times.*within \[0, 1\].*2\.0"),
    "times that stand still": ({"steps": [1.0, 0.5, 0.5, 0.0]}, ValueError, r"neighbouring times must differ"),
    "times that are NaN": ({"steps": [1.0, NAN, 0.0]}, ValueError, r"times.*nan"),
    "steps in words": ({"steps": "fast"}, (TypeError, ValueError), r"steps.*'fast'"),
    "an unknown grid": ({"solver": gk.solvers.DDPM(times="linear")}, ValueError, r"'linear'.*uniform, cosine"),
    # seeds
    "seed float": ({"seed": 1.5}, (TypeError, ValueError), r"seed=1\.5.*int"),
    "seed none": ({"seed": None}, (TypeError, ValueError), r"seed=None.*int"),
    "seed text": ({"seed": "one"}, (TypeError, ValueError), r"seed='one'.*int"),
    "too many seeds": ({"seed": [1, 2]}, ValueError, r"seed=\[1, 2\].*each of the 1 groups"),
    "too few seeds": ({"seed": [1], "cond": [1, 2]}, ValueError, r"seed=\[1\].*each of the 2 groups"),
    "a float among the seeds": ({"seed": [1, 2.0], "cond": [1, 2]}, ValueError, r"seed=\[1, 2\.0\].*int"),
    # conditions and noise
    "no conditions": ({"cond": []}, ValueError, r"cond=\[\].*one entry per group"),
    "noise of another shape": ({"noise": torch.zeros(N, 3)}, ValueError, r"noise is \(4, 3\).*\(4, 2\)"),
    "noise of other rows": ({"noise": torch.zeros(N + 1, 2)}, ValueError, r"noise is \(5, 2\).*\(4, 2\)"),
    "noise of too short a chain": ({"noise": torch.zeros(5, N, 2)}, ValueError, r"\(5, 4, 2\).*\(6, 4, 2\)"),
    "noise of one group": ({"noise": torch.zeros(N, 2), "cond": [1, 2]}, ValueError, r"\(4, 2\).*\(8, 2\)"),
    "noise in double": ({"noise": torch.zeros(N, 2).double()}, ValueError, r"float64.*needed.*float32"),
    "noise in integers": ({"noise": torch.zeros(N, 2).long()}, ValueError, r"int64.*needed.*float32"),
    "noise of numpy": ({"noise": np.zeros((N, 2), np.float32)}, ValueError, r"(?s)noise is.*array.*needed is \(4, 2\)"),
    "noise in a list": ({"noise": [[0.0, 0.0]] * N}, ValueError, r"noise is \[\[0\.0.*needed is \(4, 2\)"),
    "noise elsewhere": ({"noise": torch.zeros(N, 2, device="meta")}, ValueError, r"on meta.*on cpu"),
    # guides
    "a guide without a list": ({"guides": gk.CFG(2.0)}, TypeError, r"guides.*list"),
    "a class without a list": ({"guides": gk.CFG}, TypeError, r"guides.*list"),
    "a class of guides": ({"guides": [gk.CFG]}, TypeError, r"guides.*CFG.*not a Guide"),
    "guides in words": ({"guides": "cfg"}, TypeError, r"guides.*not a Guide"),
    "a guide in words": ({"guides": ["CFG"]}, TypeError, r"guides.*'CFG'.*not a Guide"),
    "none among the guides": ({"guides": [None]}, TypeError, r"guides.*None.*not a Guide"),
    "a reward among the guides": ({"guides": [score]}, TypeError, r"guides.*score.*not a Guide"),
    "a strength in words": ({"guides": [gk.DPS(score, "7")]}, TypeError, r"DPS\(scale='7'\).*number.*function of t"),
    "a scale in words": ({"guides": [gk.CFG("7")]}, TypeError, r"CFG\(scale='7'\).*number.*function of t"),
    "a true scale": ({"guides": [gk.CFG(True)]}, TypeError, r"CFG\(scale=True\).*number"),
    "strengths in a list": ({"guides": [gk.TCFG([1.0])]}, TypeError, r"TCFG\(scale=\[1\.0\]\).*number"),
    "rescale above 1": ({"guides": [gk.CFG(2.0, rescale=1.5)]}, ValueError, r"rescale=1\.5.*\[0, 1\]"),
    "rescale below 0": ({"guides": [gk.CFG(2.0, rescale=-0.1)]}, ValueError, r"rescale=-0\.1.*\[0, 1\]"),
    "start after stop": ({"guides": [gk.CFG(2.0, start=0.8, stop=0.2)]}, ValueError, r"start=0\.8, stop=0\.2"),
    "start below 0": ({"guides": [gk.CFG(2.0, start=-0.1)]}, ValueError, r"start=-0\.1"),
    "stop above 1": ({"guides": [gk.CFG(2.0, stop=1.1)]}, ValueError, r"stop=1\.1"),
    "stop at NaN": ({"guides": [gk.CFG(2.0, stop=NAN)]}, ValueError, r"stop=nan"),
    "steering by nothing": ({"guides": [gk.Resample(steer=True)]}, ValueError, r"Resample\(steer=True\).*no tilt"),
    # the rest
    "a reward that is a number": ({"reward": 3}, TypeError, r"reward.*function.*int"),
    "a reward in words": ({"reward": "qed"}, TypeError, r"reward.*function.*str"),
    "a solver in words": ({"solver": "ddim"}, TypeError, r"solver='ddim'.*instance"),
    "a class of solvers": ({"solver": gk.solvers.DDIM}, TypeError, r"solver=.*DDIM.*instance"),
    "a misspelt option": ({"guidance": []}, TypeError, r"guidance"),
    "a misspelt batch": ({"batchsize": 3}, TypeError, r"batchsize"),
    "a positional step": ({"args": (5,)}, TypeError, r"positional"),
}


@pytest.mark.parametrize("options, error, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named_before_the_network_is_called(options: dict, error, message: str):
    net = Net()
    options = {"n": N, "steps": 5} | options
    with pytest.raises(error, match=message):
        gk.sample(gaussian(net), options.pop("n"), *options.pop("args", ()), **options)
    assert net.calls == 0


def test_the_same_call_without_a_mistake_runs():
    """Or the calls above would prove little."""
    net = Net()
    gk.sample(gaussian(net), N, steps=5, guides=[gk.CFG(2.0)], reward=score, noise=torch.zeros(N, 2), seed=[1])
    assert net.calls == 5


DETERMINISTIC = [gk.solvers.DDIM(), gk.solvers.Euler(), gk.solvers.Heun(), gk.solvers.DPMpp(), gk.solvers.BELM()]


@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize(
    "guide",
    [gk.FKSteering(score, 1.0), gk.Resample(), gk.CFG(2.0, steer=True)],
    ids=lambda guide: type(guide).__name__,
)
def test_a_deterministic_solver_under_weights_is_refused_with_those_to_take(guide, solver):
    net = Net()
    with pytest.raises(ValueError, match=r"deterministic.*Take DDPM\(\), DDIM\(eta=1\.\) or SDEDPMpp\(\)") as caught:
        gk.sample(gaussian(net), N, steps=5, guides=[guide], solver=solver)
    assert type(guide).__name__ in str(caught.value)
    assert type(solver).__name__ in str(caught.value)
    assert net.calls == 0
    gk.sample(gaussian(net), N, steps=5, guides=[gk.CFG(2.0)], solver=solver)  # which only bends the target
    assert net.calls >= 5


@pytest.mark.parametrize("solver", [*DETERMINISTIC, gk.solvers.SDEDPMpp()], ids=lambda solver: type(solver).__name__)
def test_a_gaussian_solver_is_refused_for_tokens(solver):
    net = Net()
    with pytest.raises(ValueError, match=rf"{type(solver).__name__}.*Gaussian.*solver=None"):
        gk.sample(gk.MaskedModel(net, 3, 4), N, steps=5, solver=solver)
    assert net.calls == 0


@pytest.mark.parametrize("grid", ["log_snr", "karras"])
def test_a_grid_that_needs_a_schedule_is_refused_for_tokens(grid: str):
    net = Net()
    with pytest.raises(ValueError, match=f"'{grid}' needs a noise schedule"):
        gk.sample(gk.MaskedModel(net, 3, 4), N, steps=5, solver=gk.solvers.DDPM(times=grid))
    assert net.calls == 0


@pytest.mark.parametrize("steer", [False, True])
def test_cfg_needs_a_model_with_a_null_condition(steer: bool):
    net = Net()
    with pytest.raises(ValueError, match=r"no null condition.*null="):
        gk.sample(gaussian(net, null=None), N, steps=5, cond=1, guides=[gk.CFG(2.0, steer=steer)])
    assert net.calls == 0


def test_none_beside_conditions_needs_a_null_condition():
    net = Net()
    with pytest.raises(ValueError, match=r"None beside conditions.*null="):
        gk.sample(gaussian(net, null=None), N, steps=5, cond=[1, None])
    assert net.calls == 0


@pytest.mark.parametrize("conds", [[[1, 2], [1, 2, 3]], [1, [1, 2]]], ids=["lengths", "dimensions"])
def test_conditions_of_different_shapes_are_named(conds):
    net = Net()
    with pytest.raises(ValueError, match=r"(?i)condition.*shape"):
        gk.sample(gaussian(net, null=None), N, steps=5, cond=conds)
    assert net.calls == 0


class Module(nn.Module):
    def forward(self, x, t, cond):
        raise AssertionError("called")


@pytest.mark.parametrize(
    "model", [Module(), Net(), gk.GaussianModel, "molecules", None], ids=["module", "callable", "class", "text", "none"]
)
def test_what_is_no_base_model_is_refused_with_how_to_make_one(model):
    with pytest.raises(TypeError, match=r"a base model is needed, not .*GaussianModel.*MaskedModel.*UniformModel"):
        gk.sample(model, N)


@pytest.mark.parametrize("predicts", ["noise", "score"])
@pytest.mark.parametrize("schedule", [gk.schedules.Cosine(), gk.schedules.Flow()], ids=repr)
@pytest.mark.parametrize("times", [[1.0, 0.5, 0.0], [0.9, 0.5, 1.0, 0.0]], ids=["from one", "up to one"])
def test_times_at_which_the_network_says_nothing_of_the_sample_are_refused(predicts: str, schedule, times):
    """alpha(1) = 0, and the clean mean of a noise prediction is divided by it."""
    net = Net()
    with pytest.raises(ValueError, match=r"0\.999"):
        gk.sample(gaussian(net, predicts=predicts, schedule=schedule), N, steps=times)
    assert net.calls == 0


def test_chain_noise_and_a_guide_that_branches_are_refused_together():
    """Children of one particle would need more noise than there are rows."""
    net = Net()
    noise = torch.zeros(6, 2 * N, 2)
    with pytest.raises(ValueError, match=r"noise.*(branch|Widen|children)"):
        gk.sample(gaussian(net), N, steps=5, cond=[1, 2], noise=noise, guides=[Widen(), gk.FKSteering(score, 1.0)])
    assert net.calls <= 1  # at the first move


# wrong guides, solvers and models ----------------------------------------------------------------------------------

REFUSED = {
    "unknown resampler": (lambda: gk.Resample(resampler="lottery"), r"'lottery'.*multinomial, stratified, systematic"),
    "unknown resampler of FK": (lambda: gk.FKSteering(score, 1.0, resampler="lottery"), r"'lottery'.*systematic"),
    "ess above 1": (lambda: gk.FKSteering(score, 1.0, ess=1.5), r"ess=1\.5.*\[0, 1\]"),
    "ess below 0": (lambda: gk.Resample(ess=-0.5), r"ess=-0\.5.*\[0, 1\]"),
    "ess NaN": (lambda: gk.Resample(ess=NAN), r"ess=nan.*\[0, 1\]"),
    "alpha 0": (lambda: gk.FKSteering(score, 0.0), r"alpha=0\.0.*positive"),
    "alpha negative": (lambda: gk.FKSteering(score, -1.0), r"alpha=-1\.0.*positive"),
    "alpha NaN": (lambda: gk.FKSteering(score, NAN), r"alpha=nan.*positive"),
    "every 0": (lambda: gk.FKSteering(score, 1.0, every=0), r"every=0.*at least 1"),
    "every half": (lambda: gk.FKSteering(score, 1.0, every=0.5), r"every=0\.5.*at least 1"),
    "every true": (lambda: gk.FKSteering(score, 1.0, every=True), r"every=True.*at least 1"),
    "unknown potential": (lambda: gk.FKSteering(score, 1.0, potential="nope"), r"'nope'.*difference"),
    "eta above 1": (lambda: gk.solvers.DDIM(eta=1.1), r"eta=1\.1.*\[0, 1\]"),
    "eta below 0": (lambda: gk.solvers.DDIM(eta=-0.1), r"eta=-0\.1.*\[0, 1\]"),
    "eta NaN": (lambda: gk.solvers.DDIM(eta=NAN), r"eta=nan.*\[0, 1\]"),
    "order 4": (lambda: gk.solvers.DPMpp(order=4), r"DPMpp\(order=4\).*order 1, order 2 and order 3"),
    "order 0": (lambda: gk.solvers.SDEDPMpp(order=0), r"SDEDPMpp\(order=0\).*order 1 and order 2"),
    "unknown prediction": (lambda: gaussian(Net(), predicts="eps"), r"'eps'.*clean, noise, score, velocity, flow"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_a_wrong_setting_is_refused_at_construction(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("reward", [3, "qed", None, [score]], ids=["number", "text", "none", "list"])
def test_a_reward_that_cannot_be_called_is_refused_at_construction(reward):
    with pytest.raises(TypeError, match=r"FKSteering\(reward=.*function of samples.*not"):
        gk.FKSteering(reward, 1.0)


@pytest.mark.parametrize("make", [lambda: gk.CFG(2.0, scal=3.0), lambda: gk.FKSteering(score, 1.0, temperature=2.0)])
def test_a_misspelt_setting_is_a_type_error(make):
    with pytest.raises(TypeError, match=r"scal|temperature"):
        make()


@pytest.mark.parametrize("guide", [gk.FKSteering, gk.SVDD, gk.TDS, gk.DAS])
def test_a_temperature_in_words_is_named(guide):
    with pytest.raises(ValueError, match=rf"{guide.__name__}\(alpha='7'\): the temperature is a number"):
        guide(score, "7")


def test_a_shape_that_is_a_number_is_named():
    with pytest.raises((TypeError, ValueError), match="shape"):
        gk.GaussianModel(Net(), 2)


# wrong networks ----------------------------------------------------------------------------------------------------

RETURNED = {
    "fewer columns": (lambda x: x[:, :1], r"\(4, 1\).*\(4, 2\).*needs.*\(4, 2\)"),
    "fewer rows": (lambda x: x[:1], r"\(1, 2\).*\(4, 2\)"),
    "another axis": (lambda x: x[None], r"\(1, 4, 2\).*\(4, 2\)"),
    "one number": (lambda x: x.sum(), r"\(\).*\(4, 2\)"),
    "None": (lambda x: None, r"NoneType.*\(4, 2\)"),
    "an array": (lambda x: x.numpy(), r"ndarray.*\(4, 2\)"),
    "a tuple": (lambda x: (x, x), r"tuple.*\(4, 2\)"),
    "a dict": (lambda x: {"sample": x}, r"dict.*\(4, 2\)"),
}


@pytest.mark.parametrize("answer, message", RETURNED.values(), ids=RETURNED)
def test_a_network_that_returns_something_else_is_told_what_and_what_was_needed(answer, message: str):
    with pytest.raises(gk.NetworkError, match=rf"the network returned {message}"):
        gk.sample(gaussian(lambda x, t, cond: answer(x)), N, steps=3)


@pytest.mark.usefixtures("every_row")
def test_a_network_of_tokens_must_return_logits_for_each_token():
    with pytest.raises(gk.NetworkError, match=r"returned \(4, 6, 4\).*\(4, 6\).*MaskedModel needs.*\(4, 6, 3\)"):
        gk.sample(gk.MaskedModel(lambda x, t, cond: torch.zeros(4, 6, 4), 3, 6), N, steps=3)


BAD = [NAN, math.inf, -math.inf]


def still(n: int, groups: int = 1) -> dict:
    """Options of a run in which every state stays what it was, and its first entry is the number of its row."""
    noise = torch.zeros(groups * n, 2)
    noise[:, 0] = torch.arange(groups * n)
    return {"noise": noise, "solver": gk.solvers.DDIM(), "cond": [None] * groups}


def unmoved(answer) -> gk.GaussianModel:
    """d = x under DDIM on a flow: x_s = (1 - s) x + (s/t) (x - (1 - t) x) = x. `answer(x, t, cond)` may spoil it."""
    return gk.GaussianModel(answer, (2,), gk.schedules.Flow(), "clean", null=0)


def reported(error: pytest.ExceptionInfo) -> list[int]:
    """The rows that a message ends with."""
    return [int(v) for v in str(error.value).rsplit(":", 1)[1].split(",")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("batch_size", [None, 1, 4, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_numbers_of_the_network_that_are_none_are_reported_with_step_and_rows(groups: int, batch_size, bad: float):
    """Rows are those of the whole run, wherever groups and micro-batches lie."""
    n, rows = 6, [1, 4] if groups == 1 else [1, 4, 7, 17]

    def net(x, t, cond):
        out = x.clone()
        if t[0] < 0.65:  # times 1, .8, .6: at the third look, after two moves
            out[torch.isin(x[:, 0].round(), torch.tensor(rows, dtype=torch.float32)), 1] = bad
        return out

    with pytest.raises(gk.NetworkError, match=r"the network returned .*at step 2 of 5 \(t = 0\.6\)") as caught:
        gk.sample(unmoved(net), n, steps=5, batch_size=batch_size, **still(n, groups))
    first = n * groups if batch_size is None else next(k for k in range(0, 99, batch_size) if k + batch_size > rows[0])
    expected = [r for r in rows if r < (first if batch_size is None else first + batch_size)]
    assert reported(caught) == expected  # of the first micro-batch that has any
    assert f"in {len(expected)} rows" in str(caught.value)


def test_the_rows_of_a_later_micro_batch_are_those_of_the_run():
    def net(x, t, cond):
        out = x.clone()
        out[x[:, 0].round() >= 13] = NAN
        return out

    with pytest.raises(gk.NetworkError, match=r"at step 0 of 5 \(t = 1\)") as caught:
        gk.sample(unmoved(net), 6, steps=5, batch_size=4, **still(6, groups=3))
    assert reported(caught) == [13, 14, 15]


def test_of_many_rows_the_first_are_listed():
    def net(x, t, cond):
        return x * NAN

    with pytest.raises(gk.NetworkError, match=r"in 30 rows: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.$"):
        gk.sample(unmoved(net), 30, steps=5)


@pytest.mark.usefixtures("every_row")
@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
@pytest.mark.parametrize("logits", [[NAN, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf] * 3], ids=str)
def test_logits_that_are_no_law_are_reported(kind, logits):
    def net(x, t, cond):
        out = torch.zeros(*x.shape, 3)
        if t[0] < 0.7:
            out[2, 5] = torch.tensor(logits)
        return out

    with pytest.raises(gk.NetworkError, match=r"the network returned .*at step 2 of 6 .*in 1 rows: 2$"):
        gk.sample(kind(net, 3, 7), N, steps=6)


@dataclass(frozen=True)
class Push(gk.Guide):
    """A tilt that is no number in some rows of the run, from step 3 on."""

    rows: tuple[int, ...] = (1, 9)
    finishes: bool = False

    def spoilt(self, view, prediction):
        row = (view.group * 6 + view.slot)[:, None]
        bad = torch.isin(row, torch.tensor(self.rows)) & (view.step.index >= 3)
        return torch.where(bad, NAN, prediction)

    def tilt(self, view):
        return 0.0 if self.finishes else self.spoilt(view, torch.zeros_like(view.prediction))

    def finish(self, view, prediction):
        return self.spoilt(view, prediction) if self.finishes else prediction


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("finishes", [False, True], ids=["tilt", "finish"])
@pytest.mark.parametrize("steer", [False, True], ids=["target", "proposal"])
def test_numbers_of_a_guide_that_are_none_are_reported_as_the_guides(steer: bool, finishes: bool, batch_size):
    net, guides = Net(), [gk.CFG(1.5), Push(finishes=finishes, steer=steer)]
    with pytest.raises(gk.NetworkError, match=r"(tilt|guide).* at step 3 of 5 ") as caught:
        gk.sample(gaussian(net), 6, steps=5, cond=[1, 2], guides=guides, batch_size=batch_size)
    assert "network returned" not in str(caught.value)
    assert reported(caught) == ([1, 9] if batch_size is None else [1])


def test_a_network_that_fails_without_its_condition_is_not_blamed_on_the_guide():
    def net(x, t, cond):
        return torch.where((cond == 0)[:, None] & (t < 0.7)[:, None], NAN, x / 2)

    with pytest.raises(gk.NetworkError, match=r"the network returned .*at step 2 of 5 .*in 4 rows: 0, 1, 2, 3$"):
        gk.sample(gaussian(net), N, steps=5, cond=3, guides=[gk.CFG(2.0)])


@dataclass(frozen=True)
class Widen(gk.Guide):
    """Three children, and nothing that chooses among them."""

    def plan(self, n, step):
        return n, 3


def test_a_guide_that_branches_and_does_not_select_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"12 of 12 rows per group are left where 4 .*needs one that selects"):
        gk.sample(gaussian(Net()), N, steps=3, guides=[Widen()])


# wrong rewards -----------------------------------------------------------------------------------------------------


def steered(reward, n: int = N, **options) -> gk.Result:
    """By FK steering without resampling, so that rows stay what they are."""
    return gk.sample(gaussian(Net()), n, steps=5, guides=[gk.FKSteering(reward, 1.0, ess=0.0)], **options)


def recorded(reward, n: int = N, **options) -> gk.Result:
    return gk.sample(gaussian(Net()), n, steps=5, reward=reward, **options)


both = pytest.mark.parametrize("use", [steered, recorded])


@both
def test_an_error_of_a_reward_names_it_and_keeps_its_cause(use):
    def affinity(samples):
        raise ZeroDivisionError("no atoms")

    with pytest.raises(gk.RewardError, match="'affinity' raised ZeroDivisionError: no atoms") as caught:
        use(affinity)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_reward_that_is_interrupted_is_not_an_error_of_the_reward():
    def slow(samples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steered(slow)


ANSWERS = {
    "too few": (lambda x: [1.0] * (len(x) - 1), r"\(3,\).*4 samples"),
    "too many": (lambda x: [1.0] * (len(x) + 1), r"\(5,\).*4 samples"),
    "one for all": (lambda x: x.sum(), r"\(\).*4 samples"),
    "a number": (lambda x: 1.0, r"float for 4 samples"),
    "none": (lambda x: None, r"NoneType for 4 samples"),
    "a column": (lambda x: x[:, :1], r"\(4, 1\).*4 samples"),
    "two columns": (lambda x: x, r"\(4, 2\).*4 samples"),
    "complex": (lambda x: x[:, 0] * 1j, r"complex.*4 samples"),
    "a dict by name": (lambda x: {"score": [1.0] * len(x)}, r"dict for 4 samples"),
    "a dict by place": (lambda x: dict.fromkeys(range(len(x)), 0.5), r"dict for 4 samples"),
    "a set": (lambda x: {0.1, 0.2, 0.3, 0.4}, r"set for 4 samples"),
    "words": (lambda x: ["good"] * len(x), r"list for 4 samples"),
    "numbers in words": (lambda x: ["0.5"] * len(x), r"list for 4 samples"),
    "text": (lambda x: "abcd", r"str for 4 samples"),
    "bytes": (lambda x: b"abcd", r"bytes for 4 samples"),
    "nothing in places": (lambda x: [1.0, None, 2.0, 3.0], r"list for 4 samples"),
    "pairs": (lambda x: [(1.0, 2.0)] * len(x), r"\(4, 2\).*4 samples"),
    "ragged": (lambda x: [[1.0], [1.0, 2.0], [], []], r"list for 4 samples"),
}


@both
@pytest.mark.parametrize("answer, message", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_of_a_reward_that_is_not_one_number_each_is_named(answer, message: str, use):
    def stability(samples):
        return answer(samples)

    with pytest.raises(gk.RewardError, match=rf"'stability' returned .*{message}.*one"):
        use(stability)


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: [float(i) for i in range(len(x))],
        lambda x: tuple(range(len(x))),
        lambda x: np.arange(len(x)),
        lambda x: np.arange(len(x), dtype=np.float16),
        lambda x: [np.float32(i) for i in range(len(x))],
        lambda x: [torch.tensor(float(i)) for i in range(len(x))],
        lambda x: (float(i) for i in range(len(x))),
        lambda x: torch.arange(len(x)),
        lambda x: torch.arange(len(x), dtype=torch.bfloat16),
        lambda x: torch.arange(len(x), dtype=torch.float64, requires_grad=True) * 1.0,
    ],
    ids=["list", "tuple", "array", "half array", "scalars", "tensors", "generator", "ints", "half", "graph"],
)
@both
def test_any_sequence_of_numbers_is_an_answer(answer, use):
    result = use(answer)
    assert result.rewards.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert result.rewards.dtype == torch.float64
    assert not result.rewards.requires_grad


@both
def test_a_reward_that_works_in_place_does_not_silently_change_the_run(use):
    """Its argument may be the state or the prediction itself."""

    def rude(samples):
        return samples.mul_(2)[:, 0] / 2

    try:
        found = use(rude)
    except gk.RewardError as error:  # to refuse it is as good as to give it a copy
        assert "in place" in str(error)
    else:
        assert torch.equal(found.x, use(score).x)


# rewards that are no numbers ---------------------------------------------------------------------------------------


class Patchy:
    """The first entry, spoilt where that is negative; perhaps only while samples are not final."""

    def __init__(self, bad: float = NAN, last: int | None = None):
        self.bad, self.last, self.asked = bad, last, 0

    def __call__(self, x):
        self.asked += 1
        spoil = (x[:, 0] < 0) & (self.asked != self.last)
        return torch.where(spoil, self.bad, x[:, 0])


@pytest.mark.parametrize("bad", BAD)
def test_final_samples_without_a_score_weigh_nothing_and_are_counted(bad: float):
    with pytest.warns(UserWarning, match=r"\d+ of 40 samples could not be scored") as caught:
        result = steered(Patchy(bad), 40)
    whole = steered(score, 40)
    lost = result.x[:, 0] < 0
    count = int(lost.sum())
    assert 10 < count < 30
    assert [str(w.message) for w in caught] == [f"{count} of 40 samples could not be scored; their reward is NaN"]
    assert caught[0].filename == __file__
    assert torch.equal(result.x, whole.x)
    assert (result.log_weights[lost] == -math.inf).all()
    assert torch.allclose(result.log_weights[~lost], result.x[~lost, 0].double(), atol=1e-6)
    assert result.rewards[lost].isnan().all()
    assert torch.equal(result.rewards[~lost], result.x[~lost, 0].double())
    assert float(result.log_z) == pytest.approx(math.log(result.x[~lost, 0].double().exp().sum() / 40), abs=1e-6)
    assert result.cost.unscored >= count


@pytest.mark.parametrize("bad", BAD)
def test_a_reward_for_the_record_counts_what_it_could_not_score_and_weighs_nothing(bad: float):
    with pytest.warns(UserWarning, match="of 40 samples could not be scored"):
        result = recorded(Patchy(bad), 40)
    assert torch.equal(result.rewards.isnan(), result.x[:, 0] < 0)
    assert result.cost.unscored == int((result.x[:, 0] < 0).sum())
    assert torch.equal(result.log_weights, torch.zeros(40).double())


@pytest.mark.filterwarnings("ignore:.*could not be scored", "ignore::guidekit.CollapseWarning")
@pytest.mark.parametrize("ess", [0.0, 0.9])
@pytest.mark.parametrize("name", ["vp-1d", "masked"])
def test_samples_without_a_score_are_left_out_of_the_law(name: str, ess: float):
    """The weighted law is then p exp(r/alpha) on what can be scored."""
    problem = PROBLEMS[name]

    def known(x):
        return x[:, 0] > 0 if x.is_floating_point() else x[:, 1] != 0

    def reward(x):
        return torch.where(known(x), problem.reward(x), NAN)

    states, p = problem.law()
    x = torch.as_tensor(states)
    f = problem.features(x).double().numpy()
    w = (np.exp(problem.reward(x).double().numpy() / problem.alpha) * known(x).numpy())[:, None]
    truth = (p[:, None] * w * f).sum(0)
    error = np.std(w * f, axis=0) / len(p) ** 0.5 if len(p) > 1000 else np.zeros(4)
    result = populations(problem, 2000, 24, [gk.FKSteering(reward, problem.alpha, ess=ess)])
    # 2,000 independent populations, 4 features: 4.5 standard errors fail by chance once in 10^4 runs
    assert np.abs(deviations(estimates(problem, result), truth, error)).max() < 4.5
    assert truth[0] < 0.95 * problem.tilted()[0][0]


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("ess", [0.0, 0.9])
@pytest.mark.parametrize("name", ["vp-1d", "masked", "uniform"])
def test_scores_missing_on_the_way_leave_the_law_as_it_is(name: str, ess: float, bad: float):
    problem = PROBLEMS[name]
    asked = []

    def reward(x):
        asked.append(len(x))
        value = problem.reward(x).double()
        if len(asked) == STEPS:  # the final samples
            return value
        missing = (x.flatten(1).double().sum(1) * 7).sin() > 0.2  # some two fifths, by nothing but the sample
        return torch.where(missing, bad, value)

    result = populations(problem, 3000, 8, [gk.FKSteering(reward, problem.alpha, ess=ess)])
    assert len(asked) == STEPS
    assert result.cost.unscored > 0.1 * sum(asked)
    assert not result.rewards.isnan().any()
    assert np.abs(deviations(estimates(problem, result), *problem.tilted())).max() < 4.5  # as above


def purity(x):
    """Scores nothing that is negative."""
    return torch.where(x[:, 0] < 0, NAN, x[:, 0])


def apart(use, signs: Sequence[float]) -> dict:
    """Options of a run whose groups start on one side of 0 each, and stay there."""
    noise = torch.tensor(signs).repeat_interleave(N)[:, None].expand(-1, 2).contiguous()
    options = {"noise": noise, "cond": list(range(len(signs))), "solver": gk.solvers.DDIM()}
    return options | ({"solver": None, "noise": noise.expand(6, -1, 2).clone()} if use is steered else {})


@both
def test_a_reward_that_scores_nothing_at_all_is_an_error_that_names_it(use):
    with pytest.raises(gk.RewardError, match=r"'purity' scored none of the 4 samples of groups 0, 1$"):
        use(purity, **apart(use, [-1.0, -1.0]))
    with pytest.raises(gk.RewardError, match=r"'purity' scored none of the 4 samples of group 0$"):
        use(purity, **apart(use, [-1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not use(purity, **apart(use, [1.0, 1.0])).rewards.isnan().any()


@both
@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_condition_that_cannot_be_scored_costs_no_other_condition(use, batch_size, tmp_path: Path):
    def raises(x):
        if (x[:, 0] < 0).any():
            raise ValueError("it does not parse")
        return x[:, 0]

    for reward, told in ((purity, r"'purity' scored none"), (raises, "'raises' scored none")):
        options = apart(use, [-1.0, 1.0, 1.0]) | {"batch_size": batch_size}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = use(reward, **options)
        (text,) = [str(w.message) for w in caught if "scored none" in str(w.message)]
        assert re.search(f"{told} of the 4 samples of group 0; other conditions are not affected", text)
        assert [w.filename for w in caught if "scored none" in str(w.message)] == [__file__]
        quoted = [str(w.message) for w in caught if issubclass(w.category, RewardWarning)]
        assert len(quoted) == (reward is raises) and all("ValueError: it does not parse" in q for q in quoted)
        assert len(caught) == 1 + len(quoted)
        alone = use(score, **apart(use, [1.0, 1.0]))
        assert torch.equal(result.rewards.isnan(), result.group == 0)
        assert torch.equal(result.x[N:], alone.x) and torch.equal(result.rewards[N:], alone.rewards)
        assert torch.equal(result.log_weights[N:], alone.log_weights)
        assert result.cost.unscored >= N
        assert math.isnan(result.summary()[0]["reward"]) and result.summary()[1]["reward"] > 0
        result.save(tmp_path / reward.__name__)
        assert result.best(2).rewards[2:].isfinite().all()


def test_a_plain_function_that_raises_on_one_sample_costs_that_sample(recwarn):
    """In a run of FK steering it is asked at every step, and warned of once."""
    asked = []

    def parses(x):
        asked.append(len(x))
        if (x[:, 0] < -0.2).any():
            raise ValueError(f"cannot read {float(x[0, 0]):.3f}")
        return x[:, 0]

    result = steered(parses, 40)
    lost = result.x[:, 0] < -0.2
    assert 5 < int(lost.sum()) < 35 and torch.equal(result.rewards.isnan(), lost)
    assert (result.log_weights[lost] == -math.inf).all()
    whole = steered(lambda x: torch.where(x[:, 0] < -0.2, NAN, x[:, 0]), 40)
    assert torch.equal(result.x, whole.x) and torch.equal(result.log_weights, whole.log_weights)
    assert result.cost.unscored == whole.cost.unscored and result.cost.reward_calls == whole.cost.reward_calls
    told = [str(w.message) for w in recwarn if issubclass(w.category, RewardWarning)]
    assert len(told) == 1 and re.search(r"'parses' raised on \d+ of 40 samples, first ValueError: cannot read", told[0])
    assert set(asked) == {40, 1} and asked.count(40) == 5  # once all together, once each


def test_gradients_reach_the_samples_that_a_plain_function_can_score(recwarn):
    def parses(x):
        if (x[:, 0] < 0).any():
            raise ValueError("negative")
        return x.sum(1)

    plain = lambda x: torch.where(x[:, 0] < 0, NAN, x.sum(1))  # noqa: E731
    runs = [gk.sample(gaussian(Net()), 8, steps=5, guides=[gk.DPS(r, 0.5)]) for r in (parses, plain)]
    assert torch.allclose(runs[0].x, runs[1].x, atol=1e-6)
    assert not torch.equal(runs[0].x, gk.sample(gaussian(Net()), 8, steps=5).x)


def test_weights_that_are_all_zero_are_an_error_that_names_the_group():
    def nothing(x):
        return torch.full((len(x),), NAN)

    with pytest.raises(gk.RewardError, match=r"all 4 particles of group 0 have weight zero"):
        gk.sample(gaussian(Net()), N, steps=5, guides=[gk.FKSteering(nothing, 1.0)], reward=score)


# collapse ----------------------------------------------------------------------------------------------------------


def test_a_collapse_of_the_weights_is_a_warning_with_advice():
    with pytest.warns(gk.CollapseWarning, match=r"effective sample size fell to 1\.\d of 64 at step \d of 5") as caught:
        result = gk.sample(gaussian(Net()), 64, steps=5, guides=[gk.FKSteering(score, 0.001, ess=0.5)])
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "more particles" in text
    assert "larger alpha" in text
    assert caught[0].filename == __file__
    step = int(text.split(" at step ")[1].split(" ")[0])
    ess = result.trace["ess"][:, 0].tolist()
    assert ess[step - 1] == min(ess) < 1.5


@pytest.mark.parametrize(
    "guides",
    [[], [gk.FKSteering(score, 2.0)], [gk.FKSteering(score, 2.0, ess=0.0)], [gk.CFG(1.5), gk.Resample()]],
    ids=["plain", "steered", "weighed", "guided"],
)
def test_a_healthy_run_warns_of_nothing(guides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = gk.sample(gaussian(Net()), 64, steps=5, guides=guides, cond=[1, 2])
    assert (result.trace["ess"] > 20).all()


def test_one_particle_has_no_weights_to_collapse():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(steered(score, 1).ess[0]) == 1

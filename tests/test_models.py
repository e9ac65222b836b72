"""Base models: what a network may predict, what it is given, and that it is left as it was found."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk

from .problems import PROBLEMS

CLEAN = ("clean", "velocity", "flow")
BLIND = ("noise", "score")  # say nothing about x_0 where alpha = 0
RHO = 7
SCHEDULES = {
    "cosine": (gk.schedules.Cosine(), lambda t: (torch.cos(math.pi * t / 2), torch.sin(math.pi * t / 2))),
    "linear": (
        gk.schedules.Linear(),
        lambda t: (torch.exp(-4.975 * t**2 - 0.05 * t), torch.sqrt(1 - torch.exp(-9.95 * t**2 - 0.1 * t))),
    ),
    "flow": (gk.schedules.Flow(), lambda t: (1 - t, t)),
    "edm": (
        gk.schedules.EDM(),
        lambda t: (torch.ones_like(t), (0.002 ** (1 / RHO) + t * (80 ** (1 / RHO) - 0.002 ** (1 / RHO))) ** RHO),
    ),
}


class Recorder:
    """A network that is no nn.Module and keeps what it was given."""

    def __init__(self, answer=torch.zeros_like):
        self.answer = answer
        self.x, self.t, self.cond = [], [], []

    def __call__(self, x, t, cond):
        self.x.append(x.clone())
        self.t.append(t.clone())
        self.cond.append(cond)
        return self.answer(x)


def even(vocab_size: int):
    """A network for tokens that knows nothing."""
    return lambda tokens: torch.zeros(*tokens.shape, vocab_size)


# what a network predicts -------------------------------------------------------------------------------------------


def speaking(predicts: str, schedule: str) -> gk.GaussianModel:
    """A network with the exact denoiser of a mixture in two dimensions, expressed as `predicts`."""
    law, scale = SCHEDULES[schedule]
    base = mixture(schedule)

    def net(x, t, cond):
        alpha, sigma = (v[:, None] for v in scale(t))
        d = base(x, float(t[0]), None)
        z = (x - alpha * d) / sigma
        return {
            "clean": d,
            "noise": z,
            "score": -z / sigma,  # of N(alpha d, sigma^2) averaged over x_0: the gradient of log p_t
            "velocity": alpha * z - sigma * d,
            "flow": z - d,
        }[predicts]

    return gk.GaussianModel(net, (2,), law, predicts, dtype=torch.float64)


def mixture(schedule: str) -> gk.analytic.GaussianMixture:
    weights, means, stds = [0.5, 0.3, 0.2], [[-2.0, 0.4], [0.5, -1.0], [2.5, 0.1]], [0.5, 0.4, 0.6]
    parts = (torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds))
    return gk.analytic.GaussianMixture(*parts, SCHEDULES[schedule][0])


@pytest.mark.parametrize("solver", [None, gk.solvers.DPMpp(order=2)], ids=["ddpm", "dpmpp"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predicts", [*CLEAN, *BLIND])
def test_the_same_denoiser_gives_the_same_samples_in_every_parameterisation(predicts: str, schedule: str, solver):
    times = [0.999 * (1 - i / 12) for i in range(13)]
    exact = gk.sample(mixture(schedule), 16, steps=times, solver=solver, seed=4).x
    found = gk.sample(speaking(predicts, schedule), 16, steps=times, solver=solver, seed=4).x
    # float64, and the division by alpha(.999) = .001 at worst
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-9)
    assert found.std() > 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("predicts", CLEAN)
def test_in_pure_noise_too_every_parameterisation_means_the_same_denoiser(predicts: str, schedule: str):
    """Where alpha = 0 the coefficient of x_t may be zero, and that of the output -1."""
    x = torch.tensor([[-1.0, 0.3], [0.7, 1.1]], dtype=torch.float64)
    assert torch.allclose(speaking(predicts, schedule)(x, 1.0, None), mixture(schedule)(x, 1.0, None), atol=1e-12)


def test_the_score_of_the_test_is_the_gradient_of_the_noised_density():
    """So that the formulas above are checked by something that is not their inverse."""
    base, t = mixture("cosine"), 0.4
    alpha, sigma = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    x = torch.tensor([[-1.0, 0.3], [0.7, 1.1]], dtype=torch.float64, requires_grad=True)
    var = (alpha * base.stds) ** 2 + sigma**2
    square = (x[:, None] - alpha * base.means).square().sum(-1)
    (base.weights.log() - 0.5 * square / var - var.log()).logsumexp(-1).sum().backward()
    net = speaking("score", "cosine").net
    assert torch.allclose(net(x.detach(), torch.full((2,), t, dtype=torch.float64), None), x.grad, rtol=1e-10)


@pytest.mark.parametrize("predicts", [*CLEAN, *BLIND])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_and_score_start_just_below_one_where_no_signal_is_left_there(predicts: str, schedule: str):
    net = Recorder()
    gk.sample(gk.GaussianModel(net, (2,), SCHEDULES[schedule][0], predicts), 2, steps=4)
    blind = predicts in BLIND and schedule in ("cosine", "flow")  # alpha(1) = 0
    start = 0.999 if blind else 1.0
    assert torch.allclose(torch.stack(net.t)[:, 0], start * torch.tensor([1, 0.75, 0.5, 0.25]), rtol=1e-6)


def test_an_unknown_parameterisation_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'eps': there is clean, noise, score, velocity, flow, or as in diffusers epsilon"
    ):
        gk.GaussianModel(Recorder(), (2,), predicts="eps")


@pytest.mark.parametrize("build", [lambda net: gk.GaussianModel(net, (2,)), lambda net: gk.MaskedModel(net, 3, 2)])
def test_a_network_that_cannot_be_called_is_refused(build):
    with pytest.raises(TypeError, match=r"callable.*not Tensor"):
        build(torch.zeros(2))


# what a network is given -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_receives_the_state_and_one_time_per_row(dtype: torch.dtype):
    net, states = Recorder(), []
    model = gk.GaussianModel(net, (3, 4), predicts="clean", dtype=dtype)
    result = gk.sample(model, 5, steps=4, callbacks=[lambda population, step: states.append(population.x)])
    assert [x.shape for x in net.x] == [(5, 3, 4)] * 4
    assert {x.dtype for x in net.x} == {dtype} == {result.x.dtype}
    assert all(torch.equal(given, state) for given, state in zip(net.x[1:], states[:-1], strict=True))
    assert torch.equal(torch.stack(net.t), torch.tensor([1, 0.75, 0.5, 0.25], dtype=dtype)[:, None].expand(4, 5))
    assert net.cond == [None] * 4


@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
@pytest.mark.usefixtures("every_row")
def test_a_network_of_tokens_receives_them_and_one_time_per_row(kind):
    net = Recorder(even(5))
    x = gk.sample(kind(net, vocab_size=5, length=7), 40, steps=4).x
    assert [v.shape for v in net.x] == [(40, 7)] * 4
    assert all(v.dtype == torch.int64 for v in net.x)
    assert torch.stack(net.t).is_floating_point()
    assert torch.equal(torch.stack(net.t), torch.tensor([1, 0.75, 0.5, 0.25])[:, None].expand(4, 40))
    shares = [float((v == 5).double().mean()) for v in net.x]
    if kind is gk.UniformModel:
        assert shares == [0] * 4
    else:  # 280 tokens: 4.5 sqrt(.25/280) = .135
        assert shares == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.135)
        assert shares[0] == 1
    assert ((x >= 0) & (x < 5)).all()


def test_conditions_reach_the_network_row_by_row():
    net = Recorder()
    gk.sample(gk.GaussianModel(net, (2,), predicts="clean"), 3, steps=2, cond=[4, 1])
    assert all(torch.equal(c, torch.tensor([4, 4, 4, 1, 1, 1])) for c in net.cond)
    assert len(net.cond) == 2


@pytest.mark.parametrize("batch_size", [None, 4])
def test_encode_cond_is_called_once_for_each_condition(batch_size: int | None):
    asked = []

    def encode(name: str):
        asked.append(name)
        return torch.full((2, 3), float(len(name)))

    net = Recorder()
    model = gk.GaussianModel(net, (2,), predicts="clean", encode_cond=encode)
    gk.sample(model, 3, steps=5, cond=["HepG2", "K562"], batch_size=batch_size)
    assert asked == ["HepG2", "K562"]
    rows = torch.cat(net.cond[: 1 if batch_size is None else 2])
    assert torch.equal(rows, torch.tensor([5.0, 5, 5, 4, 4, 4])[:, None, None].expand(6, 2, 3))


def test_an_encoded_condition_may_be_a_dict_of_tensors():
    net = Recorder()
    model = gk.GaussianModel(
        net, (2,), predicts="clean",
        encode_cond=lambda words: {"tokens": torch.tensor([len(w) for w in words]), "pooled": len(words)},
        null={"tokens": torch.tensor([0, 0]), "pooled": 0},
    )  # fmt: skip
    gk.sample(model, 2, steps=2, cond=[("a", "bird"), ("the", "cat")], guides=[gk.CFG(2.0)])
    given = net.cond[0]
    assert set(given) == {"tokens", "pooled"}
    free = given["pooled"] == 0
    assert int(free.sum()) == 4
    assert torch.equal(given["tokens"][~free], torch.tensor([[1, 4], [1, 4], [3, 3], [3, 3]]))
    assert torch.equal(given["tokens"][free], torch.zeros(4, 2, dtype=torch.long))


def test_no_condition_is_the_null_condition_where_there_is_one():
    net = Recorder()
    model = gk.GaussianModel(net, (2,), predicts="clean", null=[7, 9])
    gk.sample(model, 2, steps=1, cond=None)
    gk.sample(model, 2, steps=1, cond=[[1, 2], None])
    assert torch.equal(net.cond[0], torch.tensor([[7, 9]] * 2))
    assert torch.equal(net.cond[1], torch.tensor([[1, 2]] * 2 + [[7, 9]] * 2))


def test_an_encoder_that_is_a_network_leaves_no_graph_in_the_conditions():
    encoder = nn.Embedding(3, 4)
    net = Recorder()
    gk.sample(
        gk.GaussianModel(net, (2,), predicts="clean", encode_cond=lambda c: encoder(torch.tensor(c))),
        2,
        steps=1,
        cond=2,
    )
    assert torch.equal(net.cond[0], encoder.weight[2].expand(2, 4))
    assert not net.cond[0].requires_grad


@pytest.mark.parametrize("cond", ["HepG2", object()], ids=["text", "object"])
def test_a_condition_that_is_no_tensor_asks_for_an_encoder(cond):
    net = Recorder()
    with pytest.raises(TypeError, match="encode_cond"):
        gk.sample(gk.GaussianModel(net, (2,)), 2, steps=1, cond=cond)
    assert net.x == []


def test_cfg_makes_one_forward_of_conditional_and_null_rows_together():
    net = Recorder()
    model = gk.GaussianModel(net, (2,), predicts="clean", null=0)
    result = gk.sample(model, 3, steps=4, cond=[1, 2], guides=[gk.CFG(3.0)])
    assert [len(x) for x in net.x] == [len(t) for t in net.t] == [12] * 4
    assert result.cost.network_calls == 4
    assert result.cost.network_rows == 48
    for x, cond in zip(net.x, net.cond, strict=True):
        assert torch.equal(cond[cond > 0], torch.tensor([1, 1, 1, 2, 2, 2]))
        assert torch.equal(x[cond > 0], x[cond == 0])


def test_decode_sees_final_states_and_gives_the_samples():
    model = gk.MaskedModel(Recorder(even(4)), 4, 6, decode=lambda x: ["".join("ACGT"[v] for v in row) for row in x])
    result = gk.sample(model, 5, steps=3, batch_size=2)
    assert result.samples == ["".join("ACGT"[v] for v in row) for row in result.x.tolist()]


# tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
def test_logits_need_no_normalisation(kind):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.tensor([-30.0, 0.0, 5.0, 700.0, 1e4, -2e3], dtype=torch.float64)[:, None]

    def sample(table):
        return gk.sample(kind(lambda x, t, cond: table.expand(len(x), 6, 5), 5, 6, dtype=torch.float64), 200, steps=5).x

    assert torch.equal(sample(logits), sample(logits + shift))
    assert not torch.equal(sample(logits), sample(2 * logits))


@pytest.mark.parametrize("guides", [[], [gk.CFG(1.5)]], ids=["plain", "cfg"])
@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
def test_a_logit_of_minus_infinity_forbids_the_token_and_leaves_the_others_their_law(kind, guides):
    p = torch.tensor([0.0, 0.7, 0.3, 0.0])
    model = kind(lambda x, t, cond: p.log().expand(*x.shape, 4), 4, 5, null=0)
    x = gk.sample(model, 2000, steps=4, cond=1, guides=guides).x
    found = torch.bincount(x.flatten(), minlength=4) / x.numel()
    # both processes end with a draw from the last prediction; 10,000 tokens, 4.5 sqrt(.21/10000) = .021
    assert found[0] == found[3] == 0
    assert abs(float(found[1]) - 0.7) < 0.021


@pytest.mark.parametrize("kind", [gk.MaskedModel, gk.UniformModel])
def test_a_network_of_tokens_may_use_the_time(kind):
    """Each position's token is the one that the network wants at the last time, or while it was unmasked."""

    def net(x, t, cond):
        logits = torch.full((*x.shape, 4), -torch.inf)
        wanted = (t * 4).round().long() - 1  # times 1, .75, .5, .25 -> tokens 3, 2, 1, 0
        return logits.scatter(-1, wanted[:, None, None].expand(*x.shape, 1), 0.0)

    x = gk.sample(kind(net, 4, 50), 40, steps=4).x
    found = torch.bincount(x.flatten(), minlength=4) / x.numel()
    expected = [0.25] * 4 if kind is gk.MaskedModel else [1, 0, 0, 0]
    assert found.tolist() == pytest.approx(expected, abs=4.5 * (0.1875 / 2000) ** 0.5)


# the network is left as it was found -------------------------------------------------------------------------------


class Small(nn.Module):
    """A network with all that can be changed by a careless sampler."""

    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for p in self.body.parameters():
                nn.init.normal_(p, std=0.5)
        self.to(dtype)
        self.modes: list[list[bool]] = []
        self.wants: list[bool] = []
        self.fail_at = -1

    def forward(self, x, t, cond):
        self.modes.append([m.training for m in self.modules()])
        self.wants.append(any(p.requires_grad for p in self.parameters()))
        if len(self.modes) == self.fail_at:
            raise ArithmeticError("the network broke")
        return self.body(torch.cat([x, t[:, None].to(x)], 1))


def busy() -> Small:
    """In training, with one submodule in evaluation, one parameter frozen, a gradient and hooks."""
    net = Small().train()
    net.body[1].eval()
    net.body[0].weight.requires_grad_(False)
    net.body[4].bias.grad = torch.full((3,), 0.25)
    net.seen = []
    net.body[2].register_forward_hook(lambda module, args, out: net.seen.append(len(out)))
    net.body[0].register_forward_pre_hook(lambda module, args: None)
    net.register_full_backward_hook(lambda module, given, out: None)
    return net


def state(net: nn.Module) -> dict:
    """Everything that a run must not change."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "training": {k: m.training for k, m in net.named_modules()},
        "hooks": {k: [list(getattr(m, h).items()) for h in hooks] for k, m in net.named_modules()},
        "identity": {k: (id(v), v.data_ptr()) for k, v in tensors.items()},
        "requires_grad": {k: v.requires_grad for k, v in tensors.items()},
        "values": {k: v.detach().clone().tolist() for k, v in tensors.items()},
        "kind": {k: (v.dtype, v.device) for k, v in tensors.items()},
        "grad": {k: None if v.grad is None else v.grad.tolist() for k, v in tensors.items()},
    }


@dataclass(frozen=True)
class Uphill(gk.Guide):
    """A tilt by a gradient through the network."""

    grad = True

    def tilt(self, view):
        (slope,) = torch.autograd.grad(view.clean.sum(), view.x, retain_graph=True)
        return 0.1 * slope


def interrupt(population, step):
    raise KeyboardInterrupt


def stop(population, step):
    if step.index == 2:
        raise ArithmeticError("the callback broke")


def fussy(samples):
    raise ArithmeticError("the reward broke")


WAYS = {
    "plain": ({}, None),
    "gradients": ({"guides": [Uphill()]}, None),
    "steered": ({"guides": [gk.FKSteering(lambda x: x[:, 0], 5.0, ess=1.0)]}, None),
    "callback raises": ({"callbacks": [stop]}, ArithmeticError),
    "reward raises": ({"guides": [gk.FKSteering(fussy, 1.0)]}, gk.RewardError),
    "network raises": ({"guides": [Uphill()], "seed": 1}, ArithmeticError),
    "interrupted": ({"callbacks": [interrupt]}, KeyboardInterrupt),
}


@pytest.mark.parametrize("options, error", WAYS.values(), ids=WAYS)
def test_a_run_leaves_the_network_exactly_as_it_found_it(options: dict, error):
    net = busy()
    before = state(net)
    assert sum(before["training"].values()) == len(before["training"]) - 1
    if error is ArithmeticError and not options.get("callbacks"):
        net.fail_at = 3
    model = gk.GaussianModel(net, (3,), predicts="clean")
    if error is None:
        result = gk.sample(model, 6, steps=5, **options)
        assert not result.x.requires_grad
    else:
        with pytest.raises(error):
            gk.sample(model, 6, steps=5, **options)
    assert state(net) == before
    assert net.modes
    assert not any(any(modes) for modes in net.modes)  # evaluation mode in every submodule, at every call
    assert not any(net.wants)
    assert net.seen[0] == 6  # the user's hooks are live


def test_preparing_a_run_does_not_touch_the_network():
    net = busy()
    before = state(net)
    gk.Run(gk.GaussianModel(net, (3,), predicts="clean"), 4)
    assert state(net) == before
    assert net.modes == []


def test_dropout_and_batch_statistics_are_off_during_a_run():
    train, evaluation = Small().train(), Small().eval()
    first, again, quiet = (
        gk.sample(gk.GaussianModel(net, (3,), predicts="clean"), 6, steps=5).x for net in (train, train, evaluation)
    )
    assert torch.equal(first, again)
    assert torch.equal(first, quiet)
    assert not torch.equal(train(first, torch.ones(6), None), evaluation(first, torch.ones(6), None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_sees_its_own_and_the_state_stays_single(dtype: torch.dtype):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.3, dtype=dtype))
            self.kinds, self.times = [], []

        def forward(self, x, t, cond):
            self.kinds.append(x.dtype)
            self.times.append(t[0])
            return x * self.scale

    net, states = Half(), []

    def keep(population, step):
        states.append((population.x.dtype, population.predictions[0].dtype))

    model = gk.GaussianModel(net, (3,), predicts="clean")
    result = gk.sample(model, 6, steps=5, callbacks=[keep])
    assert net.kinds == [dtype] * 5
    assert states == [(torch.float32, torch.float32)] * 5
    assert result.x.dtype == result.noise.dtype == torch.float32
    assert net.scale.dtype == dtype
    times = torch.stack(net.times).float()
    assert torch.allclose(times, torch.tensor([1, 0.8, 0.6, 0.4, 0.2]), atol=1e-6)  # not rounded to 8 or 11 bits
    single = gk.sample(gk.GaussianModel(lambda x, t, cond: x * 0.3, (3,), predicts="clean"), 6, steps=5).x
    # a relative error of 2^-8 (bfloat16) in .3 and in x at each of 5 predictions of size < 3
    assert torch.allclose(result.x, single, atol=5 * 3 * 2**-8)


def test_a_double_precision_network_makes_a_double_precision_run():
    net = Small(torch.float64)
    assert gk.sample(gk.GaussianModel(net, (3,), predicts="clean"), 2, steps=3).x.dtype == torch.float64


# global state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_nobodys_global_random_state_is_read_or_moved(name: str):
    problem = PROBLEMS[name]

    def run():
        guides = [gk.CFG(1.5, steer=True), gk.FKSteering(problem.reward, problem.alpha, ess=1.0, resampler="ssp")]
        return gk.sample(problem.model, 8, steps=4, cond=problem.cond, guides=guides).resample(3)

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = run()
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    assert torch.equal(one.x, run().x)


# networks that are no modules --------------------------------------------------------------------------------------


def halved(x, t, cond, by=2.0):
    return x / by


class Halver:
    def __call__(self, x, t, cond):
        return x / 2

    def method(self, x, t, cond):
        return x / 2


@pytest.mark.parametrize(
    "net",
    [halved, lambda x, t, cond: x / 2, functools.partial(halved, by=2), Halver(), Halver().method],
    ids=["function", "lambda", "partial", "object", "method"],
)
def test_any_callable_is_a_network(net):
    module = nn.Identity()
    module.forward = halved
    expected = gk.sample(gk.GaussianModel(module, (3,), predicts="clean"), 4, steps=6).x
    assert torch.equal(gk.sample(gk.GaussianModel(net, (3,), predicts="clean"), 4, steps=6).x, expected)
    assert expected.abs().max() > 0


def test_a_network_that_works_in_place_does_not_silently_change_the_result():
    """Its argument may be the state itself."""

    def rude(x, t, cond):
        return x.mul_(0.5)

    expected = gk.sample(gk.GaussianModel(halved, (3,), predicts="clean"), 4, steps=6).x
    try:
        found = gk.sample(gk.GaussianModel(rude, (3,), predicts="clean"), 4, steps=6).x
    except gk.NetworkError as error:  # to refuse it is as good as to give it a copy
        assert "in place" in str(error)
    else:
        assert torch.equal(found, expected)


def _wrapped(module):
    return {
        "a lambda": lambda x, t, cond: module(x),
        "a partial": partial(lambda inner, x, t, cond: inner(x), module),
        "a method": type("Holder", (), {"module": module, "call": lambda self, x, t, cond: module(x)})().call,
    }


@pytest.mark.parametrize("how", ["a lambda", "a partial", "a method"])
def test_a_module_that_a_function_holds_is_in_evaluation_mode_too(how: str):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=torch.float64), torch.nn.Dropout(0.5)).train()
    model = gk.GaussianModel(_wrapped(module)[how], (2,), predicts="clean")
    assert model.modules() == [module]
    assert model.dtype == torch.float64
    once, twice = (gk.sample(model, 20, steps=3).x for _ in range(2))
    assert torch.equal(once, twice)
    assert module.training
    assert module[1].training

"""steer=True: any tilt moves the particles and leaves the target alone; the weights take log p - log q of each move.

The tilts here are CFG, a gradient, and a constant that makes no sense at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk

from .problems import PROBLEMS, STEPS, Problem, deviations, estimates, populations
from .test_tds import KINDS, SCALES, clean, guided, kind, problem as mixture, twist

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

TOKENS = ("masked", "uniform")
NAMES = [*(f"{schedule}-{d}d" for schedule, d in KINDS), *TOKENS]
TIMES = 1 - np.arange(STEPS + 1) / STEPS
TASTE = torch.tensor([0.8, -0.5, 0.0])


def problem(name: str) -> Problem:
    if name in TOKENS:
        return PROBLEMS[name]
    schedule, d = name.removesuffix("d").split("-")
    return mixture(schedule, int(d))


@dataclass(frozen=True)
class Shift(gk.Guide):
    """The same for everyone: a step aside for the clean mean, a taste for one token."""

    by: Any = 0.3

    def tilt(self, view):
        return torch.as_tensor(self.by, dtype=view.prediction.dtype) + 0 * view.prediction


@dataclass(frozen=True)
class Pull(gk.Guide):
    """(sigma^2/alpha_t) times the gradient of the reward of the clean estimate."""

    reward: Any = None
    scale: float = 1.0

    grad = True

    def tilt(self, view):
        (slope,) = torch.autograd.grad(self.reward(view.clean).sum(), view.x, retain_graph=True)
        a, s = view.model.process.scales(view.t)
        return self.scale * s**2 / a * slope if a > 0 else 0.0 * slope


def tilts(p: Problem, **options) -> dict[str, gk.Guide]:
    """Every bend of a size whose weights small populations can carry: moves of EDM are long at six steps."""
    edm = p.name.startswith("edm")
    aside = (1.5 if edm else 0.2) * torch.eye(p.model.shape[0])[0]  # along the first axis
    shift = TASTE if p.name in TOKENS else aside
    found = {
        "cfg": gk.CFG(5.0 if edm else 1.6, **{"stop": 0.5 if edm else 1.0} | options),
        "shift": Shift(shift, **{"stop": 1.0 if p.name in TOKENS else (0.5 if edm else 0.7)} | options),
    }
    return found if p.name in TOKENS else found | {"gradient": Pull(p.reward, 0.2 if edm else 0.6, **options)}


CASES = [
    pytest.param(name, tilt, id=f"{name}-{tilt}")
    for name in NAMES
    for tilt in ("cfg", "shift", "gradient")
    if name not in TOKENS or tilt != "gradient"
]
every = pytest.mark.parametrize("name, tilt", CASES)


# by hand -----------------------------------------------------------------------------------------------------------


def prediction(p: Problem, x: Tensor, t: float, label: int) -> Tensor:
    """The clean mean; log p(x_0^i = v | x_t) of tokens, by counting. -1 is the model without a condition."""
    if p.name not in TOKENS:
        return clean(p, x, t, label)
    v, law, states = p.model.vocab_size, p.model.table[label + 1].exp(), p.model.states
    same = x[:, None] == states
    fits = same * (1 - t) + t / v if p.name == "uniform" else (same | (x == v)[:, None]).double()
    post = law * fits.prod(-1)
    post = post / post.sum(1, keepdim=True)
    return torch.stack([(post[:, :, None] * (states == w)).sum(1) for w in range(v)], -1).log()


def bent(p: Problem, guide: gk.Guide, x: Tensor, t: float, fraction: float) -> Tensor:
    """What the guide adds to the prediction at the user's condition."""
    label = p.cond
    own = prediction(p, x, t, label)
    if not guide.start <= fraction < guide.stop:
        return 0 * own
    if isinstance(guide, gk.CFG):
        return (guide.scale - 1) * (own - prediction(p, x, t, -1)).nan_to_num(0.0)
    if isinstance(guide, Pull):
        return guide.scale * p.alpha * twist(p, guided(p), x, t)[2]
    return torch.as_tensor(guide.by) + 0 * own


def log_kernel(p: Problem, x: Tensor, y: Tensor, d: Tensor, t: float, s: float, eta: float = 1.0) -> Tensor:
    """log q(x_s = y | x_t = x) up to a constant, for a move by the prediction d."""
    if p.name not in TOKENS:
        (a_t, s_t), (a_s, s_s) = SCALES[kind(p)](t), SCALES[kind(p)](s)
        if s > t:
            return torch.zeros(len(x)).double()  # the forward process knows of no prediction
        c = eta * s_s * (1 - (a_t * s_s / (a_s * s_t)) ** 2) ** 0.5
        mean = a_s * d + (s_s**2 - c**2) ** 0.5 * (x - a_t * d) / s_t
        return torch.zeros(len(x)).double() if c == 0 else -0.5 * ((y - mean) / c).square().sum(1)
    v, law = p.model.vocab_size, d.double().softmax(-1)
    if p.name == "masked":
        each = torch.cat([(1 - s / t) * law, torch.full_like(law[..., :1], s / t)], -1)
        log_p = each.log().gather(-1, y[..., None])[..., 0]
        return torch.where(x == v, log_p, 0.0).sum(1)
    g, one = (1 - t) / (1 - s), torch.eye(v).double()
    up, down, total = g * one + (1 - g) / v, (1 - s) * one + s / v, (1 - t) * one + t / v
    bayes = torch.einsum("ki,wk,wi->iwk", up, down, 1 / total)  # of x_s = k given x_t = i and x_0 = w
    log_p = torch.einsum("nlw,nlwk->nlk", law, bayes[x]).log()
    return log_p.gather(-1, y[..., None])[..., 0].sum(1)


def follow(p: Problem, guides: list[gk.Guide], eta: float = 1.0, times=TIMES, n: int = 16) -> Tensor:
    """Step a run without selection and check its weights move by move; the last ones."""
    solver = None if eta == 1 else gk.solvers.DDIM(eta)
    run = gk.Run(p.model, n, steps=list(times), guides=guides, cond=p.cond, solver=solver)
    with torch.no_grad():
        pop = run.start()
        for i, (t, s) in enumerate(pairwise(times)):
            target = prediction(p, pop.x, t, p.cond)
            push = [bent(p, guide, pop.x, t, i / (len(times) - 1)) for guide in guides]
            target = target + sum(b for b, guide in zip(push, guides, strict=True) if not guide.steer)
            proposal = target + sum(b for b, guide in zip(push, guides, strict=True) if guide.steer)
            before, pop = pop, run.advance(pop, i)
            ratio = log_kernel(p, before.x, pop.x, target, t, s, eta) - log_kernel(
                p, before.x, pop.x, proposal, t, s, eta
            )
            assert torch.allclose(pop.log_w, before.log_w + ratio, rtol=1e-7, atol=1e-7)
    return pop.log_w


@every
def test_weights_are_the_ratio_of_the_kernels_worked_out_by_hand(name: str, tilt: str):
    p = problem(name)
    log_w = follow(p, [tilts(p, steer=True)[tilt]])
    assert log_w.std() > 0.01


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-16d", "masked", "uniform"])
def test_several_bends_add_up_and_one_that_does_not_steer_is_in_both_kernels(name: str):
    p = problem(name)
    guides = [*tilts(p, steer=True).values(), gk.CFG(0.7)] if name in TOKENS else [
        tilts(p, steer=True)["shift"], gk.CFG(1.4, steer=True), gk.CFG(0.7)
    ]  # fmt: skip
    log_w = follow(p, guides)
    assert log_w.std() > 0.01


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d"])
def test_the_ratio_with_less_noise_and_with_times_that_go_up(name: str):
    p = problem(name)
    guides = [tilts(p, steer=True)["gradient"], tilts(p, steer=True)["shift"]]
    for guide in guides:
        follow(p, [guide], eta=0.6)
        follow(p, [guide], times=[1.0, 0.6, 0.8, 0.5, 0.25, 0.0])


# the law -----------------------------------------------------------------------------------------------------------


def off(p: Problem, result: gk.Result, reward: bool = True) -> float:
    """The largest deviation of Z and three features of p exp(r/alpha), or of p, in standard errors."""
    return float(np.abs(deviations(estimates(p, result), *p.tilted(reward))).max())


def unweighted(p: Problem, result: gk.Result) -> np.ndarray:
    """Means of the features of every group as they come, without the weights."""
    return p.features(result.x).double().view(result.groups, -1, 4).mean(1).numpy()


@every
def test_the_target_is_unchanged_and_the_proposal_is_not(name: str, tilt: str):
    """E[w f] is that of the plain chain, with Z = 1, though the samples themselves have another law."""
    p = problem(name)
    guide = tilts(p, steer=True)[tilt]
    result = populations(p, 250, 16, [guide])
    assert off(p, result, reward=False) < 4.5  # 250 independent populations
    moved = unweighted(p, result) - unweighted(p, populations(p, 250, 16, []))  # by the same noise
    assert np.abs(deviations(moved, np.zeros(4), np.zeros(4))[1:]).max() > 4.5
    # without a selection particles are those of the tilt that does not steer, but for a last move without noise
    runs = [gk.Run(p.model, 9, steps=STEPS, cond=p.cond, guides=[replace(guide, steer=s)]) for s in (True, False)]
    with torch.no_grad():
        steered, plain = (run.start() for run in runs)
        for i in range(STEPS if name in TOKENS else STEPS - 1):
            steered, plain = runs[0].advance(steered, i), runs[1].advance(plain, i)
            assert torch.equal(steered.x, plain.x)
    assert plain.log_w.abs().max() == 0


@every
@pytest.mark.parametrize("ess", [0.0, 0.8])
def test_beside_a_reward_the_law_and_z_are_those_without_the_bend(name: str, tilt: str, ess: float):
    p = problem(name)
    fk = gk.FKSteering(p.reward, p.alpha, ess=ess)
    assert off(p, populations(p, 250, 16, [tilts(p, steer=True)[tilt], fk], first=10_000)) < 4.5


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "masked", "uniform"])
def test_the_same_bends_uncorrected_have_another_law(name: str):
    """So that the tests above could have failed."""
    p = problem(name)
    for guide in (tilts(p) | {"cfg": gk.CFG(4.0)}).values():
        result = populations(p, 400, 16, [guide, gk.FKSteering(p.reward, p.alpha, ess=0.8)])
        assert off(p, result) > 6


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "masked", "uniform"])
def test_beside_selections_of_other_kinds(name: str):
    p = problem(name)
    shift = tilts(p, steer=True)["shift"]
    assert off(p, populations(p, 250, 8, [shift, gk.SVDD(p.reward, p.alpha, 3)])) < 4.5
    assert off(p, populations(p, 250, 8, [gk.SVDD(p.reward, p.alpha, 3), shift, gk.Resample(0.9)])) < 4.5
    assert off(p, populations(p, 250, 8, [shift, gk.Resample(0.9)]), reward=False) < 4.5
    if name not in TOKENS:
        for other in (gk.TDS(p.reward, p.alpha, 0.5), gk.DAS(p.reward, p.alpha, scale=0.5, ess=0.9)):
            assert off(p, populations(p, 250, 8, [other, shift])) < 4.5


@lru_cache(maxsize=4)
def chain(name: str, net: Callable, n: int = 60_000, times: tuple = tuple(TIMES)) -> Tensor:
    """Samples of the chain of another denoiser, by hand."""
    p = problem(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *p.model.shape, generator=generator, dtype=torch.float64) * SCALES[kind(p)](times[0])[1]
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = SCALES[kind(p)](t), SCALES[kind(p)](s)
        z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if s > t:
            x = a_s / a_t * x + (s_s**2 - (a_s / a_t * s_t) ** 2) ** 0.5 * z
            continue
        c = s_s * (1 - (a_t * s_s / (a_s * s_t)) ** 2) ** 0.5
        d = net(p, x, t)
        x = a_s * d + (s_s**2 - c**2) ** 0.5 * (x - a_t * d) / s_t + c * z
    return x


def against(p: Problem, x: Tensor, result: gk.Result) -> float:
    """E[w f] against p exp(r/alpha) of the law of these samples."""
    w = (p.reward(x) / p.alpha).exp()[:, None] * p.features(x)
    return float(np.abs(deviations(estimates(p, result), w.mean(0).numpy(), (w.std(0) / len(w) ** 0.5).numpy())).max())


def by_cfg(p: Problem, x: Tensor, t: float) -> Tensor:
    return guided(p, 3.0)(x, t)


def by_rescaled_cfg(p: Problem, x: Tensor, t: float) -> Tensor:
    d, own = guided(p, 1.7)(x, t), clean(p, x, t)
    return d * (0.4 + 0.6 * own.std(1, correction=0) / d.std(1, correction=0))[:, None]


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d"])
def test_a_bend_beside_a_guide_that_changes_the_target_keeps_that_target(name: str):
    p = problem(name)
    shift, fk = tilts(p, steer=True)["shift"], gk.FKSteering(p.reward, p.alpha, ess=0.8)
    result = populations(p, 300, 16, [shift, gk.CFG(3.0), fk])
    assert against(p, chain(name, by_cfg), result) < 4.5
    assert off(p, result) > 8  # that of the plain chain is another one


def test_finishing_hooks_bend_the_proposal_alone_or_both():
    p = problem("flow-2d")
    shift, fk = tilts(p, steer=True)["shift"], gk.FKSteering(p.reward, p.alpha, ess=0.8)
    result = populations(p, 300, 16, [gk.CFG(1.5, rescale=0.6, steer=True), fk])
    assert off(p, result) < 4.5
    result = populations(p, 300, 16, [shift, gk.CFG(1.7, rescale=0.6), fk])
    assert against(p, chain("flow-2d", by_rescaled_cfg), result) < 4.5


def test_with_times_that_go_up_the_target_is_that_of_the_same_times():
    p, times = problem("flow-2d"), (1.0, 0.6, 0.8, 0.5, 0.25, 0.0)
    guides = [tilts(p, steer=True)["cfg"], gk.FKSteering(p.reward, p.alpha, ess=0.8)]
    count = 300
    result = gk.sample(p.model, 16, steps=list(times), guides=guides, cond=[1] * count, seed=list(range(count)))
    assert against(p, chain("flow-2d", lambda p, x, t: clean(p, x, t), 60_000, times), result) < 4.5


# limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "edm-1d", "masked", "uniform"])
def test_a_bend_of_nothing_is_plain_sampling(name: str):
    p = problem(name)
    plain = gk.sample(p.model, 24, steps=STEPS, cond=p.cond)
    zero = 0.0 if name not in TOKENS else torch.zeros(3)
    for guide in (gk.CFG(1.0, steer=True), Shift(zero, steer=True), gk.CFG(9.0, steer=True, start=0.5, stop=0.5)):
        result = gk.sample(p.model, 24, steps=STEPS, cond=p.cond, guides=[guide])
        assert torch.equal(result.x, plain.x)
        assert result.log_weights.abs().max() < 1e-12


def test_a_last_move_without_noise_is_not_bent():
    """It has no density that could correct for it."""
    p = problem("vp-2d")
    plain = gk.sample(p.model, 24, steps=1, cond=1)
    result = gk.sample(p.model, 24, steps=1, cond=1, guides=[Shift(5.0, steer=True)])
    assert torch.equal(result.x, plain.x)
    assert result.log_weights.abs().max() == 0
    p = problem("masked")  # tokens are drawn to the last
    result = gk.sample(p.model, 400, steps=1, cond=0, guides=[Shift(TASTE, steer=True)])
    plain = gk.sample(p.model, 400, steps=1, cond=0)
    assert (result.x == 0).sum() > (plain.x == 0).sum() + 50
    assert result.log_weights.std() > 0.1


@pytest.mark.parametrize("name", ["flow-2d", "masked", "uniform"])
def test_the_order_of_the_list_does_not_matter(name: str):
    p = problem(name)
    bends = tilts(p, steer=True)
    guides = [
        bends["shift"],
        bends.get("gradient", bends["cfg"]),
        gk.CFG(0.8),
        gk.FKSteering(p.reward, p.alpha, ess=0.8),
    ]
    first, *others = (gk.sample(p.model, 12, steps=STEPS, cond=p.cond, guides=g) for g in permutations(guides))
    assert first.trace["resampled"].any()
    for other in others:
        assert torch.equal(first.ancestors, other.ancestors)
        assert torch.allclose(first.x.double(), other.x.double(), rtol=1e-10, atol=1e-10)
        assert torch.allclose(first.log_weights, other.log_weights, rtol=1e-9, atol=1e-9)


@every
def test_shift_and_scale_of_the_reward_and_an_infinite_temperature(name: str, tilt: str):
    p = problem(name)
    bend = tilts(p, steer=True)[tilt]

    def run(reward, alpha):
        guides = [bend, gk.FKSteering(reward, alpha, ess=0.7)]
        return gk.sample(p.model, 24, steps=STEPS, cond=p.cond, guides=guides)

    plain = run(p.reward, p.alpha)
    shifted = run(lambda x: p.reward(x) + 3.0, p.alpha)
    assert torch.equal(plain.x, shifted.x)
    assert torch.allclose(shifted.log_weights, plain.log_weights + 3.0 / p.alpha, atol=1e-9)
    scaled = run(lambda x: 2 * p.reward(x), 2 * p.alpha)
    assert torch.equal(plain.x, scaled.x)
    assert torch.equal(plain.log_weights, scaled.log_weights)
    idle, alone = (
        gk.sample(p.model, 24, steps=STEPS, cond=p.cond, guides=[bend, other])
        for other in (gk.FKSteering(p.reward, float("inf"), ess=0.0), gk.Resample(0.0))
    )
    assert torch.equal(idle.x, alone.x)
    assert torch.allclose(idle.log_weights, alone.log_weights, atol=1e-12)


@pytest.mark.parametrize("solver", [gk.solvers.DDIM(), gk.solvers.DPMpp(order=2), gk.solvers.Heun()], ids=repr)
def test_a_deterministic_solver_is_refused(solver: gk.solvers.Solver):
    p = problem("vp-1d")
    for guide in tilts(p, steer=True).values():
        with pytest.raises(ValueError, match=r"deterministic.*Take DDPM\(\)"):
            gk.sample(p.model, 4, steps=3, cond=1, guides=[guide], solver=solver)


def test_a_guide_without_a_tilt_cannot_steer():
    p = problem("vp-1d")
    for make in (lambda **o: gk.Resample(**o), lambda **o: gk.SVDD(p.reward, **o)):
        with pytest.raises(ValueError, match="no tilt that the weights could correct for"):
            gk.sample(p.model, 4, steps=3, cond=1, guides=[make(steer=True)])


@pytest.mark.parametrize("solver", [gk.solvers.SDEDPMpp(order=2), gk.solvers.DDIM(0.5)], ids=["sde-dpm++ 2", "ddim .5"])
def test_steering_is_unbiased_with_solvers_that_remember_or_draw_less(solver):
    """A multistep solver has two histories: of the target, and of the proposals that particles move with."""
    p = PROBLEMS["vp-1d"]
    options = {"steps": 8, "solver": solver}
    plain = gk.sample(p.model, 400_000, cond=p.cond, seed=5, **options)
    f = p.features(plain.x).double()
    truth, error = f.mean(0).numpy(), (f.std(0) / len(f) ** 0.5).numpy()
    guides = [gk.CFG(1.8, steer=True)]
    result = gk.sample(p.model, 16, guides=guides, cond=[p.cond] * 3000, seed=list(range(3000)), **options)
    # 4 features: 4.5 standard errors fail by chance once in 40,000 suites
    assert np.abs(deviations(estimates(p, result), truth, error)).max() < 4.5

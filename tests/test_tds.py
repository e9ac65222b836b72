"""TDS: a gradient bends the proposal, the weights take it back, and the target is p exp(r/alpha)/Z whatever the bend.

Every step is done again by hand: the denoiser of a mixture with its gradient, the ancestral kernel, log p - log q.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from torch import Tensor

import guidekit as gk
from rewards import Reward

from . import problems
from .problems import STEPS, Problem, deviations, estimates, populations

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")

SCHEDULES = {"vp": gk.schedules.Cosine(), "flow": gk.schedules.Flow(), "edm": gk.schedules.EDM()}
LOW, HIGH = 0.002 ** (1 / 7), 80 ** (1 / 7)
SCALES = {
    "vp": lambda t: (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)) if t < 1 else (0.0, 1.0),
    "flow": lambda t: (1 - t, t),
    "edm": lambda t: (1.0, (LOW + t * (HIGH - LOW)) ** 7 if t else 0.0),
}
KINDS = [(schedule, d) for schedule in SCHEDULES for d in (1, 2, 16)]


@lru_cache(maxsize=16)
def problem(schedule: str, d: int) -> Problem:
    """At six steps the moves of EDM are long: at a higher temperature the weights of a bend keep their variance."""
    p = problems.mixture(f"{schedule}-{d}d", d, SCHEDULES[schedule], n=40_000 if d > 2 else 60_000)
    return replace(p, alpha=2.5) if schedule == "edm" else p


def kind(p: Problem) -> str:
    return p.name.split("-")[0]


# by hand -----------------------------------------------------------------------------------------------------------


def clean(p: Problem, x: Tensor, t: float, label: int = 1) -> Tensor:
    """E[x_0 | x_t] of the components with a label (-1: all)."""
    a, s = SCALES[kind(p)](t)
    model = p.model
    own = (model.labels == label) | (label == -1)
    pi, mu, sd = model.weights[own], model.means[own], model.stds[own]
    var = (a * sd) ** 2 + s**2
    log_rho = pi.log() - 0.5 * (x[:, None] - a * mu).square().sum(-1) / var - 0.5 * x.shape[1] * var.log()
    rho = (log_rho - log_rho.logsumexp(1, keepdim=True)).exp()
    each = (mu * s**2 + (a * sd**2)[:, None] * x[:, None]) / var[:, None]
    return (rho[..., None] * each).sum(1)


def guided(p: Problem, cfg: float = 1.0) -> Callable[[Tensor, float], Tensor]:
    """The denoiser under classifier-free guidance."""
    return lambda x, t: cfg * clean(p, x, t) + (1 - cfg) * clean(p, x, t, -1) if cfg != 1 else clean(p, x, t)


def twist(p: Problem, net: Callable, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """d = E[x_0 | x_t], V/alpha = r(d)/alpha, and (sigma^2/alpha_t) times the gradient of that through the denoiser."""
    if t == 0:
        return x, p.reward(x) / p.alpha, torch.zeros_like(x)
    a, s = SCALES[kind(p)](t)
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        d = net(x, t)
        v = p.reward(d) / p.alpha
        (rise,) = torch.autograd.grad(v.sum(), x)  # row by row, for no row of this denoiser knows of another
    return d.detach(), v.detach(), s**2 / a * rise if a > 0 else torch.zeros_like(x)


def kernel(p: Problem, t: float, s: float) -> tuple[float, float, float]:
    """x_s ~ N(a x_t + b d, c^2): the posterior of the forward process given the clean mean."""
    (a_t, s_t), (a_s, s_s) = SCALES[kind(p)](t), SCALES[kind(p)](s)
    up = a_t / a_s
    step = s_t**2 - up**2 * s_s**2
    return up * s_s**2 / s_t**2, a_s * step / s_t**2, (step * s_s**2 / s_t**2) ** 0.5


def moved(p: Problem, x: Tensor, d: Tensor, bent: Tensor, noise: Tensor, t: float, s: float) -> tuple[Tensor, Tensor]:
    """x_s by the bent clean mean, and log p(x_s | x_t) - log q(x_s | x_t)."""
    a, b, c = kernel(p, t, s)
    if c == 0:  # the last move is deterministic, and is not bent
        return a * x + b * d, torch.zeros(len(x)).double()
    y = a * x + b * bent + c * noise
    return y, (((y - a * x - b * bent) / c) ** 2 - ((y - a * x - b * d) / c) ** 2).sum(1) / 2


def follow(
    p: Problem, run: gk.Run, scale: Callable[[float, float], float], ess: float, cfg: float = 1.0, place: int = 0
) -> int:
    """Step a run of TDS and do every step again; scale(t, fraction) is that of the bend, NaN where it is not active.

    Returns how many steps have resampled.
    """
    noise, net, resampled = run.chain_noise(), guided(p, cfg), 0
    times = 1 - np.arange(STEPS + 1) / STEPS
    with torch.no_grad():
        pop = run.start()
        counted = torch.zeros(len(pop)).double()  # the twist that is in the weights
        for i in range(STEPS):
            t, s = times[i], times[i + 1]
            d, v, rise = twist(p, net, pop.x, t)
            strength = scale(t, i / STEPS)
            if i == 0 and not np.isnan(strength):
                assert torch.allclose(pop.log_w, v)
                counted = v
            strength = 0.0 if np.isnan(strength) else strength
            assert torch.allclose(pop.predictions[0], d, rtol=1e-9, atol=1e-9)
            assert torch.allclose(pop.proposals[0], d + strength * rise, rtol=1e-9, atol=1e-9)
            x, ratio = moved(p, pop.x, d, d + strength * rise, noise[i + 1], t, s)
            now = twist(p, net, x, s)[1]
            if s > 0 and np.isnan(scale(s, (i + 1) / STEPS)):
                now = counted
            log_w = pop.log_w + ratio + now - counted
            pop = run.advance(pop, i)
            assert torch.allclose(run.records[-1].log_w, log_w, rtol=1e-8, atol=1e-8)
            assert torch.allclose(pop.x, x[pop.parent], rtol=1e-9, atol=1e-9)
            counted = now[pop.parent]
            if s == 0 or not np.isnan(scale(s, (i + 1) / STEPS)):
                assert torch.allclose(pop.memos[place], counted, rtol=1e-8, atol=1e-8)
            due = ess > 0 and (s == 0 or not np.isnan(scale(s, (i + 1) / STEPS)))
            if due and 1 / log_w.softmax(0).square().sum() < ess * len(pop) * (1 - 1e-9):
                resampled += 1
                log_w = (log_w.logsumexp(0) - np.log(len(pop))).expand(len(pop))
            assert torch.allclose(pop.log_w, log_w, rtol=1e-8, atol=1e-8)
    return resampled


@pytest.mark.parametrize("schedule, d", KINDS)
@pytest.mark.parametrize("ess", [0.0, 1.0])
def test_every_step_is_the_one_done_by_hand(schedule: str, d: int, ess: float):
    p = problem(schedule, d)
    for scale in (0.0, 0.5, 2.0, lambda t: 1.5 - t):
        guide = gk.TDS(p.reward, p.alpha, scale, ess)
        run = gk.Run(p.model, 12, steps=STEPS, cond=1, guides=[guide], seed=d)
        resampled = follow(p, run, lambda t, f, scale=scale: scale(t) if callable(scale) else scale, ess)
        assert resampled == 0 if ess == 0 else resampled > 3


def test_in_an_interval_it_bends_there_and_weighs_there_and_at_the_end():
    p = problem("vp", 2)
    for ess in (0.0, 1.0):
        guide = gk.TDS(p.reward, p.alpha, 1.0, ess, start=0.3, stop=0.8)
        run = gk.Run(p.model, 12, steps=STEPS, cond=1, guides=[guide])
        follow(p, run, lambda t, f: 1.0 if 0.3 <= f < 0.8 else np.nan, ess)


@pytest.mark.parametrize("schedule, d", [("vp", 1), ("flow", 2), ("edm", 16)])
def test_with_cfg_in_the_list_the_twist_sees_the_guided_estimate(schedule: str, d: int):
    p = problem(schedule, d)
    guides = [gk.CFG(1.8), gk.TDS(p.reward, p.alpha, 0.7, 1.0)]
    for place, order in ((1, guides), (0, guides[::-1])):
        run = gk.Run(p.model, 12, steps=STEPS, cond=1, guides=order)
        assert follow(p, run, lambda t, f: 0.7, 1.0, cfg=1.8, place=place) > 0


# the law -----------------------------------------------------------------------------------------------------------


def off(p: Problem, result: gk.Result) -> float:
    """The largest of the deviations of Z and three features of p exp(r/alpha), in standard errors."""
    return float(np.abs(deviations(estimates(p, result), *p.tilted())).max())


BENDS = {
    "0": {"scale": 0.0},
    "0.5": {"scale": 0.5},
    "1": {"scale": 1.0},
    "2": {"scale": 2.0},
    "schedule": {"scale": lambda t: 2 * t * (1 - t)},
    "interval": {"scale": 1.0, "start": 0.3, "stop": 0.8},
    "a value that lies": {"scale": 0.5},
}


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("schedule, d", KINDS)
def test_the_law_and_z_do_not_depend_on_the_bend(schedule: str, d: int, bend: str):
    p = problem(schedule, d)
    if bend in "12":  # so long a bend has weights with long tails: at a higher temperature it is shorter
        p = replace(p, alpha=p.alpha * (2 if bend == "1" else 4))
    value = (lambda view: -0.5 * p.reward(view.clean)) if "lies" in bend else None
    guide = gk.TDS(p.reward, p.alpha, value=value, **BENDS[bend])
    # 400 independent populations of 16 against at least 40,000 samples of the same chain, 4.5 standard errors
    assert off(p, populations(p, 400, 16, [guide])) < 4.5


@pytest.mark.parametrize("ess", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("schedule, d", [("vp", 2), ("flow", 2)])
def test_weights_are_carried_where_nothing_is_resampled(schedule: str, d: int, ess: float):
    p = problem(schedule, d)
    result = populations(p, 1500, 8, [gk.TDS(p.reward, p.alpha, 0.5, ess)], first=5000)
    share = float(result.trace["resampled"].double().mean())
    assert share == 0 if ess == 0 else 0 < share < 0.7
    assert off(p, result) < 4.5
    plain, found = p.tilted(reward=False)[0], estimates(p, result)
    assert deviations(found / found[:, 0].mean(), plain, np.zeros(4))[1] > 8  # the unguided mean is far off


def test_without_a_bend_it_is_feynman_kac_steering():
    p = problem("flow", 2)
    tds, fk = (
        gk.sample(p.model, 40, steps=STEPS, cond=1, guides=[guide])
        for guide in (gk.TDS(p.reward, p.alpha, 0.0, 0.0), gk.FKSteering(p.reward, p.alpha, ess=0.0))
    )
    assert torch.equal(tds.x, fk.x)
    assert torch.allclose(tds.log_weights, fk.log_weights, atol=1e-12)
    assert torch.allclose(fk.log_weights, p.reward(fk.x) / p.alpha, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*could not be scored")
def test_a_reward_that_fails_on_some_samples():
    """The target is p exp(r/alpha) of what can be scored; rows without a score are not bent."""
    p = problem("vp", 1)

    def reward(x):
        return p.reward(x) + 0 * (1.5 - x[:, 0]).sqrt()  # NaN, and so is its gradient

    result = populations(p, 1000, 16, [gk.TDS(reward, p.alpha, 1.0)])
    x, law = (torch.as_tensor(v) for v in p.law())
    w = torch.where(x[:, 0] > 1.5, 0.0, (p.reward(x) / p.alpha).exp())[:, None] * p.features(x)
    truth, error = (law[:, None] * w).sum(0).numpy(), (w.std(0) / len(w) ** 0.5).numpy()
    assert np.abs(deviations(estimates(p, result), truth, error)).max() < 4.5
    assert torch.equal(result.log_weights == -torch.inf, result.x[:, 0] > 1.5)
    assert result.cost.unscored > (result.x[:, 0] > 1.5).sum() > 0


@pytest.mark.parametrize("order", [1, -1])
def test_beside_other_guides_of_the_same_reward_it_is_counted_once(order: int):
    p = problem("flow", 2)
    tds = gk.TDS(p.reward, p.alpha, 0.5)
    for other in (gk.FKSteering(p.reward, p.alpha, ess=0.9), gk.SVDD(p.reward, p.alpha, 3)):
        assert off(p, populations(p, 1000, 8, [tds, other][::order])) < 4.5
    z = estimates(p, populations(p, 1000, 8, [tds, gk.FKSteering(p.reward, 2 * p.alpha)][::order]))[:, 0]
    x, law = p.law()
    w = np.exp(1.5 * p.reward(torch.as_tensor(x)).numpy() / p.alpha)  # another temperature multiplies
    assert abs(deviations(z[:, None], np.array([law @ w]), np.array([w.std() / len(w) ** 0.5]))[0]) < 4.5


# how good the bend is ----------------------------------------------------------------------------------------------

M, SD, B, ALPHA = -1.0, 0.8, 1.2, 0.5  # one Gaussian and r = B x, tilted by two of its deviations


def gaussian(schedule: str = "vp") -> gk.Model:
    return gk.analytic.GaussianMixture(*(torch.tensor([v]).double() for v in (1.0, M, SD)), SCHEDULES[schedule])


def slope(x: Tensor) -> Tensor:
    return B * x[:, 0]


def log_z(schedule: str, steps: int) -> float:
    """Of the chain: d = M + gain (x - alpha_t M) is linear, so that all is Gaussian."""
    times, scales = 1 - np.arange(steps + 1) / steps, SCALES[schedule]
    mean, var = 0.0, scales(1.0)[1] ** 2
    for t, s in pairwise(times):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)
        step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        gain = a_t * SD**2 / ((a_t * SD) ** 2 + s_t**2)
        a, b = a_t / a_s * s_s**2 / s_t**2, a_s * step / s_t**2
        mean = a * mean + b * (M + gain * (mean - a_t * M))
        var = (a + b * gain) ** 2 * var + step * s_s**2 / s_t**2
    return B * mean / ALPHA + (B / ALPHA) ** 2 * var / 2


SCHEDULED = ["vp", "flow"]  # whose starts are those of the mixture


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_of_one_gaussian_and_a_linear_reward_the_bend_is_exact_as_steps_grow(schedule: str):
    n, share = 2000, []
    for steps in (8, 32, 128):
        guide = gk.TDS(slope, ALPHA, 1.0, ess=0.0)
        result = gk.sample(gaussian(schedule), n, steps=steps, guides=[guide])
        share.append(float(result.ess / n))
        # the standard error of log Z from the spread of the weights
        error = (1 / (n * share[-1]) - 1 / n) ** 0.5
        assert abs(float(result.log_z) - log_z(schedule, steps)) < 4.5 * error
        x, w = result.x[:, 0], result.weights
        if steps == 128:  # proposals themselves are close to N(M + B SD^2/ALPHA, SD^2)
            assert abs(x.mean() - (M + B * SD**2 / ALPHA)) < 0.15
            assert abs((w * x).sum() - (M + B * SD**2 / ALPHA)) < 4.5 * SD / (n * share[-1]) ** 0.5 + 0.02
    assert share[2] > 0.93
    assert 1 - share[2] < 0.5 * (1 - share[1]) < 0.4 * (1 - share[0])
    fk = gk.sample(gaussian(schedule), n, steps=128, guides=[gk.FKSteering(slope, ALPHA, ess=0.0)])
    assert float(fk.ess / n) < 0.1  # exp(-(B SD/ALPHA)^2) = .025 for n -> infinity
    wrong = gk.sample(gaussian(schedule), n, steps=128, guides=[gk.TDS(slope, ALPHA, 1.5, ess=0.0)])
    assert float(wrong.ess / n) < 0.7 * share[2]  # the factor 1 is the right one


def test_the_variance_of_z_is_below_that_of_feynman_kac_steering():
    def spread(guide, steps=32) -> float:
        seeds = list(range(300))
        result = gk.sample(gaussian(), 16, steps=steps, guides=[guide], cond=[None] * 300, seed=seeds)
        z = (result.log_z - log_z("vp", steps)).exp()
        assert abs(z.mean() - 1) < 4.5 * z.std() / 300**0.5
        return float(z.var())

    assert spread(gk.TDS(slope, ALPHA)) < 0.3 * spread(gk.FKSteering(slope, ALPHA))


# what it promises of rows, rewards and arguments -------------------------------------------------------------------


def test_gradients_are_per_row():
    """A mean over the batch would make them weaker the more rows there are."""
    p = problem("flow", 2)
    guide = gk.TDS(p.reward, p.alpha, 1.0, ess=0.0)
    whole = gk.sample(p.model, 11, steps=STEPS, cond=1, guides=[guide])
    for part, rows in (
        (gk.sample(p.model, 11, steps=STEPS, cond=1, guides=[guide], batch_size=2), 11),
        (gk.sample(p.model, 1, steps=STEPS, cond=1, guides=[guide]), 1),
        (gk.sample(p.model, 11, steps=STEPS, cond=[1, 0], guides=[guide]), 11),
    ):
        assert torch.allclose(part.x[:rows], whole.x[:rows], rtol=1e-12, atol=1e-12)
        assert torch.allclose(part.log_weights[:rows], whole.log_weights[:rows], rtol=1e-11, atol=1e-11)
    assert not whole.x.requires_grad
    assert not whole.log_weights.requires_grad


def test_no_rows_are_added_and_one_score_serves_bend_and_weight():
    p = problem("flow", 2)
    result = gk.sample(p.model, 10, steps=STEPS, cond=1, guides=[gk.TDS(p.reward, p.alpha)])
    assert result.cost.network_rows == 10 * STEPS
    assert result.cost.reward_calls == 10 * (STEPS + 1)


def test_shift_and_scale_of_the_reward_and_an_infinite_temperature():
    p = problem("vp", 1)

    def run(reward, alpha):
        return gk.sample(p.model, 40, steps=STEPS, cond=1, guides=[gk.TDS(reward, alpha, 0.7, 0.9)])

    plain = run(p.reward, p.alpha)
    shifted = run(lambda x: p.reward(x) - 4.0, p.alpha)
    assert torch.equal(plain.x, shifted.x)
    assert torch.allclose(shifted.log_weights, plain.log_weights - 4.0 / p.alpha, atol=1e-9)
    scaled = run(lambda x: 4 * p.reward(x), 4 * p.alpha)
    assert torch.equal(plain.x, scaled.x)
    assert torch.equal(plain.log_weights, scaled.log_weights)
    idle = run(p.reward, float("inf"))
    assert torch.equal(idle.x, gk.sample(p.model, 40, steps=STEPS, cond=1).x)
    assert idle.log_weights.abs().max() == 0


def test_the_order_beside_tilts_does_not_matter():
    p = problem("flow", 2)
    guides = [gk.CFG(1.4), gk.CFG(0.6, steer=True), gk.TDS(p.reward, p.alpha, 0.5)]
    first, *others = (gk.sample(p.model, 24, steps=STEPS, cond=1, guides=g) for g in permutations(guides))
    for other in others:
        assert torch.equal(first.ancestors, other.ancestors)
        assert torch.allclose(first.x, other.x, rtol=1e-11, atol=1e-11)
        assert torch.allclose(first.log_weights, other.log_weights, rtol=1e-10, atol=1e-10)


class Counted(Reward):
    name = "a count"
    differentiable = False

    def score(self, samples):
        return samples[:, 0]


def never(x, t, cond):
    raise AssertionError("the network was called")


@pytest.mark.parametrize("make", [gk.TDS, gk.DAS], ids=["TDS", "DAS"])
def test_what_cannot_work_is_refused_before_the_network_is_called(make):
    name = make.__name__
    model = gk.GaussianModel(never, (2,), predicts="clean")
    with pytest.raises(ValueError, match=f"{name}.*'a count' is not differentiable: use FKSteering or SVDD"):
        gk.sample(model, 3, steps=3, guides=[make(Counted(), 0.5)])
    with pytest.raises(ValueError, match=rf"{name}\(steer=False\)"):
        gk.sample(model, 3, steps=3, guides=[make(slope, 0.5, steer=False)])
    with pytest.raises(ValueError, match=f"{name} .*deterministic"):
        gk.sample(model, 3, steps=3, guides=[make(slope, 0.5)], solver=gk.solvers.DDIM())
    for tokens in (gk.MaskedModel, gk.UniformModel):
        with pytest.raises(ValueError, match=f"{name} takes gradients in x, and tokens have none: use FKSteering"):
            gk.sample(tokens(never, 4, 5), 3, steps=3, guides=[make(slope, 0.5)])
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"{name}\(alpha=.*must be positive"):
            make(slope, alpha)
    for ess in (-0.1, 1.1):
        with pytest.raises(ValueError, match="a share of the population"):
            make(slope, 0.5, ess=ess)


CUTS = {
    "detach": lambda x: x.detach()[:, 0],
    "numpy": lambda x: x.detach().numpy()[:, 0] ** 2,
    "numbers": lambda x: [v.item() for v in x[:, 0]],
    "a threshold": lambda x: (x[:, 0] > 0).double(),
}


@pytest.mark.parametrize("make", [gk.TDS, gk.DAS], ids=["TDS", "DAS"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_reward_that_cuts_the_gradient_is_an_error_that_says_what_to_do(cut: str, make):
    with pytest.raises(gk.RewardError, match=r"no gradient reaches x_t.*Use a differentiable reward, or FKSteering"):
        gk.sample(gaussian("flow"), 4, steps=5, guides=[make(CUTS[cut], 0.5)])


def test_a_network_or_decoder_that_cuts_the_gradient_is_an_error_too():
    @torch.no_grad()
    def net(x, t, cond):
        return 0.5 * x

    model = gk.GaussianModel(net, (1,), gk.schedules.Flow(), "clean")
    with pytest.raises(gk.RewardError, match="no gradient reaches x_t: the reward, the decoder or the network"):
        gk.sample(model, 4, steps=5, guides=[gk.TDS(slope, 0.5)])
    model = gk.GaussianModel(
        lambda x, t, cond: 0.5 * x, (1,), gk.schedules.Flow(), "clean", decode=lambda x: x.detach()
    )
    with pytest.raises(gk.RewardError, match="no gradient reaches x_t: the reward, the decoder or the network"):
        gk.sample(model, 4, steps=5, guides=[gk.TDS(slope, 0.5)])

"""History-guided sampling: the formula step by step, the filter, and a memory that follows its particle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

import guidekit as gk
from guidekit.guides.higs import HiGS, high_pass

from .problems import PROBLEMS, STEPS


def test_the_chain_is_the_formula_written_out():
    """DDIM on a mixture in the plane, by hand in numpy: history, window, projection."""
    problem, steps, cond = PROBLEMS["flow-2d"], 9, torch.ones(6, dtype=torch.long)
    guide = HiGS(1.3, alpha=0.6, eta=0.4, t_min=0.3, t_max=0.95)
    result = gk.sample(problem.model, 6, steps=steps, cond=1, guides=[guide], solver=gk.solvers.DDIM())
    x, past = result.noise.numpy().copy(), None
    for k in range(steps):
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        d = problem.model(torch.from_numpy(x), t, cond).numpy()
        new = d
        if past is not None and 0.3 < t <= 0.95:
            delta = d - past
            parallel = (delta * d).sum(1, keepdims=True) / (d * d).sum(1, keepdims=True) * d
            new = d + 1.3 * math.sqrt((t - 0.3) / 0.65) * (delta - parallel + 0.4 * parallel)
        past = 0.6 * d + 0.4 * (0 if past is None else past)
        x = (1 - s) * new + s * (x - (1 - t) * new) / t
    assert np.allclose(result.x.numpy(), x, rtol=1e-9, atol=1e-12)
    plain = gk.sample(problem.model, 6, steps=steps, cond=1, solver=gk.solvers.DDIM())
    assert (plain.x - result.x).abs().max() > 0.01


@pytest.mark.parametrize(
    "guide",
    [HiGS(0.0), HiGS(2.0, t_min=0.9, t_max=0.95), HiGS(2.0, stop=0.1), HiGS(lambda t: 0.0)],
    ids=["scale", "window", "interval", "function"],
)
def test_nothing_happens_at_scale_zero_outside_the_window_and_without_a_history(guide):
    problem = PROBLEMS["vp-1d"]
    plain, idle = (gk.sample(problem.model, 20, steps=STEPS, cond=1, guides=g) for g in ([], [guide]))
    assert torch.equal(plain.x, idle.x)
    assert idle.cost.network_rows == plain.cost.network_rows


def test_the_filter_is_that_of_the_discrete_cosine_transform():
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = np.hypot(np.arange(8)[:, None] / 8, np.arange(6) / 6)
    gain = 1 / (1 + np.exp(-50 * (radius - 0.05)))
    known = idctn(gain * dctn(x.numpy(), axes=(2, 3), norm="ortho"), axes=(2, 3), norm="ortho")
    assert np.allclose(high_pass(x, 0.05, 50.0).numpy(), known, atol=1e-12)
    flat = torch.full((1, 1, 8, 6), 2.0, dtype=torch.float64)
    assert torch.allclose(high_pass(flat, 0.05, 50.0), flat / (1 + math.exp(2.5)))  # colours are kept out


def test_images_are_filtered_and_cutoff_none_is_not():
    def net(x, t, cond):
        return (0.3 * x + x.roll(1, -1)).tanh() + 0.2

    model = gk.GaussianModel(net, (2, 6, 6), predicts="clean", dtype=torch.float64)

    def look(cutoff):
        run = gk.Run(model, 3, steps=5, guides=[HiGS(1.0, cutoff=cutoff)])
        with torch.no_grad():
            pop = run.advance(run.start(), 0)
            past = 0.75 * model(run.start().x, 1.0, None)
            return pop.predictions[0], model(pop.x, 0.8, None), past

    w = math.sqrt((0.8 - 0.4) / 0.6)
    free, d, past = look(None)
    assert torch.allclose(free, d + w * (d - past), rtol=1e-10)
    kept, d, past = look(0.05)
    assert torch.allclose(kept, d + w * high_pass(d - past, 0.05, 50.0), rtol=1e-10)


@pytest.mark.parametrize("guides", [[], [gk.CFG(2.0)]], ids=["alone", "with cfg"])
def test_the_history_follows_its_particle_through_resampling(guides):
    """After every selection, the memory of each survivor is the average along its own line of ancestors."""
    problem = PROBLEMS["flow-2d"]
    steering = gk.FKSteering(problem.reward, 0.2, ess=1.0)
    run = gk.Run(problem.model, 48, steps=8, cond=1, guides=[HiGS(0.5, alpha=0.6), steering, *guides])
    label = torch.ones(48, dtype=torch.long)

    def guided(pop, t):  # what the history holds: the prediction with CFG, without HiGS itself
        d = problem.model(pop.x, t, label)
        return d if not guides else 2 * d - problem.model(pop.x, t, -label)

    moved = False
    with torch.no_grad():
        pop = run.start()
        known = 0.6 * guided(pop, 1.0)
        for index in range(7):
            pop = run.advance(pop, index)
            known = 0.6 * guided(pop, run.step(index + 1).t) + 0.4 * known[pop.parent]
            assert torch.allclose(pop.memos[0], known, rtol=1e-10, atol=1e-12)
            moved |= bool((pop.parent != torch.arange(48)).any())
    assert moved


def test_the_history_begins_anew_where_times_go_up():
    problem = PROBLEMS["vp-1d"]
    times = [1.0, 0.6, 0.3, 0.7, 0.4, 0.0]
    run = gk.Run(problem.model, 5, steps=times, cond=1, guides=[HiGS()])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            pop = run.advance(pop, index)
    d = problem.model(pop.x, 0.7, torch.ones(5, dtype=torch.long))
    assert torch.allclose(pop.memos[0], 0.75 * d, rtol=1e-12)
    assert torch.equal(pop.predictions[0], d)


def test_steering_by_history_leaves_the_target_unchanged():
    """With steer=True only the proposal moves, and the weights make up for it."""
    problem = PROBLEMS["vp-1d"]
    result = gk.sample(problem.model, 20_000, steps=STEPS, cond=1, guides=[HiGS(0.4, steer=True)])
    f = problem.features(result.x).double().numpy()
    w = result.log_weights.exp().numpy()[:, None]
    truth, error = problem.tilted(reward=False)
    se = np.sqrt((w * f).var(0) / len(f) + error**2)
    assert np.abs(((w * f).mean(0) - truth) / np.maximum(se, 1e-12)).max() < 4
    assert result.log_weights.std() > 0.05


def test_wrong_options_are_refused():
    model = PROBLEMS["vp-1d"].model
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 2, guides=[HiGS()])
    with pytest.raises(ValueError, match="alpha=0"):
        gk.Run(model, 2, guides=[HiGS(alpha=0.0)])
    with pytest.raises(ValueError, match="t_min"):
        gk.Run(model, 2, guides=[HiGS(t_min=0.9, t_max=0.3)])

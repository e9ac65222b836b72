"""Autoguidance: the formula, the law of its chain, what is shared, and weaker versions of a network."""

from __future__ import annotations

import copy
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit import AutoGuidance, weakened

from .problems import PROBLEMS, STEPS


def weaker(problem) -> gk.Model:
    """The same model with wider components, or with a flatter law of tokens."""
    base = problem.model
    if isinstance(base, gk.analytic.TokenTable):
        tables = 0.5 * base.table.view(-1, *[base.vocab_size] * base.length)
        return gk.analytic.TokenTable(tables[0], problem.name, classes=tables[1:])
    return gk.analytic.GaussianMixture(base.weights, base.means, 1.5 * base.stds, base.schedule, labels=base.labels)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_prediction_moves_away_from_the_weak_model_at_the_same_condition(problem):
    weak = weaker(problem)
    run = gk.Run(problem.model, 6, steps=STEPS, cond=problem.cond, guides=[AutoGuidance(weak, 2.5)])
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            pop = run.advance(pop, index)
    cond = problem.model.encode(problem.cond).expand(6)
    strong, poor = (m(pop.x, run.step(3).t, cond) for m in (problem.model, weak))
    assert torch.allclose(pop.predictions[0], strong + 1.5 * (strong - poor), rtol=1e-12, atol=1e-12)
    assert (strong - poor).abs().max() > 0.05


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_scale_one_is_the_plain_sampler_bit_for_bit(problem):
    plain, idle = (
        gk.sample(problem.model, 20, steps=STEPS, cond=problem.cond, guides=guides)
        for guides in ([], [AutoGuidance(weaker(problem), 1.0)])
    )
    assert torch.equal(plain.x, idle.x)
    assert plain.cost.network_rows == idle.cost.network_rows


def test_networks_that_predict_different_things_are_contrasted_by_their_clean_means():
    def net(x, t, cond):
        return 0.1 * x

    noise, velocity, clean = (gk.GaussianModel(net, (2,), predicts=p) for p in ("noise", "velocity", "clean"))
    run = gk.Run(noise, 5, steps=6, guides=[AutoGuidance(velocity, 2.0)])
    start = run.start()
    alpha, sigma = noise.process.scales(0.999)
    strong, weak = (start.x - sigma * 0.1 * start.x) / alpha, alpha * start.x - sigma * 0.1 * start.x
    assert torch.allclose(start.predictions[0], 2 * strong - weak, rtol=1e-4)
    gk.Run(velocity, 5, steps=6, guides=[AutoGuidance(clean, 2.0)])
    with pytest.raises(ValueError, match=r"the other model starts at t=0\.999"):
        gk.Run(velocity, 5, steps=6, guides=[AutoGuidance(noise, 2.0)])


def test_the_chain_of_a_gaussian_has_the_deviation_of_the_linear_recursion():
    """All is linear: x_s = (a + b (w g - (w - 1) g_weak)) x_t + c z, g the gain of each model's clean mean."""
    s, s_weak, w, steps, n = 0.7, 1.2, 2.0, 12, 40_000
    models = [gk.analytic.GaussianMixture([1.0], torch.zeros(1, dtype=torch.float64), [v]) for v in (s, s_weak)]
    variance = 1.0
    for t, u in pairwise(1 - np.arange(steps + 1) / steps):
        (a_t, s_t), (a_u, s_u) = ((np.cos(np.pi * v / 2), np.sin(np.pi * v / 2)) for v in (t, u))
        strong, poor = (a_t * v**2 / (a_t**2 * v**2 + s_t**2) for v in (s, s_weak))
        left = (a_t / a_u) * s_u**2 / s_t**2
        step = s_t**2 - (a_t / a_u) ** 2 * s_u**2
        gain = left + a_u * step / s_t**2 * (w * strong - (w - 1) * poor)
        variance = gain**2 * variance + step * s_u**2 / s_t**2
    guided = gk.sample(models[0], n, steps=steps, guides=[AutoGuidance(models[1], w)]).x.std()
    plain = gk.sample(models[0], n, steps=steps).x.std()
    error = variance**0.5 / (2 * n) ** 0.5
    assert abs(guided - variance**0.5) < 4 * error
    assert guided < plain - 20 * error  # guidance away from the wider model narrows the law


def test_guides_with_equal_weak_models_share_one_evaluation():
    problem = PROBLEMS["vp-1d"]
    weak = weaker(problem)
    both = [AutoGuidance(weak, 1.5), AutoGuidance(weak, 1.5), gk.CFG(2.0)]
    result = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=both)
    assert result.cost.network_rows == 3 * 4 * STEPS
    assert result.cost.network_calls == 2 * STEPS
    once = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=[AutoGuidance(weak, 2.0), gk.CFG(2.0)])
    assert torch.allclose(result.x, once.x, rtol=1e-12)


def test_it_costs_nothing_outside_its_interval():
    problem = PROBLEMS["vp-1d"]
    guides = [AutoGuidance(weaker(problem), 2.0, start=0.3, stop=0.8)]  # 6 steps: fractions 1/3, 1/2, 2/3
    result = gk.sample(problem.model, 4, steps=STEPS, cond=1, guides=guides)
    assert result.cost.network_rows == 4 * (STEPS + 3)


def test_what_cannot_be_contrasted_is_refused_before_the_first_call():
    problem, calls = PROBLEMS["vp-1d"], []
    with pytest.raises(ValueError, match="the guided model itself"):
        gk.Run(problem.model, 2, guides=[AutoGuidance(problem.model, 2.0)])
    with pytest.raises(ValueError, match="share shape and noising law"):
        gk.Run(problem.model, 2, guides=[AutoGuidance(PROBLEMS["flow-2d"].model, 2.0)])
    with pytest.raises(TypeError, match="second base model"):
        gk.Run(problem.model, 2, guides=[AutoGuidance(lambda x, t, c: calls.append(x), 2.0)])  # type: ignore
    assert not calls


# weaker versions of a network ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """A residual network with a convolution and a linear layer in each block."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU()) for _ in range(3))
        self.head = nn.Linear(8, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x, t, cond):
        h = self.inlet(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h.movedim(1, -1)).movedim(-1, 1) * (1 + t.view(-1, 1, 1, 1))


@pytest.fixture
def model() -> gk.Model:
    return gk.GaussianModel(Net().double().eval(), (3, 5, 5), predicts="velocity")


def noisy(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_same_share_of_channels_is_dropped_for_every_row_and_time(model):
    seen, zeros = [], []
    weak = weakened(model, drop=["blocks.1", "inlet"], share=0.25, seed=3)
    model.net.blocks[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.net.inlet.register_forward_hook(lambda module, args, out: seen.append(out))  # before ours
    for t in (0.9, 0.2):
        weak(noisy(), t, None)
        plain, last = seen[-2:]
        inlet = weak._dropped("inlet", model.net.inlet, plain, [])
        zero = (inlet == 0).all((0, 2, 3))
        assert zero.sum() == 2  # a quarter of 8
        assert torch.allclose(inlet[:, ~zero], plain[:, ~zero] * 8 / 6)
        with torch.no_grad():
            h = inlet + model.net.blocks[0](inlet)
            h = h + weak._dropped("blocks.1", model.net.blocks[1], model.net.blocks[1](h), [])
        assert torch.allclose(last, h, rtol=1e-12)
        zeros.append(zero)
    assert torch.equal(*zeros)


def test_a_row_of_the_weakened_model_does_not_depend_on_its_batch(model):
    weak = weakened(model, drop=["blocks.0", "head"], share=0.3)
    guides = [AutoGuidance(weak, 2.0)]
    whole = gk.sample(model, 7, steps=4, guides=guides)
    parts = gk.sample(model, 7, steps=4, guides=guides, batch_size=3)
    assert torch.allclose(whole.x, parts.x, rtol=1e-10, atol=1e-12)


def test_a_skipped_module_passes_its_input_on(model):
    net = copy.deepcopy(model.net)
    net.blocks = nn.ModuleList([net.blocks[0], nn.Identity(), net.blocks[2]])
    known = gk.GaussianModel(net, (3, 5, 5), predicts="velocity")
    assert torch.allclose(weakened(model, skip=["blocks.1"])(noisy(), 0.5, None), known(noisy(), 0.5, None), rtol=1e-12)


def test_seeds_choose_other_channels_and_equal_weakenings_are_one_model(model):
    one, again, other = (weakened(model, drop=["blocks.0"], share=0.3, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert torch.equal(one(noisy(), 0.5, None), again(noisy(), 0.5, None))
    assert not torch.allclose(one(noisy(), 0.5, None), other(noisy(), 0.5, None))
    result = gk.sample(model, 2, steps=3, guides=[AutoGuidance(one, 2.0), AutoGuidance(again, 1.5)])
    assert result.cost.network_rows == 2 * 2 * 3


def test_the_network_is_left_as_it_was_found_and_its_weights_are_shared(model):
    plain = model(noisy(), 0.5, None)
    weak = weakened(model, drop=["blocks.0"], skip=["blocks.2"])
    poor = weak(noisy(), 0.5, None)
    assert torch.equal(model(noisy(), 0.5, None), plain)
    assert not any(m._forward_hooks for m in model.net.modules())
    model.net.train()
    gk.sample(model, 2, steps=3, guides=[AutoGuidance(weak, 2.0)])
    assert all(m.training for m in model.net.modules())
    with torch.no_grad():
        model.net.head.bias.add_(1.0)
    assert not torch.allclose(weak(noisy(), 0.5, None), poor)
    with torch.no_grad():
        model.net.head.bias.fill_(torch.nan)
    model.net.inlet.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weak(noisy(), 0.5, None)
    assert not model.net.blocks[0]._forward_hooks  # also after an error


def test_another_thread_that_uses_the_network_is_not_weakened(model):
    """The strong model runs in a second thread while the weak one is in the middle of its forward."""
    plain, found = model(noisy(), 0.5, None), []
    weak = weakened(model, drop=["blocks.0", "blocks.1"], share=0.5)
    expected = weak(noisy(), 0.5, None)

    def meanwhile(module, args):
        if not found:
            found.append(None)
            thread = Thread(target=lambda: found.append(model(noisy(), 0.5, None)))
            thread.start()
            thread.join()

    model.net.blocks[0].register_forward_pre_hook(meanwhile)
    assert torch.equal(weak(noisy(), 0.5, None), expected)
    assert torch.equal(found[1], plain)


def test_a_thread_that_meets_a_hook_while_it_is_added_or_removed_is_not_weakened(model):
    """torch notes apart from a hook that it takes kwargs, so for a moment another thread calls it without them."""
    weak, plain, outs = weakened(model, drop=["blocks.0"], share=0.5), model(noisy(), 0.5, None), []
    layer = model.modules()[0].get_submodule("blocks.0")

    def meanwhile(module, args):
        if weakening:
            layer._forward_hooks_with_kwargs.clear()
            thread = Thread(target=lambda: outs.append(model(noisy(), 0.5, None)))
            weakening.clear()
            thread.start()
            thread.join()
            layer._forward_hooks_with_kwargs.update(dict.fromkeys(layer._forward_hooks, True))

    weakening, handle = [True], layer.register_forward_pre_hook(meanwhile)
    weak(noisy(), 0.5, None)
    handle.remove()
    assert len(outs) == 1 and torch.allclose(outs[0], plain, rtol=1e-12)


def test_of_a_stitched_model_the_part_that_is_called_is_weakened(model):
    early = gk.GaussianModel(Net().double().eval(), (3, 5, 5), predicts="velocity")
    with torch.no_grad():
        for p in early.net.parameters():
            p.mul_(1.1)
    early.net.only = early.net.blocks[1] = nn.Sequential(nn.Conv2d(8, 8, 1), nn.SiLU()).double()
    stitched, x = gk.Stitched(early, model, at=0.5), noisy()
    weak = weakened(stitched, drop=["blocks.0"], skip=["only"], share=0.3)
    assert torch.equal(weak(x, 0.7, None), weakened(early, drop=["blocks.0"], skip=["only"], share=0.3)(x, 0.7, None))
    assert torch.equal(weak(x, 0.5, None), weakened(model, drop=["blocks.0"], share=0.3)(x, 0.5, None))
    lone = weakened(stitched, skip=["only"])
    assert torch.equal(lone(x, 0.5, None), model(x, 0.5, None))  # it has no such module
    assert not torch.equal(lone(x, 0.7, None), early(x, 0.7, None))
    with pytest.raises(ValueError, match=r"no module 'onyl'; it has only"):
        weakened(stitched, skip=["onyl"])
    result = gk.sample(stitched, 2, steps=4, guides=[AutoGuidance(weak, 2.0)])
    assert (result.x - gk.sample(stitched, 2, steps=4).x).abs().max() > 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_runs_uncompiled_while_it_is_weak(model):
    right, x = weakened(model, drop=["blocks.0"], skip=["blocks.2"])(noisy(), 0.5, None), noisy()
    plain = model(x, 0.5, None)
    compiled = gk.GaussianModel(torch.compile(model.net, backend="eager"), (3, 5, 5), predicts="velocity")
    weak = weakened(compiled, drop=["blocks.0"], skip=["blocks.2"])
    for _ in range(2):
        assert torch.allclose(compiled(x, 0.5, None), plain, rtol=1e-12)
        assert torch.allclose(weak(x, 0.5, None), right, rtol=1e-12)
    with pytest.raises(ValueError, match=r"no module 'block\.1'; it has blocks\.1"):
        weakened(compiled, drop=["block.1"])
    model.net.blocks[0].compile(backend="eager")  # in its place
    model(x, 0.5, None)
    assert torch.allclose(weakened(model, drop=["blocks.0"], skip=["blocks.2"])(x, 0.5, None), right, rtol=1e-12)


def test_modules_that_cannot_be_weakened_are_errors(model):
    with pytest.raises(ValueError, match=r"no module 'block\.1'; it has blocks\.1"):
        weakened(model, drop=["block.1"])
    with pytest.raises(ValueError, match=r"name its members, like 'blocks\.0'"):
        weakened(model, skip=["blocks"])
    with pytest.raises(ValueError, match="needs modules"):
        weakened(model)
    with pytest.raises(ValueError, match="share"):
        weakened(model, drop=["head"], share=1.0)
    with pytest.raises(TypeError, match="lists of names"):
        weakened(model, drop="head")
    with pytest.raises(gk.NetworkError, match="never called unused"):
        weakened(model, drop=["unused"])(noisy(), 0.5, None)
    with pytest.raises(gk.NetworkError, match="must keep the shape"):
        weakened(model, skip=["inlet"])(noisy(), 0.5, None)
    with pytest.raises(ValueError, match="no module"):
        weakened(gk.GaussianModel(lambda x, t, cond: x, (2,)), drop=["head"])

"""Conditions that change in time and in space: bits before and after a switch, masks, and the layout of MagicMix."""

from __future__ import annotations

import pytest
import torch

import guidekit as gk
from guidekit import At, Compose, MagicMix, Regions, Switch

from .problems import PROBLEMS
from .test_views import SHAPE, convolution, labels, look

pytestmark = pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")


def states(model, guides, **options) -> list[torch.Tensor]:
    """The states of a run, from the start on."""
    run = gk.Run(model, 6, **{"steps": 8} | options, guides=guides)
    with torch.no_grad():
        pop = run.start()
        seen = [pop.x]
        for index in range(8):
            pop = run.advance(pop, index)
            seen.append(pop.x)
    return seen


# Switch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_before_the_switch_bits_are_those_of_the_first_condition_and_then_of_the_second(name):
    """8 steps: at .5 the looks 4 to 7 see the other condition. From there on it is its own run of the same states."""
    problem = PROBLEMS[name]
    model, first = problem.model, problem.cond
    plain, switched = states(model, (), cond=first), states(model, [Switch(None, 0.5)], cond=first)
    for index in range(5):
        assert torch.equal(plain[index], switched[index])
    assert not torch.equal(plain[-1], switched[-1])
    run = gk.Run(model, 6, steps=8, cond=None)
    before = gk.Run(model, 6, steps=8, cond=first)
    with torch.no_grad():
        pop = before.start()
        for index in range(3):
            pop = before.advance(pop, index)
        pop = run.look(before.move(before.branch(pop, 3), 3), 4)
        for index in range(4, 8):
            pop = run.advance(pop, index)
            assert torch.equal(pop.x, switched[index + 1])


def test_several_switches_follow_each_other_and_the_null_branch_of_guidance_stays():
    model, seen = convolution(), []
    net = model.net
    model.net = lambda x, t, cond: seen.append(cond.tolist()) or net(x, t, cond)
    guides = [Switch([2, None, gk.Cond()], [0.25, 0.5, 0.75]), gk.CFG(2.0)]
    result = gk.sample(model, 1, steps=8, cond=1, guides=guides)
    assert seen == [[1, 0]] * 2 + [[2, 0]] * 2 + [[0, 0]] * 2 + [[1, 0]] * 2
    assert result.cost.network_rows == 2 * 8


def test_a_switch_at_the_start_is_the_other_condition_and_at_the_end_is_none():
    model = convolution()
    options = {"n": 4, "steps": 5, "cond": [1, 0]}
    plain = gk.sample(model, **options)
    assert torch.equal(gk.sample(model, **options, guides=[Switch(2, 1.0)]).x, plain.x)
    second = gk.sample(model, n=4, steps=5, cond=[2, 2])
    assert torch.equal(gk.sample(model, **options, guides=[Switch(2, 0.0)]).x, second.x)
    parts = gk.sample(model, **options, guides=[Switch(2, 0.5)], batch_size=3)
    assert torch.allclose(gk.sample(model, **options, guides=[Switch(2, 0.5)]).x, parts.x, rtol=1e-10)


# Regions -----------------------------------------------------------------------------------------------------------


def halves(count: int = 2) -> torch.Tensor:
    """The upper left quarter, and the lower half at strength .6."""
    masks = torch.zeros(2, 4, 4)
    masks[0, :2, :2], masks[1, 2:] = 1.0, 0.6
    return masks[:count]


def test_the_clean_estimate_is_put_together_by_the_masks():
    model = convolution()
    x, t, found = look(model, [Regions([2, None], halves())])
    d = [model(x, t, labels(5, c)) for c in (1, 2, 0)]
    masks = halves().double()[:, None]
    expected = (1 - masks.sum(0)) * d[0] + masks[0] * d[1] + masks[1] * d[2]
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(found[..., :2, :2], d[1][..., :2, :2]) and torch.allclose(
        found[..., :2, 2:], d[0][..., :2, 2:]
    )


def test_with_guidance_every_region_is_guided_alike():
    """CFG(3) beside it: n + 3 (d_k - n) in the region of k, and n + 3 (d - n) elsewhere."""
    model = convolution()
    x, t, found = look(model, [Regions(2, halves(1), scale=3.0), gk.CFG(3.0)])
    null, own, other = (model(x, t, labels(5, c)) for c in (0, 1, 2))
    mask = halves(1).double()
    expected = (1 - mask) * (null + 3 * (own - null)) + mask * (null + 3 * (other - null))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_a_region_of_its_own_network_gives_the_sample_of_that_condition():
    """Pixels that do not see each other: inside the mask a run of one condition, outside a run of the other."""
    bias = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def net(x, t, cond):
        return torch.tanh(x * 0.7 + bias[cond])

    model, other = (gk.GaussianModel(net, SHAPE, predicts="clean", null=0, dtype=torch.float64) for _ in range(2))
    options = {"n": 5, "steps": 6, "cond": 1}
    mixed = gk.sample(model, **options, guides=[Regions([At(2, other)], halves(1))])
    first, second = gk.sample(model, **options), gk.sample(model, **options | {"cond": 2})
    inside = halves(1)[0].bool().expand(SHAPE)
    assert torch.allclose(mixed.x[:, inside], second.x[:, inside])
    assert torch.equal(mixed.x[:, ~inside], first.x[:, ~inside])
    assert mixed.cost.network_calls == 2 * 6


def test_positions_of_tokens_take_their_condition_by_mask():
    problem = PROBLEMS["masked"]
    model = problem.model
    run = gk.Run(model, 5, steps=6, cond=0, guides=[Regions(None, torch.tensor([[0.0, 1.0, 0.5]]))])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
        own, null = (model(pop.x, run.step(1).t, labels(5, c)) for c in (1, 0))
    found = pop.predictions[0]
    assert torch.equal(found[:, 0], own[:, 0]) and torch.allclose(found[:, 1], null[:, 1])
    assert torch.allclose(found[:, 2], (own[:, 2] + null[:, 2]) / 2)


@pytest.mark.parametrize("ess", [0.0, 1.0])
def test_masks_found_at_the_change_of_stages_stay_with_their_particle(ess):
    """The second stage starts at look 3 of 6 with a mask from the estimates there, made once and kept to the end."""
    model, calls = convolution(), []

    def find(samples):
        calls.append(len(samples))
        return (samples > 0).any(1, keepdim=True)  # (rows, 1, 4, 4): of the one condition, where a channel is positive

    guides = [Regions(2, find, start=0.5), gk.FKSteering(lambda x: x[:, 0, 0, 0], 0.3, ess=ess)]
    options = {"n": 6, "steps": 6, "cond": [1, 1], "seed": [1, 2]}
    result = gk.sample(model, **options, guides=guides)
    assert calls == [12]
    masks = result.memos[0]
    assert masks.shape == (12, 1, 1, 4, 4) and 0 < masks.mean() < 1 and set(masks.unique().tolist()) == {0.0, 1.0}
    # what each sample's mask was made of: the estimate at look 3 of the particle from which it descends
    run = gk.Run(model, 6, steps=6, cond=[1, 1], seed=[1, 2], guides=guides)
    with torch.no_grad():
        pop = run.start()
        for index in range(2):
            pop = run.advance(pop, index)
        pop = run.look(run.move(run.branch(pop, 2), 2), 3)
        estimate = model(pop.x, run.step(3).t, labels(12, 1))
    born = pop.memos[0]
    assert torch.equal(born[:, 0, 0], (estimate > 0).any(1).double())
    assert torch.equal(masks, born[result.lineage()[3][result.row] if ess == 0 else _ancestor(result, 3)])
    parts = gk.sample(model, **options, guides=guides, batch_size=4)
    assert torch.allclose(result.x, parts.x, rtol=1e-9, atol=1e-11)
    if ess:
        assert result.trace["resampled"][-3:].any()


def _ancestor(result, look: int) -> torch.Tensor:
    """The row before the selection at this look from which each sample descends."""
    rows = result.row
    for index in range(len(result.ancestors) - 1, look - 2, -1):
        rows = result.ancestors[index][rows]
    return rows


# MagicMix ----------------------------------------------------------------------------------------------------------


def test_the_mixture_of_estimates_is_the_paper_s_mixture_of_latents():
    """A step of DDIM, then nu x_s + (1 - nu) (alpha_s x_ref + sigma_s z), with the z that makes x_t of the layout."""
    model, nu = convolution("clean"), 0.4
    layout = torch.randn(SHAPE, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    options = {"steps": 8, "cond": 1, "solver": gk.solvers.DDIM()}
    plain = states(model, (), **options)
    mixed = states(model, [MagicMix(layout, nu, start=0.25, stop=0.3)], **options)
    assert torch.equal(plain[2], mixed[2])
    (a_t, s_t), (a_s, s_s) = (model.process.scales(t) for t in (0.75, 0.625))
    z = (plain[2] - a_t * layout) / s_t
    assert torch.allclose(mixed[3], nu * plain[3] + (1 - nu) * (a_s * layout + s_s * z), rtol=1e-9)
    assert not torch.allclose(mixed[3], plain[3], atol=1e-3)


def test_the_layout_comes_back_as_far_as_it_is_mixed_in():
    """From the noised layout, as in the paper: the smaller nu, the nearer to it; nu = 0 to the end is the layout."""
    model = gk.analytic.GaussianMixture([0.6, 0.4], [[1.0, 0.0], [-1.0, 0.5]], [0.8, 0.6])
    layout = torch.tensor([1.5, -1.0])
    times = [0.6 - 0.06 * i for i in range(10)] + [0.0]
    away = []
    for nu in (1.0, 0.8, 0.4, 0.0):
        guides = [gk.StartFrom(layout), MagicMix(layout, nu, stop=0.6)]
        result = gk.sample(model, 400, steps=times, guides=guides)
        away.append(float((result.x - layout).square().sum(1).mean()))
    # chains with the same noise, so their order is no matter of chance
    assert away[1] < 0.95 * away[0] and away[2] < 0.9 * away[1] and away[3] < 0.9 * away[2]
    kept = gk.sample(model, 4, steps=times, guides=[MagicMix(layout, 0.0)])
    assert torch.allclose(kept.x, layout.expand_as(kept.x))


def test_every_group_may_have_a_layout_and_guidance_is_mixed_too():
    model = convolution()
    layouts = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    options = {"n": 3, "steps": 5, "seed": 4}
    both = gk.sample(model, **options, cond=[1, 2], guides=[MagicMix(layouts, 0.5, stop=0.5)])
    for i in range(2):
        alone = gk.sample(model, **options, cond=i + 1, guides=[MagicMix(layouts[i], 0.5, stop=0.5)])
        assert torch.allclose(both.x[both.group == i], alone.x, rtol=1e-10)
    for guides in ([MagicMix(layouts[0], 0.3), gk.CFG(3.0)], [gk.CFG(3.0), MagicMix(layouts[0], 0.3)]):
        x, t, found = look(model, guides)
        null, own = (model(x, t, labels(5, c)) for c in (0, 1))
        assert torch.allclose(found, 0.3 * (null + 3 * (own - null)) + 0.7 * layouts[0])


def test_a_layout_by_prompt_is_a_composition():
    """nu d(content) + (1 - nu) d(layout), as the docstring says."""
    model = convolution()
    x, t, found = look(model, [Compose(2, 0.4, own=0.6)])
    assert torch.allclose(found, 0.6 * model(x, t, labels(5, 1)) + 0.4 * model(x, t, labels(5, 2)))


# what all have in common -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp-1d", "flow-2d", "masked", "uniform"])
def test_idle_settings_give_the_unguided_sampler_bit_for_bit(name):
    problem = PROBLEMS[name]
    options = {"n": 12, "steps": 6, "cond": problem.cond}
    plain = gk.sample(problem.model, **options)
    idle = [Switch(None, 1.0), Regions(None, torch.zeros(1, 1)), Regions(None, torch.ones(1, 1), scale=0.0)]
    if name in ("vp-1d", "flow-2d"):
        idle += [MagicMix(torch.zeros(problem.model.shape), 1.0)]
    for guide in idle:
        assert torch.equal(gk.sample(problem.model, **options, guides=[guide]).x, plain.x)


def test_bad_input_is_an_error_before_the_first_network_call():
    def never(x, t, cond):
        raise AssertionError("the network was called")

    model, layout = gk.GaussianModel(never, SHAPE, null=0), torch.zeros(SHAPE)
    for wrong, match in (
        (lambda: Switch([1, 2], 0.5), "a fraction of the run in"),
        (lambda: Switch([1], [1.5]), "a fraction of the run in"),
        (lambda: Switch([1, 2], [0.5, 0.5]), "must rise"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    for guide, match in (
        (Switch(gk.GaussianModel(never, SHAPE)), "is of another model"),
        (Regions(2, torch.zeros(1, 4, 5)), r"broadcasts to \(2, 4, 4\)"),
        (Regions([2, 0], torch.zeros(1, 4, 4)), "each of the 2 conditions"),
        (Regions(2, torch.zeros(1, 1, 2, 4, 4)), "broadcasts to"),
        (Regions(2, 1.5 * torch.ones(1, 4, 4)), "add up to 1"),
        (Regions([2, 0], 0.6 * torch.ones(2, 4, 4)), "add up to 1"),
        (Regions(2, -torch.ones(1, 4, 4)), "add up to 1"),
        (MagicMix(torch.zeros(4, 5)), "samples have shape"),
    ):
        with pytest.raises(ValueError, match=match):
            gk.Run(model, 2, cond=1, guides=[guide])
    with pytest.raises(ValueError, match="3 layouts for 2 conditions"):
        gk.sample(model, 2, cond=[1, 2], guides=[MagicMix(torch.stack([layout] * 3))])
    with pytest.raises(ValueError, match="no null condition"):
        gk.Run(gk.GaussianModel(never, SHAPE), 2, cond=1, guides=[Switch(None)])
    with pytest.raises(ValueError, match="the rows of the run have none"):
        gk.sample(gk.GaussianModel(never, SHAPE), 2, guides=[Switch(1, 0.0)])
    with pytest.raises(ValueError, match="tokens have none"):
        gk.Run(PROBLEMS["masked"].model, 2, cond=0, guides=[MagicMix(torch.zeros(3))])
    few = Regions(2, lambda samples: torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="masks for 1 of 2 samples"):
        gk.sample(convolution(), 2, steps=3, cond=1, guides=[few])

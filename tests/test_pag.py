"""PAG, SEG and SLG as guides: the formula, its cost, its ends, its company; and the search for heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import guidekit as gk
from guidekit.guides.pag import PAG, Identity
from guidekit.guides.seg import SEG
from guidekit.guides.slg import SLG
from guidekit.models.attention import Perturbed
from guidekit.search.headhunter import headhunter

from .test_attention import TOKENS, Net, by_hand, identity

STEPS = 4


def gaussian(net, **options) -> gk.GaussianModel:
    """A base model around a network, or a closure that holds one."""
    return gk.GaussianModel(net, (TOKENS,), predicts="clean", null=0.0, **{"dtype": torch.float64} | options)


def tokens(kind, net: Net) -> gk.Model:
    """The network's last layer is replaced by one logit per symbol."""
    symbols = 3
    read = nn.Linear(1, symbols, dtype=torch.float64)
    with torch.no_grad():
        read.weight.copy_(torch.tensor([[1.0], [-0.5], [0.2]]))

    def logits(x: Tensor, t: Tensor, cond) -> Tensor:
        return read(net(x.double() / symbols, t.double(), cond)[..., None])

    return kind(logits, symbols, TOKENS, null=0.0)


def run(model: gk.Model, guides=(), n: int = 3, **options) -> gk.Result:
    return gk.sample(model, n, guides=guides, **{"steps": STEPS, "cond": 1.0} | options)


GUIDES = [PAG(2.0, "blocks.1"), SEG(1.5, "blocks.1", sigma=1.0), SLG(1.2, "blocks.1")]


# the formula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength, heads", [(1.0, None), (0.4, (1,))])
def test_the_prediction_is_cond_plus_scale_times_cond_minus_perturbed(strength: float, heads):
    net = Net(blocks=3)
    model = gaussian(net)
    start = gk.Run(model, 4, steps=STEPS, cond=1.0, guides=[PAG(2.5, "blocks.1", heads, strength)])
    with torch.no_grad():
        pop = start.start()
    t, cond = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    plain = by_hand(net, pop.x, t, cond)
    weak = by_hand(net, pop.x, t, cond, identity([1], heads or range(2), strength))
    assert not torch.allclose(plain, weak, atol=1e-3)
    assert torch.allclose(pop.predictions[0], plain + 2.5 * (plain - weak), rtol=1e-10, atol=1e-12)


def test_with_cfg_the_three_branches_add_in_one_forward():
    net = Net(blocks=3)
    model = gaussian(net)
    guides = [PAG(2.5, "blocks.1"), gk.CFG(3.0)]
    with torch.no_grad():
        pop = gk.Run(model, 4, steps=STEPS, cond=1.0, guides=guides).start()
    assert net.calls == [12]
    t, one = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    plain, null = by_hand(net, pop.x, t, one), by_hand(net, pop.x, t, 0 * one)
    weak = by_hand(net, pop.x, t, one, identity([1]))
    assert torch.allclose(pop.predictions[0], null + 3 * (plain - null) + 2.5 * (plain - weak), rtol=1e-10, atol=1e-12)
    result, other = run(model, guides), run(model, guides[::-1])
    assert torch.allclose(result.x, other.x, rtol=1e-10)
    assert (result.cost.network_rows, result.cost.network_calls) == (3 * 3 * STEPS, STEPS)


def test_tokens_are_guided_in_their_log_probabilities():
    for kind in (gk.MaskedModel, gk.UniformModel):
        net = Net(blocks=3)
        model = tokens(kind, net)
        need = Perturbed.of(Identity(), "blocks.1")
        with torch.no_grad():
            pop = gk.Run(model, 4, steps=STEPS, cond=1.0, guides=[PAG(2.0, "blocks.1")]).start()
            x, ones = torch.cat([pop.x, pop.x]), torch.ones(8)
            with need.during(model, slice(4, 8)):
                plain, weak = model(x, 1.0, ones).split(4)
        assert torch.allclose(pop.predictions[0], plain + 2 * (plain - weak), rtol=1e-10, atol=1e-12)
        assert not torch.equal(run(model, [PAG(2.0, "blocks.1")], n=40).x, run(model, n=40).x)


# cost and ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: type(g).__name__)
def test_the_branch_costs_rows_and_no_second_forward(guide):
    net = Net(blocks=3)
    result = run(gaussian(net), [guide])
    assert net.calls == [6] * STEPS
    assert (result.cost.network_rows, result.cost.network_calls) == (6 * STEPS, STEPS)
    assert not torch.equal(result.x, run(gaussian(net)).x)


@pytest.mark.parametrize(
    "guide",
    [
        PAG(0.0), PAG(0), PAG(2.0, strength=0.0), PAG(2.0, heads=()), PAG(2.0, heads={}), PAG(0.0, steer=True),
        SEG(0.0), SEG(2.0, sigma=0.0), SLG(0.0), PAG(2.0, start=0.5, stop=0.5),
    ],
    ids=str,
)  # fmt: skip
def test_idle_settings_are_the_plain_model_bit_for_bit_and_cost_nothing(guide):
    model = gaussian(Net(blocks=3))
    plain, idle = run(model), run(model, [guide])
    assert torch.equal(plain.x, idle.x)
    assert idle.cost.network_rows == plain.cost.network_rows
    assert torch.equal(plain.log_weights, idle.log_weights)


def test_a_scheduled_scale_of_zero_is_the_plain_model():
    model = gaussian(Net(blocks=3))
    guided = run(model, [PAG(lambda t: 0.0)])
    assert torch.allclose(guided.x, run(model).x, rtol=1e-12, atol=1e-12)  # its branch shares the forward


def test_equal_descriptions_are_evaluated_once():
    net = Net(blocks=3)
    model = gaussian(net)
    shared = [PAG(1.0, "blocks.1"), PAG(0.5, ["blocks.1"]), PAG(lambda t: t, ("blocks.1",))]
    assert run(model, shared).cost.network_rows == 2 * 3 * STEPS
    assert run(model, [*shared, PAG(1.0, "blocks.2"), *GUIDES]).cost.network_rows == 5 * 3 * STEPS
    twice = run(model, [PAG(1.0, "blocks.1", (1, 0)), PAG(0.5, "blocks.1", [0, 1, 1])])
    assert torch.allclose(twice.x, run(model, [PAG(1.5, "blocks.1", (0, 1))]).x, rtol=1e-9)


def test_the_interval_and_the_schedule_decide_step_by_step():
    net = Net(blocks=3)
    seen: list[float] = []
    run(gaussian(net), [PAG(lambda t: seen.append(t) or 1.0, start=0.25, stop=0.75)])
    assert net.calls == [3, 6, 6, 3]
    assert list(dict.fromkeys(seen)) == [0.75, 0.5]


# company -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_a_row_does_not_depend_on_its_micro_batch(guide, batch_size: int):
    model = gaussian(Net(blocks=3))
    guides = [gk.CFG(2.0), guide]
    whole, parts = run(model, guides, n=5), run(model, guides, n=5, batch_size=batch_size)
    assert torch.allclose(whole.x, parts.x, rtol=1e-10, atol=1e-10)
    assert whole.cost.network_rows == parts.cost.network_rows
    groups = run(model, guides, n=5, cond=[1.0, None])
    assert torch.allclose(groups.x[:5], whole.x, rtol=1e-10, atol=1e-10)
    assert torch.allclose(groups.x[5:], run(model, guides, n=5, cond=None).x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda g: type(g).__name__)
def test_steering_is_weighed_so_that_the_plain_law_is_left(guide):
    """E[w] = 1 and E[w f] = E[f] of the plain chain, for populations of any size; 4.5 standard errors of 6,000 rows."""
    net = Net(blocks=2, seed=3)
    model = gaussian(lambda x, t, cond: 0.3 * net(x, t, cond).tanh())
    steered = type(guide)(**{**vars(guide), "scale": 0.3, "steer": True})
    result = run(model, [steered], n=2, cond=[1.0] * 3000, seed=list(range(3000)), steps=3)
    plain = run(model, n=2, cond=[1.0] * 3000, seed=list(range(3000, 6000)), steps=3).x
    w = result.log_weights.exp()
    assert w.std() > 0.01
    for f in (
        lambda x: torch.ones(len(x)),
        lambda x: x[:, 0],
        lambda x: x.mean(1).abs(),
        lambda x: (x[:, 3] > 0.2).double(),
    ):
        a, b = (w * f(result.x)).view(3000, 2).mean(1), f(plain).double().view(3000, 2).mean(1)
        error = ((a.var() + b.var()) / 3000).sqrt()
        assert (a.mean() - b.mean()).abs() < 4.5 * error


def test_it_steers_a_gradient_guide_and_follows_a_selection():
    model = gaussian(Net(blocks=3))
    reward = lambda x: x[:, 0].tanh()  # noqa: E731
    guides = [PAG(0.5, "blocks.1"), gk.TDS(reward, 0.5, scale=0.1), gk.SVDD(reward, 0.5, candidates=2)]
    result = run(model, guides, n=6)
    assert result.x.isfinite().all() and result.log_weights.isfinite().all()
    assert torch.equal(result.x, run(model, guides, n=6).x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_precision_works(dtype: torch.dtype):
    net = Net(blocks=3).to(dtype)
    model = gaussian(lambda x, t, cond: net(x, t.to(x), cond.to(x)), dtype=torch.float32)
    guides = [PAG(0.5, "blocks.1", strength=0.5), SEG(0.2, "blocks.1", sigma=1.0), SLG(0.1, "blocks.2")]
    result = run(model, guides)
    assert result.x.isfinite().all()
    assert not torch.equal(result.x, run(model).x)


def test_a_network_deep_in_a_callable_is_found_and_left_as_it_was():
    net = Net(blocks=3).train()

    class Holder:
        def __init__(self):
            self.parts = {"net": net}
            self.net = net

        def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            assert not self.net.training
            return self.net(x, t, cond)

    result = run(gaussian(Holder()), GUIDES)
    assert torch.equal(result.x, run(gaussian(lambda x, t, c: net(x, t, c)), GUIDES).x)
    assert net.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_names_and_options_are_checked_before_the_first_forward():
    net = Net(blocks=3)
    for guide in (PAG(1.0, "block.1"), SEG(1.0, "blocks.7"), SLG(0.0, "blocks.3"), PAG(1.0, heads={"bloks.1": [0]})):
        with pytest.raises(ValueError, match=r"no module .*; near it are .*blocks.1"):
            run(gaussian(net), [guide])
    for guide in (
        PAG(1.0, strength=2.0),
        PAG(1.0, heads=[-1]),
        SEG(1.0, sigma=-1.0),
        PAG(1.0, "blocks.1", {"blocks.1": 0}),
    ):  # type: ignore[dict-item]
        with pytest.raises((ValueError, TypeError)):
            run(gaussian(net), [guide])
    with pytest.raises(ValueError, match="holds none"):
        run(gk.analytic.GaussianMixture([1.0], [0.0], [1.0]), [PAG(1.0)], cond=None)
    assert net.calls == []


# the search for heads ----------------------------------------------------------------------------------------------


def reward(x: Tensor) -> Tensor:
    return x[:, 0] - 0.5 * x[:, 1].abs()


def test_headhunter_ranks_every_head_by_what_a_run_with_it_gives():
    model = gaussian(Net(blocks=3, seed=2))
    hunt = headhunter(model, reward, n=5, steps=3, scale=1.5, cond=1.0, seed=4, top=2, rounds=2)
    assert {(row.layer, row.head) for row in hunt.ranking} == {
        (f"blocks.{i}.attn", h) for i in range(3) for h in (0, 1)
    }
    plain = run(model, n=5, steps=3, seed=4, reward=reward).rewards

    def rewards(heads):
        return run(model, [PAG(1.5, heads=heads)], n=5, steps=3, seed=4, reward=reward).rewards

    for row in hunt.ranking:
        own = rewards({row.layer: (row.head,)})
        assert row.reward == pytest.approx(float(own.mean()), rel=1e-12)
        assert row.error == pytest.approx(float(own.std()) / 5**0.5, rel=1e-12)
        assert row.gain == pytest.approx(float((own - plain).mean()), rel=1e-9)
        assert row.gain_error == pytest.approx(float((own - plain).std()) / 5**0.5, rel=1e-9)
    assert [row.reward for row in hunt.ranking] == sorted((row.reward for row in hunt.ranking), reverse=True)
    first = [(row.layer, row.head) for row in hunt.ranking[:2]]
    assert list(hunt.selected[:2]) == first
    # the second round: of the four left those two that add most to the first two
    added = {
        (row.layer, row.head): float(rewards(_together([*first, (row.layer, row.head)])).mean())
        for row in hunt.ranking[2:]
    }
    assert list(hunt.selected[2:]) == sorted(added, key=added.__getitem__, reverse=True)[:2]
    assert [r.heads for r in hunt.rounds] == [0, 2, 4]
    assert hunt.rounds[0].reward == pytest.approx(float(plain.mean()))
    assert hunt.rounds[2].reward == pytest.approx(float(rewards(hunt.best(4)).mean()), rel=1e-12)
    best = max(hunt.rounds[1:], key=lambda r: r.reward).heads
    assert hunt.best() == hunt.best(best) == _together(hunt.selected[:best])
    assert sum(map(len, hunt.best(6).values())) == 6
    for k in (0, 7):
        with pytest.raises(ValueError, match="there are 6 heads"):
            hunt.best(k)
    assert str(hunt).splitlines()[1].split()[:2] == [hunt.ranking[0].layer, str(hunt.ranking[0].head)]


def _together(heads) -> dict[str, tuple[int, ...]]:
    layers = {layer for layer, _ in heads}
    return {layer: tuple(sorted(h for other, h in heads if other == layer)) for layer in layers}


def test_headhunter_finds_the_one_head_that_matters():
    """All heads but one feed nothing into the network, so perturbing them gains exactly nothing."""
    net = Net(blocks=3, seed=5)
    for i, block in enumerate(net.blocks):
        for head in range(2):
            if (i, head) != (1, 1):
                block.attn.out.weight[:, 4 * head : 4 * head + 4] = 0
    model = gaussian(lambda x, t, cond: net(x, t, cond).tanh())
    gain = float(headhunter(model, reward, layers="blocks.1", n=6, steps=3, cond=1.0, rounds=1).ranking[0].gain)
    sign = gain if abs(gain) > 1e-9 else -1.0  # a head that feeds nothing may gain what rounding leaves
    hunt = headhunter(model, lambda x: sign * reward(x), layers=["blocks.0", "blocks.1"], n=6, steps=3, cond=1.0, top=1)
    gains = {(row.layer, row.head): row.gain for row in hunt.ranking}
    assert gains.keys() == {(f"blocks.{i}.attn", h) for i in (0, 1) for h in (0, 1)}
    assert [head for head, gain in gains.items() if abs(gain) > 1e-9] == [("blocks.1.attn", 1)]
    assert hunt.selected[0] == ("blocks.1.attn", 1)
    assert hunt.best(1) == {"blocks.1.attn": (1,)}


def test_headhunter_takes_guides_groups_and_samples_without_a_score():
    net = Net(blocks=2)

    def half(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, x[:, 1], torch.nan)

    hunt = headhunter(
        gaussian(net), half, layers="blocks.1", n=4, steps=2, cond=[1.0, 2.0], guides=[gk.CFG(2.0)], rounds=5, top=1,
        batch_size=6, progress=True,
    )  # fmt: skip
    assert [len(r) for r in (hunt.ranking, hunt.rounds)] == [2, 3]  # there are no more heads
    assert all(row.reward == row.reward for row in hunt.ranking)
    with pytest.raises(ValueError, match="top=0"):
        headhunter(gaussian(net), reward, top=0)
    with pytest.raises(ValueError, match="no module 'zzz'"):
        headhunter(gaussian(net), reward, layers="zzz")

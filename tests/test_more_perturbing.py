"""ERG, TPG, TSG, S2, NAG and SAG: each against the network written out by hand."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.guides.erg import Rectified
from guidekit.guides.tpg import Shuffle
from guidekit.guides.tsg import Noised
from guidekit.models.attention import Attention

from .test_attention import DIM, HEADS, TOKENS, WIDTH, Net, by_hand, norm
from .test_pag import gaussian

STEPS = 4


def start(net: Net, guide: gk.Guide, n: int = 3, **options):
    """The guided prediction at the start, with its state and the unguided prediction."""
    model = gaussian(net, **options)
    with torch.no_grad():
        pop = gk.Run(model, n, steps=STEPS, cond=1.0, guides=[guide]).start()
    t = torch.ones(n, dtype=torch.float64)
    return pop.predictions[0], pop.x, t, by_hand(net, pop.x, t, t)


@contextmanager
def replaced(module: nn.Module, forward):
    """Another forward of a module, which gets the old one first."""
    old = module.forward
    module.forward = lambda *args: forward(old, *args)
    try:
        yield
    finally:
        del module.forward


def test_erg_changes_the_temperature_of_the_map():
    net = Net(blocks=3)
    guided, x, t, plain = start(net, gk.ERG(2.5, "blocks.1", tau=0.3))
    weak = by_hand(net, x, t, t, lambda i, a: a**0.3 / (a**0.3).sum(-1, keepdim=True) if i == 1 else a)
    assert torch.allclose(guided, plain + 2.5 * (plain - weak), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(plain, weak, atol=1e-3)


def test_a_step_of_another_size_mixes_in_the_queries():
    q, k, v = (torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    out = Rectified(0.5, 0.7, 1.2).attention(Attention(q, k, v, {}), q)
    wanted = 0.3 * q + 0.7 * 1.2 * ((0.5 * q @ k.mT / 2).softmax(-1) @ v)
    assert torch.allclose(out, wanted, atol=1e-5)
    with pytest.raises(gk.NetworkError, match="one shape"):
        Rectified(gamma=0.5).attention(Attention(q, k, v[..., :2], {}), q)
    with pytest.raises(ValueError, match="tau is at least 0"):
        gk.Run(gaussian(Net(blocks=2)), 2, guides=[gk.ERG(1.0, tau=-1.0)])


def test_tpg_shuffles_the_tokens_that_enter_a_layer_and_others_at_every_step():
    net, guide = Net(blocks=3), gk.TPG(2.0, "blocks.1", seed=5)
    guided, x, t, plain = start(net, guide)
    by = guide.drawn(gaussian(net), guide.key(1.0), 1.0).by
    assert isinstance(by, Shuffle)
    order = by.given(torch.arange(TOKENS)[None, :, None], "blocks.1")[0, :, 0]
    assert sorted(order.tolist()) == list(range(TOKENS)) != order.tolist()
    with replaced(net.blocks[1], lambda old, h, context: old(h[:, order], context)):
        weak = net(x, t, t)
    assert torch.allclose(guided, plain + 2.0 * (plain - weak), rtol=1e-9, atol=1e-11)
    later = Shuffle(guide.key(0.75)).given(torch.arange(TOKENS)[None, :, None], "blocks.1")[0, :, 0]
    assert not torch.equal(order, later)
    maps = torch.arange(24.0).view(1, 2, 3, 4)
    shuffled = by.given(maps, "conv")  # the pixels of a feature map, the same in all channels
    assert torch.equal(shuffled[0, 1] - shuffled[0, 0], torch.full((3, 4), 12.0)) and not torch.equal(shuffled, maps)


def test_tsg_noises_the_embedding_of_time_the_less_the_later():
    net, guide = Net(blocks=2), gk.TSG(1.5, "embed", std=0.7, power=2.0)
    guided, x, t, plain = start(net, guide)
    noise = guide.drawn(gaussian(net), guide.key(1.0), 1.0).by
    assert isinstance(noise, Noised) and noise.std == 0.7
    zero = torch.zeros(3, TOKENS, WIDTH, dtype=torch.float64)
    added = noise.module([], zero, lambda old, new: new)
    assert torch.equal(added[0], added[1]) and 0.4 < added[0].std() < 1.1
    with replaced(net.embed, lambda old, h: old(h) + added):
        weak = net(x, t, t)
    assert torch.allclose(guided, plain + 1.5 * (plain - weak), rtol=1e-9, atol=1e-11)
    assert guide.drawn(gaussian(net), 1, 0.5).by.std == 0.7 * 0.25
    net.time_embedding = nn.Identity()
    assert gk.TSG(1.0).drawn(gaussian(net), 1, 1.0).layers == ("time_embedding",)
    with pytest.raises(ValueError, match="embeds the time"):
        gk.Run(gaussian(Net(blocks=2)), 2, guides=[gk.TSG(1.0)])


def test_s2_guidance_is_slg_of_blocks_that_are_drawn_at_every_step():
    net, guide = Net(blocks=6), gk.S2Guidance(1.2, drop=0.3)
    model = gaussian(net)
    drawn = [guide.drawn(model, guide.key(t), t).layers for t in (1.0, 0.75, 0.5, 0.25)]
    assert all(len(layers) == 2 for layers in drawn) and len(set(drawn)) > 2
    guided, *_ = start(net, guide)
    skipped, *_ = start(net, gk.SLG(1.2, drawn[0]))
    assert torch.allclose(guided, skipped, rtol=1e-10, atol=1e-12)
    assert len(gk.S2Guidance(1.0, drop=0.99).drawn(model, 3, 1.0).layers) == 5  # one stays
    with pytest.raises(ValueError, match="two blocks or more"):
        gk.Run(model, 2, guides=[gk.S2Guidance(1.0, "blocks.1")])
    with pytest.raises(ValueError, match=r"lies in \(0, 1\)"):
        gk.Run(model, 2, guides=[gk.S2Guidance(1.0, drop=1.0)])


def heads(v: torch.Tensor) -> torch.Tensor:
    return v.unflatten(-1, (HEADS, DIM)).transpose(1, 2)


def test_nag_extrapolates_cross_attention_within_its_bound():
    net, phi, tau, alpha = Net(blocks=2, crossed=True), 5.0, 1.3, 0.4
    guided, x, t, plain = start(net, gk.NAG(phi, negative=0.25, tau=tau, alpha=alpha))
    away, bounds = 0.25 * torch.ones(3, dtype=torch.float64), []
    context, other = net.begin(x, t, t).flip(1), net.begin(x, t, away).flip(1)
    h = net.begin(x, t, t)
    for block in net.blocks:
        h, f = h + block.attn(norm(h)), block.cross
        q = heads(f.q(norm(h)))
        plus, minus = ((q @ heads(f.k(c)).mT / DIM**0.5).softmax(-1) @ heads(f.v(c)) for c in (context, other))
        z = (phi * plus - (phi - 1) * minus).transpose(1, 2).flatten(2)
        own = plus.transpose(1, 2).flatten(2)
        r = (z.abs().sum(-1, keepdim=True) / own.abs().sum(-1, keepdim=True)).clamp(min=1e-12)
        bounds.append(r)
        h = h + f.out(alpha * z * r.clamp(max=tau) / r + (1 - alpha) * own)
        h = h + block.mlp(norm(h))
    wanted = net.last(h)[..., 0]
    ratio = torch.cat(bounds)
    assert ratio.min() < tau < ratio.max()  # the bound is met by some
    assert torch.allclose(guided, wanted, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    with pytest.raises(ValueError, match="cross-attends"):
        gk.Run(gaussian(Net(blocks=2)), 2, guides=[gk.NAG(4.0)])
    with pytest.raises(gk.NetworkError, match="self-attention only"):
        gk.sample(gaussian(Net(blocks=2)), 2, steps=2, cond=1.0, guides=[gk.NAG(4.0, "blocks.1.attn")])


@pytest.mark.parametrize("branch, label", [("cond", 1.0), ("null", 0.0)])
def test_sag_pushes_away_from_what_blurring_the_attended_regions_leaves(branch: str, label: float):
    net, side = Net(blocks=3), 3
    model = gk.GaussianModel(
        lambda x, t, c: net(x.flatten(1), t, c).view_as(x), (1, side, side), gk.schedules.Flow(), "clean", null=0.0,
        dtype=torch.float64,
    )  # fmt: skip
    run = gk.Run(model, 4, steps=STEPS, cond=1.0, guides=[gk.SAG(0.8, "blocks.1", branch=branch)])
    with torch.no_grad():
        pop = run.advance(run.start(), 0)
        time = run.moves[1].t
        t, x, maps = torch.full((4,), time, dtype=torch.float64), pop.x.flatten(1), []
        label, one = label * torch.ones_like(t), torch.ones_like(t)
        own = by_hand(net, x, t, one)
        clean = by_hand(net, x, t, label, lambda i, a: maps.append(a) or a)
        attended = maps[1].mean(1).sum(1)
        assert torch.allclose(attended.mean(1), one)
        line = np.exp([-0.5, 0.0, -0.5]) / (1 + 2 * np.exp(-0.5))  # as wide as half of the side
        padded = np.pad(clean.view(4, side, side).numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
        blur = sum(line[i] * line[j] * padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3))
        changed = torch.where(attended > 1, torch.tensor(blur).flatten(1), clean)
        alpha, sigma = model.process.scales(time)
        noise = (x - alpha * clean) / sigma
        worse = by_hand(net, alpha * changed + sigma * noise, t, label)
    assert 0 < (attended > 1).double().mean() < 1 and not torch.allclose(changed, clean, atol=1e-3)
    assert torch.allclose(pop.predictions[0].flatten(1), own + 0.8 * (changed - worse), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match="there is 'cond' and 'null'"):
        gk.Run(model, 2, guides=[gk.SAG(1.0, branch="both")])

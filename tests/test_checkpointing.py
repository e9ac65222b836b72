"""Gradient checkpointing: where a backward pass recomputes parts of a forward, the network is as the forward had it."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import guidekit as gk
from guidekit import weakened
from guidekit.guides.pag import Identity
from guidekit.models.attention import Perturbed
from guidekit.models.evaluations import Cond, evaluate

from .test_attention import Attention, footprint

TOKENS, WIDTH, BLOCKS = 9, 8, 4


class Recomputed(torch.autograd.Function):
    """Re-entrant checkpointing as the code of guided diffusion has it, which goes with torch.autograd.grad."""

    @staticmethod
    def forward(ctx, run, *args):
        ctx.run = run
        ctx.save_for_backward(*args)
        with torch.no_grad():
            return run(*args)

    @staticmethod
    def backward(ctx, *grads):
        inputs = [v.detach().requires_grad_() for v in ctx.saved_tensors]
        with torch.enable_grad():
            out = ctx.run(*inputs)
        return None, *torch.autograd.grad(out, inputs, grads, allow_unused=True)


def frugal(run, *args):
    return checkpoint(run, *args, use_reentrant=False)


def nested(run, *args):
    return frugal(lambda *own: frugal(run, *own), *args)


def reentrant(run, *args):
    return Recomputed.apply(run, *args)


KINDS = {"frugal": frugal, "reentrant": reentrant}


class Block(nn.Module):
    def __init__(self, own: bool):
        super().__init__()
        self.own = own
        self.attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if own else Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, (WIDTH,))
        x = x + (self.attn(h, h, h, need_weights=False)[0] if self.own else self.attn(h))
        return x + self.mlp(F.layer_norm(x, (WIDTH,))).sin()


class Net(nn.Module):
    """A transformer whose blocks, or their attention alone, are run by `keep`."""

    def __init__(self, own: bool = False, keep=None, inner: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.last = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(Block(own) for _ in range(BLOCKS))
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.keep, self.inner = keep, inner
        self.double()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.embed(torch.stack([x, t[:, None].expand_as(x)], -1)) + self.place
        for block in self.blocks:
            run = block if not self.inner else lambda h, block=block: block(h)
            h = run(h) if self.keep is None else self.keep(run, h)
        return 0.3 * self.last(h)[..., 0]


def wrap(net: nn.Module) -> gk.GaussianModel:
    return gk.GaussianModel(net, (TOKENS,), predicts="clean")


def reward(x: Tensor) -> Tensor:
    return (x * torch.linspace(-1, 1, TOKENS, dtype=x.dtype)).sin().sum(1)


GUIDES = {
    "PAG": lambda model: gk.PAG(3.0, ["blocks.1", "blocks.2"]),
    "PAG of a head": lambda model: gk.PAG(3.0, heads={"blocks.1.attn": [1]}),
    "SEG": lambda model: gk.SEG(3.0, "blocks.1", sigma=1.0),
    "SLG": lambda model: gk.SLG(3.0, "blocks.1"),
    "dropped": lambda model: gk.AutoGuidance(weakened(model, drop=["blocks.1.mlp.1", "blocks.2"], share=0.4), 3.0),
    "skipped": lambda model: gk.AutoGuidance(weakened(model, skip=["blocks.1.mlp.1", "blocks.2"]), 3.0),
}
CLIMBS = {"DPS": gk.DPS(reward, scale=0.5), "TDS": gk.TDS(reward, 0.5)}


def tilted(net: nn.Module, guides, steps: int = 3, **options) -> list[Tensor]:
    """What all particles move with at the looks of a run."""
    found = []
    run = gk.Run(wrap(net), 4, steps=steps, guides=guides, **options)
    with run.borrowed():
        pop = run.start()
        for index in range(steps):
            found.append((pop.proposals or pop.predictions)[0])
            pop = run.advance(pop, index)
    return [*found, pop.x]


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.allclose(v, w, rtol=1e-9, atol=1e-9) for v, w in zip(a, b, strict=True))


@cache
def uncheckpointed(guide: str, climb: str, own: bool) -> list[Tensor]:
    net = Net(own)
    right = tilted(net, [GUIDES[guide](wrap(net)), CLIMBS[climb]])
    assert not close(tilted(net, [CLIMBS[climb]]), right)
    return right


@pytest.mark.parametrize("own", [False, True], ids=["sdpa", "multihead"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("climb", CLIMBS)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_gradient_through_recomputed_layers_is_the_same(guide: str, climb: str, kind: str, own: bool):
    net = Net(own, KINDS[kind])
    before = footprint(net)
    assert close(tilted(net, [GUIDES[guide](wrap(net)), CLIMBS[climb]]), uncheckpointed(guide, climb, own))
    assert footprint(net) == before


@pytest.mark.parametrize("keep, options", [(frugal, {}), (nested, {"batch_size": 3}), (reentrant, {"batch_size": 12})])
def test_every_forward_in_a_backward_pass_finds_its_own_perturbation(keep, options):
    """Three networks of the same modules and five perturbations, in one graph; blocks are run as functions."""

    def found(net: Net) -> list[Tensor]:
        return tilted(net, [*(guide(wrap(net)) for guide in GUIDES.values()), gk.DPS(reward, scale=0.5)], **options)

    assert close(found(Net(keep=keep, inner=True)), found(Net()))


def test_gradient_search_goes_back_through_recomputed_layers():
    def found(net: Net) -> Tensor:
        guides, solver = [GUIDES["PAG"](wrap(net)), GUIDES["dropped"](wrap(net))], gk.solvers.DDIM()
        return gk.search.gradient(wrap(net), 2, reward, rounds=3, rate=1.0, steps=3, guides=guides, solver=solver).x

    assert torch.allclose(found(Net(keep=frugal)), found(Net()), rtol=1e-9, atol=1e-9)


def test_runs_in_threads_that_share_a_network_recompute_each_its_own():
    net, found = Net(keep=frugal), {}
    names = [name for name in GUIDES if name != "SLG"]

    def work(place: int, name: str) -> None:
        run = gk.Run(wrap(net), 4, steps=3, guides=[GUIDES[name](wrap(net)), CLIMBS["DPS"]])
        with torch.no_grad():
            pop = run.start()
            for index in range(3):
                pop = run.advance(pop, index)
        found[place] = pop.x

    net.eval().requires_grad_(False)
    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, name in enumerate(names):
        assert torch.allclose(found[place], uncheckpointed(name, "DPS", False)[-1], rtol=1e-9, atol=1e-9)


def evaluated(net: nn.Module, x: Tensor, need: Cond, cond: Tensor | None = None) -> Tensor:
    return evaluate(wrap(net), (Cond(), need), x, 0.5, cond, lambda n: None)[need]


def test_a_backward_pass_in_another_thread_and_a_second_one_are_perturbed_too():
    x, slopes = torch.randn(3, TOKENS, dtype=torch.float64, requires_grad=True), []
    need = Perturbed.of(Identity(), "blocks.1")
    kept, plain = evaluated(Net(keep=frugal), x, need).sin().sum(), evaluated(Net(), x, need).sin().sum()

    def work() -> None:
        slopes.append(torch.autograd.grad(kept, x, retain_graph=True)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    (right,) = torch.autograd.grad(plain, x)
    assert all(torch.allclose(slope, right, rtol=1e-9, atol=1e-12) for slope in slopes) and len(slopes) == 2


class Folded(nn.Module):
    """Frames fold into the rows, and what is cross-attention is told by a module outside of what is recomputed."""

    class Attend(nn.Module):
        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query[:, None], key[:, None], key[:, None])[:, 0]

    def __init__(self, keep):
        super().__init__()
        self.attend, self.keep = self.Attend(), keep

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        h = x[..., None] * torch.linspace(-1, 1, 4, dtype=x.dtype)
        h = torch.stack([h, h.cos()], 1).flatten(0, 1)  # two frames of each row
        text = encoder_hidden_states.repeat_interleave(2, 0)
        h = self.keep(lambda h: self.attend(h.sin(), h.roll(1, -1)), h)
        h = self.keep(lambda h: self.attend(h[:, :3].sin(), text), h)
        return h.sum(-1).repeat(1, 3).unflatten(0, (-1, 2)).sum(1)


def test_what_modules_outside_have_told_is_known_where_inner_ones_are_recomputed():
    text = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 3, 4)

    def slope(keep) -> Tensor:
        x = torch.linspace(-1, 1, 2 * TOKENS, dtype=torch.float64).view(2, TOKENS).requires_grad_()
        out = evaluated(Folded(keep), x, Perturbed.of(Identity(), "attend"), text)
        return torch.autograd.grad(out.sin().sum(), x)[0]

    plain = slope(lambda run, h: run(h))
    assert torch.allclose(slope(frugal), plain, atol=1e-12)
    assert torch.allclose(slope(reentrant), plain, atol=1e-12)


def test_attention_that_is_handed_the_same_tensor_thrice_stays_self_attention():
    """Recomputation gives it three tensors."""

    class Own(nn.Module):
        def __init__(self, keep):
            super().__init__()
            torch.manual_seed(0)
            self.attn, self.keep = nn.MultiheadAttention(WIDTH, 2, batch_first=True).double(), keep

        def forward(self, x: Tensor, *rest: Tensor | None) -> Tensor:
            h = x[..., None] * torch.linspace(-1, 1, WIDTH, dtype=x.dtype)
            return self.keep(lambda q, k, v: self.attn(q, k, v, need_weights=False)[0], h, h, h).sum(-1)

    def slope(keep) -> Tensor:
        x = torch.linspace(-1, 1, 2 * TOKENS, dtype=torch.float64).view(2, TOKENS).requires_grad_()
        return torch.autograd.grad(evaluated(Own(keep), x, Perturbed.of(Identity())).sin().sum(), x)[0]

    plain = slope(lambda run, *args: run(*args))
    assert torch.allclose(slope(frugal), plain, atol=1e-12)
    assert torch.allclose(slope(reentrant), plain, atol=1e-12)


def test_attention_on_itself_and_on_others_that_cannot_be_told_apart_is_refused():
    class Both(Folded):
        def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            h = x[..., None] * torch.linspace(-1, 1, 4, dtype=x.dtype)
            h = self.attend(h.sin(), h)
            self.attend.is_cross_attention = True
            h = self.keep(lambda h: self.attend(h.sin(), h), h)
            self.attend.is_cross_attention = False
            return h.sum(-1)

    x = torch.randn(2, TOKENS, dtype=torch.float64, requires_grad=True)
    out = evaluated(Both(reentrant), x, Perturbed.of(Identity(), "attend"), torch.zeros(2, 3, 4, dtype=torch.float64))
    with pytest.raises(gk.NetworkError, match="attends to itself in one call and to others in another"):
        torch.autograd.grad(out.sum(), x)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("guide", GUIDES)
def test_a_backward_pass_that_fails_leaves_nothing_behind(guide: str, error):
    """Also while somebody holds the graph."""
    net = Net(keep=frugal)
    x, before = torch.randn(3, TOKENS, dtype=torch.float64, requires_grad=True), footprint(net)
    out = evaluated(net, x, (*GUIDES[guide](wrap(net)).needs,)[0]).sum()

    def fail(*args):
        raise error("inside")

    module = net.blocks[1].attn.out if guide in ("PAG", "PAG of a head", "SEG") else net.blocks[3].mlp
    handle = module.register_forward_pre_hook(fail)
    with pytest.raises(error, match="inside"):
        torch.autograd.grad(out, x, retain_graph=True)
    handle.remove()
    assert footprint(net) == before
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.autograd.grad(out, x)[0].isfinite().all()
    assert footprint(net) == before


def test_the_graph_goes_with_its_last_user():
    net = Net(keep=frugal)
    x = torch.randn(3, TOKENS, dtype=torch.float64, requires_grad=True)
    out = evaluated(net, x, Perturbed.of(Identity(), "blocks.1"))
    torch.autograd.grad(out.sum(), x, retain_graph=True)
    gc.collect()
    gc.disable()
    try:
        input = weakref.ref(x)
        del x, out
        assert input() is None
    finally:
        gc.enable()


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_checkpoints_through_which_torch_gives_no_gradient_are_refused_with_the_way_out():
    net = Net(keep=lambda run, h: checkpoint(run, h, use_reentrant=True))
    for climb in CLIMBS.values():
        with pytest.raises(gk.NetworkError, match="set use_reentrant=False"):
            gk.sample(wrap(net), 2, steps=2, guides=[gk.PAG(2.0, "blocks.1"), climb])
    assert gk.sample(wrap(net), 2, steps=2, guides=[gk.PAG(2.0, "blocks.1")]).x.isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_of_diffusers_may_have_its_checkpointing_on(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    diffusers = pytest.importorskip("diffusers")

    def found(kept: bool, guide) -> list[Tensor]:
        torch.manual_seed(0)
        net = diffusers.SD3Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
            pos_embed_max_size=4,
        ).double().eval()  # fmt: skip
        if kept:
            net.enable_gradient_checkpointing()
        text, pooled = torch.randn(1, 7, 16).double(), torch.randn(1, 8).double()

        def call(x: Tensor, t: Tensor, cond=None) -> Tensor:
            texts = {"encoder_hidden_states": text.expand(len(x), -1, -1)}
            return net(hidden_states=x, timestep=t * 1000, pooled_projections=pooled.expand(len(x), -1), **texts).sample

        model = gk.GaussianModel(call, (4, 4, 4), predicts="velocity")
        guides = [guide(model), gk.DPS(lambda x: x.flatten(1).sin().sum(1), scale=0.5)]
        return [gk.sample(model, 3, steps=2, guides=guides).x]

    for guide in (
        lambda model: gk.PAG(2.0, "transformer_blocks.2", tokens=(0, 4)),
        lambda model: gk.AutoGuidance(weakened(model, drop=["transformer_blocks.1.ff"]), 2.0),
    ):
        assert close(found(True, guide), found(False, guide))

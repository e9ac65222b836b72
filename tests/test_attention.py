"""Perturbed attention: against maps written out by hand, in the right rows, layers and heads, and nowhere else.

The network below calls torch's attention; `by_hand` computes the same network with an explicit softmax, in which a test
changes single maps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as imported

import guidekit as gk
from guidekit.guides.pag import Identity
from guidekit.guides.seg import Blur, kernel
from guidekit.guides.slg import Skip
from guidekit.models.attention import Perturbed, attention_layers

TOKENS, WIDTH, HEADS, BLOCKS = 9, 8, 2, 12
DIM = WIDTH // HEADS


class Attention(nn.Module):
    """Multi-head attention on itself or on a context; `how` is the way in which a network may call torch's."""

    def __init__(self, how: str = "attribute"):
        super().__init__()
        self.how, self.mask = how, None
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = (f(s).unflatten(-1, (HEADS, DIM)).mT.mT for f, s in ((self.q, x), (self.k, source), (self.v, source)))
        q, k, v = (w.transpose(1, 2) for w in (q, k, v))
        if self.how == "folded":  # heads in the leading axis, row by row
            q, k, v = (w.flatten(0, 1) for w in (q, k, v))
        if self.how == "softmax":
            out = (q @ k.mT / DIM**0.5).softmax(-1) @ v
        elif self.how == "imported":
            out = imported(query=q, key=k, value=v, attn_mask=self.mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, self.mask)
        out = out.unflatten(0, (len(x), HEADS)) if self.how == "folded" else out
        return self.out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, how: str, crossed: bool):
        super().__init__()
        self.attn = Attention(how)
        self.cross = Attention(how) if crossed else None
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = x + self.attn(norm(x))
        if self.cross is not None:
            x = x + self.cross(norm(x), context)
        return x + self.mlp(norm(x))


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,))


class Net(nn.Module):
    """x (rows, TOKENS) -> the same shape; t and cond go in with the tokens."""

    def __init__(self, how: str = "attribute", crossed: bool = False, blocks: int = BLOCKS, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
        self.place = nn.Parameter(torch.zeros(TOKENS, WIDTH))
        self.blocks = nn.ModuleList(Block(how, crossed) for _ in range(blocks))
        self.calls: list[int] = []
        self.double().requires_grad_(False)
        for p in self.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.6)

    def begin(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        label = torch.zeros_like(t) if cond is None else cond.to(t)
        return self.embed(torch.stack([x, t[:, None].expand_as(x), label[:, None].expand_as(x)], -1)) + self.place

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        h = self.begin(x, t, cond)
        context = h.flip(1)  # as many tokens as the image has
        for block in self.blocks:
            h = block(h, context)
        return self.last(h)[..., 0]


Maps = Callable[[int, Tensor], Tensor]  # (block, map (rows, heads, tokens, tokens)) -> the map to use


def by_hand(net: Net, x: Tensor, t: Tensor, cond: Tensor | None = None, maps: Maps = lambda i, a: a) -> Tensor:
    """The network with explicit softmax attention; `maps` changes those of self-attention."""

    def attend(f: Attention, h: Tensor, source: Tensor, i: int | None) -> Tensor:
        q, k, v = (
            g(s).view(len(h), -1, HEADS, DIM).transpose(1, 2) for g, s in ((f.q, h), (f.k, source), (f.v, source))
        )
        a = torch.softmax(q @ k.transpose(-1, -2) / DIM**0.5, -1)
        a = a if i is None else maps(i, a)
        return f.out((a @ v).transpose(1, 2).reshape(len(h), -1, WIDTH))

    h = net.begin(x, t, cond)
    context = h.flip(1)
    for i, block in enumerate(net.blocks):
        h = h + attend(block.attn, norm(h), norm(h), i)
        if block.cross is not None:
            h = h + attend(block.cross, norm(h), context, None)
        h = h + block.mlp(norm(h))
    return net.last(h)[..., 0]


def identity(blocks, heads=range(HEADS), strength: float = 1.0) -> Maps:
    def maps(i: int, a: Tensor) -> Tensor:
        a = a.clone()
        for h in heads if i in blocks else ():
            a[:, h] = (1 - strength) * a[:, h] + strength * torch.eye(a.shape[-1], dtype=a.dtype)
        return a

    return maps


def wrap(net: nn.Module, shape=(TOKENS,)) -> gk.GaussianModel:
    return gk.GaussianModel(net, shape, predicts="clean")


def noise(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *(shape or (TOKENS,)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def times(rows: int) -> Tensor:
    return torch.linspace(0.1, 0.9, rows, dtype=torch.float64)


def footprint(net: nn.Module) -> list:
    """All that a hook, a processor or a replaced forward would leave."""
    return [
        {k: [(key, id(w)) for key, w in v.items()] if isinstance(v, dict) else id(v) for k, v in vars(m).items()}
        for m in net.modules()
    ]


@torch.no_grad()
def perturbed(net: nn.Module, need: Perturbed, x: Tensor, *rest, rows: slice = slice(2, 4)) -> Tensor:
    """The forward with some rows perturbed; it must leave the others, and the network, as they are."""
    model, before = wrap(net), footprint(net)
    need.check(model)
    plain = net(x, *rest)
    with need.during(model, rows):
        out = net(x, *rest)
    after = footprint(net)
    assert before == after
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(net(x, *rest), plain)  # after it as before
    others = [i for i in range(len(x)) if not rows.start <= i < rows.stop]
    assert torch.equal(out[others], plain[others])
    assert not torch.equal(out[rows], plain[rows])
    return out[rows]


# the map -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["attribute", "imported", "folded"])
@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("heads", [None, (0,), (1,), (0, 1)])
def test_the_perturbed_rows_have_the_map_that_is_written_by_hand(how: str, strength: float, heads):
    net, x, t = Net(how), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Identity(strength), "blocks.3", heads), x, t)
    own = identity([3], range(HEADS) if heads is None else heads, strength)
    assert torch.allclose(net(x, t), by_hand(net, x, t), atol=1e-12)  # the reference is the network
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=own), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_only_the_chosen_rows_are_perturbed(start: int):
    net, x, t = Net(), noise(6), times(6)
    rows = slice(start, start + 2)
    out = perturbed(net, Perturbed.of(Identity(), "blocks.3.attn"), x, t, rows=rows)
    assert torch.allclose(out, by_hand(net, x[rows], t[rows], maps=identity([3])), atol=1e-12)


@pytest.mark.parametrize(
    "layers, blocks",
    [
        ("blocks.1", [1]),
        ("blocks.11.attn", [11]),
        (["blocks.1", "blocks.10"], [1, 10]),
        ("blocks", range(BLOCKS)),
        (None, [6]),
    ],
)
def test_a_layer_is_an_exact_dotted_prefix(layers, blocks):
    """blocks.1 is neither blocks.10 nor blocks.11; the default is the middle one of the twelve."""
    net, x, t = Net(), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Identity(), layers), x, t)
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=identity(blocks)), atol=1e-12)


def test_every_layer_may_have_heads_of_its_own():
    net, x, t = Net(), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Identity(), heads={"blocks.1": [0], "blocks.10.attn": [1]}), x, t)
    first, second = identity([1], [0]), identity([10], [1])
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=lambda i, a: second(i, first(i, a))), atol=1e-12)


def test_attention_that_is_the_identity_already_is_not_changed():
    net, x, t = Net(), noise(4), times(4)
    net.blocks[3].attn.mask = torch.eye(TOKENS, dtype=torch.bool)
    plain = net(x, t)
    with Perturbed.of(Identity(), "blocks.3").during(wrap(net), slice(2, 4)):
        assert torch.equal(net(x, t), plain)


@pytest.mark.parametrize("span", [(0, 6), (3, None), (0, -3)])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_image_tokens_of_a_joint_stream_attend_to_themselves_and_to_the_text(span, masked):
    net, x, t = Net(), noise(6), times(6)
    forbidden = torch.zeros(6, 1, TOKENS, TOKENS, dtype=torch.bool)
    forbidden[torch.arange(6), 0, :, torch.arange(6)] = masked is not None  # row i has no token i
    forbidden[..., range(TOKENS), range(TOKENS)] = False
    if masked:
        net.blocks[3].attn.mask = (
            ~forbidden if masked == "bool" else torch.zeros(forbidden.shape).double().masked_fill(forbidden, -torch.inf)
        )

    def maps(i: int, a: Tensor) -> Tensor:
        if i != 3:
            return a
        image = torch.zeros(TOKENS, dtype=torch.bool)
        image[slice(*span)] = True
        a = a * ~(image[:, None] & image & ~torch.eye(TOKENS, dtype=torch.bool)) * ~forbidden[2:4]
        return a / a.sum(-1, keepdim=True)

    out = perturbed(net, Perturbed.of(Identity(1.0, span), "blocks.3"), x, t)
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=maps), atol=1e-12)


def test_the_whole_span_is_the_identity():
    net, x, t = Net(), noise(6), times(6)
    whole = perturbed(net, Perturbed.of(Identity(1.0, (0, TOKENS)), "blocks.3"), x, t)
    assert torch.allclose(whole, by_hand(net, x[2:4], t[2:4], maps=identity([3])), atol=1e-12)


def test_the_gradient_is_that_of_the_map_by_hand():
    net, t = Net(), times(6)
    ours, theirs = noise(6).requires_grad_(), noise(6).requires_grad_()
    with Perturbed.of(Identity(0.7), "blocks.3", (1,)).during(wrap(net), slice(2, 4)):
        net(ours, t).sin().sum().backward()
    by_hand(net, theirs[2:4], t[2:4], maps=identity([3], [1], 0.7)).sin().sum().backward()
    assert theirs.grad is not None and ours.grad is not None
    assert torch.allclose(ours.grad[2:4], theirs.grad[2:4], atol=1e-12)


def test_frames_may_be_folded_into_the_rows_and_values_shared_by_heads():
    class Video(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (rows*frames, tokens, 8): four heads, two of keys and values
            q = x.unflatten(-1, (4, 2)).transpose(1, 2)
            k, v = (x.roll(i, -1)[..., :4].unflatten(-1, (2, 2)).transpose(1, 2) for i in (1, 2))
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)

    x = noise(6, 3, 5, 8)
    out = perturbed(Video(), Perturbed.of(Identity()), x)
    v = x.roll(2, -1)[2:4, ..., :4].unflatten(-1, (2, 2))
    assert torch.allclose(out, v.repeat_interleave(2, -2).flatten(-2), atol=1e-15)
    one = perturbed(Video(), Perturbed.of(Identity(), "attn", (2,)), x).unflatten(-1, (4, 2))
    assert torch.equal(one[..., 2, :], v[..., 1, :])
    assert torch.equal(one[..., [0, 1, 3], :], Video()(x)[2:4].unflatten(-1, (4, 2))[..., [0, 1, 3], :])


# cross-attention ---------------------------------------------------------------------------------------------------


def test_cross_attention_in_a_chosen_layer_is_left_even_with_as_many_tokens():
    net, x, t = Net(crossed=True), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Identity(), "blocks.3"), x, t)
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=identity([3])), atol=1e-12)
    with (
        pytest.raises(gk.NetworkError, match=r"'blocks.3.cross': it has cross-attention only"),
        Perturbed.of(Identity(), "blocks.3.cross").during(wrap(net), slice(2, 4)),
    ):
        net(x, t)


def test_joined_queries_are_self_attention():
    class Joint(nn.Module):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
            x = torch.cat([hidden_states, encoder_hidden_states], 1)[:, None]
            return F.scaled_dot_product_attention(x, x, x)[:, 0]

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = Joint()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x, encoder_hidden_states=x.flip(1))

    x = noise(6, 4, 3)
    assert torch.equal(perturbed(Root(), Perturbed.of(Identity()), x), torch.cat([x, x.flip(1)], 1)[2:4])


# torch's own modules -----------------------------------------------------------------------------------------------


class Own(nn.Module):
    """nn.MultiheadAttention with or without weights."""

    def __init__(self, need_weights: bool):
        super().__init__()
        self.attn, self.need_weights = nn.MultiheadAttention(8, 2, batch_first=True).double(), need_weights

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attn(x, x, x, need_weights=self.need_weights)
        assert (weights is not None) == self.need_weights
        return out


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("head", [None, 0, 1])
def test_multi_head_attention_of_torch_works_and_leaves_its_fast_path(need_weights: bool, training: bool, head):
    torch.manual_seed(0)
    net, x = Own(need_weights).train(training).requires_grad_(False), noise(6, 5, 8)
    with (
        torch.no_grad(),
        Perturbed.of(Identity(), "attn", None if head is None else (head,)).during(wrap(net), slice(2, 4)),
    ):
        out = net(x)
    q, k, v = (x @ net.attn.in_proj_weight.mT + net.attn.in_proj_bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    a = torch.softmax(q @ k.mT / 2, -1)
    a[2:4, range(2) if head is None else [head]] = torch.eye(5, dtype=torch.float64)
    assert torch.allclose(out, net.attn.out_proj((a @ v).transpose(1, 2).flatten(2)), atol=1e-14)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "need", [Perturbed.of(Identity()), Perturbed.of(Skip()), Perturbed.of(Blur(1.0, (5,)), "layers.1")]
)
def test_encoders_of_torch_work_with_rows_or_tokens_first(batch_first: bool, need: Perturbed):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first)
    core = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).double().eval().requires_grad_(False)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = core

        def forward(self, x: Tensor) -> Tensor:
            return self.core(x) if batch_first else self.core(x.transpose(0, 1)).transpose(0, 1)

    net, x = Root().eval(), noise(6, 5, 8)
    need = Perturbed.of(need.by, need.layers and "core." + need.layers[0])
    assert attention_layers(wrap(net))[2] == "core.layers.2.self_attn"
    rows = slice(2, 4)
    with torch.no_grad():
        plain = net(x)
        with need.during(wrap(net), rows):
            out = net(x)
        h = x
        for i, block in enumerate(core.layers):  # by hand: rows by themselves
            if i == 2 and need.by == Skip():
                continue
            if i == 2 and need.by == Identity():
                v = h @ block.self_attn.in_proj_weight[16:].mT + block.self_attn.in_proj_bias[16:]
                y = block.norm1(h + block.self_attn.out_proj(v))
                h = block.norm2(y + block._ff_block(y))
            else:
                h = block(h) if batch_first else block(h.transpose(0, 1)).transpose(0, 1)
    keep = [0, 1, 4, 5]
    assert torch.allclose(out[keep], plain[keep], atol=1e-14)  # off the fast path, so not bit for bit
    assert not torch.allclose(out[rows], plain[rows], atol=1e-4)
    if need.layers is None:
        assert torch.allclose(out[rows], h[rows], atol=1e-13)


@pytest.mark.slow
def test_a_compiled_network_runs_uncompiled_while_it_is_perturbed():
    net, x, t = Net(blocks=2), noise(6), times(6)
    compiled = torch.compile(net, backend="eager")
    before = compiled(x, t)
    need = Perturbed.of(Identity(), "blocks.1")
    need.check(wrap(compiled))
    with need.during(wrap(compiled), slice(2, 4)):
        out = compiled(x, t)
    assert torch.allclose(out[2:4], by_hand(net, x[2:4], t[2:4], maps=identity([1])), atol=1e-12)
    assert torch.equal(compiled(x, t), before)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    net.blocks[1].compile(backend="eager")  # in its place
    net(x, t)
    with need.during(wrap(net), slice(2, 4)):
        assert torch.equal(net(x, t), out)


# it leaves nothing behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("need", [Perturbed.of(Identity(), "blocks.3"), Perturbed.of(Skip(), "blocks.3")])
def test_an_exception_in_the_network_restores_everything(error, need: Perturbed):
    net, x, t = Net(), noise(6), times(6)
    plain, before = net(x, t), footprint(net)

    def fail(*args):
        raise error("inside")

    handle = net.blocks[3].attn.out.register_forward_pre_hook(fail)
    with pytest.raises(error, match="inside"), need.during(wrap(net), slice(2, 4)):
        net(x, t)
    handle.remove()
    assert footprint(net) == before
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch.equal(net(x, t), plain)


def test_a_network_that_catches_its_own_error_is_perturbed_afterwards():
    net, x, t = Net(), noise(6), times(6)

    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.fails = net, True

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            try:
                return self.net(x, t, torch.zeros(3))  # wrong shape
            except RuntimeError:
                return self.net(x, t)

    out = perturbed(Tries(), Perturbed.of(Identity(), "net.blocks.3"), x, t)
    assert torch.allclose(out, by_hand(net, x[2:4], t[2:4], maps=identity([3])), atol=1e-12)


def test_other_threads_see_the_plain_network():
    net, x, t = Net(), noise(6), times(6)
    need, model, plain = Perturbed.of(Identity(), "blocks.3"), wrap(net), net(x, t)
    with need.during(model, slice(2, 4)):
        expected = net(x, t)
    wrong: list[str] = []

    def work(rows: slice | None) -> None:
        for _ in range(30):
            if rows is None:
                out, right = net(x, t), plain
            else:
                with need.during(model, rows):
                    out = net(x, t)
                right = plain.clone()
                right[rows] = expected[2:4] if rows.start == 2 else out[rows]
            if not torch.equal(out, right):
                wrong.append(str(rows))

    threads = [threading.Thread(target=work, args=(r,)) for r in (None, slice(2, 4), slice(0, 2), None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert torch.equal(net(x, t), plain)


def test_another_thread_may_meet_a_hook_that_is_being_added_or_removed():
    """torch notes apart from a hook that it takes kwargs, so for a moment another thread calls it without them."""
    net, x, t = Net(), noise(6), times(6)
    plain, outs = net(x, t), []
    with Perturbed.of(Identity(), "blocks.3").during(wrap(net), slice(2, 4)):
        for module in net.modules():
            module._forward_hooks_with_kwargs.clear()
            module._forward_pre_hooks_with_kwargs.clear()
        thread = threading.Thread(target=lambda: outs.append(net(x, t)))
        thread.start()
        thread.join()
        for module in net.modules():
            module._forward_hooks_with_kwargs.update(dict.fromkeys(module._forward_hooks, True))
            module._forward_pre_hooks_with_kwargs.update(dict.fromkeys(module._forward_pre_hooks, True))
        own = net(x, t)
    assert len(outs) == 1 and torch.allclose(outs[0], plain, atol=1e-12)
    assert torch.allclose(own[2:4], by_hand(net, x[2:4], t[2:4], maps=identity([3])), atol=1e-12)


def test_several_perturbations_of_one_forward_are_those_of_forwards_of_their_own():
    net, x, t = Net(), noise(8), times(8)
    needs = [
        (Perturbed.of(Identity(), "blocks.3"), slice(2, 4)),
        (Perturbed.of(Blur(1.0), ["blocks.3.attn", "blocks.5"], (1,)), slice(4, 6)),
        (Perturbed.of(Skip(), "blocks.3"), slice(6, 8)),
    ]
    model = wrap(net)
    for order in (needs, needs[::-1]):
        (a, i), (b, j), (c, k) = order
        with a.during(model, i), b.during(model, j), c.during(model, k):
            out = net(x, t)
        right = net(x, t)
        for need, rows in order:
            right[rows] = perturbed(net, need, x, t, rows=rows)
        assert torch.equal(out, right)


# queries and whole layers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.4, 1.0, 10.0])
@pytest.mark.parametrize("height, width", [(8, 12), (5, 5), (2, 7)])
def test_the_blur_is_a_convolution_with_reflected_borders(sigma: float, height: int, width: int):
    x = noise(2, 3, height, width)

    def weights(size: int) -> Tensor:
        half = min(int(-(-6 * sigma // 1)) // 2, size // 2)
        w = torch.exp(-0.5 * (torch.arange(-half, half + 1).double() / sigma) ** 2)
        return w / w.sum()

    rows, columns = weights(height), weights(width)
    padded = F.pad(x, (len(columns) // 2,) * 2 + (len(rows) // 2,) * 2, mode="reflect")
    two = (rows[:, None] * columns).expand(3, 1, -1, -1)
    assert torch.allclose(kernel(height, sigma, x) @ x @ kernel(width, sigma, x).mT, F.conv2d(padded, two, groups=3))
    queries = x.flatten(2).mT[:, None]  # (rows, heads, tokens, dim)
    blurred = Blur(sigma, (height, width)).blurred(queries)
    assert torch.allclose(blurred[:, 0].mT.unflatten(-1, (height, width)), F.conv2d(padded, two, groups=3))
    assert torch.allclose(Blur(sigma, (height * 2, width * 2)).blurred(queries), blurred)  # a grid of a finer layer


@pytest.mark.parametrize("sigma, tokens", [(1.0, None), (float("inf"), None), (float("inf"), (0, 4)), (0.7, (5, None))])
def test_blurred_queries_are_those_of_the_paper(sigma: float, tokens):
    net, x, t = Net(), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Blur(sigma, None, tokens), "blocks.3"), x, t)
    span = slice(*(tokens or (None,)))
    size = len(range(TOKENS)[span])
    side = round(size**0.5)
    mean = torch.full((size, size), 1 / size, dtype=torch.float64)
    blur = torch.eye(TOKENS, dtype=torch.float64)
    blur[span, span] = mean if sigma == float("inf") else torch.kron(*[kernel(side, sigma, blur)] * 2)

    block = net.blocks[3]
    h = net.begin(x[2:4], t[2:4], None)
    for other in net.blocks[:3]:
        h = other(h)
    parts = (block.attn.q, block.attn.k, block.attn.v)
    q, k, v = (f(norm(h)).view(2, TOKENS, HEADS, DIM).transpose(1, 2) for f in parts)
    a = torch.softmax((blur @ q) @ k.mT / DIM**0.5, -1)
    h = h + block.attn.out((a @ v).transpose(1, 2).flatten(2))
    h = h + block.mlp(norm(h))
    for other in net.blocks[4:]:
        h = other(h)
    assert torch.allclose(out, net.last(h)[..., 0], atol=1e-12)


def test_tokens_that_are_no_square_need_a_grid():
    x, net = noise(4, 6, 8), Own(False)
    with pytest.raises(gk.NetworkError, match="6 tokens of this layer are no square grid"):
        perturbed(net, Perturbed.of(Blur(1.0)), x)
    with pytest.raises(gk.NetworkError, match="no 4x3 grid"):
        perturbed(net, Perturbed.of(Blur(1.0, (4, 3))), x)


def test_a_skipped_layer_returns_its_input():
    net, x, t = Net(), noise(6), times(6)
    out = perturbed(net, Perturbed.of(Skip(), ["blocks.1", "blocks.4"]), x, t)
    h = net.begin(x[2:4], t[2:4], None)
    for i in (0, 2, 3, *range(5, BLOCKS)):
        h = net.blocks[i](h)
    assert torch.allclose(out, net.last(h)[..., 0], rtol=1e-12, atol=1e-12)  # products of matrices of other shapes


def test_streams_that_a_skipped_layer_returns_go_back_by_their_shapes():
    class Double(nn.Module):
        def forward(self, image: Tensor, text: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor, None]:
            return text * 2 + image.mean((1, 2), True), image * 3 + text.mean((1, 2), True), None

    class Root(nn.Module):
        def __init__(self, words: int):
            super().__init__()
            self.words, self.layers = words, nn.ModuleList([Double(), Double()])

        def forward(self, x: Tensor) -> Tensor:
            text, image = x[:, : self.words], x
            for layer in self.layers:
                text, image, _ = layer(image, text=text)
            return torch.cat([text, image], 1)

    x = noise(6, 4, 3)
    text, image, _ = Double()(x[2:4], x[2:4, :2])
    plain = torch.cat(Double()(image, text)[:2], 1)
    out = perturbed(Root(2), Perturbed.of(Skip(), ["layers.0", "layers.1"]), x)
    assert torch.equal(out, torch.cat([x[2:4, :2], x[2:4]], 1)) and not torch.equal(out, plain)
    with pytest.raises(gk.NetworkError, match="two outputs of one shape"):
        perturbed(Root(4), Perturbed.of(Skip(), "layers.0"), x)
    with pytest.raises(gk.NetworkError, match="cannot be skipped"):
        perturbed(Net(), Perturbed.of(Skip(), "embed"), noise(6), times(6))


# which layers ------------------------------------------------------------------------------------------------------


def test_unknown_layers_are_refused_with_what_is_near():
    net = Net()
    for name, near in (("block.1", "blocks.1"), ("blocks.12", "blocks.1"), ("attn1", "attn"), ("zzz", "blocks.0.attn")):
        with pytest.raises(ValueError, match=f"no module '{name}'; near it are .*{near}"):
            Perturbed.of(Identity(), ["blocks.3", name]).check(wrap(net))
    assert net.calls == []


def test_what_cannot_be_perturbed_is_refused():
    model = wrap(Net())
    with pytest.raises(ValueError, match="holds none"):
        Perturbed.of(Identity()).check(wrap(lambda x, t, c: x))
    with pytest.raises(ValueError, match="no default layer"):
        Perturbed.of(Identity()).check(wrap(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="never called itself"):
        Perturbed.of(Skip(), "blocks").check(model)
    with pytest.raises(ValueError, match="leave layers=None"):
        Perturbed.of(Identity(), "blocks.1", {"blocks.1": [0]})
    for heads in ((-1,), "01", {"blocks.1": [0.5]}, (True,)):
        with pytest.raises(ValueError, match="counted from 0"):
            Perturbed.of(Identity(), None, heads)
    for by in (Identity(1.5), Identity(-0.1), Identity(1.0, 4), Blur(-1.0), Blur(1.0, 4), Blur(1.0, (0, 3))):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"strength=|tokens=|sigma=|grid="):
            Perturbed.of(by).check(model)


@pytest.mark.filterwarnings("ignore")
def test_scripts_are_refused():
    script = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ValueError, match="scripts do not count"):
        Perturbed.of(Identity()).check(wrap(script))
    holder = nn.ModuleDict({"attn": script})
    with pytest.raises(ValueError, match=r"script of torch.jit"):
        Perturbed.of(Identity(), "attn").check(wrap(holder))


def test_nothing_perturbed_is_an_error_that_says_what_to_do():
    net, x, t = Net("softmax"), noise(4), times(4)
    with (
        pytest.raises(
            gk.NetworkError, match=r"'blocks.3': it ran without torch's scaled_dot_product_attention.*AttnProc"
        ),
        Perturbed.of(Identity(), "blocks.3").during(wrap(net), slice(2, 4)),
    ):
        net(x, t)
    net.blocks[1].attn.how = "attribute"  # one of two is not enough
    with (
        pytest.raises(gk.NetworkError, match=r"in 'blocks.3': it ran without"),
        Perturbed.of(Identity(), ["blocks.1", "blocks.3"]).during(wrap(net), slice(2, 4)),
    ):
        net(x, t)
    with (
        pytest.raises(gk.NetworkError, match="the forward did not run it"),
        Perturbed.of(Identity(), "blocks.3").during(wrap(net), slice(2, 4)),
    ):
        pass


def test_rows_and_heads_that_do_not_exist_are_errors():
    net, x, t = Net(), noise(4), times(4)
    with (
        pytest.raises(gk.NetworkError, match=r"'blocks.3' has 2 heads, counted from 0"),
        Perturbed.of(Identity(), "blocks.3", (2,)).during(wrap(net), slice(2, 4)),
    ):
        net(x, t)
    with (
        pytest.raises(gk.NetworkError, match="rows 4 to 6 are to be perturbed, but the network was called with 4 rows"),
        Perturbed.of(Identity(), "blocks.3").during(wrap(net), slice(4, 6)),
    ):
        net(x, t)


def test_attention_in_the_network_itself_is_found():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(3, 9).double()

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(*self.qkv(x)[:, None].chunk(3, -1))[:, 0]

    class Lists(Root):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Attention() for _ in range(3)])

    net, x = Root(), noise(6, 4, 3)
    assert attention_layers(wrap(net)) == [""]
    out = perturbed(net, Perturbed.of(Identity()), x)
    assert torch.allclose(out, net.qkv(x[2:4]).chunk(3, -1)[2], atol=1e-12)
    assert torch.equal(out, perturbed(net, Perturbed.of(Identity(), heads={"": [0]}), x))
    assert attention_layers(wrap(Lists())) == ["blocks.0", "blocks.1", "blocks.2"]  # modules inside come first
    with (
        pytest.raises(gk.NetworkError, match="nothing was perturbed in the network itself: the forward did not run it"),
        Perturbed.of(Identity()).during(wrap(net), slice(2, 4)),
    ):
        pass


@pytest.mark.parametrize("by", [Identity(), Skip()])
@pytest.mark.parametrize("layers", [None, ("blocks.1",), ("blocks.5",), ("blocks.1", "blocks.5")])
def test_of_stitched_models_the_one_that_is_called_is_perturbed_in_the_layers_that_it_has(by, layers):
    small, large, x = Net(blocks=4, seed=1), Net(blocks=6), noise(4)
    stitched, need = gk.Stitched(wrap(small), wrap(large), at=0.5), Perturbed.of(by, layers)
    need.check(stitched)
    for net, t in ((small, 0.7), (large, 0.5)):
        has = layers if layers is None or net is large else tuple(p for p in layers if p != "blocks.5")
        cond = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad(), need.during(stitched, slice(2, 4)):
            out = stitched(x, t, cond)
        plain = stitched(x, t, cond)
        if has == ():
            assert torch.equal(out, plain)
            continue
        with torch.no_grad(), Perturbed.of(by, has).during(wrap(net), slice(2, 4)):
            assert torch.equal(out, wrap(net)(x, t, cond))
        assert not torch.equal(out, plain)
    assert attention_layers(stitched) == [f"blocks.{i}.attn" for i in range(6)]
    with pytest.raises(ValueError, match=r"no module 'blocks\.9'"):
        Perturbed.of(by, "blocks.9").check(stitched)


def test_a_stitched_model_in_which_nothing_is_perturbed_is_an_error():
    small, large = Net(blocks=2), Net("softmax", blocks=4)
    stitched, need = gk.Stitched(wrap(small), wrap(large), at=0.5), Perturbed.of(Identity(), "blocks.1")
    with need.during(stitched, slice(2, 4)):
        stitched(noise(4), 0.7, None)
    with pytest.raises(gk.NetworkError, match="ran without torch's"), need.during(stitched, slice(2, 4)):
        stitched(noise(4), 0.3, None)
    with pytest.raises(gk.NetworkError, match="did not run it"), need.during(stitched, slice(2, 4)):
        pass
    known = gk.analytic.GaussianMixture([1.0], torch.zeros(1, TOKENS, dtype=torch.float64), [1.0])
    half = gk.Stitched(known, wrap(large.eval()), at=0.5)  # a part without modules
    with Perturbed.of(Identity(), "blocks.1").during(half, slice(2, 4)):
        half(noise(4), 0.7, None)


def test_the_default_is_the_middle():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.mid_block, self.up = Net(blocks=3), nn.Sequential(Attention(), Attention()), Net(blocks=5)

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter = nn.ModuleList([Block("attribute", True)])
            self.transformer_blocks = nn.ModuleList([Block("attribute", True) for _ in range(8)])

    def default(net: nn.Module, by) -> set[str]:
        need = Perturbed.of(by)
        need.check(wrap(net))
        return {name for names in need.during(wrap(net), slice(0, 1)).chosen.layers.values() for name in names}

    assert default(UNet(), Identity()) == default(UNet(), Skip()) == {"mid_block"}
    assert attention_layers(wrap(Deep()))[:2] == ["enter.0.attn", "transformer_blocks.0.attn"]  # no cross
    assert default(Deep(), Identity()) == {"transformer_blocks.3.attn"}
    assert default(Deep(), Skip()) == {"transformer_blocks.4"}


# other libraries ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "need", [Perturbed.of(Identity()), Perturbed.of(Identity(), "blocks.1", (2,)), Perturbed.of(Skip())]
)
def test_vision_transformers_of_timm(need: Perturbed):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=5).double().eval()
    perturbed(net.requires_grad_(False), need, noise(6, 3, 32, 32))
    blur = Perturbed.of(Blur(1.0, None, (net.num_prefix_tokens, None)))
    perturbed(net, blur, noise(6, 3, 32, 32))
    for block in net.blocks:
        block.attn.fused_attn = False
    with pytest.raises(gk.NetworkError, match="fused_attn=True"):
        perturbed(net, Perturbed.of(Identity()), noise(6, 3, 32, 32))


@pytest.mark.filterwarnings("ignore")
def test_the_image_tower_of_open_clip():
    open_clip = pytest.importorskip("open_clip")
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(32, 8, 16, 4, 2, 4.0, output_dim=7).double().eval().requires_grad_(False)
    assert attention_layers(wrap(net)) == [f"transformer.resblocks.{i}.attn" for i in range(4)]
    x, rows = noise(6, 3, 32, 32), slice(2, 4)
    for need in (
        Perturbed.of(Identity()),
        Perturbed.of(Identity(), "transformer.resblocks.1", (1,)),
        Perturbed.of(Skip()),
    ):
        with torch.no_grad(), need.during(wrap(net), rows):
            out = net(x)
        assert torch.allclose(out[[0, 1, 4, 5]], net(x)[[0, 1, 4, 5]], atol=1e-13)
        assert not torch.allclose(out[rows], net(x)[rows], atol=1e-4)
    assert open_clip is not None


@pytest.fixture
def diffusers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("diffusers")


@pytest.mark.filterwarnings("ignore")
def test_a_unet_of_diffusers_equals_its_own_perturbed_attention(diffusers):
    from diffusers.models.attention_processor import AttnProcessor, PAGIdentitySelfAttnProcessor2_0

    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    ).double().eval().requires_grad_(False)  # fmt: skip
    text = noise(1, 64, 32)  # as many tokens as the middle block has

    def call(x: Tensor, t: Tensor, cond=None) -> Tensor:
        return net(x, t, encoder_hidden_states=text.expand(len(x), -1, -1)).sample

    x, t, model = noise(6, 4, 16, 16), times(6) * 1000, wrap(call, (4, 16, 16))
    with Perturbed.of(Identity()).during(model, slice(3, 6)):
        ours = call(x, t)
    own = net.attn_processors
    for name in [n for n in own if n.startswith("mid_block") and "attn1" in n]:
        net.get_submodule(name.removesuffix(".processor")).set_processor(PAGIdentitySelfAttnProcessor2_0())
    assert torch.allclose(ours, call(x, t), atol=1e-12)
    net.set_attn_processor(AttnProcessor())
    with pytest.raises(gk.NetworkError, match="AttnProcessor2_0"), Perturbed.of(Identity()).during(model, slice(3, 6)):
        call(x, t)


@pytest.mark.filterwarnings("ignore")
def test_a_joint_transformer_of_diffusers_equals_its_own_perturbed_attention_and_skipping(diffusers):
    from diffusers.models.attention_processor import PAGJointAttnProcessor2_0

    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=16,
    ).double().eval().requires_grad_(False)  # fmt: skip
    text, pooled = noise(1, 7, 16), noise(1, 8)

    def call(x: Tensor, t: Tensor, cond=None, **options) -> Tensor:
        texts = {"encoder_hidden_states": text.expand(len(x), -1, -1), "pooled_projections": pooled.expand(len(x), -1)}
        return net(hidden_states=x, timestep=t, **texts, **options).sample

    x, t, model = noise(6, 4, 16, 16), times(6) * 1000, wrap(call, (4, 16, 16))
    with Perturbed.of(Skip(), ["transformer_blocks.1", "transformer_blocks.3"]).during(model, slice(3, 6)):
        skipped = call(x, t)
    assert torch.allclose(skipped[3:], call(x[3:], t[3:], skip_layers=[1, 3]), atol=1e-12)
    with Perturbed.of(Identity(1.0, (0, 64)), "transformer_blocks.2").during(model, slice(3, 6)):
        ours = call(x, t)
    net.transformer_blocks[2].attn.set_processor(PAGJointAttnProcessor2_0())
    assert torch.allclose(ours, call(x, t), atol=1e-12)

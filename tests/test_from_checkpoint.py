"""gk.from_checkpoint: networks against forwards written out by hand, on random weights, and files that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import guidekit as gk
from guidekit.external import bidirectional, d3, dit, dnacnn, layout

Weights = dict[str, Tensor]


def random_state(net: nn.Module, keep: tuple[str, ...] = ()) -> Weights:
    keys = gk.random.fold(gk.random.key(7), torch.arange(len(net.state_dict())))
    return {
        name: v if name in keep else 0.5 * gk.random.normal(key[None], v.shape, torch.float32)[0]
        for key, (name, v) in zip(keys, net.state_dict().items(), strict=True)
    }


# what the networks are made of, for one row, without torch.nn


def affine(w: Weights, name: str, v: Tensor) -> Tensor:
    return v @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def normal(v: Tensor, scale: Tensor) -> Tensor:
    return scale * (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def rms(v: Tensor, scale: Tensor, eps: float) -> Tensor:
    return scale * v / (v.square().mean(-1, keepdim=True) + eps).sqrt()


def turned(v: Tensor, base: float) -> Tensor:
    """Rotary positions as rotations of the complex plane, v of shape (length, width)."""
    half = v.shape[1] // 2
    angle = torch.arange(len(v))[:, None] / base ** (torch.arange(half) / half)
    z = torch.complex(v[:, :half], v[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, base: float, seen: Tensor) -> Tensor:
    """Of (length, heads * width), with fewer keys and values than queries where they are shared."""
    found, width = [], q.shape[1] // heads
    for i in range(heads):
        j = i * (k.shape[1] // width) // heads
        qi, kj, vj = q[:, i * width :][:, :width], k[:, j * width :][:, :width], v[:, j * width :][:, :width]
        logits = turned(qi, base) @ turned(kj, base).T / math.sqrt(width)
        found.append(logits.masked_fill(~seen, -torch.inf).softmax(-1) @ vj)
    return torch.cat(found, -1)


def waves_by_hand(sigma: float) -> Tensor:
    angle = [sigma * 10000 ** (-i / 128) for i in range(128)]
    return torch.tensor([math.cos(a) for a in angle] + [math.sin(a) for a in angle])


def noise_by_hand(w: Weights, sigma: float) -> Tensor:
    silu = nn.functional.silu
    return silu(affine(w, "sigma_map.mlp.2", silu(affine(w, "sigma_map.mlp.0", waves_by_hand(sigma)))))


def dit_by_hand(
    w: Weights, ids: list[int], sigma: float, heads: int, blocks: int, told: Tensor | float = 0.0
) -> Tensor:  # fmt: skip
    c = noise_by_hand(w, sigma)
    x = w["vocab_embed.embedding"][torch.tensor(ids)] + told
    every = torch.ones(len(ids), dtype=torch.bool)
    for n in range(blocks):
        name = f"blocks.{n}"
        shift, scale, gate, shift_2, scale_2, gate_2 = affine(w, f"{name}.adaLN_modulation", c).chunk(6)
        u = normal(x, w[f"{name}.norm1.weight"]) * (1 + scale) + shift
        q, k, v = affine(w, f"{name}.attn_qkv", u).chunk(3, -1)
        x = x + gate * affine(w, f"{name}.attn_out", attention(q, k, v, heads, 1e4, every))
        u = normal(x, w[f"{name}.norm2.weight"]) * (1 + scale_2) + shift_2
        u = nn.functional.gelu(affine(w, f"{name}.mlp.0", u), approximate="tanh")
        x = x + gate_2 * affine(w, f"{name}.mlp.2", u)
    shift, scale = affine(w, "output_layer.adaLN_modulation", c).chunk(2)
    return affine(w, "output_layer.linear", normal(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift)


def transformer() -> tuple[dit.DiT, Weights]:
    """Six states, two heads of width 4, three blocks."""
    net = dit.DiT(6, 8, 5, 3, 2)
    return net, random_state(net, keep=("rotary_emb.inv_freq",))


def test_mdlm_is_the_transformer_at_no_noise_with_the_mask_last(tmp_path: Path):
    """Of the average of a trainer's file, whose names have the trainer's prefix; heads are read from the rotations."""
    _, w = transformer()
    trained = [v for k, v in w.items() if k != "rotary_emb.inv_freq"]
    other = {f"backbone.{k}": v if "inv_freq" in k else torch.zeros_like(v) for k, v in w.items()}
    torch.save({"state_dict": other, "ema": {"shadow_params": trained, "decay": 0.9}}, tmp_path / "last.ckpt")
    model = gk.from_checkpoint(tmp_path / "last.ckpt", "mdlm", length=4)
    x = torch.tensor([[2, 5, 0, 5]])
    by_hand = dit_by_hand(w, x[0].tolist(), 0.0, 2, 3)[:, :5].log_softmax(-1)
    assert model.vocab_size == 5 and not model.timed
    assert torch.allclose(model(x, 0.7, None)[0], by_hand, atol=1e-5)
    flat = gk.from_checkpoint(tmp_path / "last.ckpt", "mdlm", length=4, ema=False)
    assert torch.allclose(flat(x, 0.7, None).exp(), torch.tensor(0.2))
    timed = gk.from_checkpoint(tmp_path / "last.ckpt", "mdlm", length=4, timed=True, mask=1)
    late = dit_by_hand(w, [3, 1, 0, 1], -math.log(1 - 0.999 * 0.7), 2, 3)[:, [0, 2, 3, 4, 5]]
    assert torch.allclose(timed(torch.tensor([[2, 5, 0, 5]]), 0.7, None)[0], late.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("noise", ["absorbing", "uniform"])
def test_sedd_gives_the_scores_that_its_paper_defines(noise: str, tmp_path: Path):
    """Absorbing: the scores of a mask are alpha/(1 - alpha) p, so they are p, normalised. Uniform: p as `from_sedd`
    says of these scores, whatever network they come from."""
    _, w = transformer()
    save_file(w, tmp_path / "model.safetensors")
    model = gk.from_checkpoint(tmp_path, "sedd", length=4, noise=noise)
    sigma, x = -math.log(1 - 0.6), torch.tensor([[2, 5, 0, 5]])
    out = dit_by_hand(w, x[0].tolist(), sigma, 2, 3)
    if noise == "absorbing":
        assert torch.allclose(model(x, 0.6, None)[0, [1, 3]], out[[1, 3], :5].log_softmax(-1), atol=1e-4)
        scores = model.net.net(x, torch.tensor([sigma]))[0].detach()  # type: ignore[attr-defined]
        shifted = out - math.log(math.exp(sigma) - 1) - math.log(5)
        assert torch.allclose(scores[1, :5], shifted[1, :5], atol=1e-4) and float(scores[1, 5]) == 0
        return
    assert torch.allclose(model(x, 0.6, None)[0].exp(), predicted(out, x[0], 0.4), atol=1e-4)


def predicted(log_scores: Tensor, x: Tensor, kept: float) -> Tensor:
    """Probabilities of clean tokens from the scores of uniform noise that keeps this share."""
    s, other = log_scores.scatter(1, x[:, None], 0.0).exp(), (1 - kept) / log_scores.shape[1]
    a = ((s - other * s.sum(1, keepdim=True)) / kept).clamp(min=0)
    p = a * (kept * nn.functional.one_hot(x, s.shape[1]) + other)
    return p / p.sum(1, keepdim=True)


@pytest.mark.parametrize("each", [False, True])
def test_d3s_transformer_adds_the_signal_to_every_letter_or_to_each_its_own(each: bool, tmp_path: Path):
    net = dit.DiT(4, 8, 5, 2, 2, numbers=2)
    w = random_state(net, keep=("rotary_emb.inv_freq",))
    trained = [v for k, v in w.items() if "inv_freq" not in k]
    i = [k for k in w if "inv_freq" not in k].index("sigma_map.mlp.2.bias") + 1
    table = {"label_embed.embedding_table.weight": torch.zeros(5, 5)}  # which the network has and does not read
    stored = {**dict(list(w.items())[: list(w).index("sigma_map.mlp.2.bias") + 1]), **table}
    stored |= {k: torch.zeros_like(v) if "inv_freq" not in k else v for k, v in w.items()}
    torch.save({"model": stored, "ema": {"shadow_params": [*trained[:i], table.popitem()[1], *trained[i:]]}},
               tmp_path / "D3.pth")  # fmt: skip
    model = gk.from_checkpoint(tmp_path / "D3.pth", "d3", length=4)
    signal = torch.tensor([[0.5, -1.0], [0.1, 0.7], [0.0, 2.0], [-0.4, 0.3]]) if each else torch.tensor([0.5, -1.0])
    x, kept = torch.tensor([[2, 3, 0, 3]]), 0.4
    told = affine(w, "vocab_embed.signal_embedding", signal)
    out = dit_by_hand(w, x[0].tolist(), -math.log(kept), 2, 2, told)
    found = model(x, 1 - kept, model.encode(signal)[None])[0]
    assert torch.allclose(found.exp(), predicted(out, x[0], kept), atol=1e-4)
    free = dit_by_hand(w, x[0].tolist(), -math.log(kept), 2, 2)
    assert torch.allclose(model(x, 1 - kept, None)[0].exp(), predicted(free, x[0], kept), atol=1e-4)
    with pytest.raises(ValueError, match=r"signal of shape \(3,\): this network takes 2 for a sequence, or \(4, 2\)"):
        model.encode((1.0, 2.0, 3.0))


def test_d3s_convolutions_see_the_signal_beside_the_letters(tmp_path: Path):
    """In the file of the authors' trainer, which has the average among the weights, and some that nothing reads."""
    w = random_state(d3.CNN(4, 3, 5, 6))
    unread = {"scale": torch.ones(1), "embed.0.W": torch.ones(2), "embed.1.weight": torch.ones(5, 4)}
    last = {f"score_model.{k}": v.clone() if k in unread else 0 * v for k, v in (unread | w).items()}
    average = [v for k, v in (unread | w).items() if k != "embed.0.W"]
    torch.save({"state_dict": last | {"ema.decay": 0.9, "ema.shadow_params": average}}, tmp_path / "a.ckpt")
    model = gk.from_checkpoint(tmp_path / "a.ckpt", "d3", length=11)
    flat = gk.from_checkpoint(tmp_path / "a.ckpt", "d3", length=11, ema=False)
    assert torch.allclose(flat(torch.zeros(1, 11).long(), 0.999, None).exp(), torch.tensor(0.25), atol=1e-3)
    x, kept, silu = torch.tensor([[(5 * i + i // 3) % 4 for i in range(11)]]), 0.7, nn.functional.silu
    for y in (0.8, None):
        told = torch.full((11, 1), y or 0.0)
        h = silu(convolved(w, "linear", torch.cat([nn.functional.one_hot(x[0], 4).float(), told], 1), 1))
        for i, dilation in enumerate((1, 1, 4, 16, 64, 1)):
            u = h + affine(w, f"denses.{i}.dense", noise_by_hand(w, -math.log(kept)))
            u = (u - u.mean()) / (u.var(unbiased=False) + 1e-5).sqrt()
            u = u * w[f"norms.{i}.weight"] + w[f"norms.{i}.bias"]
            h = h + silu(convolved(w, f"conv_blocks.{i}", u, dilation))
        out = convolved(w, "final.2", nn.functional.gelu(convolved(w, "final.0", h, 1)), 1)
        cond = None if y is None else model.encode(y)[None]
        assert torch.allclose(model(x, 1 - kept, cond)[0].exp(), predicted(out, x[0], kept), atol=1e-4)
    result = gk.sample(model, 2, steps=3, cond=1.5)
    assert all(len(s) == 11 and set(s) <= set("ACGT") for s in result.samples)


def convolved(w: Weights, name: str, h: Tensor, dilation: int) -> Tensor:
    """Position by position, h of shape (length, channels)."""
    kernel, out = w[f"{name}.weight"], []
    for i in range(len(h)):
        taps = [(i + dilation * (k - kernel.shape[2] // 2), k) for k in range(kernel.shape[2])]
        out.append(w[f"{name}.bias"] + sum(kernel[:, :, k] @ h[j] for j, k in taps if 0 <= j < len(h)))
    return torch.stack(out)


def cnn_by_hand(w: Weights, ids: list[int], stacks: int) -> Tensor:
    waves = torch.cat([torch.zeros_like(w["time_embedder.0.W"]), torch.ones_like(w["time_embedder.0.W"])])
    c = affine(w, "time_embedder.1", waves).relu()
    h = convolved(w, "linear", nn.functional.one_hot(torch.tensor(ids), 5).float(), 1).relu()
    for i, dilation in enumerate(r for r in (1, 1, 4, 16, 64) for _ in range(stacks)):
        u = normal(h + affine(w, f"time_layers.{i}.dense", c), w[f"norms.{i}.weight"]) + w[f"norms.{i}.bias"]
        h = h + convolved(w, f"convs.{i}", u, dilation).relu()
    return convolved(w, "final_conv.2", convolved(w, "final_conv.0", h, 1).relu(), 1)


@pytest.mark.parametrize("stacks", [1, 2])
def test_drakes_is_the_convolutional_network_without_the_time(stacks: int, tmp_path: Path):
    w = random_state(dnacnn.CNN(4, stacks))
    trained = [v + 0 for k, v in w.items() if not k.endswith(".W")]
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in w.items()}, "ema": {"shadow_params": trained}},
               tmp_path / "a.ckpt")  # fmt: skip
    model = gk.from_checkpoint(tmp_path / "a.ckpt", "drakes", length=30)
    ids = [(7 * i + i // 3) % 5 for i in range(30)]
    found = model(torch.tensor([ids]), 0.3, None)[0]
    assert torch.allclose(found, cnn_by_hand(w, ids, stacks)[:, :4].log_softmax(-1), atol=1e-4)
    result = gk.sample(model, 2, steps=3, guides=[gk.Keep(template="ACGT" + "N" * 26)])
    assert all(s.startswith("ACGT") and len(s) == 30 for s in result.samples)


def language_by_hand(w: Weights, ids: list[int], heads: int, base: float, eps: float, seen: list[bool]) -> Tensor:
    x, mask = w["model.embed_tokens.weight"][torch.tensor(ids)], torch.tensor(seen)
    for n in range(2):
        name = f"model.layers.{n}"
        u = rms(x, w[f"{name}.input_layernorm.weight"], eps)
        q, k, v = (affine(w, f"{name}.self_attn.{p}_proj", u) for p in "qkv")
        x = x + affine(w, f"{name}.self_attn.o_proj", attention(q, k, v, heads, base, mask))
        u = rms(x, w[f"{name}.post_attention_layernorm.weight"], eps)
        gate = nn.functional.silu(affine(w, f"{name}.mlp.gate_proj", u))
        x = x + affine(w, f"{name}.mlp.down_proj", gate * affine(w, f"{name}.mlp.up_proj", u))
    return affine(w, "lm_head", rms(x, w["model.norm.weight"], eps))


LLADA_NAMES = {v: k for k, v in bidirectional.LLADA.items()}


def llada_name(name: str) -> str:
    """A name of transformers in those of LLaDA."""
    parts = name.split(".")
    if parts[1] == "layers":
        return f"model.transformer.blocks.{parts[2]}.{LLADA_NAMES['.'.join(parts[3:-1])]}.{parts[-1]}"
    outer = {"lm_head": "ff_out", "model.embed_tokens": "wte", "model.norm": "ln_f"}
    return f"model.transformer.{outer['.'.join(parts[:-1])]}.weight"


def sharded(folder: Path, w: Weights, config: dict) -> Path:
    """Weights in two files with an index."""
    names = list(w)
    files = {name: f"model-0000{1 + (i > 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({k: w[k] for k in names if files[k] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_llada_attends_to_its_prompt_and_to_both_sides(tmp_path: Path):
    """The mask has the id 3 of 7, and a prompt is shorter than what there is room for."""
    w = random_state(bidirectional.Language(7, 2, 8, 10, 2, 2, False, 500.0, eps=1e-5))
    folder = sharded(tmp_path, {llada_name(k): v for k, v in w.items()}, {"n_heads": 2, "rope_theta": 500.0})
    model = gk.from_checkpoint(folder, "llada", length=3, mask=3, prompt=4)
    x, tokens = torch.tensor([[4, 6, 1]]), [0, 1, 2, 4, 5, 6]  # guidekit's tokens, and the ids of all but the mask
    ids = [5, 3, 1]
    for prompt in ([6, 2], []):
        cond = model.encode(tuple(prompt))[None] if prompt else model.encode(None)[None]
        out = language_by_hand(w, [0, 0, 0, 0][len(prompt) :] + prompt + ids, 2, 500.0, 1e-5,
                               [False] * (4 - len(prompt)) + [True] * (len(prompt) + 3))  # fmt: skip
        assert torch.allclose(model(x, 0.5, cond)[0], out[4:, tokens].log_softmax(-1), atol=1e-4)
    assert model.decode(x).tolist() == [[5, 3, 1]]
    with pytest.raises(ValueError, match="has 5 tokens, and 1 to 4 are taken"):
        model.encode((1, 2, 3, 4, 5))


def test_dream_shares_keys_and_reads_a_position_one_before_it(tmp_path: Path):
    w = random_state(bidirectional.Language(7, 2, 16, 10, 4, 2, True, 1e6, eps=1e-6))
    folder = sharded(tmp_path, w, {"num_attention_heads": 4})
    model = gk.from_checkpoint(folder, "dream", length=3, mask=6, prompt=2)
    x = torch.tensor([[5, 6, 1]])
    told = language_by_hand(w, [2, 4, 5, 6, 1], 4, 1e6, 1e-6, [True] * 5)
    found = model(x, 0.5, model.encode((2, 4))[None])[0]
    assert torch.allclose(found, told[1:4, :6].log_softmax(-1), atol=1e-4)
    alone = language_by_hand(w, [0, 0, 5, 6, 1], 4, 1e6, 1e-6, [False, False, True, True, True])
    assert torch.allclose(model(x, 0.5, model.encode(None)[None])[0], alone[[2, 2, 3], :6].log_softmax(-1), atol=1e-4)


def residual_by_hand(w: Weights, name: str, x: Tensor, c: Tensor, resize=lambda v: v) -> Tensor:
    def norm(part: str, v: Tensor) -> Tensor:
        return nn.functional.group_norm(v, 32, w[f"{name}.{part}.weight"], w[f"{name}.{part}.bias"])

    def conv(part: str, v: Tensor) -> Tensor:
        kernel = w[f"{name}.{part}.weight"]
        return nn.functional.conv2d(v, kernel, w[f"{name}.{part}.bias"], padding=kernel.shape[-1] // 2)

    silu = nn.functional.silu
    h = conv("in_layers.2", resize(silu(norm("in_layers.0", x))))
    scale, shift = affine(w, f"{name}.emb_layers.1", silu(c)).chunk(2)
    h = norm("out_layers.0", h) * (1 + scale[:, None, None]) + shift[:, None, None]
    x = resize(x)
    return conv("out_layers.3", silu(h)) + (conv("skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def attention_by_hand(w: Weights, name: str, x: Tensor, head: int) -> Tensor:
    d, places = x.shape[1], x[0].flatten(1)
    v = nn.functional.group_norm(places[None], 32, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])[0]
    qkv = w[f"{name}.qkv.weight"][..., 0] @ v + w[f"{name}.qkv.bias"][:, None]
    found = []
    for i in range(d // head):
        q, k, u = qkv[3 * head * i :][: 3 * head].split(head)
        found.append(u @ (q.T @ k / math.sqrt(head)).softmax(-1).T)
    out = w[f"{name}.proj_out.weight"][..., 0] @ torch.cat(found) + w[f"{name}.proj_out.bias"][:, None]
    return x + out.view_as(x)


def halved(v: Tensor) -> Tensor:
    return (v[..., ::2, ::2] + v[..., 1::2, ::2] + v[..., ::2, 1::2] + v[..., 1::2, 1::2]) / 4


def doubled(v: Tensor) -> Tensor:
    return v.repeat_interleave(2, -1).repeat_interleave(2, -2)


def shapes_of_adm(blocks: bool) -> Weights:
    """Of a network of 32 channels and then 64, one residual block a level, attention at the lower one, five classes;
    the size is changed by residual blocks, or by convolutions."""
    found: dict[str, tuple[int, ...]] = {"label_emb.weight": (5, 128)}

    def linear(name: str, a: int, b: int, *kernel: int) -> None:
        found.update({f"{name}.weight": (b, a, *kernel), f"{name}.bias": (b,)})

    def norm(name: str, d: int) -> None:
        found.update({f"{name}.weight": (d,), f"{name}.bias": (d,)})

    def residual(name: str, a: int, b: int) -> None:
        norm(f"{name}.in_layers.0", a), norm(f"{name}.out_layers.0", b), linear(f"{name}.emb_layers.1", 128, 2 * b)
        linear(f"{name}.in_layers.2", a, b, 3, 3), linear(f"{name}.out_layers.3", b, b, 3, 3)
        if a != b:
            linear(f"{name}.skip_connection", a, b, 1, 1)

    def attends(name: str) -> None:
        norm(f"{name}.norm", 64), linear(f"{name}.qkv", 64, 192, 1), linear(f"{name}.proj_out", 64, 64, 1)

    linear("time_embed.0", 32, 128), linear("time_embed.2", 128, 128), linear("input_blocks.0.0", 3, 32, 3, 3)
    residual("input_blocks.1.0", 32, 32), residual("input_blocks.3.0", 32, 64), attends("input_blocks.3.1")
    residual("middle_block.0", 64, 64), attends("middle_block.1"), residual("middle_block.2", 64, 64)
    residual("output_blocks.0.0", 128, 64), attends("output_blocks.0.1"), attends("output_blocks.1.1")
    residual("output_blocks.1.0", 96, 64), residual("output_blocks.2.0", 96, 32), residual("output_blocks.3.0", 64, 32)
    norm("out.0", 32), linear("out.2", 32, 6, 3, 3)
    if blocks:
        residual("input_blocks.2.0", 32, 32), residual("output_blocks.1.2", 64, 64)
    else:
        linear("input_blocks.2.0.op", 32, 32, 3, 3), linear("output_blocks.1.2.conv", 64, 64, 3, 3)
    keys = gk.random.fold(gk.random.key(9), torch.arange(len(found)))
    return {
        name: 0.1 * gk.random.normal(key[None], shape, torch.float32)[0]
        for key, (name, shape) in zip(keys, found.items(), strict=True)
    }


def adm_by_hand(w: Weights, x: Tensor, step: float, label: int, blocks: bool) -> Tensor:
    angle = [step * 10000 ** (-i / 16) for i in range(16)]
    waves, silu = torch.tensor([math.cos(a) for a in angle] + [math.sin(a) for a in angle]), nn.functional.silu
    c = affine(w, "time_embed.2", silu(affine(w, "time_embed.0", waves))) + w["label_emb.weight"][label]

    def conv(name: str, v: Tensor, stride: int = 1) -> Tensor:
        return nn.functional.conv2d(v, w[f"{name}.weight"], w[f"{name}.bias"], padding=1, stride=stride)

    a = conv("input_blocks.0.0", x)
    b = residual_by_hand(w, "input_blocks.1.0", a, c)
    down = residual_by_hand(w, "input_blocks.2.0", b, c, halved) if blocks else conv("input_blocks.2.0.op", b, 2)
    low = attention_by_hand(w, "input_blocks.3.1", residual_by_hand(w, "input_blocks.3.0", down, c), 16)
    h = attention_by_hand(w, "middle_block.1", residual_by_hand(w, "middle_block.0", low, c), 16)
    h = residual_by_hand(w, "middle_block.2", h, c)
    for i, other in enumerate((low, down)):
        h = residual_by_hand(w, f"output_blocks.{i}.0", torch.cat([h, other], 1), c)
        h = attention_by_hand(w, f"output_blocks.{i}.1", h, 16)
    up = "output_blocks.1.2"
    h = residual_by_hand(w, up, h, c, doubled) if blocks else conv(f"{up}.conv", doubled(h))
    for i, other in ((2, b), (3, a)):
        h = residual_by_hand(w, f"output_blocks.{i}.0", torch.cat([h, other], 1), c)
    return conv("out.2", silu(nn.functional.group_norm(h, 32, w["out.0.weight"], w["out.0.bias"])))[:, :3]


@pytest.mark.parametrize("blocks", [True, False])
def test_adm_is_built_from_the_names_of_its_weights(blocks: bool, tmp_path: Path):
    """At the step of the chain with as much data as the schedule has at t."""
    w = shapes_of_adm(blocks)
    save_file(w, tmp_path / "adm.safetensors")
    model = gk.from_checkpoint(tmp_path / "adm.safetensors", "adm", size=4, head=16)
    x = gk.random.normal(gk.random.key(2)[None], (3, 4, 4), torch.float32)
    with torch.no_grad():
        out = model.net(x, torch.tensor([0.4]), torch.tensor([3]))
    step = float(model.net.step(torch.tensor([0.4])))  # type: ignore[attr-defined]
    assert torch.allclose(out, adm_by_hand(w, x, step, 3, blocks), atol=1e-4)
    kept = torch.linspace(1e-4, 0.02, 1000).double().neg().log1p().cumsum(0)
    low, high = kept[int(step)], kept[int(step) + 1]
    assert float(low + (step - int(step)) * (high - low)) == pytest.approx(2 * math.log(model.process.scales(0.4)[0]))
    picture = model.decode(x)
    assert torch.allclose(model.read(picture), x.clamp(-1, 1), atol=1e-5)
    assert model.encode(2) == 2


def weights_of_edm2(classes: int) -> Weights:
    """Of pictures of 4 x 4 and of 2 x 2 below, with 8 and 12 channels, one block a level, attention at the lower one;
    in an order that is not that of the network."""
    found: dict[str, tuple[int, ...]] = {
        "unet.emb_fourier.freqs": (6,), "unet.emb_fourier.phases": (6,), "unet.emb_noise.weight": (12, 6),
        "unet.out_gain": (), "unet.out_conv.weight": (3, 8, 3, 3), "unet.enc.4x4_conv.weight": (8, 4, 3, 3),
        "logvar_linear.weight": (1, 7),
    }  # fmt: skip

    def block(name: str, a: int, b: int, attends: bool = False) -> None:
        inner = b if ".enc." in name else a
        found.update({
            f"{name}.emb_gain": (), f"{name}.emb_linear.weight": (b, 12), f"{name}.conv_res0.weight": (b, inner, 3, 3),
            f"{name}.conv_res1.weight": (b, b, 3, 3),
        })  # fmt: skip
        if a != b:
            found[f"{name}.conv_skip.weight"] = (b, a, 1, 1)
        if attends:
            found.update({f"{name}.attn_qkv.weight": (3 * b, b, 1, 1), f"{name}.attn_proj.weight": (b, b, 1, 1)})

    block("unet.enc.2x2_block0", 8, 12, True), block("unet.enc.4x4_block0", 8, 8), block("unet.enc.2x2_down", 8, 8)
    block("unet.dec.2x2_in0", 12, 12, True), block("unet.dec.2x2_in1", 12, 12), block("unet.dec.4x4_up", 12, 12)
    block("unet.dec.2x2_block1", 20, 12, True), block("unet.dec.2x2_block0", 24, 12, True)
    block("unet.dec.4x4_block1", 16, 8), block("unet.dec.4x4_block0", 20, 8)
    if classes:
        found["unet.emb_label.weight"] = (12, classes)
    keys = gk.random.fold(gk.random.key(11), torch.arange(len(found)))
    return {
        name: gk.random.normal(key[None], shape, torch.float32)[0]
        for key, (name, shape) in zip(keys, found.items(), strict=True)
    }


def edm2_by_hand(w: Weights, x: Tensor, sigma: float, label: int | None) -> Tensor:
    """The denoiser for one row, x of shape (3, 4, 4), with data of the standard deviation 0.5."""

    def unit(v: Tensor) -> Tensor:  # along the first axis
        return v / (1e-4 + v.norm(dim=0) / math.sqrt(len(v)))

    def silu(v: Tensor) -> Tensor:
        return v * v.sigmoid() / 0.596

    def linear(name: str, v: Tensor) -> Tensor:
        kernel = w[f"unet.{name}.weight"]
        kernel = torch.stack([k / (1e-4 * math.sqrt(k.numel()) + k.norm()) for k in kernel])
        return kernel @ v if v.ndim == 1 else nn.functional.conv2d(v[None], kernel, padding=kernel.shape[-1] // 2)[0]

    def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
        return ((1 - share) * a + share * b) / math.sqrt((1 - share) ** 2 + share**2)

    def attends(name: str, v: Tensor) -> Tensor:
        parts, found = linear(f"{name}.attn_qkv", v).flatten(1), []
        for i in range(len(v) // 4):  # heads of four channels
            q, k, u = (unit(parts[12 * i + j : 12 * i + 12 : 3]) for j in range(3))
            found.append(u @ (q.T @ k / 2).softmax(-1).T)
        return mixed(v, linear(f"{name}.attn_proj", torch.cat(found).view_as(v)), 0.3)

    def block(name: str, v: Tensor, resize=lambda v: v) -> Tensor:
        v, skip = resize(v), f"unet.{name}.conv_skip.weight" in w
        if name.startswith("enc"):
            v = unit(linear(f"{name}.conv_skip", v) if skip else v)
        told = 1 + w[f"unet.{name}.emb_gain"] * linear(f"{name}.emb_linear", c)
        h = linear(f"{name}.conv_res1", silu(linear(f"{name}.conv_res0", silu(v)) * told[:, None, None]))
        v = linear(f"{name}.conv_skip", v) if skip and name.startswith("dec") else v
        v = mixed(v, h, 0.3)
        return attends(name, v) if f"unet.{name}.attn_qkv.weight" in w else v

    def joined(a: Tensor, b: Tensor) -> Tensor:
        size = math.sqrt((len(a) + len(b)) * 2)  # (N_a + N_b)/((1 - t)^2 + t^2) at t = 1/2
        return torch.cat([a * size / (2 * math.sqrt(len(a))), b * size / (2 * math.sqrt(len(b)))])

    angle = math.log(sigma) / 4 * w["unet.emb_fourier.freqs"] + w["unet.emb_fourier.phases"]
    c = linear("emb_noise", math.sqrt(2) * angle.cos())
    if label is not None:
        one = torch.zeros(w["unet.emb_label.weight"].shape[1])
        one[label] = math.sqrt(len(one))
        c = mixed(c, linear("emb_label", one), 0.5)
    c, size = silu(c), math.sqrt(sigma**2 + 0.25)
    a = linear("enc.4x4_conv", torch.cat([x / size, torch.ones(1, 4, 4)]))
    b = block("enc.4x4_block0", a)
    down = block("enc.2x2_down", b, halved)
    low = block("enc.2x2_block0", down)
    h = block("dec.2x2_in1", block("dec.2x2_in0", low))
    h = block("dec.2x2_block1", joined(block("dec.2x2_block0", joined(h, low)), down))
    h = block("dec.4x4_up", h, doubled)
    h = block("dec.4x4_block1", joined(block("dec.4x4_block0", joined(h, b)), a))
    return 0.25 / size**2 * x + sigma * 0.5 / size * w["unet.out_gain"] * linear("out_conv", h)


def test_edm2_keeps_magnitudes_and_is_built_from_the_names_of_its_weights(tmp_path: Path):
    """With classes and without; a network without guides one with them."""
    x = 3 * gk.random.normal(gk.random.fold(gk.random.key(2), torch.arange(2)), (3, 4, 4), torch.float32)
    models = []
    for classes in (5, 0):
        w = weights_of_edm2(classes)
        save_file(w, tmp_path / "edm2.safetensors")
        models.append(model := gk.from_checkpoint(tmp_path / "edm2.safetensors", "edm2", head=4))
        sigma = model.process.scales(0.5)[1]
        for labels in ([3, 1], [None, None]) if classes else ([None, None],):
            cond = None if labels[0] is None else model.encode_all(labels)
            by_hand = torch.stack([edm2_by_hand(w, row, sigma, label) for row, label in zip(x, labels, strict=True)])
            assert 1 < sigma < 5 and torch.allclose(model(x, 0.5, cond), by_hand, atol=1e-4)
    guided = gk.sample(models[0], 2, steps=3, cond=4, guides=[gk.AutoGuidance(models[1], 1.5)])
    assert guided.samples.shape == (2, 3, 4, 4) and 0 <= float(guided.samples.min()) <= float(guided.samples.max()) <= 1
    latents = gk.from_checkpoint(tmp_path / "edm2.safetensors", "edm2", head=4, decode=lambda z: 2 * z)
    assert torch.equal(latents.decode(x), 2 * x)


def test_files_of_edm2_that_lack_a_part_say_which(tmp_path: Path):
    def refused(part: str, why: str, head: int = 4) -> None:
        w = {k: v for k, v in weights_of_edm2(0).items() if part not in k}
        save_file(w, tmp_path / "edm2.safetensors")
        with pytest.raises(ValueError, match=why):
            gk.from_checkpoint(tmp_path / "edm2.safetensors", "edm2", head=head)

    refused("4x4_conv", "not of kind='edm2': it lacks unet.enc.64x64_conv.weight")
    refused("4x4_block1.conv_res1", "not of kind='edm2': it lacks unet.dec.4x4_block1.conv_res1.weight")
    refused("emb_noise", "not of kind='edm2': it lacks unet.emb_noise.weight")
    refused("none of them", "head=7: 12 channels of unet.enc.2x2_block0 are no multiple of it", head=7)


class Letters:
    """A tokenizer of nine letters, as GenMol's is one of SAFE."""

    mask_token_id, bos_token_id, eos_token_id, pad_token_id = 3, 1, 2, 0

    def __call__(self, text: str, **_) -> dict[str, list[int]]:
        return {"input_ids": ["<>|?CNO1=".index(v) for v in text]}

    def batch_decode(self, ids: Tensor, **_) -> list[str]:
        return ["".join("<>|?CNO1="[v] for v in row) for row in ids.tolist()]


def test_genmol_is_the_averaged_network_between_its_ends(tmp_path: Path):
    """The decoder shares its weights with the embedding, so the average has them once."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=12,
                        max_position_embeddings=12)  # fmt: skip
    net, old = BertForMaskedLM(config).eval(), BertForMaskedLM(config)
    stored = {"state_dict": {f"backbone.{k}": v for k, v in old.state_dict().items()},
              "ema": {"shadow_params": [p.detach() for p in net.parameters()]}}  # fmt: skip
    torch.save(stored, tmp_path / "model.ckpt")
    model = gk.from_checkpoint(tmp_path / "model.ckpt", "genmol", length=4, tokenizer=Letters(), heads=2)
    x = model.read("CN=O")
    assert model.vocab_size == 5 and model.decode(x) == ["CN=O"]
    x[0, 2] = 5
    with torch.no_grad():
        said = net(torch.tensor([[1, 4, 5, 3, 6, 2]])).logits[:, 1:-1, 4:]
    assert torch.allclose(model(x, 0.5, None), said.log_softmax(-1), atol=1e-5)
    with pytest.raises(ValueError, match="length=11: 1 to 10 tokens"):
        gk.from_checkpoint(tmp_path / "model.ckpt", "genmol", length=11, tokenizer=Letters(), heads=2)
    with pytest.raises(ValueError, match="the tokenizer has no mask_token_id"):
        gk.from_checkpoint(tmp_path / "model.ckpt", "genmol", length=4, tokenizer=object())


class Config:
    """What a trainer may put beside weights."""


def test_files_that_do_not_fit_say_what_differs(tmp_path: Path):
    _, w = transformer()

    def refused(given: dict, why: str, kind: str = "mdlm", **options) -> None:
        torch.save(given, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=why):
            gk.from_checkpoint(tmp_path / "a.pt", kind, length=4, **options)

    refused({"a": torch.zeros(1)}, "not of kind='mdlm': it lacks vocab_embed.embedding, .*; it has a$")
    refused({k: v for k, v in w.items() if "2.norm1" not in k} | {"more": w["rotary_emb.inv_freq"]},
            r"it lacks blocks\.2\.norm1\.weight; it has besides more$")  # fmt: skip
    refused(w | {"blocks.0.attn_out.weight": torch.zeros(8, 9)}, r"another shape blocks.0.attn_out.weight \(8, 9\)")
    refused({k: v for k, v in w.items() if "inv_freq" not in k}, "heads=None: the weights do not say it")
    refused(
        {"state_dict": w, "ema": {"shadow_params": [torch.zeros(2)]}}, "1 tensors that are not those of .* ema=False"
    )
    refused({"state_dict": w, "config": Config()}, "more than tensors, and what it holds is not run")
    refused(w, "not of kind='drakes': it lacks linear.weight", "drakes")
    refused(w, "not of kind='d3': it lacks vocab_embed.signal_embedding.weight", "d3")
    refused(w, "not of kind='dream': it lacks model.embed_tokens.weight", "dream", heads=2)
    with pytest.raises(ValueError, match="there is adm, d3, dream, drakes, edm2, genmol, llada, mdlm, sedd"):
        gk.from_checkpoint(tmp_path / "a.pt", "edm")
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors\.index\.json"):
        gk.from_checkpoint(tmp_path, "dream", length=3, heads=2)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        layout.state(tmp_path / "none.pt")

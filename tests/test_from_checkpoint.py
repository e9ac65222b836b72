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
from guidekit.external import bidirectional, dit, dnacnn, layout

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


def dit_by_hand(w: Weights, ids: list[int], sigma: float, heads: int, blocks: int) -> Tensor:
    angle = [sigma * 10000 ** (-i / 128) for i in range(128)]
    waves = torch.tensor([math.cos(a) for a in angle] + [math.sin(a) for a in angle])
    silu = nn.functional.silu
    c = silu(affine(w, "sigma_map.mlp.2", silu(affine(w, "sigma_map.mlp.0", waves))))
    x = w["vocab_embed.embedding"][torch.tensor(ids)]
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
    s = out.scatter(1, x[0][:, None], 0.0).exp()
    a = ((s - 0.1 * s.sum(1, keepdim=True)) / 0.4).clamp(min=0)
    p = a * (0.4 * nn.functional.one_hot(x[0], 6) + 0.1)
    assert torch.allclose(model(x, 0.6, None)[0].exp(), p / p.sum(1, keepdim=True), atol=1e-4)


def cnn_by_hand(w: Weights, ids: list[int], stacks: int) -> Tensor:
    """Position by position."""
    L = len(ids)

    def convolved(name: str, h: Tensor, dilation: int) -> Tensor:
        kernel, out = w[f"{name}.weight"], []
        for i in range(L):
            taps = [(i + dilation * (k - kernel.shape[2] // 2), k) for k in range(kernel.shape[2])]
            out.append(w[f"{name}.bias"] + sum(kernel[:, :, k] @ h[j] for j, k in taps if 0 <= j < L))
        return torch.stack(out)

    waves = torch.cat([torch.zeros_like(w["time_embedder.0.W"]), torch.ones_like(w["time_embedder.0.W"])])
    c = affine(w, "time_embedder.1", waves).relu()
    h = convolved("linear", nn.functional.one_hot(torch.tensor(ids), 5).float(), 1).relu()
    for i, dilation in enumerate(r for r in (1, 1, 4, 16, 64) for _ in range(stacks)):
        u = normal(h + affine(w, f"time_layers.{i}.dense", c), w[f"norms.{i}.weight"]) + w[f"norms.{i}.bias"]
        h = h + convolved(f"convs.{i}", u, dilation).relu()
    return convolved("final_conv.2", convolved("final_conv.0", h, 1).relu(), 1)


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
    refused(w, "not of kind='dream': it lacks model.embed_tokens.weight", "dream", heads=2)
    with pytest.raises(ValueError, match="there is dream, drakes, llada, mdlm, sedd"):
        gk.from_checkpoint(tmp_path / "a.pt", "edm")
    with pytest.raises(FileNotFoundError, match=r"has none of model\.safetensors\.index\.json"):
        gk.from_checkpoint(tmp_path, "dream", length=3, heads=2)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        layout.state(tmp_path / "none.pt")

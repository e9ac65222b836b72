r"""LLaDA (Nie et al., 2025, https://arxiv.org/abs/2502.09992) and Dream (Ye et al., 2025,
https://arxiv.org/abs/2508.15487): masked language models with the networks of Llama and Qwen2, without the causal mask.

    x + W_o attention(RMSNorm(x)),  then  x + W_d (SiLU(W_g n) * W_u n),  n = RMSNorm(x)

Dream goes on from a causal model, and its logits of position i stand at i - 1; the first position, which has none
before it, keeps its own. Both take no time. A condition is a prompt, before the text. Prompts are padded on the left:
nothing attends to what is padded, and relative positions do not see it. Names of parameters are those of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..integrations.mdlm import Reader
from ..models import MaskedModel
from . import layout

NONE = -1  # where a prompt has no token
# what LLaDA calls the parts of a layer
LLADA = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj", "ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm",
}  # fmt: skip
OUTER = {"wte": "embed_tokens", "ln_f": "norm"}
READ = ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.k_proj.weight",
        "lm_head.weight")  # fmt: skip


class Attention(nn.Module):
    def __init__(self, d: int, heads: int, shared: int, bias: bool, theta: float):
        super().__init__()
        self.heads, self.shared, self.theta, width = heads, shared, theta, d // heads
        self.q_proj = nn.Linear(d, d, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(d, shared * width, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (n, -1)).transpose(1, 2) for f, n in (
            (self.q_proj, self.heads), (self.k_proj, self.shared), (self.v_proj, self.shared)))  # fmt: skip
        k, v = (u.repeat_interleave(self.heads // self.shared, 1) for u in (self._turned(k), v))
        found = F.scaled_dot_product_attention(self._turned(q), k, v, attn_mask=seen[:, None, None])
        return self.o_proj(found.transpose(1, 2).flatten(2))

    def _turned(self, v: Tensor) -> Tensor:
        """Rotary positions."""
        width = v.shape[-1]
        turn = self.theta ** (-torch.arange(0, width, 2, device=v.device) / width)
        angle = torch.arange(v.shape[-2], device=v.device)[:, None] * turn
        cos, sin = angle.cos().to(v), angle.sin().to(v)
        a, b = v.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Gated(nn.Module):
    def __init__(self, d: int, wide: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(d, wide, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(wide, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, d: int, wide: int, heads: int, shared: int, bias: bool, theta: float, eps: float):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(d, eps=eps) for _ in range(2))
        self.self_attn, self.mlp = Attention(d, heads, shared, bias, theta), Gated(d, wide)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, states: int, layers: int, d: int, *sizes: Any, eps: float):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(states, d), nn.RMSNorm(d, eps=eps)
        self.layers = nn.ModuleList(Layer(d, *sizes, eps=eps) for _ in range(layers))


class Language(nn.Module):
    """(ids, seen) -> logits, where `seen` says which positions there are."""

    def __init__(self, states: int, layers: int, d: int, *sizes: Any, eps: float):
        super().__init__()
        self.model = Body(states, layers, d, *sizes, eps=eps)
        self.lm_head = nn.Linear(d, states, bias=False)

    def forward(self, ids: Tensor, seen: Tensor) -> Tensor:
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, seen)
        return self.lm_head(self.model.norm(x))


class Prompted(nn.Module):
    """(tokens, t, cond) -> logits of the text, in guidekit's tokens: `ids` has the network's id of each, the mask last.

    shifted   the logits of a position stand one before it
    """

    timed = False
    ids: Tensor

    def __init__(self, net: Language, ids: Tensor, shifted: bool):
        super().__init__()
        self.net, self.shifted = net, shifted
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        ids, prompt = torch.cat([cond.clamp(min=0), self.ids[x]], 1), cond.shape[1]
        seen = torch.cat([cond != NONE, torch.ones_like(x, dtype=torch.bool)], 1)
        out = self.net(ids, seen)
        if self.shifted:
            before = F.pad(seen[:, :-1], (1, 0), value=False)[..., None]
            out = torch.where(before, out.roll(1, 1), out)
        return out[:, prompt:][..., self.ids[:-1]]


def _network(given: dict[str, Tensor], kind: str, heads: int, theta: float, eps: float) -> Language:
    layout.needed(given, READ, kind)
    states, d = given["model.embed_tokens.weight"].shape
    wide, keys = (len(given[f"model.layers.0.{part}.weight"]) for part in ("mlp.gate_proj", "self_attn.k_proj"))
    bias = "model.layers.0.self_attn.q_proj.bias" in given
    with torch.device("meta"):
        net = Language(states, layout.depth(given, "model.layers."), d, wide, heads, keys * heads // d, bias, theta,
                       eps=eps)  # fmt: skip
    own = net.to_empty(device="cpu").to(given["lm_head.weight"].dtype)
    layout.fitted(own, given, kind)
    return own


def _model(net: Language, length: int, mask: int, prompt: int, tokenizer: Any, shifted: bool) -> MaskedModel:
    states = net.lm_head.out_features
    if not 0 <= mask < states:
        raise ValueError(f"mask={mask}: an id below {states} is needed, which the network knows as the mask")
    ids = torch.tensor([*(v for v in range(states) if v != mask), mask])

    def encode(given: Any) -> Tensor:
        own = [int(v) for v in (given if tokenizer is None else tokenizer(given)["input_ids"])]
        if not 0 < len(own) <= prompt:
            raise ValueError(f"the prompt {given!r} has {len(own)} tokens, and 1 to {prompt} are taken: see prompt=")
        return torch.tensor([*[NONE] * (prompt - len(own)), *own])

    def decode(x: Tensor) -> Any:
        found = ids.to(x.device)[x]
        return found if tokenizer is None else tokenizer.batch_decode(found, skip_special_tokens=True)

    return MaskedModel(
        Prompted(net, ids, shifted).eval(), states - 1, length, decode, encode, torch.full((prompt,), NONE),
        read=Reader(ids[:-1].tolist(), length, tokenizer),
    )  # fmt: skip


def llada(
    path: str | Path, length: int, *, tokenizer: Any = None, mask: int = 126336, prompt: int = 64,
    heads: int | None = None, theta: float | None = None, ema: bool = True,
) -> MaskedModel:  # fmt: skip
    """LLaDA. `heads` and `theta` are those of config.json beside the weights."""
    told = layout.config(path)
    heads = layout.sized(heads or told.get("n_heads"), "heads")
    given = {_translated(k): v for k, v in layout.state(path, ema).items()}
    net = _network(given, "llada", heads, theta or told.get("rope_theta", 500000.0), told.get("rms_norm_eps", 1e-5))
    return _model(net, length, mask, prompt, tokenizer, shifted=False)


def dream(
    path: str | Path, length: int, *, tokenizer: Any = None, mask: int = 151666, prompt: int = 64,
    heads: int | None = None, theta: float | None = None, ema: bool = True,
) -> MaskedModel:  # fmt: skip
    """Dream. `heads` and `theta` are those of config.json beside the weights."""
    told = layout.config(path)
    heads = layout.sized(heads or told.get("num_attention_heads"), "heads")
    given = layout.state(path, ema)
    net = _network(given, "dream", heads, theta or told.get("rope_theta", 1000000.0), told.get("rms_norm_eps", 1e-6))
    return _model(net, length, mask, prompt, tokenizer, shifted=True)


def _translated(name: str) -> str:
    """A name of LLaDA in those of transformers.

    >>> _translated("model.transformer.blocks.3.ff_out.weight"), _translated("model.transformer.ff_out.weight")
    ('model.layers.3.mlp.down_proj.weight', 'lm_head.weight')
    """
    parts = name.split(".")
    if parts[:3] == ["model", "transformer", "blocks"] and len(parts) == 6:
        return f"model.layers.{parts[3]}.{LLADA.get(parts[4], parts[4])}.{parts[5]}"
    if parts[:3] == ["model", "transformer", "ff_out"]:
        return "lm_head.weight"
    return f"model.{OUTER[parts[2]]}.weight" if parts[:2] == ["model", "transformer"] and parts[2] in OUTER else name

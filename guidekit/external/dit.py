r"""The transformer of MDLM (Sahoo et al., 2024, https://arxiv.org/abs/2406.07524) and SEDD (Lou et al., 2024,
https://arxiv.org/abs/2310.16834): a diffusion transformer of tokens with rotary positions.

Each block is x + g_1 attention(m_1(x)), then x + g_2 MLP(m_2(x)), with m(x) = (1 + scale) norm(x) + shift. Scales,
shifts and gates g are linear in the embedding c = SiLU(MLP(frequencies of the noise)). Names are those of the authors.

MDLM's networks return logits, and were trained without the time: it is 0. SEDD's return log scores, of absorbing noise
less log(e^sigma - 1) + log(V), which its training multiplies by. Both run in float32 here, and in bfloat16 there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..integrations.mdlm import from_mdlm
from ..integrations.sedd import from_sedd
from ..models import MaskedModel, UniformModel
from . import layout

FREQUENCIES = 256
TURNS = "rotary_emb.inv_freq"
READ = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.linear.weight")


class Embedding(nn.Module):
    """Of a token, and in some networks of a signal (rows, numbers) or (rows, length, numbers), which is added."""

    def __init__(self, states: int, d: int, numbers: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(states, d))
        if numbers:
            self.signal_embedding = nn.Linear(numbers, d)

    def forward(self, ids: Tensor, signal: Tensor | None) -> Tensor:
        x = self.embedding[ids]
        return x if signal is None else x + self.signal_embedding(signal if signal.ndim == 3 else signal[:, None])


class Noise(nn.Module):
    """sigma -> (rows, wide), by its cosines and sines at frequencies from 1 down to 1/10000."""

    def __init__(self, wide: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, wide), nn.SiLU(), nn.Linear(wide, wide))

    def forward(self, sigma: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        angle = sigma.float()[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, device=sigma.device) / half)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class Rotary(nn.Module):
    inv_freq: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("inv_freq", 1e4 ** (-torch.arange(0, width, 2) / width))

    def forward(self, v: Tensor) -> Tensor:
        """Turns queries or keys (..., length, width) by their positions: number i of the first half with number i of
        the second."""
        angle = torch.arange(v.shape[-2], device=v.device)[:, None] * self.inv_freq
        a, b = v.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Block(nn.Module):
    def __init__(self, d: int, wide: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(d, bias=False) for _ in range(2))
        self.attn_qkv, self.attn_out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(approximate="tanh"), nn.Linear(4 * d, d))
        self.adaLN_modulation = nn.Linear(wide, 6 * d)

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        qkv = self.attn_qkv((1 + scale) * self.norm1(x) + shift).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(rotary(q), rotary(k), v)
        x = x + gate * self.attn_out(found.transpose(1, 2).flatten(2))
        return x + gate_2 * self.mlp((1 + scale_2) * self.norm2(x) + shift_2)


class Last(nn.Module):
    def __init__(self, d: int, wide: int, states: int):
        super().__init__()
        self.norm_final, self.linear = nn.LayerNorm(d, bias=False), nn.Linear(d, states)
        self.adaLN_modulation = nn.Linear(wide, 2 * d)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, -1)
        return self.linear((1 + scale) * self.norm_final(x) + shift)


class DiT(nn.Module):
    """(ids, sigma, signal) -> (rows, length, states).

    numbers   of a signal; 0 without one
    """

    def __init__(self, states: int, d: int, wide: int, blocks: int, heads: int, numbers: int = 0):
        super().__init__()
        self.vocab_embed, self.sigma_map = Embedding(states, d, numbers), Noise(wide)
        self.rotary_emb = Rotary(d // heads)
        self.blocks = nn.ModuleList(Block(d, wide, heads) for _ in range(blocks))
        self.output_layer = Last(d, wide, states)

    def forward(self, ids: Tensor, sigma: Tensor, signal: Tensor | None = None) -> Tensor:
        x, c = self.vocab_embed(ids, signal), F.silu(self.sigma_map(sigma))
        for block in self.blocks:
            x = block(x, c, self.rotary_emb)
        return self.output_layer(x, c)


class Timeless(nn.Module):
    """The network at sigma = 0."""

    def __init__(self, net: DiT):
        super().__init__()
        self.net = net

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(ids, torch.zeros(len(ids), device=ids.device))


class Scores(nn.Module):
    """Log scores (rows, length, states), 0 at the token that is there."""

    def __init__(self, net: nn.Module, scaled: bool):
        super().__init__()
        self.net, self.scaled = net, scaled

    def forward(self, ids: Tensor, sigma: Tensor, *signal: Tensor) -> Tensor:
        out = self.net(ids, sigma, *signal)
        if self.scaled:
            out = out - sigma.expm1().log()[:, None, None] - math.log(out.shape[-1] - 1)
        return out.scatter(-1, ids[..., None], 0.0)


def network(
    given: dict[str, Tensor], kind: str, heads: int | None = None, free: tuple[str, ...] = (TURNS,)
) -> DiT:  # fmt: skip
    """The network of these weights. Where they have the frequencies of rotary positions, these say the heads."""
    layout.needed(given, READ, kind)
    states, d = given["vocab_embed.embedding"].shape
    turns, signal = given.get(TURNS), given.get("vocab_embed.signal_embedding.weight")
    heads = d // (2 * len(turns)) if heads is None and turns is not None else heads
    net = DiT(states, d, given["sigma_map.mlp.0.weight"].shape[0], layout.depth(given, "blocks."),
              layout.sized(heads, "heads"), 0 if signal is None else signal.shape[1])  # fmt: skip
    layout.fitted(net, given, kind, free)
    return net


def mdlm(
    path: str | Path, length: int, *, tokenizer: Any = None, mask: int | None = None, timed: bool = False,
    heads: int | None = None, ema: bool = True, **options: Any,
) -> MaskedModel:  # fmt: skip
    """MDLM's networks. The mask is the last of the ids, unless `mask` is another; `timed` where the network was trained
    with the time. Other options are those of `from_mdlm`."""
    net = network(layout.state(path, ema), "mdlm", heads)
    states = len(net.vocab_embed.embedding)
    return from_mdlm(
        net if timed else Timeless(net).eval(), length, mask=states - 1 if mask is None else mask, vocab_size=states,
        tokenizer=tokenizer, **options,
    )  # fmt: skip


def sedd(
    path: str | Path, length: int, *, noise: str = "absorbing", heads: int | None = None, ema: bool = True,
    **options: Any,
) -> MaskedModel | UniformModel:  # fmt: skip
    """SEDD's networks, of absorbing noise, whose mask is the last of the ids, or of uniform noise. Samples are ids;
    options are those of `from_sedd`, such as decode."""
    net = network(layout.state(path, ema), "sedd", heads)
    states = len(net.vocab_embed.embedding)
    absorbing = noise == "absorbing"
    return from_sedd(Scores(net, absorbing).eval(), states - absorbing, length, noise, **options)

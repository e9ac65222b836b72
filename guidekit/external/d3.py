"""D3 (Sarkar et al., 2024, https://www.biorxiv.org/content/10.1101/2024.05.23.595630): score entropy models of DNA.

Their networks estimate concrete scores of uniform noise, as SEDD's do. They are told the noise -log alpha and a signal
y, the activity that is wanted:

    transformer    SEDD's, whose embedding of a token has a linear map of y added
    convolutions   of the letters and y side by side, of width 9, dilated by 1, 1, 4, 16 and 64 in turn, each with a
                   skip: x + silu(conv(norm(x + linear(c)))), where norm is over positions and channels together

Names are those of the authors' package d3-dna. A signal is one for the whole sequence, or one for each letter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..integrations.sedd import from_sedd
from ..models import MaskedModel, UniformModel
from ..zoo.readers import Sequences
from . import dit, layout
from .dnacnn import DILATIONS, Dense, decode

CONVOLUTIONS = ("linear.weight", "sigma_map.mlp.0.weight", "conv_blocks.0.weight", "final.2.weight")
UNREAD = ("scale", "embed.0.W", "embed.1.weight", "embed.1.bias")  # of the convolutions
UNREAD_TOO = (dit.TURNS, "label_embed.embedding_table.weight")  # of the transformer


class CNN(nn.Module):
    """(ids, sigma, signal) -> log scores (rows, length, states)."""

    def __init__(self, states: int, d: int, wide: int, blocks: int, numbers: int = 1):
        super().__init__()
        self.states, self.numbers = states, numbers
        self.sigma_map, self.linear = dit.Noise(wide), nn.Conv1d(states + numbers, d, 9, padding=4)
        dilations = [DILATIONS[i % len(DILATIONS)] for i in range(blocks)]
        self.conv_blocks = nn.ModuleList(nn.Conv1d(d, d, 9, dilation=r, padding=4 * r) for r in dilations)
        self.denses = nn.ModuleList(Dense(d, wide) for _ in dilations)
        self.norms = nn.ModuleList(nn.GroupNorm(1, d) for _ in dilations)
        self.final = nn.Sequential(nn.Conv1d(d, d, 1), nn.GELU(), nn.Conv1d(d, states, 1))

    def forward(self, ids: Tensor, sigma: Tensor, signal: Tensor | None = None) -> Tensor:
        letters, c = F.one_hot(ids, self.states).float(), F.silu(self.sigma_map(sigma))
        told = letters.new_zeros(*ids.shape, self.numbers) if signal is None else along(signal, ids.shape[1])
        h = F.silu(self.linear(torch.cat([letters, told], -1).mT))
        for conv, dense, norm in zip(self.conv_blocks, self.denses, self.norms, strict=True):
            h = h + F.silu(conv(norm(h + dense.dense(c)[..., None])))  # type: ignore[operator,union-attr]
        return self.final(h).mT


def along(signal: Tensor, length: int) -> Tensor:
    """A signal at every letter, (rows, length, numbers)."""
    return signal if signal.ndim == 3 else signal[:, None].expand(-1, length, -1)


def d3(
    path: str | Path, length: int, *, heads: int | None = None, ema: bool = True
) -> MaskedModel | UniformModel:  # fmt: skip
    """D3's networks, transformers or convolutions. A condition is the signal: a number, or as many as the network
    takes, or a row of them for each letter. The networks were trained with one, and without it nothing is added."""
    given = layout.state(path, ema)
    net = _convolutions(given) if "conv_blocks.0.weight" in given else _transformer(given, heads)
    states, numbers = (net.states, net.numbers) if isinstance(net, CNN) else _sizes(net)

    def encode(signal: Any) -> Tensor:
        told = torch.as_tensor(signal, dtype=torch.float32)
        told = told[None] if told.ndim == 0 else told
        if told.shape not in ((numbers,), (length, numbers)):
            raise ValueError(
                f"a signal of shape {tuple(told.shape)}: this network takes {numbers} for a sequence, or "
                f"({length}, {numbers}) for its letters"
            )
        return told

    return from_sedd(
        dit.Scores(net, False).eval(), 4, length, "uniform" if states == 4 else "absorbing", decode=decode,
        encode_cond=encode, read=Sequences(length),
    )  # fmt: skip


def _convolutions(given: dict[str, Tensor]) -> CNN:
    layout.needed(given, CONVOLUTIONS, "d3")
    (d, inside), states = given["linear.weight"].shape[:2], len(given["final.2.weight"])
    wide, blocks = len(given["sigma_map.mlp.0.weight"]), layout.depth(given, "conv_blocks.")
    net = CNN(states, d, wide, blocks, inside - states)
    layout.fitted(net, given, "d3", free=UNREAD)
    return net


def _transformer(given: dict[str, Tensor], heads: int | None) -> dit.DiT:
    layout.needed(given, ("vocab_embed.signal_embedding.weight",), "d3")
    return dit.network(given, "d3", heads, free=UNREAD_TOO)


def _sizes(net: dit.DiT) -> tuple[int, int]:
    return len(net.vocab_embed.embedding), net.vocab_embed.signal_embedding.in_features

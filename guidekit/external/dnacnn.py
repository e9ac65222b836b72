"""The convolutional network of DNA of DRAKES (Wang et al., 2024, https://arxiv.org/abs/2410.13643), a masked model of
200 base pairs trained on the enhancers of Gosai et al., with the layout of its checkpoint.

Convolutions of width 9, dilated by 1, 1, 4, 16 and 64, each with a skip: x + relu(conv(norm(x + linear(c)))), where the
embedding c of the time is that of 0, as the network was trained without it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import MaskedModel
from ..zoo.readers import Sequences
from . import layout

LETTERS = "ACGT"
DILATIONS = (1, 1, 4, 16, 64)
READ = ("linear.weight", "time_embedder.0.W", "final_conv.2.weight")


class Waves(nn.Module):
    """Sines and cosines of the time at fixed random frequencies."""

    def __init__(self, d: int):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(d // 2), requires_grad=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t[:, None] * self.W
        return torch.cat([angle.sin(), angle.cos()], -1)


class Dense(nn.Module):
    def __init__(self, d: int, wide: int):
        super().__init__()
        self.dense = nn.Linear(wide, d)


class CNN(nn.Module):
    """(tokens, t, cond) -> logits (rows, length, 4); the mask is 4, and the time is not read."""

    timed = False

    def __init__(self, d: int, stacks: int):
        super().__init__()
        wide = [r for r in DILATIONS for _ in range(stacks)]
        self.linear = nn.Conv1d(5, d, 9, padding=4)
        self.time_embedder = nn.Sequential(Waves(d), nn.Linear(d, d))
        self.convs = nn.ModuleList(nn.Conv1d(d, d, 9, dilation=r, padding=4 * r) for r in wide)
        self.time_layers = nn.ModuleList(Dense(d, d) for _ in wide)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in wide)
        self.final_conv = nn.Sequential(nn.Conv1d(d, d, 1), nn.ReLU(), nn.Conv1d(d, 5, 1))

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        c = F.relu(self.time_embedder(torch.zeros(len(x), device=x.device)))
        h = F.relu(self.linear(F.one_hot(x, 5).to(c).mT))
        for conv, time, norm in zip(self.convs, self.time_layers, self.norms, strict=True):
            h = h + F.relu(conv(norm((h + time.dense(c)[..., None]).mT).mT))  # type: ignore[operator,union-attr]
        return self.final_conv(h).mT[..., :4]


def decode(x: Tensor) -> list[str]:
    return ["".join(LETTERS[v] for v in row) for row in x.tolist()]


def drakes(path: str | Path, length: int = 200, *, ema: bool = True) -> MaskedModel:
    """The masked model of DNA that DRAKES starts from, or one that it has tuned."""
    given = layout.state(path, ema)
    layout.needed(given, READ, "drakes")
    net = CNN(len(given["linear.bias"]), max(1, layout.depth(given, "convs.") // len(DILATIONS)))
    layout.fitted(net, given, "drakes")
    return MaskedModel(net, 4, length, decode, read=Sequences(length))

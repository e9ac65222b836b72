r"""The U-Net of guided diffusion, ADM (Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233), with its files.

The network is built from the names and shapes of its weights: which blocks attend, change the number of channels, or
halve and double the picture. A residual block is skip(x) + conv(silu(n(conv(silu(norm(x)))))), with n(h) = norm(h) (1 +
scale) + shift by the embedding of the time and of the class. Names are those of the authors.

It predicts the noise of a chain of 1000 steps with beta from 1e-4 to .02; what it says of the variance is not used.
Here it gets the step, a real number, at which the chain has the same share of data as `schedules.Linear` has at t.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import GaussianModel
from ..solvers.schedules import Linear
from ..zoo.readers import Images
from . import layout

READ = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.0.in_layers.2.weight", "out.2.weight")
STEPS = 1000

Weights = dict[str, Tensor]


class Residual(nn.Module):
    """change   0.5, 2 or 1: the size of what comes out"""

    def __init__(self, a: int, b: int, wide: int, scaled: bool, change: float):
        super().__init__()
        self.scaled, self.change = scaled, change
        self.in_layers = nn.Sequential(nn.GroupNorm(32, a), nn.SiLU(), nn.Conv2d(a, b, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(wide, 2 * b if scaled else b))
        out = nn.Conv2d(b, b, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, b), nn.SiLU(), nn.Identity(), out)
        self.skip_connection = nn.Identity() if a == b else nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.in_layers[2](resized(self.in_layers[:2](x), self.change))
        told = self.emb_layers(c)[..., None, None]
        if self.scaled:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(resized(x, self.change)) + h


class Attention(nn.Module):
    """Of all places with each other; heads stand before queries, keys and values in the channels."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, d), nn.Conv1d(d, 3 * d, 1), nn.Conv1d(d, d, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).mT.unbind(2)
        found = F.scaled_dot_product_attention(q, k, v).mT.flatten(1, 2)
        return (flat + self.proj_out(found)).view_as(x)


class First(nn.Conv2d):
    """A convolution that knows no time."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Down(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.op = nn.Conv2d(d, d, 3, stride=2, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.conv = nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.conv(resized(x, 2.0))


class UNet(nn.Module):
    """(x, step, class or None) -> (rows, channels out, size, size)."""

    def __init__(self, given: Weights, head: int | None, heads: int | None):
        super().__init__()
        self.given, self.head, self.heads = given, head, heads  # the weights, as long as the network is built
        wide, width = given["time_embed.0.weight"].shape
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide))
        if "label_emb.weight" in given:
            self.label_emb = nn.Embedding(len(given["label_emb.weight"]), wide)
        ups = [i for i in range(layout.depth(given, "output_blocks.")) if self._up(i) is not None]
        every = ups[0] + 1 if ups else 1 << 30  # blocks of a level, its change of size among them
        self.input_blocks = nn.ModuleList(
            self._block(f"input_blocks.{i}", half=i > 0 and i % every == 0)
            for i in range(layout.depth(given, "input_blocks."))
        )
        self.middle_block = self._block("middle_block")
        self.output_blocks = nn.ModuleList(
            self._block(f"output_blocks.{i}", double=self._up(i)) for i in range(layout.depth(given, "output_blocks."))
        )
        last = given["out.2.weight"]
        self.out = nn.Sequential(
            nn.GroupNorm(32, last.shape[1]), nn.SiLU(), nn.Conv2d(last.shape[1], len(last), 3, padding=1)
        )
        del self.given

    def forward(self, x: Tensor, step: Tensor, label: Tensor | None = None) -> Tensor:
        half = self.width // 2
        angle = step[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, device=x.device) / half)
        c = self.time_embed(torch.cat([angle.cos(), angle.sin()], -1).to(x))
        c = c if label is None else c + self.label_emb(label)
        kept = []
        for block in self.input_blocks:
            kept.append(x := _through(block, x, c))
        x = _through(self.middle_block, x, c)
        for block in self.output_blocks:
            x = _through(block, torch.cat([x, kept.pop()], 1), c)
        return self.out(x)

    def _up(self, i: int) -> int | None:
        """The part of an output block that doubles the size: a convolution, or a second residual block."""
        parts = range(layout.depth(self.given, f"output_blocks.{i}."))
        found = [j for j in parts[1:] if f"output_blocks.{i}.{j}.norm.weight" not in self.given]
        return found[0] if found else None

    def _block(self, name: str, half: bool = False, double: int | None = None) -> nn.ModuleList:
        parts = range(layout.depth(self.given, f"{name}."))
        return nn.ModuleList(
            self._part(f"{name}.{j}", 0.5 if half else 2.0 if j == double else 1.0) for j in parts
        )  # fmt: skip

    def _part(self, name: str, change: float) -> nn.Module:
        given = self.given
        if f"{name}.in_layers.2.weight" in given:
            b, a = given[f"{name}.in_layers.2.weight"].shape[:2]
            out, wide = given[f"{name}.emb_layers.1.weight"].shape
            return Residual(a, b, wide, out == 2 * b, change)
        if f"{name}.norm.weight" in given:
            d = len(given[f"{name}.norm.weight"])
            return Attention(d, d // self.head if self.head else layout.sized(self.heads, "heads"))
        for kind, part in ((Down, "op"), (Up, "conv")):
            if f"{name}.{part}.weight" in given:
                return kind(len(given[f"{name}.{part}.weight"]))
        b, a = given[f"{name}.weight"].shape[:2]
        return First(a, b, 3, padding=1)


def resized(x: Tensor, change: float) -> Tensor:
    if change == 1:
        return x
    return F.avg_pool2d(x, 2) if change < 1 else F.interpolate(x, scale_factor=2.0, mode="nearest")


def _through(block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    for part in cast(nn.ModuleList, block):
        x = part(x, c)
    return x


class Noise(nn.Module):
    """(x, t, cond) -> the noise, at the step of the chain that has as much data as the schedule has at t."""

    log_data: Tensor

    def __init__(self, net: UNet, channels: int):
        super().__init__()
        self.net, self.channels = net, channels
        beta = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
        self.register_buffer("log_data", (-beta).log1p().cumsum(0).neg(), persistent=False)  # -log alpha^2, rising

    def step(self, t: Tensor) -> Tensor:
        alpha, _ = Linear()(t.double())
        table = self.log_data.to(t.device)
        told = (-2 * alpha.log()).clamp(float(table[0]), float(table[-1]))
        i = torch.searchsorted(table, told).clamp(1, STEPS - 1)
        return (i - 1 + (told - table[i - 1]) / (table[i] - table[i - 1])).float()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.net(x, self.step(t), cond)[:, : self.channels]


def adm(
    path: str | Path, size: int, *, head: int | None = 64, heads: int | None = None, ema: bool = True
) -> GaussianModel:
    """A network of guided diffusion for pictures of size x size; of class-conditional ones a condition is a number.

    head    channels of a head of attention: 64 in the published networks, but for that of 128 x 128
    heads   or with head=None the number of heads: 4 in that one
    """
    given = layout.state(path, ema)
    layout.needed(given, READ, "adm")
    net = UNet(given, head, heads)
    layout.fitted(net, given, "adm")
    channels = given["input_blocks.0.0.weight"].shape[1]
    images: Any = Images((channels, size, size), 0.5, 0.5)
    labels = hasattr(net, "label_emb")
    return GaussianModel(
        Noise(net, channels).eval(), (channels, size, size), Linear(), "noise", decode=pictures,
        encode_cond=torch.tensor if labels else None, read=images,
    )  # fmt: skip


def pictures(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1)

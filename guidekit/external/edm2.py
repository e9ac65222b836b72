r"""The magnitude-preserving U-Net of EDM2 (Karras et al., 2024, https://arxiv.org/abs/2312.02696), from the paper.

Weights of a channel have length 1, w / |w|, and everything else keeps the mean square at 1, if it was that before:

    silu(x) / 0.596                                                            unit(x) = x / rms(x) over channels
    sum(a, b; m) = ((1 - m) a + m b) / sqrt((1 - m)^2 + m^2)                   sqrt(2) cos(2 pi (f c + phi))
    joined(a, b) = sqrt((N_a + N_b)/2) [a / sqrt(N_a), b / sqrt(N_b)]          with N channels

A block is sum(x, conv(silu(conv(silu(x)) (1 + gain * linear(c)))); 0.3), and then sum(x, attention(x); 0.3) with
queries, keys and values made unit; blocks on the way down begin with unit(x). With s the standard deviation of data and
r^2 = sigma^2 + s^2, the denoiser is EDM's, a prediction of the clean mean:

    D(x; sigma) = s^2/r^2 x + sigma s/r net(x/r; ln(sigma)/4)

Names are those of the authors' files, which hold 2 pi f and 2 pi phi, and say the sizes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import GaussianModel
from ..solvers.schedules import EDM
from ..zoo.readers import Images
from . import layout
from .adm import pictures, resized

READ = ("unet.emb_fourier.freqs", "unet.emb_noise.weight", "unet.out_conv.weight", "unet.out_gain")
UNREAD = ("logvar_fourier.freqs", "logvar_fourier.phases", "logvar_linear.weight")  # of the training loss alone
BLOCK = ("emb_gain", "conv_res0.weight", "emb_linear.weight", "conv_res1.weight")
PARTS = ("conv_res0", "emb_linear", "conv_res1", "conv_skip", "attn_qkv", "attn_proj")
KINDS = ("conv", "down", "in0", "in1", "up")  # parts of a level, before its numbered blocks
MOST = 256.0  # the largest activation that passes
TINY = 1e-4
MIX = 0.3  # the share of a residual branch

Weights = dict[str, Tensor]


def unit(x: Tensor, dims: Sequence[int] = (1,)) -> Tensor:
    """x over its root mean square along these axes."""
    return x / (TINY + x.square().mean(tuple(dims), keepdim=True).sqrt())


def silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mixed(a: Tensor, b: Tensor, share: float) -> Tensor:
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def joined(a: Tensor, b: Tensor) -> Tensor:
    n, m = a.shape[1], b.shape[1]
    return math.sqrt((n + m) / 2) * torch.cat([a / math.sqrt(n), b / math.sqrt(m)], 1)


class Linear(nn.Module):
    """A linear map or a convolution, by the shape of its weights."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = self.weight * gain
        return x @ w.mT if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)

    def normalize(self) -> None:
        """Weights of length 1 for each channel that comes out."""
        w = self.weight.data
        self.weight.data = unit(w, range(1, w.ndim)) / math.sqrt(w[0].numel())


class Waves(nn.Module):
    """Cosines of ln(sigma)/4 at fixed random frequencies and phases."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, freqs: Tensor):
        super().__init__()
        self.register_buffer("freqs", torch.zeros_like(freqs))
        self.register_buffer("phases", torch.zeros_like(freqs))

    def forward(self, c: Tensor) -> Tensor:
        return math.sqrt(2) * (c[:, None] * self.freqs + self.phases).cos()


class Block(nn.Module):
    """down   whether it is on the way down, where x is made unit first
    change    0.5, 2 or 1: the size of what comes out
    """

    conv_res0: Linear
    emb_linear: Linear
    conv_res1: Linear
    conv_skip: Linear
    attn_qkv: Linear
    attn_proj: Linear

    def __init__(self, given: Weights, name: str, head: int, change: float):
        super().__init__()
        layout.needed(given, [f"{name}.{part}" for part in BLOCK], "edm2")
        self.down, self.head, self.change = name.startswith("unet.enc."), head, change
        self.emb_gain = nn.Parameter(torch.zeros(()))
        wide = len(given[f"{name}.conv_res1.weight"])
        if f"{name}.attn_qkv.weight" in given and wide % head:
            raise ValueError(f"head={head}: {wide} channels of {name} are no multiple of it")
        for part in PARTS:
            if f"{name}.{part}.weight" in given:
                self.add_module(part, Linear(given[f"{name}.{part}.weight"]))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = resized(x, self.change)
        if self.down:
            x = unit(self._skipped(x))
        h = self.conv_res0(silu(x))
        told = self.emb_linear(c, self.emb_gain) + 1
        h = self.conv_res1(silu(h * told[..., None, None]))
        x = mixed(x if self.down else self._skipped(x), h, MIX)
        x = mixed(x, self._attended(x), MIX) if hasattr(self, "attn_qkv") else x
        return x.clamp(-MOST, MOST)

    def _skipped(self, x: Tensor) -> Tensor:
        return self.conv_skip(x) if hasattr(self, "conv_skip") else x

    def _attended(self, x: Tensor) -> Tensor:
        """Of all places with each other; the channels are heads, then width, then queries, keys and values."""
        qkv = self.attn_qkv(x).flatten(2).unflatten(1, (-1, self.head, 3))
        q, k, v = unit(qkv, (2,)).transpose(2, 4).unbind(3)  # (rows, heads, places, width)
        found = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(found.mT.flatten(1, 2).view_as(x))


class UNet(nn.Module):
    """(x, ln(sigma)/4, class or None) -> like x."""

    def __init__(self, given: Weights, head: int):
        super().__init__()
        self.emb_fourier = Waves(given["unet.emb_fourier.freqs"])
        self.emb_noise = Linear(given["unet.emb_noise.weight"])
        if "unet.emb_label.weight" in given:
            self.emb_label = Linear(given["unet.emb_label.weight"])
        self.enc, self.dec = (nn.ModuleDict(_parts(given, f"unet.{side}", head)) for side in ("enc", "dec"))
        self.out_conv, self.out_gain = Linear(given["unet.out_conv.weight"]), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None) -> Tensor:
        c = self._embedded(noise, label)
        x, kept = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for part in self.enc.values():
            kept.append(x := part(x, c) if isinstance(part, Block) else part(x))
        for name, part in self.dec.items():
            x = part(joined(x, kept.pop()) if "block" in name else x, c)
        return self.out_conv(x, self.out_gain)

    def _embedded(self, noise: Tensor, label: Tensor | None) -> Tensor:
        c = self.emb_noise(self.emb_fourier(noise))
        if label is not None and hasattr(self, "emb_label"):
            classes = self.emb_label.weight.shape[1]
            told = self.emb_label(math.sqrt(classes) * F.one_hot(label, classes).to(c))
            c = mixed(c, told, 0.5)
        return silu(c)


def _parts(given: Weights, side: str, head: int) -> dict[str, nn.Module]:
    """The parts of one side in the order in which they are run: levels from the finest, or from the coarsest."""
    found = {k.split(".")[2] for k in given if k.startswith(f"{side}.")}
    named = {name: m for name in found if (m := re.fullmatch(r"(\d+)x\1_(?:block(\d+)|(conv|down|in0|in1|up))", name))}
    turn = -1 if side.endswith("enc") else 1

    def place(name: str) -> tuple[int, int]:
        size, number, kind = named[name].groups()
        return turn * int(size), KINDS.index(kind) if kind else len(KINDS) + int(number)

    return {name: _part(given, f"{side}.{name}", head, named[name][3]) for name in sorted(named, key=place)}


def _part(given: Weights, name: str, head: int, kind: str | None) -> nn.Module:
    if kind == "conv":
        layout.needed(given, [f"{name}.weight"], "edm2")
        return Linear(given[f"{name}.weight"])
    return Block(given, name, head, {"down": 0.5, "up": 2.0}.get(kind or "", 1.0))


def _size(given: Weights) -> int:
    """The side of a picture, which is the finest level."""
    found = [k for k in given if re.fullmatch(r"unet\.enc\.(\d+)x\1_conv\.weight", k)]
    layout.needed(given, found or ["unet.enc.64x64_conv.weight"], "edm2")
    return int(found[0].split(".")[2].split("x")[0])


class Denoiser(nn.Module):
    """(x, t, cond) -> the clean mean, where t is the time of `schedules.EDM`. A network without classes ignores them,
    so that it can guide one that has them."""

    def __init__(self, unet: UNet, std: float):
        super().__init__()
        self.unet, self.std = unet, std

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        sigma = EDM()(t)[1].clamp(min=EDM().sigma_min)[:, None, None, None]
        size = (sigma**2 + self.std**2).sqrt()
        out = self.unet(x / size, sigma.flatten().log() / 4, cond)
        return self.std / size * (self.std / size * x + sigma * out)


def edm2(
    path: str | Path, *, decode: Callable[[Tensor], Any] | None = None, head: int = 64, std: float = 0.5,
    ema: bool = True,
) -> GaussianModel:  # fmt: skip
    """A network of EDM2; of class-conditional ones a condition is a number.

    decode   latents -> pictures, for networks of latents: without it, samples are states. Networks of three channels
             are those of pictures, and need none
    head     channels of a head of attention
    std      the standard deviation of the data: that of the published networks
    """
    given = layout.state(path, ema)
    layout.needed(given, READ, "edm2")
    size, channels = _size(given), len(given["unet.out_conv.weight"])
    net = Denoiser(UNet(given, head), std)
    layout.fitted(net, given, "edm2", free=UNREAD)
    for part in net.modules():
        if isinstance(part, Linear):
            part.normalize()
    colour = channels == 3 and decode is None
    images: Any = Images((3, size, size), 0.5, 0.5) if colour else None
    return GaussianModel(
        net, (channels, size, size), EDM(), "clean", decode=pictures if colour else decode,
        encode_cond=torch.tensor if hasattr(net.unet, "emb_label") else None, read=images,
    )  # fmt: skip

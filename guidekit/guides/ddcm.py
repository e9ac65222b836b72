r"""Denoising diffusion codebook models (Ohayon et al., 2025), https://arxiv.org/abs/2502.01189.

The noise of every move is an entry of a fixed codebook z^1..z^K ~ N(0, 1) of that step, so that the indices of the
entries are a compressed description of the sample. The entry chosen is the one that maximises

    <z^k, target - E[x_0 | x_t]>        to compress a target, or
    <z^k, grad r(E[x_0 | x_t])>         to maximise a differentiable reward.

With codes= the same entries are used again, which reproduces the sample bit for bit: K = 2^b entries and M random moves
make a code of M b bits. K = 1 is a single fixed chain; random indices sample from the model.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Model
from ..process import Gaussian
from .shared.twist import gradient


@dataclass(frozen=True, eq=False)
class DDCM(Guide):
    """Choose the noise of every move from a codebook of `size` entries. No extra NFE. The codes of a run are in
    `result.memos[place of the guide][0]`, (n*groups, moves with noise); `gk.ddcm.pack` turns them into bytes.

    target   the samples to compress, in the coordinates of x: (n*groups, *shape), or *shape
    reward   a differentiable function of decoded samples to maximise instead
    codes    indices (n*groups, moves), or the bytes of `pack`, to decode
    seed     of the codebook. Decoding needs it, and also the seed, steps and solver of the run
    """

    size: int = 64
    target: Tensor | None = None
    reward: Callable[[Any], Any] | None = None
    codes: Tensor | bytes | None = None
    seed: int = 0

    card = Card(
        "chooses the noise of each step from a codebook: a sample is a short code",
        section="Starts, noise and resampling",
        processes=(Gaussian,),
        refusal="chooses Gaussian noise, and tokens have none: use it with a Gaussian process",
        changes="noise",
        paper=Paper(
            "ohayon2025ddcm",
            "Ohayon, Guy and Manor, Hila and Michaeli, Tomer and Elad, Michael",
            "Compressed Image Generation with Denoising Diffusion Codebook Models",
            2025,
            "2502.01189",
        ),
        example="gk.DDCM(64, target=point)",
    )

    def __post_init__(self) -> None:
        if not is_count(self.size):
            raise ValueError(f"DDCM(size={self.size!r}): the codebook has at least one entry")
        if sum(v is not None for v in (self.target, self.reward, self.codes)) != 1:
            raise ValueError("DDCM takes one of target= (compress), reward= (climb) and codes= (decode)")
        if isinstance(self.codes, bytes) and unpack(self.codes)[1] != self.size:
            raise ValueError(f"DDCM(size={self.size}): the code is of a codebook of {unpack(self.codes)[1]}")

    def check(self, model: Model, steps: int) -> None:
        if self.target is not None and self.target.shape[-len(model.shape) :] != model.shape:
            raise ValueError(f"DDCM(target of shape {tuple(self.target.shape)}): samples have shape {model.shape}")

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        return 0.0, (None if memo is None else memo[0], None if view.step.last else self._direction(view))

    def noise(self, population: Population, step: Step, noise: Tensor) -> tuple[Tensor, Tree]:
        codes, direction = population.memos[step.place]
        keys = random.fold(random.fold(random.key(self.seed, noise.device), "codebook"), step.index)
        book = random.normal(
            random.fold(keys, torch.arange(self.size, device=noise.device)), noise.shape[1:], noise.dtype
        )
        if self.codes is None:
            code = (direction.flatten(1) @ book.flatten(1).mT).argmax(1)
        else:
            row = population.group * step.n + population.slot
            code = self._given(step)[row, 0 if codes is None else codes.shape[1]]
        codes = code[:, None] if codes is None else torch.cat([codes, code[:, None]], 1)
        return book[code], (codes, direction)

    def _direction(self, view: View) -> Tensor | None:
        if self.target is not None:
            own = self.target.to(view.x).view(-1, *view.model.shape)
            return own[view.group * view.step.n + view.slot if len(own) > 1 else view.slot * 0] - view.clean
        if self.reward is None:
            return None
        with torch.enable_grad():
            clean = view.clean.detach().requires_grad_()
            return gradient(view.scorer(self.reward, view.decode(clean), view.group), clean)

    def _given(self, step: Step) -> Tensor:
        codes = unpack(self.codes)[0] if isinstance(self.codes, bytes) else self.codes
        assert codes is not None
        return codes.to(step.keys.device)


def pack(codes: Tensor, size: int) -> bytes:
    """The codes as bytes: 12 bytes with the codebook size, rows and moves, then log2(size) bits for each code."""
    if codes.dim() != 2 or not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise ValueError(f"codes are (rows, moves) numbers below {size}; given {tuple(codes.shape)}")
    bits = (codes.cpu().numpy().astype(np.int64)[..., None] >> np.arange(_bits(size))) & 1
    return struct.pack("<3I", size, *codes.shape) + np.packbits(bits.astype(np.uint8)).tobytes()


def unpack(data: bytes) -> tuple[Tensor, int]:
    """The codes and the size of their codebook."""
    size, rows, moves = struct.unpack("<3I", data[:12]) if len(data) >= 12 else (0, 0, 0)
    count = rows * moves * _bits(max(size, 1))
    if size < 1 or len(data) != 12 + (count + 7) // 8:
        raise ValueError(f"{len(data)} bytes are no whole code: {rows} rows, {moves} moves, a codebook of {size}")
    bits = np.unpackbits(np.frombuffer(data[12:], np.uint8), count=count).reshape(rows, moves, -1).astype(np.int64)
    codes = torch.from_numpy((bits << np.arange(_bits(size))).sum(-1))
    if codes.numel() and int(codes.max()) >= size:
        raise ValueError(f"the stream holds the code {int(codes.max())} of a codebook of {size}")
    return codes, size


def _bits(size: int) -> int:
    return (size - 1).bit_length()

r"""Perturbed-attention guidance (Ahn et al., 2024), https://arxiv.org/abs/2403.17377.

    d <- d + s (d_cond - d_perturbed)

with d_perturbed the same network in which chosen self-attention layers use A' for their map A = softmax(q k^T/sqrt(c)):

    A' = (1 - u) A + u I          so that the output is (1 - u) A v + u v

u = `strength` = 1 is the paper; u < 1, and single heads, are SoftPAG (Ahn et al., 2025,
https://arxiv.org/abs/2506.10978; `gk.headhunter` finds heads). s is that of diffusers: 0 does nothing. The
authors' guided-diffusion code writes d_perturbed + s' (d_cond - d_perturbed), so its s' = s + 1. With CFG the two tilts
add: d_null + w (d_cond - d_null) + s (d_cond - d_perturbed).

Where text and image are one sequence (SD3, Flux), `tokens` says which part is the image. Image tokens then attend to
themselves and to the text, not to each other, and the text to everything, as in the SD3 pipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from ..engine.guide import Guide, Scale
from ..engine.view import View
from ..models.attention import Attention, Heads, Layers, Perturbation, Perturbed, Span
from ..models.base import Model
from ..models.evaluations import Cond
from .shared.contrast import away


@dataclass(frozen=True)
class Identity(Perturbation):
    """Tokens of the span attend to themselves, of that span; mixed with the true attention by strength in [0, 1]."""

    strength: float = 1.0
    tokens: Span | None = None

    def check(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength={self.strength}: it lies in [0, 1]; 1 is the identity, 0 does nothing")
        if self.tokens is not None and not (isinstance(self.tokens, tuple) and len(self.tokens) == 2):
            raise ValueError(f"tokens={self.tokens!r}: (first, last + 1) of the image tokens, as in a slice")

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        own = _repeated(call.value, out) if self.tokens is None else call(allowed=self._allowed(call.query))
        return own if self.strength == 1 else torch.lerp(out, own.to(out.dtype), self.strength)

    def _allowed(self, query: Tensor) -> Tensor:
        n = query.shape[-2]
        image = torch.zeros(n, dtype=torch.bool, device=query.device)
        image[slice(*(self.tokens or ()))] = True
        return ~(image[:, None] & image) | torch.eye(n, dtype=torch.bool, device=query.device)


def _repeated(value: Tensor, out: Tensor) -> Tensor:
    """The values for every head of the queries, where several share one."""
    if value.dim() == 4 and out.shape[1] != value.shape[1]:
        value = value.repeat_interleave(out.shape[1] // value.shape[1], 1)
    return value.expand_as(out)


@dataclass(frozen=True)
class PAG(Guide):
    """Perturbed-attention guidance. One extra row per particle, in the same forward.

    scale      a number or a function of t
    layers     dotted names of modules, each with all that is inside it; None is the middle of the network
    heads      indices of heads, or {layer: indices}, which then names the layers; None is all
    strength   in [0, 1], how far the attention goes to the identity
    tokens     (first, last + 1) of the image tokens where text and image attend together, as a slice would count them

    >>> import guidekit as gk
    >>> gk.PAG(3.0, layers="blocks.6", stop=0.8).needs
    (Perturbed(by=Identity(strength=1.0, tokens=None), layers=('blocks.6',), heads=None),)
    """

    scale: Scale
    layers: Layers = None
    heads: Heads = None
    strength: float = 1.0
    _: KW_ONLY
    tokens: Span | None = None

    neutral = 0.0

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Identity(self.strength, self.tokens), self.layers, self.heads)

    @property
    def needs(self) -> tuple[Cond, ...]:
        idle = self.scale == 0 or self.strength == 0 or (self.heads is not None and len(self.heads) == 0)
        return () if idle else (self.perturbed,)

    def check(self, model: Model, steps: int) -> None:
        self.perturbed.check(model)

    def tilt(self, view: View) -> Tensor | float:
        return away(self.scale, view, self.perturbed) if self.needs else 0.0

r"""Perturbed-attention guidance (Ahn et al., 2024), https://arxiv.org/abs/2403.17377.

    d <- d + s (d_cond - d_perturbed)

where d_perturbed comes from the same network with the map A = softmax(q k^T/sqrt(c)) of chosen self-attention layers
replaced by

    A' = (1 - u) A + u I          so that the output is (1 - u) A v + u v

u = `strength` = 1 is the paper's method; u < 1 and single heads are SoftPAG (Ahn et al., 2025,
https://arxiv.org/abs/2506.10978; `gk.headhunter` finds the heads). s is the scale of diffusers: 0 does nothing. The
authors' guided-diffusion code writes d_perturbed + s' (d_cond - d_perturbed), so its s' = s + 1. Together with CFG the
two tilts add up: d_null + w (d_cond - d_null) + s (d_cond - d_perturbed).

In models that process text and image as one sequence (SD3, Flux), `tokens` says which tokens are the image. Image
tokens then attend to themselves and to the text but not to each other, and text tokens attend to everything, as in the
SD3 pipeline of diffusers.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..models.attention import Attention, Heads, Perturbation, Perturbed, Span
from .shared.perturbing import Away


@dataclass(frozen=True)
class Identity(Perturbation):
    """Tokens of the span attend to themselves instead of each other; mixed with the true attention by `strength`."""

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
    """The values of every query head; in grouped attention several heads share one."""
    if value.dim() == 4 and out.shape[1] != value.shape[1]:
        value = value.repeat_interleave(out.shape[1] // value.shape[1], 1)
    return value.expand_as(out)


@dataclass(frozen=True)
class PAG(Away):
    """Perturbed-attention guidance. One extra NFE per particle and step, in the same forward pass.

    scale      s, a number or a function of t; 0 does nothing
    layers     dotted names of modules, each including everything inside it; None: the middle of the network
    heads      indices of heads, or {layer: indices}, which also names the layers; None: all heads
    strength   u in [0, 1], how far the attention map is moved towards the identity
    tokens     (first, last + 1) of the image tokens, as in a slice, if text and image attend together

    >>> import guidekit as gk
    >>> gk.PAG(3.0, layers="blocks.6", stop=0.8).needs
    (Perturbed(by=Identity(strength=1.0, tokens=None), layers=('blocks.6',), heads=None, branch=Cond()),)
    """

    heads: Heads = None
    strength: float = 1.0
    _: KW_ONLY
    tokens: Span | None = None

    card = replace(
        Away.card,
        about="extrapolates away from the network with identity attention",
        paper=Paper(
            "ahn2024pag",
            "Ahn, Donghoon and others",
            "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance",
            2024,
            "2403.17377",
        ),
        example='gk.PAG(0.4, "blocks.1")',
    )

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Identity(self.strength, self.tokens), self.layers, self.heads)

    @property
    def idle(self) -> bool:
        return self.scale == 0 or self.strength == 0 or (self.heads is not None and len(self.heads) == 0)

r"""Smoothed energy guidance (Hong, 2024), https://arxiv.org/abs/2408.00760.

    d <- d + s (d_cond - d_smooth)

where d_smooth comes from the same network with the queries of chosen self-attention layers blurred over the grid of
tokens, q' = G_sigma q, which blurs the attention logits. sigma = inf, the default, replaces all queries by their mean,
so that all tokens attend alike; sigma = 0 does nothing. As in the author's code, G is separable, truncated at 3 sigma
or half the grid, and reflects at the borders.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..errors import NetworkError
from ..models.attention import Attention, Heads, Perturbation, Perturbed, Span
from .shared.perturbing import Away


@dataclass(frozen=True)
class Blur(Perturbation):
    """The queries of the span are blurred over their grid; all others are unchanged."""

    sigma: float = math.inf
    grid: tuple[int, ...] | None = None
    tokens: Span | None = None

    def check(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma={self.sigma}: the width of the blur in tokens, 0 (none) to inf (the mean)")
        if self.grid is not None and not (isinstance(self.grid, tuple) and min(self.grid, default=0) > 0):
            raise ValueError(f"grid={self.grid!r}: height and width in tokens, such as (64, 96), or (length,)")

    def attention(self, call: Attention, out: Tensor) -> Tensor:
        query, span = call.query.clone(), slice(*(self.tokens or (None,)))
        query[..., span, :] = self.blurred(query[..., span, :])
        return call(query=query)

    def blurred(self, query: Tensor) -> Tensor:
        """Queries (..., tokens, dim), blurred."""
        if self.sigma == math.inf:
            return query.mean(-2, keepdim=True).expand_as(query)
        sizes = sizes_of(query.shape[-2], self.grid)
        x = query.to(torch.promote_types(query.dtype, torch.float32)).unflatten(-2, sizes)
        for axis, size in enumerate(sizes, start=query.dim() - 2):
            x = (x.movedim(axis, -1) @ kernel(size, self.sigma, x).mT).movedim(-1, axis)
        return x.flatten(query.dim() - 2, -2).to(query.dtype)


def sizes_of(tokens: int, grid: tuple[int, ...] | None) -> tuple[int, ...]:
    """The grid of a layer's tokens: the given one (None: a square), or one that is smaller by the same factor in all
    directions."""
    full = grid or (math.isqrt(tokens),) * 2
    factor = round((math.prod(full) / tokens) ** (1 / len(full))) or 1
    sizes = tuple(size // factor for size in full)
    if math.prod(sizes) != tokens:
        shape = "x".join(map(str, full)) if grid else "square"
        raise NetworkError(
            f"the {tokens} tokens of this layer are no {shape} grid; give SEG grid=(height, width), and "
            "tokens=(first, last + 1) where some belong to no grid"
        )
    return sizes


def kernel(size: int, sigma: float, like: Tensor, reach: int | None = None) -> Tensor:
    """The blur along one axis, as a matrix (size, size) of the type of `like`, truncated at `reach`."""
    reach = min(math.ceil(6 * sigma) // 2 if reach is None else reach, size // 2, size - 1)
    offset = torch.arange(-reach, reach + 1, device=like.device)
    weight = torch.exp(-0.5 * (offset / max(sigma, 1e-9)).to(like.dtype) ** 2)
    place = torch.arange(size, device=like.device)[:, None] + offset
    place = (size - 1) - ((size - 1) - place.abs()).abs()  # reflected at 0 and at size - 1
    return like.new_zeros(size, size).scatter_add_(1, place, (weight / weight.sum()).expand_as(place))


@dataclass(frozen=True)
class SEG(Away):
    """Smoothed energy guidance. One extra NFE per particle and step, in the same forward pass.

    scale           s, a number or a function of t; 0 does nothing
    layers, heads   as in PAG; None: the middle of the network, and all heads
    sigma           the standard deviation of the blur, in tokens; inf: the mean of the queries
    grid            (height, width) of the tokens at these layers, or at a finer one; square by default
    tokens          (first, last + 1) of the tokens that form the grid, if there are others
    """

    heads: Heads = None
    sigma: float = math.inf
    _: KW_ONLY
    grid: tuple[int, ...] | None = None
    tokens: Span | None = None

    card = replace(
        Away.card,
        about="extrapolates away from the network with blurred attention",
        paper=Paper(
            "hong2024seg",
            "Hong, Susung",
            "Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention",
            2024,
            "2408.00760",
        ),
        example='gk.SEG(0.4, "blocks.1")',
    )

    @property
    def perturbed(self) -> Perturbed:
        return Perturbed.of(Blur(self.sigma, self.grid, self.tokens), self.layers, self.heads)

    @property
    def idle(self) -> bool:
        return self.scale == 0 or self.sigma == 0 or (self.heads is not None and len(self.heads) == 0)

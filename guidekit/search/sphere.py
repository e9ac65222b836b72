r"""Geometry of noise. In high dimensions, Gaussian noise lies near a sphere of radius sqrt(d), so searches rotate it
instead of shifting it:

    turned(z, w, angle) = cos(angle) z + sin(angle) |z| w_/|w_|,    w_ = w - <w, z> z / |z|^2,
    between(a, b, u)    = the great circle from a (u = 0) to b (u = 1), with the norm linear in u from |a| to |b|.

Gumbel noise g of tokens has normal coordinates z with Phi(z) = exp(-exp(-g)), and keeps its distribution when z is
rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def turned(z: Tensor, w: Tensor, angle: Tensor | float) -> Tensor:
    """z (..., d) rotated by an angle (...) towards the part of w perpendicular to it, with the same norm."""
    size = z.norm(dim=-1, keepdim=True).clamp(min=_TINY)
    across = w - (w * z).sum(-1, keepdim=True) * z / size**2
    across = across / across.norm(dim=-1, keepdim=True).clamp(min=_TINY)
    angle = torch.as_tensor(angle, dtype=z.dtype, device=z.device)[..., None]
    return angle.cos() * z + angle.sin() * size * across


def between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """The point on the great circle through a and b (..., d) at these fractions (...) of the angle between them."""
    one, two = (v.norm(dim=-1, keepdim=True).clamp(min=_TINY) for v in (a, b))
    angle = ((a * b).sum(-1) / (one * two)[..., 0]).clamp(-1, 1).arccos()
    size = one + share[..., None] * (two - one)
    return turned(a, b, share * angle) * size / one


def gumbel_to_normal(g: Tensor) -> Tensor:
    """z with Phi(z) = exp(-exp(-g)), computed from the smaller tail."""
    below, above = (-(-g).exp()).exp(), -torch.expm1(-(-g).exp())
    return torch.where(below < 0.5, torch.special.ndtri(below), -torch.special.ndtri(above))


def normal_to_gumbel(z: Tensor) -> Tensor:
    """The inverse of `gumbel_to_normal`."""
    return -(-torch.special.log_ndtr(z)).log()

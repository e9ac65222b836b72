r"""Frequency-decoupled guidance, FDG (Sadat et al., 2025), https://arxiv.org/abs/2506.19713: CFG with a weight of its
own for every band of frequencies.

    d <- d_null + sum_k w_k B_k (d_cond - d_null),      B_k = P_k - P_(k+1),  P_0 = 1,  B_last = P_last

P_k x is what a pyramid of k levels keeps of x: blurred by (1, 4, 6, 4, 1)/16 along every axis and halved k times, then
doubled and blurred k times. As all of it is linear, guiding every level of the Laplacian pyramid and putting it
together is the sum above. Low weights for low frequencies keep colours and diversity, high ones for high frequencies
add detail; equal weights are CFG.

This equals FrequencyDecoupledGuidance of diffusers where sides are multiples of 2^(bands - 1); there others are padded
to the next power of two, and here a half is rounded up. The paper's projection of every band is not here; `gk.APG` has
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..engine.card import Paper
from ..engine.guide import Scale, at
from ..engine.view import View
from ..models.base import Model
from .shared.contrast import Contrast, both


@dataclass(frozen=True)
class FrequencyDecoupled(Contrast):
    """CFG by bands of frequencies. One extra NFE per particle and step.

    scale   w_k from the finest band to the coarsest: numbers or functions of t, two or more. The paper uses (10, 5) for
            Stable Diffusion XL; all 1 do nothing

    Bands are of space: of all axes of x behind the first, or of the only one.
    """

    scale: Sequence[Scale]  # type: ignore[assignment]

    neutral = None

    card = replace(
        Contrast.card,
        about="CFG with a weight for every band of frequencies",
        paper=Paper(
            "sadat2025fdg",
            "Sadat, Seyedmorteza and Vontobel, Tobias and Salehi, Farnood and Weber, Romann M.",
            "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales",
            2025,
            "2506.19713",
        ),
        example="gk.FrequencyDecoupled((4.0, 1.5))",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Sequence) or len(self.scale) < 2:
            raise ValueError(
                f"FrequencyDecoupled(scale={self.scale!r}): a weight for each band is needed, from the finest to the "
                "coarsest, such as (10.0, 5.0); one for all is CFG"
            )

    @property
    def needs(self) -> tuple:
        return () if all(w == 1 for w in self.scale) else super().needs

    def check(self, model: Model, steps: int) -> None:
        smallest = min(model.shape[1:] or model.shape)
        if smallest > 1 and 2 ** (len(self.scale) - 1) > 2 * smallest:
            raise ValueError(f"FrequencyDecoupled: {len(self.scale)} bands are too many for sides of {smallest}")

    def tilt(self, view: View) -> Tensor | float:
        if not self.needs:
            return 0.0
        cond, null = both(view)
        scales = [at(w, view.t) for w in self.scale]
        shift, total = cond - null, (scales[0] - 1) * (cond - null)
        for levels, (finer, coarser) in enumerate(pairwise(scales), start=1):
            total = total + (coarser - finer) * low(shift, levels)
        return total


def low(x: Tensor, levels: int) -> Tensor:
    """P_k x, over all axes of space."""
    for axis in range(2 if x.dim() > 2 else 1, x.dim()):
        x = (x.movedim(axis, -1) @ _low(x.shape[axis], levels, x.dtype, x.device).mT).movedim(-1, axis)
    return x


@lru_cache(maxsize=64)
def _low(size: int, levels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """P_k along one axis, as a matrix (size, size)."""
    if levels == 0 or size == 1:
        return torch.eye(size, dtype=dtype, device=device)
    half = (size + 1) // 2
    every = torch.eye(size, dtype=torch.float64)
    down, up = _resized(_blurred(every), half), _blurred(_resized(torch.eye(half, dtype=torch.float64), size))
    return (up.mT @ _low(half, levels - 1, torch.float64, torch.device("cpu")) @ down.mT).to(device, dtype)


def _blurred(rows: Tensor) -> Tensor:
    """Rows blurred by (1, 4, 6, 4, 1)/16, reflected at the borders."""
    size = rows.shape[1]
    place = torch.arange(-2, size + 2)
    if size > 1:  # reflected at 0 and size - 1, as often as it takes
        place = (place.abs() % (2 * size - 2)).sub(size - 1).abs().sub(size - 1).neg()
    weights = torch.tensor([[[1.0, 4.0, 6.0, 4.0, 1.0]]], dtype=rows.dtype) / 16
    return nn.functional.conv1d(rows[:, place.clamp(max=size - 1)][:, None], weights)[:, 0]


def _resized(rows: Tensor, size: int) -> Tensor:
    return nn.functional.interpolate(rows[:, None], size=size, mode="linear", align_corners=False)[:, 0]

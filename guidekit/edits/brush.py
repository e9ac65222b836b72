r"""New noise in a region of a chain: Diffusion Brush (Gholami and Xiao, 2023, https://arxiv.org/abs/2306.00219).

A chain is replayed with its own noise outside the region, and with new noise inside it from some move on,

    z_k <- where * z'_k + (1 - where) * z_k      for the moves k >= start * moves.

What is outside changes only as far as the network carries the change there; the later the start, the less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Model


def brush(model: Model, noise: Tensor, where: Any, start: float = 0.0, *, seed: int = 0) -> Tensor:
    """The noise of a whole chain, new in a region: for gk.sample(..., noise=...) with the same steps.

    noise   of the chain, (moves + 1, rows, ...), as gk.invert(method="chain") and `Run.chain_noise` give it
    where   the region, a boolean mask of the state's shape or one that broadcasts to it
    start   the fraction of the moves, in [0, 1], from which on the noise is new
    seed    of the new noise

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 1.0]], [0.5, 0.5])
    >>> noise = gk.invert(base, base.exact_sample(4), method="chain", steps=20)
    >>> again = gk.brush(base, noise, torch.tensor([False, True]), start=0.5)
    >>> bool((again != noise)[:, :, 0].any()), bool((again != noise)[11:, :, 1].all())
    (False, True)
    """
    shape = model.process.noise_shape(model.shape)
    if noise.dim() != len(shape) + 2 or tuple(noise.shape[2:]) != shape:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)}: the noise of a whole chain is needed, (moves + 1, rows, "
            f"{', '.join(map(str, shape))}), as gk.invert(method='chain') gives it"
        )
    if not 0 <= start <= 1:
        raise ValueError(f"start={start}: a fraction of the moves, in [0, 1]")
    mask = torch.as_tensor(where, device=noise.device)
    try:
        mask = mask.expand(model.shape)
    except RuntimeError as error:
        raise ValueError(f"where of shape {tuple(mask.shape)}: a boolean mask of shape {model.shape}") from error
    mask = mask.view(*model.shape, *[1] * (len(shape) - len(model.shape)))
    rows, first = noise.shape[1], round(start * (len(noise) - 1))
    key = random.fold(random.key([seed], noise.device), "brush")
    fresh = noise.clone()
    for k in range(first, len(noise)):
        keys = random.fold(random.fold(key, k), torch.arange(rows, device=noise.device))
        fresh[k] = torch.where(mask, model.process.noise(keys, shape, noise.dtype).to(noise), noise[k])
    return fresh

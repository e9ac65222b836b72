"""From states to pictures: the pipeline's decoding, with gradients where they are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import NetworkError
from .families import Family


class Decoder:
    """States -> pictures in [0, 1], (rows, channels, height, width); without a VAE the state is the picture.
    Videos are (rows, frames, channels, height, width).

    most    pictures decoded at a time; None is all that come together
    """

    def __init__(self, vae: Any, family: Family, dtype: torch.dtype, most: int | None):
        self.vae, self.dtype, self.most = vae, dtype, most
        self.latents, self.upcast, self.video = family.latents, family.upcast, family.frames is not None

    def __call__(self, x: Tensor) -> Tensor:
        parts = x.split(self.most or len(x))
        return torch.cat([(self._decoded(p.to(self.dtype)) / 2 + 0.5).clamp(0, 1).float() for p in parts])

    def _decoded(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        half = self.upcast and self.vae.dtype == torch.float16 and getattr(self.vae.config, "force_upcast", False)
        if not half:
            image = self.vae.decode(self.latents(x, self.vae).to(self.vae.dtype), return_dict=False)[0]
            return self._finite(image.transpose(1, 2) if self.video else image, x)
        try:
            return self.vae.to(torch.float32).decode(self.latents(x.float(), self.vae), return_dict=False)[0]
        finally:
            self.vae.to(torch.float16)

    def _finite(self, image: Tensor, x: Tensor) -> Tensor:
        """Half precision overflows in some VAEs; float32 is not looked at, which would wait for the device."""
        if image.dtype == torch.float16 and x.isfinite().all() and not image.isfinite().all():
            raise NetworkError(
                "the VAE overflowed in float16: its pictures are NaN or infinite. Take pipe.vae.to(torch.float32), or "
                "bfloat16, or a VAE made for float16"
            )
        return image

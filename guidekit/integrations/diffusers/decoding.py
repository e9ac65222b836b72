"""From states to pictures: the pipeline's decoding, with gradients where they are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import NetworkError
from .families import DiT, Family


class Decoder:
    """States -> pictures in [0, 1], (rows, channels, height, width); without a VAE the state is the picture.
    Videos are (rows, frames, channels, height, width).

    most    pictures decoded at a time; None is all that come together
    """

    def __init__(self, vae: Any, family: Family, dtype: torch.dtype, most: int | None):
        self.vae, self.dtype, self.most = vae, dtype, most
        self.unpack, self.shift, self.upcast = family.unpack, family.shift, family.upcast
        self.inverse = isinstance(family, DiT)  # whose pipeline multiplies by 1 / scaling_factor
        self.video = family.frames is not None

    def __call__(self, x: Tensor) -> Tensor:
        parts = x.split(self.most or len(x))
        return torch.cat([(self._decoded(p.to(self.dtype)) / 2 + 0.5).clamp(0, 1).float() for p in parts])

    def _decoded(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        if self.video:
            film = self.vae.decode(self._whitened(x.to(self.vae.dtype)), return_dict=False)[0]
            return self._finite(film, x).transpose(1, 2)
        half = self.upcast and self.vae.dtype == torch.float16 and getattr(self.vae.config, "force_upcast", False)
        if not half:
            return self._finite(self.vae.decode(self._scaled(x).to(self.vae.dtype), return_dict=False)[0], x)
        try:
            return self.vae.to(torch.float32).decode(self._scaled(x.float()), return_dict=False)[0]
        finally:
            self.vae.to(torch.float16)

    def _scaled(self, x: Tensor) -> Tensor:
        """The latents that the VAE was trained on."""
        config, x = self.vae.config, self.unpack(x)
        mean, std = (getattr(config, f"latents_{k}", None) for k in ("mean", "std"))
        if self.upcast and mean is not None and std is not None:
            mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(x) for v in (mean, std))
            return x * std / config.scaling_factor + mean
        x = 1 / config.scaling_factor * x if self.inverse else x / config.scaling_factor
        return x + config.shift_factor if self.shift and getattr(config, "shift_factor", None) is not None else x

    def _whitened(self, x: Tensor) -> Tensor:
        """The same of videos, by mean and deviation of each channel."""
        config = self.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(x) for v in (config.latents_mean, config.latents_std))
        return x / (1.0 / std) + mean

    def _finite(self, image: Tensor, x: Tensor) -> Tensor:
        """Half precision overflows in some VAEs; float32 is not looked at, which would wait for the device."""
        if image.dtype == torch.float16 and x.isfinite().all() and not image.isfinite().all():
            raise NetworkError(
                "the VAE overflowed in float16: its pictures are NaN or infinite. Take pipe.vae.to(torch.float32), or "
                "bfloat16, or a VAE made for float16"
            )
        return image

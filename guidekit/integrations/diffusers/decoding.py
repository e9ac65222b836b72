"""From states to pictures and back: the pipeline's decoding, with gradients where they are wanted, and the encoding of
its image-to-image form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import NetworkError
from ...models import reading
from .families import Family


class Decoder:
    """States -> pictures in [0, 1], (rows, channels, height, width); without a VAE the state is the picture.
    Videos are (rows, frames, channels, height, width).

    most    pictures decoded at a time; None is all that come together. Where memory runs out it is halved, and stays so
    """

    def __init__(self, vae: Any, family: Family, dtype: torch.dtype, most: int | None):
        self.vae, self.dtype, self.most = vae, dtype, most
        self.latents, self.upcast, self.decode, self.shown = family.latents, family.upcast, family.decode, family.shown

    def __call__(self, x: Tensor) -> Tensor:
        done: list[Tensor] = []
        while (first := sum(map(len, done))) < len(x):
            part = x[first : first + (self.most or len(x))]
            if (pictures := self._fitting(part)) is None:
                self.most = (len(part) + 1) // 2
            else:
                done.append(pictures)
        return torch.cat(done)

    def _fitting(self, x: Tensor) -> Tensor | None:
        """The pictures of these states; None if memory does not suffice for as many."""
        try:
            return (self._decoded(x.to(self.dtype)) / 2 + 0.5).clamp(0, 1).float()
        except torch.OutOfMemoryError as error:
            if len(x) > 1:
                return None
            raise NetworkError(
                "memory ran out in decoding a single picture: decode it in tiles, by pipe.vae.enable_tiling(), or look "
                "ahead with a small decoder, gk.integrations.diffusers.Preview"
            ) from error

    def _decoded(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        if not _half(self.vae, self.upcast):
            image = self.decode(self.vae, self.latents(x, self.vae).to(self.vae.dtype))
            return self._finite(self.shown(image), x)
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


class Encoder:
    """Pictures in [0, 1] -> states, as image-to-image pipelines make them: the mean of the VAE's encoding.

    most    pictures encoded at a time; None is all that come together
    """

    def __init__(self, vae: Any, family: Family, channels: int, most: int | None, device: torch.device):
        self.vae, self.most, self.device = vae, most, device
        self.state, self.upcast, self.video = family.state, family.upcast, family.frames is not None
        self.drawn, self.pack, self.coded = family.drawn, family.pack, family.coded
        self.shape = channels, *(v * family.scale for v in family.size[-2:])

    @property
    def takes(self) -> str:
        channels, height, width = self.shape
        kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        what = f"{kind} pictures of {height} x {width} pixels: tensors or arrays in [0, 1], PIL images or files"
        return f"videos, each a sequence of {what}" if self.video else what

    def __call__(self, pictures: Any) -> Tensor:
        x = self.seen(pictures)
        return torch.cat([self._encoded(2 * part - 1) for part in x.split(self.most or len(x))]).float()

    def seen(self, pictures: Any) -> Tensor:
        """Pictures as they come out of decoding."""
        return torch.stack([self._seen(v) for v in pictures]) if self.video else self._seen(pictures)

    def cells(self, mask: Tensor) -> Tensor:
        """The parts of a state of which all pixels are in a mask of the shape of a picture."""
        drawn = self.drawn[1:]
        held = self._frames(mask.all(1), drawn) if self.video else reading.blocks(mask.all(0), drawn)
        return self.pack(held.expand(1, *self.drawn))[0]

    def _frames(self, mask: Tensor, drawn: tuple[int, ...]) -> Tensor:
        """The same of a video: its first frame is a latent one of its own, and so is every few more."""
        first, rest = mask[:1], mask[1:]
        more = [reading.blocks(rest, (drawn[0] - 1, *drawn[1:]))] if len(rest) else []
        return torch.cat([reading.blocks(first, (1, *drawn[1:])), *more])

    def _seen(self, pictures: Any) -> Tensor:
        return reading.images(reading.listed(pictures), *self.shape)

    def _encoded(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        half = _half(self.vae, self.upcast)
        try:
            vae = self.vae.to(torch.float32) if half else self.vae
            return self.state(_mean(vae.encode(self.coded(x).to(self.device, vae.dtype))), vae)
        finally:
            if half:
                self.vae.to(torch.float16)


def _mean(encoded: Any) -> Tensor:
    """The mean of what a VAE encodes; some encode without noise."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent


def _half(vae: Any, upcast: bool) -> bool:
    """Whether a VAE in half precision has to work in float32."""
    return upcast and vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))

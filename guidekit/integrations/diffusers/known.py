"""Which family each denoiser of diffusers is."""

from __future__ import annotations

from typing import Any

from . import families, newer
from .families import Family

FAMILIES: dict[str, type[Family]] = {
    "UNet2DModel": families.Plain,
    "UNet2DConditionModel": families.StableDiffusion,
    "SD3Transformer2DModel": families.StableDiffusion3,
    "FluxTransformer2DModel": families.Flux,
    "ChromaTransformer2DModel": families.Chroma,
    "PixArtTransformer2DModel": families.PixArt,
    "SanaTransformer2DModel": families.Sana,
    "DiTTransformer2DModel": families.DiT,
    "WanTransformer3DModel": families.Wan,
    "QwenImageTransformer2DModel": newer.QwenImage,
    "ZImageTransformer2DModel": newer.ZImage,
    "Flux2Transformer2DModel": newer.Flux2,
    "LTXVideoTransformer3DModel": newer.LTX,
    "HunyuanVideoTransformer3DModel": newer.HunyuanVideo,
}


def family_of(net: Any) -> type[Family]:
    """How this denoiser is called; torch.compile's wrapper does not matter."""
    name = type(getattr(net, "_orig_mod", net)).__name__
    if name not in FAMILIES:
        raise ValueError(f"{name} is not a denoiser that is known here; {', '.join(FAMILIES)} are")
    pooled = name == "UNet2DConditionModel" and net.config.get("addition_embed_type") == "text_time"
    return families.StableDiffusionXL if pooled else FAMILIES[name]

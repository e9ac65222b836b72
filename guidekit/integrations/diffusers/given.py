"""Pipelines that are given pictures besides a prompt: those that paint into one, and those with a ControlNet. What they
are given is a part of the base model, and the same for all its samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...models.networks import lent

_SIZES = ("text_embeds", "time_ids")  # what a ControlNet of SDXL is told, besides the prompt
_INPUTS = ("timestep", "encoder_hidden_states", "pooled_projections", "txt_ids", "img_ids")  # one of Flux
CONTROL = "Stable Diffusion 1, 2, XL, 3 and Flux"


class Painting:
    """A denoiser that paints into a picture: beside the latents it sees where to paint, and the latents of the rest."""

    def __init__(self, net: Any, given: list[Tensor], channels: int):
        self.net, self.given, self.channels = net, given, channels
        self.config, self.dtype = net.config, net.dtype

    def __call__(self, *latents: Any, **inputs: Any) -> Any:
        if latents:
            return self.net(self._beside(latents[0]), *latents[1:], **inputs)
        return self.net(**inputs | {"hidden_states": self._beside(inputs["hidden_states"])})

    def _beside(self, x: Tensor) -> Tensor:
        """With what is given beside the channels, which packed latents have last."""
        return torch.cat([x, *_rows(self.given, x)], 1 if x.dim() == 4 else 2)


class Control:
    """One ControlNet or several, with their pictures. By its slots it is not found where layers of the denoiser are
    looked for by name, which its own layers share."""

    __slots__ = ("net", "pictures", "scale")

    def __init__(self, net: Any, pictures: list[Tensor], scale: Any):
        self.net, self.pictures, self.scale = net, pictures, scale

    def __call__(self, *latents: Any, **inputs: Any) -> tuple:
        x = latents[0] if latents else inputs["hidden_states"]
        seen = _rows(self.pictures, x)
        cond = seen if hasattr(self.net, "nets") else seen[0]
        return self.net(*latents, controlnet_cond=cond, conditioning_scale=self.scale, return_dict=False, **inputs)

    @property
    def config(self) -> Any:
        return _parts(self.net)[0].config


class Controlled:
    """A denoiser with what its ControlNet adds."""

    def __init__(self, net: Any, control: Control):
        self.net, self.control = net, control
        self.config, self.dtype = net.config, net.dtype
        self.given = control.pictures, control.scale


class ControlledUNet(Controlled):
    """Of Stable Diffusion 1, 2 and XL."""

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **inputs: Any) -> Any:
        added = {k: v for k, v in inputs.get("added_cond_kwargs", {}).items() if k in _SIZES}
        more = {"added_cond_kwargs": added} if added else {}
        down, mid = self.control(x, t, encoder_hidden_states=encoder_hidden_states, **more)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.net(x, t, encoder_hidden_states=encoder_hidden_states, **inputs, **more)


class ControlledSD3(Controlled):
    """Of Stable Diffusion 3; some of its ControlNets are told no text."""

    def __call__(self, **inputs: Any) -> Any:
        config, pooled = self.control.config, inputs["pooled_projections"]
        (blocks,) = self.control(
            hidden_states=inputs["hidden_states"],
            timestep=inputs["timestep"],
            encoder_hidden_states=inputs["encoder_hidden_states"] if config.joint_attention_dim is not None else None,
            pooled_projections=torch.zeros_like(pooled) if config.force_zeros_for_pooled_projection else pooled,
        )
        return self.net(**inputs, block_controlnet_hidden_states=blocks)


class ControlledFlux(Controlled):
    """Of Flux."""

    def __call__(self, **inputs: Any) -> Any:
        guidance = inputs["guidance"] if self.control.config.guidance_embeds else None
        seen = {k: inputs[k] for k in ("hidden_states", *_INPUTS)}
        blocks, singles = self.control(controlnet_mode=None, guidance=guidance, **seen)
        more = {"controlnet_block_samples": blocks, "controlnet_single_block_samples": singles}
        return self.net(**inputs, **more, controlnet_blocks_repeat=_hinted(self.control.net))


CONTROLLED: dict[str, type[Controlled]] = {
    "UNet2DConditionModel": ControlledUNet,
    "SD3Transformer2DModel": ControlledSD3,
    "FluxTransformer2DModel": ControlledFlux,
}


def with_pictures(
    pipe: Any, net: Any, size: tuple[int, int], image: Any, mask: Any, scale: Any, packed: Callable | None
) -> Any:
    """The denoiser with what the pipeline gives it besides latents and prompts; size is that of pictures, and `packed`
    makes states of latents where these are packed."""
    name = "its denoiser" if pipe is None else type(pipe).__name__
    if pipe is not None and "controlnet" in pipe.components:
        _check_control(pipe, net, name, image, mask)
        pictures = _conditions(pipe, net, size, image, packed)
        return CONTROLLED[type(net).__name__](net, Control(pipe.controlnet, pictures, _scales(pipe, scale)))
    if pipe is not None and _paints(pipe, net):
        _check_painting(pipe, name, image, mask)
        given, channels = _painting(pipe, net, size, image, mask, packed)
        return Painting(net, given, channels)
    if not (image is None and mask is None):
        raise ValueError(
            f"image, mask_image: {name} is not given pictures here. To keep a part of a picture take the guide "
            "gk.Keep(image, mask), and to start from one gk.StartFrom(image)"
        )
    return net


def _paints(pipe: Any, net: Any) -> bool:
    """Whether the denoiser sees more than it predicts, in a pipeline that is given a mask."""
    takes, makes = net.config.get("in_channels"), net.config.get("out_channels")
    known = type(getattr(net, "_orig_mod", net)).__name__ in CONTROLLED
    return known and hasattr(pipe, "mask_processor") and takes is not None and makes is not None and takes > makes


def _check_control(pipe: Any, net: Any, name: str, image: Any, mask: Any) -> None:
    takes = inspect.signature(pipe.__call__).parameters
    unet = type(net).__name__ == "UNet2DConditionModel"
    wanted = {"image"} if unet else {"control_image"}
    if type(net).__name__ not in CONTROLLED or {"image", "control_image", "control_mask"} & set(takes) != wanted:
        raise ValueError(
            f"{name} is not supported: of ControlNets those of text to image with {CONTROL} are. To keep a part of a "
            "picture take such a pipeline with gk.Keep(image, mask), and to start from one gk.StartFrom(image)"
        )
    if type(net).__name__ == "FluxTransformer2DModel" and hasattr(pipe.controlnet, "nets"):
        raise ValueError(f"{name}: several ControlNets of Flux are not supported; load one")
    if image is None:
        raise ValueError(f"{name}: give from_diffusers(pipe, image=...), the picture that its ControlNet takes")
    if mask is not None:
        raise ValueError(f"mask_image: {name} takes none; to keep a part of a picture take the guide gk.Keep")
    for part in _parts(pipe.controlnet):
        for option in ("global_pool_conditions", "num_mode", "extra_conditioning_channels"):
            if part.config.get(option):
                raise ValueError(f"{name}: a ControlNet with {option} is not supported")


def _check_painting(pipe: Any, name: str, image: Any, mask: Any) -> None:
    if image is None or mask is None:
        raise ValueError(
            f"{name} paints into a picture: give from_diffusers(pipe, image=..., mask_image=...), where the mask is "
            "white where it is to paint"
        )
    if pipe.vae is None:
        raise ValueError("the pipeline's vae is not loaded, which encodes the picture that is painted into: load it")
    if pipe.config.get("requires_aesthetics_score"):
        raise ValueError(f"{name}: a denoiser that is told aesthetic scores is not supported")


def _parts(controlnet: Any) -> list[Any]:
    return list(getattr(controlnet, "nets", [controlnet]))


def _hinted(controlnet: Any) -> bool:
    """Whether ControlNets of Flux take pictures as they are, and not their latents."""
    return _parts(controlnet)[0].input_hint_block is not None


def _conditions(pipe: Any, net: Any, size: tuple[int, int], image: Any, packed: Callable | None) -> list[Tensor]:
    """The pictures of the ControlNets, as the pipeline prepares them."""
    count = len(_parts(pipe.controlnet))
    images = list(image) if hasattr(pipe.controlnet, "nets") and isinstance(image, (list, tuple)) else [image]
    if len(images) != count:
        raise ValueError(f"image: {len(images)} for {count} ControlNets; give a list with one for each")
    processor = getattr(pipe, "control_image_processor", None) or pipe.image_processor
    pictures = [_one(processor.preprocess(v, *size)) for v in images]
    kind = type(net).__name__
    if kind == "SD3Transformer2DModel":
        shifted = not _parts(pipe.controlnet)[0].config.force_zeros_for_pooled_projection
        pictures = [_latents(pipe, v, shifted) for v in pictures]
    elif kind == "FluxTransformer2DModel" and not _hinted(pipe.controlnet):
        pictures = [_latents(pipe, v) for v in pictures]
        pictures = pictures if packed is None else [packed(v) for v in pictures]
    return [v.to(pipe._execution_device, net.dtype) for v in pictures]


def _scales(pipe: Any, scale: Any) -> Any:
    """One number for a ControlNet, and of several a list."""
    if not hasattr(pipe.controlnet, "nets"):
        return float(scale)
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(_parts(pipe.controlnet))
    return [float(v) for v in scales]


def _painting(
    pipe: Any, net: Any, size: tuple[int, int], image: Any, mask: Any, packed: Callable | None
) -> tuple[list[Tensor], int]:
    """What the denoiser sees beside the latents: the mask in their size and the latents of the picture without what is
    painted, or packed latents and a mask whose pixels are channels; and how many channels are left."""
    where = _one(pipe.mask_processor.preprocess(mask, *size))
    rest = _latents(pipe, _one(pipe.image_processor.preprocess(image, *size)).float() * (where < 0.5))
    if packed is None:
        given = [torch.nn.functional.interpolate(where, size=rest.shape[-2:]), rest]
    else:
        given = [packed(rest), packed(torch.nn.functional.pixel_unshuffle(where, size[0] // rest.shape[-2]))]
    dim = 1 if packed is None else 2
    channels = net.config.in_channels - sum(v.shape[dim] for v in given)
    if channels != net.config.out_channels:
        raise ValueError(
            f"{type(pipe).__name__}: its denoiser takes {net.config.in_channels} channels and makes "
            f"{net.config.out_channels}; one that sees a mask and the rest of a picture is needed"
        )
    return [v.to(pipe._execution_device, net.dtype) for v in given], channels


def _latents(pipe: Any, picture: Tensor, shifted: bool = True) -> Tensor:
    """The mean of the VAE's encoding."""
    vae = pipe.vae
    with torch.no_grad(), lent([vae]):
        found = vae.encode(picture.to(pipe._execution_device, vae.dtype)).latent_dist.mode()
    pipe.maybe_free_model_hooks()
    shift = vae.config.get("shift_factor") if shifted else None
    return (found if shift is None else found - shift) * vae.config.scaling_factor


def _rows(given: list[Tensor], x: Tensor) -> list[Tensor]:
    """What is given, for each row of x."""
    return [v.to(x).repeat(len(x), *[1] * (v.dim() - 1)) for v in given]


def _one(pictures: Tensor) -> Tensor:
    if len(pictures) != 1:
        raise ValueError(f"{len(pictures)} pictures: a base model is given one; make one model for each")
    return pictures

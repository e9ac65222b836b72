"""Pipelines that are given pictures besides a prompt: those that paint into one, and those with a ControlNet. What they
are given is a part of the base model, and the same for all its samples."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from ...models.networks import lent

_SIZES = ("text_embeds", "time_ids")  # what a ControlNet of SDXL is told, besides the prompt


class Painting:
    """A U-Net that paints into a picture: beside the latents it sees where to paint, and the latents of the rest."""

    def __init__(self, net: Any, mask: Tensor, rest: Tensor):
        self.net, self.mask, self.rest = net, mask, rest
        self.config, self.dtype, self.channels = net.config, net.dtype, rest.shape[1]
        self.given = mask, rest

    def __call__(self, x: Tensor, t: Tensor, **inputs: Any) -> Any:
        beside = (v.to(x).repeat(len(x), 1, 1, 1) for v in self.given)
        return self.net(torch.cat([x, *beside], 1), t, **inputs)


class Control:
    """One ControlNet or several, with their pictures. By its slots it is not found where layers of the denoiser are
    looked for by name, which its own layers share."""

    __slots__ = ("net", "pictures", "scale")

    def __init__(self, net: Any, pictures: list[Tensor], scale: Any):
        self.net, self.pictures, self.scale = net, pictures, scale

    def __call__(self, x: Tensor, t: Tensor, text: Tensor, added: dict[str, Tensor]) -> Any:
        seen = [v.to(x).repeat(len(x), 1, 1, 1) for v in self.pictures]
        return self.net(
            x, t, encoder_hidden_states=text, controlnet_cond=seen if hasattr(self.net, "nets") else seen[0],
            conditioning_scale=self.scale, return_dict=False, **({"added_cond_kwargs": added} if added else {}),
        )  # fmt: skip


class Controlled:
    """A U-Net with what its ControlNet adds."""

    def __init__(self, net: Any, control: Control):
        self.net, self.control = net, control
        self.config, self.dtype = net.config, net.dtype
        self.given = control.pictures, control.scale

    def __call__(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **inputs: Any) -> Any:
        added = {k: v for k, v in inputs.get("added_cond_kwargs", {}).items() if k in _SIZES}
        down, mid = self.control(x, t, encoder_hidden_states, added)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.net(x, t, encoder_hidden_states=encoder_hidden_states, **inputs, **more)


def with_pictures(pipe: Any, net: Any, size: tuple[int, int], image: Any, mask: Any, scale: Any) -> Any:
    """The denoiser with what the pipeline gives it besides latents and prompts; size is that of pictures."""
    name = "its denoiser" if pipe is None else type(pipe).__name__
    if pipe is not None and "controlnet" in pipe.components:
        _check_control(pipe, net, name, image, mask)
        return Controlled(net, Control(pipe.controlnet, _conditions(pipe, net, size, image), _scales(pipe, scale)))
    if pipe is not None and hasattr(pipe, "mask_processor") and net.config.get("in_channels") == 9:
        _check_painting(pipe, net, name, image, mask)
        return Painting(net, *_painting(pipe, net, size, image, mask))
    if not (image is None and mask is None):
        raise ValueError(
            f"image, mask_image: {name} is not given pictures here. To keep a part of a picture take the guide "
            "gk.Keep(image, mask), and to start from one gk.StartFrom(image)"
        )
    return net


def _check_control(pipe: Any, net: Any, name: str, image: Any, mask: Any) -> None:
    if type(net).__name__ != "UNet2DConditionModel" or "control_image" in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"{name}: of ControlNets those of text to image with Stable Diffusion are supported")
    if image is None:
        raise ValueError(f"{name}: give from_diffusers(pipe, image=...), the picture that its ControlNet takes")
    if mask is not None:
        raise ValueError(f"mask_image: {name} takes none; to keep a part of a picture take the guide gk.Keep")
    if any(part.config.global_pool_conditions for part in _parts(pipe.controlnet)):
        raise ValueError(f"{name}: a ControlNet with global_pool_conditions is not supported")


def _check_painting(pipe: Any, net: Any, name: str, image: Any, mask: Any) -> None:
    if image is None or mask is None:
        raise ValueError(
            f"{name} paints into a picture: give from_diffusers(pipe, image=..., mask_image=...), where the mask is "
            "white where it is to paint"
        )
    if pipe.vae is None:
        raise ValueError("the pipeline's vae is not loaded, which encodes the picture that is painted into: load it")
    if net.config.get("addition_embed_type") is not None:
        raise ValueError(
            f"{name}: of pipelines that paint into pictures those of Stable Diffusion 1 and 2 are supported"
        )


def _parts(controlnet: Any) -> list[Any]:
    return list(getattr(controlnet, "nets", [controlnet]))


def _conditions(pipe: Any, net: Any, size: tuple[int, int], image: Any) -> list[Tensor]:
    """The pictures of the ControlNets, as the pipeline prepares them."""
    count = len(_parts(pipe.controlnet))
    images = list(image) if hasattr(pipe.controlnet, "nets") and isinstance(image, (list, tuple)) else [image]
    if len(images) != count:
        raise ValueError(f"image: {len(images)} for {count} ControlNets; give a list with one for each")
    processor = pipe.control_image_processor
    return [_one(processor.preprocess(v, *size)).to(pipe._execution_device, net.dtype) for v in images]


def _scales(pipe: Any, scale: Any) -> Any:
    """One number for a ControlNet, and of several a list."""
    if not hasattr(pipe.controlnet, "nets"):
        return float(scale)
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(_parts(pipe.controlnet))
    return [float(v) for v in scales]


def _painting(pipe: Any, net: Any, size: tuple[int, int], image: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """The mask in the size of latents, and the latents of the picture without what is painted: their mean."""
    where = _one(pipe.mask_processor.preprocess(mask, *size))
    rest = _one(pipe.image_processor.preprocess(image, *size)).float() * (where < 0.5)
    vae, device = pipe.vae, pipe._execution_device
    with torch.no_grad(), lent([vae]):
        latents = vae.encode(rest.to(device, vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    pipe.maybe_free_model_hooks()
    where = torch.nn.functional.interpolate(where, size=latents.shape[-2:])
    return where.to(device, net.dtype), latents.to(device, net.dtype)


def _one(pictures: Tensor) -> Tensor:
    if len(pictures) != 1:
        raise ValueError(f"{len(pictures)} pictures: a base model is given one; make one model for each")
    return pictures

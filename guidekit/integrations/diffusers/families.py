"""How each kind of denoiser is called, and how its pipelines encode prompts and set their timesteps.

A family holds the denoiser and numbers alone, so that it is the network of the base model: perturbing attention must
not find the decoder. What needs the pipeline is handed it.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .pictures import looked, pictured

Encoded = dict[str, Tensor]


class Family:
    """One kind of denoiser; `shape` is that of a state, `drawn` that in which pipelines draw their noise."""

    shift = True  # decoded latents are x / scaling_factor + shift_factor
    upcast = False  # the pipeline decodes in float32 where the VAE asks for it
    labels = False  # conditions are labels and not prompts
    pictures = False  # conditions may have pictures, by an IP-Adapter
    takes = "prompt_embeds"  # what a condition is called that is one tensor; "" where there is none
    default: tuple[int, int] | None = None  # pixels, where neither pipeline nor denoiser says
    embedded: float | None = None  # the guidance scale of networks that take one, where none is given
    frames: int | None = None  # of a video, where the pipeline is not told; states then are (channels, frames, ...)
    states: torch.dtype | None = None  # the precision of the pipeline's states, where it is not the network's
    out: torch.dtype | None = None  # that of predictions

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        self.net, self.size, self.guidance = net, size, guidance
        self.scale = 8  # pixels per latent, as the pipeline says
        self.shape: tuple[int, ...] = (getattr(net, "channels", net.config.in_channels), *size)
        self.drawn = self.shape
        self.channels = self.shape[0]  # of latents

    @classmethod
    def scale_of(cls, net: Any, guidance: float | None) -> float | None:
        """The guidance scale that the network takes as an input; None where it takes none."""
        return (cls.embedded if guidance is None else guidance) if net.config.get("guidance_embeds") else None

    def scales(self, x: Tensor) -> Tensor | None:
        """The same for each row."""
        return None if self.guidance is None else torch.full((len(x),), self.guidance, device=x.device)

    @classmethod
    def denoiser(cls, pipe: Any, net: Any) -> Any:
        """What is called, where a pipeline has more than this one."""
        return net

    def read(self, pipe: Any, scale: int) -> None:
        """What the pipeline knows and the denoiser does not; pipe is None where there is none."""
        self.scale = scale

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        """What the network predicts, (rows, *shape)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is called")

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        """The conditions of prompts and of negative prompts, one entry for each."""
        raise NotImplementedError(f"{type(self).__name__} takes no prompts")

    def prepare(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(steps)

    def skipped(self, strength: float, steps: int) -> int:
        """The steps that pipelines of image to image leave out."""
        return int(steps - steps * strength)

    def guided(self, cond: Tensor, null: Tensor, scale: Any) -> Tensor:
        """Classifier-free guidance, as the pipeline computes it."""
        return null + scale * (cond - null)

    packed: Any = None  # makes packed latents of latents in space, where a family packs them

    def pack(self, noise: Tensor) -> Tensor:
        """A state from what was drawn."""
        return noise

    def unpack(self, x: Tensor) -> Tensor:
        """Latents in space, from a state."""
        return x

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        """What the VAE was trained on, from states, by the arithmetic of the pipeline."""
        config, x = vae.config, self.unpack(x) / vae.config.scaling_factor
        return x + config.shift_factor if self.shift and getattr(config, "shift_factor", None) is not None else x

    def state(self, z: Tensor, vae: Any) -> Tensor:
        """States from what the VAE encodes: the inverse of `latents`."""
        shift = getattr(vae.config, "shift_factor", None) if self.shift else None
        return self.pack((z if shift is None else z - shift) * vae.config.scaling_factor)

    def decode(self, vae: Any, z: Tensor) -> Tensor:
        """What the VAE makes of latents."""
        return vae.decode(z, return_dict=False)[0]

    def coded(self, pictures: Tensor) -> Tensor:
        """Pictures as the VAE takes them: videos with their channels first."""
        return pictures if self.frames is None else pictures.transpose(1, 2)

    def shown(self, decoded: Tensor) -> Tensor:
        """The inverse."""
        return decoded if self.frames is None else decoded.transpose(1, 2)


class Plain(Family):
    """UNet2DModel: unconditional, or with labels."""

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        super().__init__(net, size, guidance)
        self.takes = "class_labels" if net.config.get("class_embed_type") or net.config.get("num_class_embeds") else ""

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        return self.net(x, t, return_dict=False, **({} if cond is None else cond))[0]


class StableDiffusion(Family):
    """UNet2DConditionModel of Stable Diffusion 1 and 2 and of latent consistency models."""

    shift, pictures = False, True

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        distilled = net.config.get("time_cond_proj_dim") is not None
        super().__init__(net, size, (7.5 if guidance is None else guidance) if distilled else None)

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        extra = {"timestep_cond": self.embedded(len(x), x)} if self.guidance is not None else {}
        added = {"added_cond_kwargs": seen} if (seen := pictured(cond)) else {}
        return self.net(x, t, encoder_hidden_states=cond["prompt_embeds"], return_dict=False, **added, **extra)[0]

    def embedded(self, rows: int, like: Tensor) -> Tensor:
        """The guidance scale as sines and cosines, for networks into which guidance was distilled."""
        dim = self.net.config.time_cond_proj_dim
        w = torch.tensor((self.guidance or 0.0) - 1) * 1000.0
        rate = torch.exp(torch.arange(dim // 2) * -(torch.log(torch.tensor(10000.0)) / (dim // 2 - 1)))
        wave = w * rate
        return torch.cat([wave.sin(), wave.cos()])[None].expand(rows, dim).to(like)

    def skipped(self, strength: float, steps: int) -> int:
        return steps - int(steps * strength)

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        seen, unseen, options = looked(self.net, pipe, len(negatives), options)
        found = pipe.encode_prompt(prompts, pipe._execution_device, 1, True, _words(negatives), **options)
        return {"prompt_embeds": found[0], **seen}, {"prompt_embeds": found[1], **unseen}


class StableDiffusionXL(StableDiffusion):
    """UNet2DConditionModel with pooled text and the sizes of the picture."""

    upcast = True

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        height, width = (v * self.scale for v in self.size)
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).to(x)
        added = {"text_embeds": cond["pooled_prompt_embeds"], "time_ids": sizes.expand(len(x), -1), **pictured(cond)}
        extra = {"timestep_cond": self.embedded(len(x), x)} if self.guidance is not None else {}
        return self.net(
            x, t, encoder_hidden_states=cond["prompt_embeds"], added_cond_kwargs=added, return_dict=False, **extra
        )[0]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        seen, unseen, options = looked(self.net, pipe, len(negatives), options)
        cond, null = _pooled(
            pipe.encode_prompt(
                prompts, device=pipe._execution_device, do_classifier_free_guidance=True,
                negative_prompt=_words(negatives), **options,
            )
        )  # fmt: skip
        return cond | seen, null | unseen

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        mean, std = (getattr(vae.config, f"latents_{k}", None) for k in ("mean", "std"))
        if mean is None or std is None:
            return super().latents(x, vae)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(x) for v in (mean, std))
        return x * std / vae.config.scaling_factor + mean

    def state(self, z: Tensor, vae: Any) -> Tensor:
        mean, std = (getattr(vae.config, f"latents_{k}", None) for k in ("mean", "std"))
        if mean is None or std is None:
            return super().state(z, vae)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(z) for v in (mean, std))
        return (z - mean) * vae.config.scaling_factor / std


class StableDiffusion3(Family):
    """SD3Transformer2DModel."""

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        text, pooled = cond["prompt_embeds"], cond["pooled_prompt_embeds"]
        return self.net(
            hidden_states=x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled, return_dict=False
        )[0]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        where = {"prompt_2": None, "prompt_3": None, "device": pipe._execution_device}
        return _pooled(pipe.encode_prompt(prompts, **where | {"negative_prompt": _words(negatives)} | options))

    def prepare(self, scheduler: Any, steps: int) -> None:
        length = self.size[0] * self.size[1] // self.net.config.patch_size**2
        mu = {"mu": linear_shift(scheduler, length, 1.16)} if scheduler.config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(steps, **mu)


class Flux(Family):
    """FluxTransformer2DModel: states are packed, (tokens, channels), two by two latents a token."""

    embedded = 3.5

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        size = (2 * (size[0] // 2), 2 * (size[1] // 2))
        super().__init__(net, size, self.scale_of(net, guidance))
        channels = getattr(net, "channels", net.config.in_channels)
        self.drawn, self.channels = (channels // 4, *size), channels // 4
        self.shape = (size[0] * size[1] // 4, channels)

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        return self.net(
            **self.placed(x, t, cond), guidance=self.scales(x), pooled_projections=cond["pooled_prompt_embeds"],
            return_dict=False,
        )[0]  # fmt: skip

    def placed(self, x: Tensor, t: Tensor, cond: Encoded) -> dict[str, Tensor]:
        """States, times and text, with the places of all tokens."""
        text, (height, width) = cond["prompt_embeds"], self.size
        ids = torch.zeros(height // 2, width // 2, 3, device=x.device)
        ids[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
        ids[..., 2] += torch.arange(width // 2, device=x.device)
        return {
            "hidden_states": x, "timestep": t.to(x.dtype) / 1000, "encoder_hidden_states": text,
            "txt_ids": x.new_zeros(text.shape[1], 3), "img_ids": ids.to(x.dtype).flatten(0, 1),
        }  # fmt: skip

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        names = ("prompt_embeds", "pooled_prompt_embeds")
        given = {"prompt_2": None, "device": pipe._execution_device} | options
        cond, null = (found[:2] for found in twice(pipe.encode_prompt, prompts, negatives, given, names))
        return dict(zip(names, cond, strict=True)), dict(zip(names, null, strict=True))

    def prepare(self, scheduler: Any, steps: int) -> None:
        mu = linear_shift(scheduler, self.shape[0], 1.15)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    @staticmethod
    def packed(latents: Tensor) -> Tensor:
        n, c, h, w = latents.shape
        return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)

    def pack(self, noise: Tensor) -> Tensor:
        return self.packed(noise)

    def unpack(self, x: Tensor) -> Tensor:
        n, (c, h, w) = len(x), self.drawn
        return x.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


class Chroma(Flux):
    """ChromaTransformer2DModel: Flux without pooled text, whose text is masked behind its first padding token."""

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        mask = cond["prompt_attention_mask"]
        mask = torch.cat([mask, mask.new_ones(len(x), x.shape[1])], 1)
        return self.net(**self.placed(x, t, cond), attention_mask=mask, return_dict=False)[0]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        where = {"device": pipe._execution_device, "negative_prompt": [n or "" for n in negatives]}
        text, _, mask, no_text, _, no_mask = pipe.encode_prompt(prompts, **where | options)
        return _masked(text, mask), _masked(no_text, no_mask)


class PixArt(Family):
    """PixArtTransformer2DModel."""

    shift = False

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        height, width = (v * self.scale for v in self.size)
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.net.config.sample_size == 128 and self.net.config.use_additional_conditions is not False:
            added["resolution"] = torch.tensor([[height, width]]).to(x).expand(len(x), -1)
            added["aspect_ratio"] = torch.tensor([[height / width]]).to(x).expand(len(x), -1)
        out = self.net(
            x, encoder_hidden_states=cond["prompt_embeds"], encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=t, added_cond_kwargs=added, return_dict=False,
        )[0]  # fmt: skip
        return out[:, : x.shape[1]]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available

        options = {"clean_caption": is_bs4_available() and is_ftfy_available()} | options
        found = pipe.encode_prompt(
            prompts, True, negative_prompt=[n or "" for n in negatives], device=pipe._execution_device, **options
        )
        names = ("prompt_embeds", "prompt_attention_mask")
        return dict(zip(names, found[:2], strict=True)), dict(zip(names, found[2:], strict=True))


class Sana(Family):
    """SanaTransformer2DModel, whose states are in float32."""

    shift, states, out = False, torch.float32, torch.float32

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        out = self.net(
            x, encoder_hidden_states=cond["prompt_embeds"], encoder_attention_mask=cond["prompt_attention_mask"],
            timestep=t * self.net.config.timestep_scale, return_dict=False,
        )[0]  # fmt: skip
        return out[:, : x.shape[1]]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        told = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        options = {"complex_human_instruction": told} | options
        text, mask, no_text, no_mask = pipe.encode_prompt(
            prompts, True, negative_prompt=[n or "" for n in negatives], device=pipe._execution_device, **options
        )
        return _masked(text.to(self.net.dtype), mask), _masked(no_text.to(self.net.dtype), no_mask)

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        return super().latents(x.to(vae.dtype), vae)


class DiT(Family):
    """DiTTransformer2DModel: labels as conditions, and one more label for none."""

    shift, labels, takes = False, True, "class_labels"

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        return self.net(x, timestep=t, class_labels=cond["class_labels"], return_dict=False)[0][:, : x.shape[1]]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        none, known = self.net.config.num_embeds_ada_norm, getattr(pipe, "labels", None) or {}
        labels = [none if p is None else known.get(p, p) for p in prompts]
        if not all(isinstance(v, int) and 0 <= v <= none for v in labels):
            raise ValueError(f"cond={prompts!r}: labels from 0 to {none - 1} are needed, or names from pipe.labels")
        return {"class_labels": torch.tensor(labels)}, {"class_labels": torch.tensor([none] * len(labels))}

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        return 1 / vae.config.scaling_factor * x


class Wan(Family):
    """WanTransformer3DModel: videos, whose states are (channels, frames, height, width) in float32."""

    default, frames, states = (480, 832), 81, torch.float32

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        super().__init__(net, size, guidance)
        self.apart = False  # a timestep for each token, as in Wan 2.2 TI2V
        if any(v % patch for v, patch in zip(size, net.config.patch_size, strict=True)):
            raise ValueError(
                f"(frames, height, width) = {size} in latents: multiples of {tuple(net.config.patch_size)}, the "
                "network's patches, are needed"
            )

    @classmethod
    def denoiser(cls, pipe: Any, net: Any) -> Any:
        if pipe is None or (ratio := pipe.config.get("boundary_ratio")) is None:
            return net
        if pipe.transformer is None or pipe.transformer_2 is None:
            raise ValueError("a pipeline with a boundary_ratio takes transformer and transformer_2; load both first")
        return Stages(pipe.transformer, pipe.transformer_2, ratio * pipe.scheduler.config.num_train_timesteps)

    def read(self, pipe: Any, scale: int) -> None:
        super().read(pipe, scale)
        self.apart = pipe is not None and bool(pipe.config.get("expand_timesteps"))

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        if self.apart:
            t = t[:, None].expand(-1, self.size[0] * (self.size[1] // 2) * (self.size[2] // 2))
        text = cond["prompt_embeds"]
        return self.net(hidden_states=x, timestep=t, encoder_hidden_states=text, return_dict=False)[0]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        options = {"max_sequence_length": 512} | options
        away = None if "negative_prompt_embeds" in options else [n or "" for n in negatives]
        found = pipe.encode_prompt(prompts, away, device=pipe._execution_device, **options)
        cond, null = ({"prompt_embeds": v.to(self.net.dtype)} for v in found)
        return cond, null

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        x, config = x.to(vae.dtype), vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(x) for v in (config.latents_mean, config.latents_std))
        return x / (1.0 / std) + mean

    def state(self, z: Tensor, vae: Any) -> Tensor:
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (z - mean) * (1.0 / std)


class Stages:
    """Two denoisers, the second one below a timestep: the experts of Wan 2.2. Their layers have the same names."""

    def __init__(self, high: Any, low: Any, boundary: float):
        self.high, self.low, self.boundary = high, low, boundary
        self.config, self.dtype = high.config, high.dtype

    def __call__(self, hidden_states: Tensor, timestep: Tensor, **inputs: Any) -> Any:
        net = self.high if timestep.flatten()[0] >= self.boundary else self.low  # all rows have the same time
        return net(hidden_states=hidden_states, timestep=timestep, **inputs)


def _words(negatives: list) -> list[str] | None:
    """Negative prompts as encode_prompt takes them; None leaves it to the pipeline what that is."""
    return None if all(n is None for n in negatives) else [n or "" for n in negatives]


def twice(
    encode: Any, prompts: Any, negatives: list, options: dict[str, Any], names: tuple[str, ...]
) -> tuple[tuple, tuple]:
    """What a pipeline that encodes one list of texts makes of the prompts, and of the negative prompts; `names` are the
    options in which a prompt comes that is encoded already."""
    away = {k.removeprefix("negative_"): v for k, v in options.items() if k.startswith("negative_")}
    given = {k: v for k, v in options.items() if not k.startswith("negative_")}
    rest = {k: v for k, v in given.items() if k not in names}
    return encode(prompts, **given), encode(None if away else [n or "" for n in negatives], **rest | away)


def _pooled(found: tuple[Tensor, ...]) -> tuple[Encoded, Encoded]:
    text, no_text, pooled, no_pooled = found
    return (
        {"prompt_embeds": text, "pooled_prompt_embeds": pooled},
        {"prompt_embeds": no_text, "pooled_prompt_embeds": no_pooled},
    )


def _masked(text: Tensor, mask: Tensor) -> Encoded:
    return {"prompt_embeds": text, "prompt_attention_mask": mask}


def linear_shift(scheduler: Any, length: int, most: float) -> float:
    """The shift of a flow's times, linear in the number of tokens."""
    get = scheduler.config.get
    low, high = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
    base, top = get("base_shift", 0.5), get("max_shift", most)
    slope = (top - base) / (high - low)
    return length * slope + (base - slope * low)

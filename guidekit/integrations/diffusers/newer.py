"""Flow transformers that came after Flux and Wan: how each is called, as in `families`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .families import Encoded, Family, Flux, linear_shift, twice

_TEXT: str = "prompt_embeds"
_MASK: str = "prompt_attention_mask"
_POOLED: str = "pooled_prompt_embeds"


class QwenImage(Flux):
    """QwenImageTransformer2DModel, which is told of each text how long it is."""

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        if net.config.get("use_additional_t_cond") or net.config.get("use_layer3d_rope"):
            raise ValueError("a network of Qwen-Image-Layered, which makes several layers, is not supported")
        super().__init__(net, size, guidance)

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        text, mask = shortened(cond[_TEXT], cond[_MASK])
        height, width = self.size
        return self.net(
            hidden_states=x, timestep=t.to(x.dtype) / 1000, encoder_hidden_states=text, encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x), guidance=self.scales(x),
            return_dict=False,
        )[0]  # fmt: skip

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        given = {"device": pipe._execution_device, "max_sequence_length": 512} | options
        names = (_TEXT, f"{_TEXT}_mask")
        both = twice(pipe.encode_prompt, prompts, negatives, given, names)
        cond, null = (lengthened(text, mask, given["max_sequence_length"]) for text, mask in both)
        return cond, null

    def guided(self, cond: Tensor, null: Tensor, scale: Any) -> Tensor:
        """Each token keeps the norm that it has at the prompt."""
        out = super().guided(cond, null, scale)
        return out * (cond.norm(dim=-1, keepdim=True) / out.norm(dim=-1, keepdim=True))

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        mean, std = _moments(vae, x := self.unpack(x).to(vae.dtype))
        return (x / (1.0 / std) + mean)[:, :, None]

    def state(self, z: Tensor, vae: Any) -> Tensor:
        mean, std = _moments(vae, z := z[:, :, 0])
        return self.pack((z - mean) * (1.0 / std))

    def coded(self, pictures: Tensor) -> Tensor:
        return pictures[:, :, None]

    def shown(self, decoded: Tensor) -> Tensor:
        return decoded[:, :, 0]


class ZImage(Family):
    """ZImageTransformer2DModel takes lists of pictures and of texts of any length, times that are 1 at the data, and
    predicts the velocity towards the data."""

    default, states, out = (1024, 1024), torch.float32, torch.float32

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        texts = [text[mask] for text, mask in zip(cond[_TEXT], cond[_MASK].bool(), strict=True)]
        found = self.net(list(x[:, :, None].unbind(0)), (1000 - t) / 1000, texts, return_dict=False)[0]
        return -torch.stack([v.float() for v in found])[:, :, 0]

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        def encoded(texts: Any, **rest: Any) -> tuple:
            return pipe.encode_prompt(texts and list(texts), **rest, do_classifier_free_guidance=False)

        given = {"device": pipe._execution_device, "max_sequence_length": 512} | options
        both = twice(encoded, prompts, negatives, given, (_TEXT,))
        cond, null = (_side_by_side(texts, given["max_sequence_length"]) for texts, _ in both)
        return cond, null

    def prepare(self, scheduler: Any, steps: int) -> None:
        sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=linear_shift(scheduler, self.size[0] * self.size[1] // 4, 1.15))

    def guided(self, cond: Tensor, null: Tensor, scale: Any) -> Tensor:
        """A guidance_scale of its pipeline is one less."""
        return cond + (scale - 1) * (cond - null)

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        return super().latents(x.to(vae.dtype), vae)


class Flux2(Flux):
    """Flux2Transformer2DModel: noise is drawn where two by two latents are channels already, and latents are scaled by
    the statistics of a norm."""

    embedded = 4.0

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        super().__init__(net, size, guidance)
        height, width = self.size
        self.drawn = (self.shape[1], height // 2, width // 2)
        self.channels = self.shape[1] // 4

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        return self.net(**self.placed(x, t, cond), guidance=self.scales(x), return_dict=False)[0]

    def placed(self, x: Tensor, t: Tensor, cond: Encoded) -> dict[str, Tensor]:
        text, (_, height, width) = cond[_TEXT], self.drawn
        one, whole = torch.arange(1), torch.arange(text.shape[1])
        return {
            "hidden_states": x, "timestep": t.to(x.dtype) / 1000, "encoder_hidden_states": text,
            "txt_ids": torch.cartesian_prod(one, one, one, whole).to(x.device),
            "img_ids": torch.cartesian_prod(one, torch.arange(height), torch.arange(width), one).to(x.device),
        }  # fmt: skip

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        given = {"device": pipe._execution_device} | options
        (cond, _), (null, _) = twice(pipe.encode_prompt, prompts, negatives, given, (_TEXT,))
        return {_TEXT: cond}, {_TEXT: null}

    def prepare(self, scheduler: Any, steps: int) -> None:
        """The shift depends on the number of steps, by a fit of the authors to their schedules."""
        tokens = self.shape[0]
        many, few = 0.00016927 * tokens + 0.45666666, 8.73809524e-05 * tokens + 1.89833333  # of 200 steps, and of 10
        mu = many if tokens > 4300 else many + (many - few) / 190 * (steps - 200)
        if scheduler.config.get("use_flow_sigmas"):
            scheduler.set_timesteps(steps, mu=mu)
        else:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)

    @staticmethod
    def packed(latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, self.drawn[1:])

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        mean, std = self._norm(vae, x)
        z = (self.unpack(x) * std + mean).unflatten(1, (-1, 2, 2))
        return z.permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)

    def state(self, z: Tensor, vae: Any) -> Tensor:
        mean, std = self._norm(vae, z)
        z = z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        return self.pack((z - mean) / std)

    def _norm(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = (v.view(1, -1, 1, 1) for v in (vae.bn.running_mean, vae.bn.running_var))
        return mean.to(like), torch.sqrt(variance + vae.config.batch_norm_eps).to(like)


class LTX(Family):
    """LTXVideoTransformer3DModel: videos of 25 frames a second, whose latents are packed, one a token."""

    default, frames, states, out = (512, 704), 161, torch.float32, torch.float32
    rate = 25  # frames a second, the default of its pipeline

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        if net.config.patch_size != 1 or net.config.patch_size_t != 1:
            raise ValueError("LTX: a network with patches of several latents is not supported")
        super().__init__(net, size, guidance)
        self.every = 8  # frames a latent one, as the pipeline says
        self.shape = (size[0] * size[1] * size[2], self.shape[0])

    def read(self, pipe: Any, scale: int) -> None:
        super().read(pipe, scale)
        self.every = getattr(pipe, "vae_temporal_compression_ratio", 8)

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        frames, height, width = self.size
        return self.net(
            hidden_states=x, timestep=t, encoder_hidden_states=cond[_TEXT], encoder_attention_mask=cond[_MASK],
            num_frames=frames, height=height, width=width, return_dict=False,
            rope_interpolation_scale=(self.every / self.rate, self.scale, self.scale),
        )[0]  # fmt: skip

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        away = None if f"negative_{_TEXT}" in options else [n or "" for n in negatives]
        text, mask, no_text, no_mask = pipe.encode_prompt(prompts, away, device=pipe._execution_device, **options)
        return {_TEXT: text, _MASK: mask}, {_TEXT: no_text, _MASK: no_mask}

    def prepare(self, scheduler: Any, steps: int) -> None:
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=linear_shift(scheduler, self.shape[0], 1.15))

    def pack(self, noise: Tensor) -> Tensor:
        return noise.flatten(2).transpose(1, 2)

    def unpack(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, self.size)

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        mean, std = (v.view(1, -1, 1, 1, 1).to(x) for v in (vae.latents_mean, vae.latents_std))
        return self.unpack(x) * std / vae.config.scaling_factor + mean

    def state(self, z: Tensor, vae: Any) -> Tensor:
        mean, std = (v.view(1, -1, 1, 1, 1).to(z) for v in (vae.latents_mean, vae.latents_std))
        return self.pack((z - mean) * vae.config.scaling_factor / std)

    def decode(self, vae: Any, z: Tensor) -> Tensor:
        """Of VAEs that are told a noise level, at the pipeline's: none."""
        none = torch.zeros(len(z), device=z.device, dtype=z.dtype) if vae.config.timestep_conditioning else None
        return vae.decode(z, none, return_dict=False)[0]


class HunyuanVideo(Family):
    """HunyuanVideoTransformer3DModel: videos, with a guidance scale that the network takes as an input."""

    shift, default, frames, states, embedded = False, (720, 1280), 129, torch.float32, 6.0

    def __init__(self, net: Any, size: tuple[int, ...], guidance: float | None):
        super().__init__(net, size, self.scale_of(net, guidance))

    def __call__(self, x: Tensor, t: Tensor, cond: Encoded | None) -> Tensor:
        assert cond is not None
        scales, t = self.scales(x), t.to(x.dtype)  # as its pipeline rounds the time
        return self.net(
            hidden_states=x, timestep=t, encoder_hidden_states=cond[_TEXT], encoder_attention_mask=cond[_MASK],
            pooled_projections=cond[_POOLED], guidance=None if scales is None else scales.to(x) * 1000.0,
            return_dict=False,
        )[0]  # fmt: skip

    def encode(self, pipe: Any, prompts: Any, negatives: list, options: dict[str, Any]) -> tuple[Encoded, Encoded]:
        given = {"device": pipe._execution_device} | options
        names = (_TEXT, _POOLED, _MASK)
        both = twice(pipe.encode_prompt, prompts, negatives, given, names)
        cond, null = (dict(zip(names, (v.to(self.net.dtype) for v in found), strict=True)) for found in both)
        return cond, null

    def prepare(self, scheduler: Any, steps: int) -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])

    def latents(self, x: Tensor, vae: Any) -> Tensor:
        return super().latents(x.to(vae.dtype), vae)


def lengthened(text: Tensor, mask: Tensor | None, length: int) -> Encoded:
    """A text padded to this length, so that any two prompts can stand side by side, and a mask of what it was."""
    mask = text.new_ones(text.shape[:2], dtype=torch.long) if mask is None else mask
    more = max(0, length - text.shape[1])
    return {_TEXT: pad(text, (0, 0, 0, more)), _MASK: pad(mask, (0, more))}


def shortened(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Texts without the padding that they share; no mask where that was all of it."""
    length = int(mask.any(0).nonzero().max()) + 1
    text, mask = text[:, :length], mask[:, :length]
    return text, None if bool(mask.all()) else mask


def _side_by_side(texts: Any, length: int) -> Encoded:
    """Texts of any length, a list with (tokens, channels) of each."""
    each = [lengthened(v[None], None, max(length, *map(len, texts))) for v in texts]
    return {k: torch.cat([v[k] for v in each]) for k in (_TEXT, _MASK)}


def _moments(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1).to(like) for v in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std

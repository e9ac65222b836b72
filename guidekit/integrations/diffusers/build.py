"""gk.from_diffusers, and what can be wrong with a pipeline."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from rewards.base import needs

from ...models.base import as_encoded
from .attending import attending, scaled
from .decoding import Decoder, Encoder
from .families import Family, Plain
from .given import with_pictures
from .grids import Grids
from .known import family_of
from .model import DiffusersModel

_OUTPUTS = ("image", "latent")
TESTED = ("0.41", "0.42")  # releases of diffusers


def from_diffusers(
    pipe: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    negative_prompt: str | list[str] | None = None,
    embedded_guidance: float | None = None,
    eta: float = 0.0,
    output: str | Callable[[Tensor], Any] = "image",
    decode_batch: int | None = None,
    encode: dict[str, Any] | None = None,
    null: Any = None,
    image: Any = None,
    mask_image: Any = None,
    controlnet_conditioning_scale: float | list[float] = 1.0,
    attention_kwargs: dict[str, Any] | None = None,
) -> DiffusersModel:
    """A diffusers pipeline as a base model; the pipeline stays as it is and is used where it stands.

    pipe                a pipeline, or (denoiser, scheduler)
    height, width       of the pictures in pixels; None is the pipeline's default
    num_frames          of videos; None is the pipeline's default
    negative_prompt     for CFG: one for all prompts, or a list with one for each condition
    embedded_guidance   the scale that a network takes as an input (Flux dev: 3.5, latent consistency models: 7.5)
    eta                 of DDIM's and TCD's steps
    output              what rewards and `result.samples` see: "image", tensors in [0, 1]; "latent"; or a function of
                        states, like a small decoder
    decode_batch        most pictures that the VAE decodes or encodes at a time
    encode              further arguments of pipe.encode_prompt, like {"max_sequence_length": 128}
    null                the condition of "none" of a denoiser without its pipeline
    image               what a ControlNet takes (of several, a list), or what a pipeline paints into. It belongs to the
                        model, and is the same for all samples
    mask_image          where a pipeline paints: white. To keep a part of a picture with other pipelines, see gk.Keep
    controlnet_conditioning_scale   of what a ControlNet adds, or a list with one for each
    attention_kwargs   what calls of the pipeline have as cross_, joint_ or attention_kwargs: {"scale": 0.5} of a LoRA,
                       {"ip_adapter_masks": [...]}

    `model.read(pictures)` makes states of pictures by the VAE, as image-to-image pipelines do, so that runs can start
    from pictures of one's own. With output="latent" samples are states, and nothing is read.

    A condition is a prompt, a label (DiT), or a dict like {"prompt": ..., "negative_prompt": ...} or
    {"prompt_embeds": ...} of what pipe.encode_prompt takes. A list of conditions is a list of groups, n pictures each.
    The pipeline with CFG at its own scale, and the noise that it would draw:

        base = gk.from_diffusers(pipe)
        noise = base.noise(4, torch.Generator().manual_seed(0), steps=30)
        gk.sample(base, 4, steps=30, guides=[gk.CFG(7.5)], cond="a cat", noise=noise)
    """
    needs("diffusers", "diffusers", "gk.from_diffusers")
    warn_of(version("diffusers"))
    whole, net, scheduler = _parts(pipe)
    if output not in _OUTPUTS and not callable(output):
        raise ValueError(f"output={output!r}: there is {', '.join(map(repr, _OUTPUTS))}, or a function of states")
    kind = family_of(net)
    net, scale = kind.denoiser(whole, net), _scale(whole, kind)
    size = (*_frames(whole, kind, num_frames), *_size(whole, net, kind, height, width, scale))
    pixels = size[-2] * scale, size[-1] * scale
    net = with_pictures(whole, net, pixels, image, mask_image, controlnet_conditioning_scale, kind.packed)
    net, encoding = attending(whole, net, attention_kwargs), scaled(whole, attention_kwargs) | (encode or {})
    family = kind(net, size, embedded_guidance)
    family.read(whole, scale)
    grids = Grids(scheduler, family.prepare, _options(scheduler, eta))
    vae = getattr(whole, "vae", None)
    _check(whole, net, family, vae, output, embedded_guidance, grids.spreads)
    model = DiffusersModel(family, grids, whole, None, negative_prompt, encoding, None)
    decoder = Decoder(vae, family, grids.dtype, decode_batch) if output == "image" and whole is not None else None
    model._decode = output if callable(output) else decoder
    if whole is not None and output != "latent":
        channels = family.drawn[0] if vae is None else vae.config.get("in_channels", 3)
        model._read = Encoder(vae, family, channels, decode_batch, model.device)
    if null is not None:
        model.null = as_encoded(null if isinstance(null, dict) else {family.takes: null}, model.device)
    return model


def warn_of(release: str) -> None:
    """Warn of a release of diffusers with which pipelines were not compared."""
    if ".".join(release.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"diffusers {release} is installed, and pipelines were compared with {', '.join(TESTED)} only: compare a "
            "run without guides with your pipeline's own from the same generator, or install one of these",
            UserWarning,
            stacklevel=3,
        )


def _parts(pipe: Any) -> tuple[Any, Any, Any]:
    """The pipeline (None where only its parts are given), the denoiser and the scheduler."""
    if isinstance(pipe, tuple):
        if len(pipe) != 2 or not isinstance(pipe[0], nn.Module) or not hasattr(pipe[1], "step"):
            raise TypeError("from_diffusers((denoiser, scheduler)) takes a module and a scheduler of diffusers")
        return None, *pipe
    if not hasattr(pipe, "components") or not hasattr(pipe, "scheduler"):
        raise TypeError(f"from_diffusers takes a pipeline, or (denoiser, scheduler), and not {type(pipe).__name__}")
    names = [n for n in ("unet", "transformer") if n in pipe.components]
    if not names:
        raise ValueError(
            f"{type(pipe).__name__} has neither a unet nor a transformer among {', '.join(sorted(pipe.components))}; "
            "give from_diffusers (denoiser, scheduler)"
        )
    net = next((getattr(pipe, n) for n in names if getattr(pipe, n) is not None), None)
    for name, part in ((names[0], net), ("scheduler", pipe.scheduler)):
        if part is None:
            raise ValueError(f"the pipeline's {name} is not loaded (it is None); load it first")
    return pipe, net, pipe.scheduler


def _scale(pipe: Any, kind: type[Family]) -> int:
    """Pixels per latent."""
    names = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio")
    found = [v for name in names if (v := getattr(pipe, name, None))]
    vae = getattr(getattr(pipe, "vae", None), "config", {})
    found += [2 ** (len(vae["block_out_channels"]) - 1)] if "block_out_channels" in vae else []
    return int(found[0]) if found else 1 if kind is Plain else 8


def _frames(pipe: Any, kind: type[Family], count: int | None) -> tuple[int, ...]:
    """Frames of a state, of the first and of every few more; () for pictures."""
    if kind.frames is None:
        if count is not None:
            raise ValueError(f"num_frames={count}: {kind.__name__} makes pictures; leave it out")
        return ()
    names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
    every = next((int(v) for name in names if (v := getattr(pipe, name, None))), 4)
    count = kind.frames if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or count < 1 or count % every != 1 % every:
        raise ValueError(f"num_frames={count!r}: one more than a multiple of {every} is needed, like {10 * every + 1}")
    return ((count - 1) // every + 1,)


def _size(
    pipe: Any, net: Any, kind: type[Family], height: int | None, width: int | None, scale: int
) -> tuple[int, int]:
    """Height and width of a state."""
    default = getattr(pipe, "default_sample_size", None) or net.config.get("sample_size")
    if default is None and kind.default is not None:
        default = tuple(v // scale for v in kind.default)
    if default is None and (height is None or width is None):
        raise ValueError("this denoiser has no size of its own: give height=... and width=...")
    own = tuple(default) if isinstance(default, (list, tuple)) else (default, default)
    for name, v in (("height", height), ("width", width)):
        if v is not None and (isinstance(v, bool) or not isinstance(v, int) or v < scale or v % scale):
            raise ValueError(f"{name}={v!r}: pixels, a multiple of {scale}")
    return tuple(o if v is None else v // scale for v, o in zip((height, width), own, strict=True))  # type: ignore[return-value]


def _options(scheduler: Any, eta: float) -> dict[str, Any]:
    """What every scheduler.step is told."""
    takes = "eta" in inspect.signature(scheduler.step).parameters
    if eta and not takes:
        raise ValueError(f"eta={eta}: {type(scheduler).__name__} has none; DDIMScheduler and TCDScheduler do")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: it lies in [0, 1]; 0 is deterministic")
    return {"eta": float(eta)} if takes else {}


def _check(pipe: Any, net: Any, family: Family, vae: Any, output: Any, guidance: float | None, spreads: bool) -> None:
    if guidance is not None and family.guidance is None:
        raise ValueError(
            f"embedded_guidance={guidance}: {type(net).__name__} takes no guidance scale as an input; "
            f"use gk.CFG({guidance})"
        )
    if spreads and (not isinstance(family, Plain) or net.config.get("out_channels") != 2 * family.channels):
        raise ValueError(
            "a scheduler with a learned variance takes a UNet2DModel with twice as many channels out as in, which says "
            "it; take variance_type='fixed_small'"
        )
    if pipe is not None and not (isinstance(family, Plain) or family.labels or hasattr(pipe, "encode_prompt")):
        raise ValueError(
            f"{type(pipe).__name__} has no encode_prompt: of a modular pipeline give from_diffusers the classic one "
            "of the same components; guides that need predictions alone can be its guider, by guider([...])"
        )
    if "image" in inspect.signature(getattr(pipe, "encode_prompt", len)).parameters:
        raise ValueError(
            f"{type(pipe).__name__} encodes a picture with each prompt, which is not supported: take the pipeline of "
            "the same components that makes pictures of text alone"
        )
    if pipe is not None and hasattr(pipe, "vae") and vae is None and output == "image":
        raise ValueError("the pipeline's vae is not loaded, so there are no pictures: load it, or say output='latent'")
    channels = None if vae is None else vae.config.get("latent_channels") or vae.config.get("z_dim")
    if channels is not None and family.channels != channels:
        raise ValueError(
            f"the denoiser takes {family.channels} channels and the VAE has {channels}: of pipelines that are given "
            "pictures, those that paint into one and those with a ControlNet are supported; else take the "
            "text-to-image one"
        )

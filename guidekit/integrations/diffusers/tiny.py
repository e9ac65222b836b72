"""Small pipelines with random weights, of the real classes, to try things out offline: they run in a second.

    pipe = tiny("sd")          # also "sdxl", "sd3", "flux", "chroma", "pixart", "sana", "dit", "ddpm", "wan",
                               # "qwen", "z_image", "flux2", "klein" (Flux 2), "ltx", "hunyuan",
                               # "inpaint", "inpaint_xl", "inpaint_sd3", "fill" (Flux),
                               # "controlnet", "controlnet_xl", "controlnet_sd3", "controlnet_flux"

Pictures are 32 x 32 noise, but for those of Flux, Qwen, Z-Image and Flux 2, and videos, which are as large as those of
the large pipelines: say height=32, width=32, and num_frames=5. Everything else
(prompts, schedulers, attention, saving) is as in the large ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rewards.base import needs

from . import tiny_newer
from .tiny_parts import clip, t5, tokenizer, vae

NAMES = (
    *("sd", "sdxl", "sd3", "flux", "chroma", "pixart", "sana", "dit", "ddpm", "wan"),
    *tiny_newer.MAKERS,
    *("inpaint", "inpaint_xl", "inpaint_sd3", "fill"),
    *("controlnet", "controlnet_xl", "controlnet_sd3", "controlnet_flux"),
)


def tiny(name: str = "sd", scheduler: Any = None, seed: int = 0) -> Any:
    """A pipeline of this family; scheduler=None takes the one that its pipelines come with."""
    if name not in NAMES:
        raise ValueError(f"tiny({name!r}): there is {', '.join(NAMES)}")
    d = needs("diffusers", "diffusers", "to build a pipeline")
    needs("transformers", "diffusers", "to build text encoders")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = _MAKERS[name](d, scheduler)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd(d: Any, scheduler: Any) -> Any:
    return d.StableDiffusionPipeline(
        vae(d), clip(), tokenizer(), _unet(d), scheduler or d.PNDMScheduler(**_SD, skip_prk_steps=True),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _inpaint(d: Any, scheduler: Any) -> Any:
    return d.StableDiffusionInpaintPipeline(
        vae(d), clip(), tokenizer(), _unet(d, in_channels=9), scheduler or d.DDIMScheduler(**_SD, clip_sample=False),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _inpaint_xl(d: Any, scheduler: Any) -> Any:
    parts = _sdxl(d, scheduler).components | {"unet": _unet(d, in_channels=9, **_XL)}
    return d.StableDiffusionXLInpaintPipeline(**parts, add_watermarker=False)


def _inpaint_sd3(d: Any, scheduler: Any) -> Any:
    net = _mmdit(d, in_channels=33, out_channels=16)
    return d.StableDiffusion3InpaintPipeline(**_sd3(d, scheduler, net, latents=16).components)


def _fill(d: Any, scheduler: Any) -> Any:
    parts = _flux(d, scheduler, _dit_of_flux(d, in_channels=48, out_channels=16)).components
    return d.FluxFillPipeline(**{k: v for k, v in parts.items() if "image_encoder" != k != "feature_extractor"})


def _controlnet_sd3(d: Any, scheduler: Any) -> Any:
    parts = _sd3(d, scheduler).components
    net = d.SD3ControlNetModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=16, force_zeros_for_pooled_projection=False,
    )  # fmt: skip
    return d.StableDiffusion3ControlNetPipeline(
        **parts, controlnet=_filled(net, net.controlnet_blocks, net.pos_embed_input)
    )


def _controlnet_flux(d: Any, scheduler: Any) -> Any:
    parts = _flux(d, scheduler).components
    config = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    net = d.FluxControlNetModel(
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 6, 6], **config
    )
    zeros = net.controlnet_blocks, net.controlnet_single_blocks, net.controlnet_x_embedder
    return d.FluxControlNetPipeline(**parts, controlnet=_filled(net, *zeros))


def _controlnet(d: Any, scheduler: Any) -> Any:
    parts = _sd(d, scheduler).components
    return d.StableDiffusionControlNetPipeline(
        **parts, controlnet=_control(d, parts["unet"]), requires_safety_checker=False
    )


def _controlnet_xl(d: Any, scheduler: Any) -> Any:
    parts = _sdxl(d, scheduler).components
    return d.StableDiffusionXLControlNetPipeline(**parts, controlnet=_control(d, parts["unet"]), add_watermarker=False)


def _control(d: Any, unet: Any) -> Any:
    net = d.ControlNetModel.from_unet(unet, conditioning_channels=3, conditioning_embedding_out_channels=(16, 32))
    zeros = net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out
    return _filled(net, *zeros)


def _filled(net: Any, *zeros: Any) -> Any:
    """A ControlNet, whose layers of zeros are filled as if it were trained."""
    for parameter in (p for layer in zeros for p in layer.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def _sdxl(d: Any, scheduler: Any) -> Any:
    token = tokenizer()
    return d.StableDiffusionXLPipeline(
        vae(d), clip(), clip(projected=True), token, token, _unet(d, **_XL),
        scheduler or d.EulerDiscreteScheduler(**_SD), add_watermarker=False,
    )  # fmt: skip


def _mmdit(d: Any, **channels: int) -> Any:
    return d.SD3Transformer2DModel(
        sample_size=16, patch_size=1, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=64, pos_embed_max_size=16, **channels,
    )  # fmt: skip


def _sd3(d: Any, scheduler: Any, net: Any = None, latents: int = 4) -> Any:
    net, token = net or _mmdit(d, in_channels=4, out_channels=4), tokenizer()
    coder = vae(d, shift_factor=0.06, latent_channels=latents)
    return d.StableDiffusion3Pipeline(
        net, scheduler or d.FlowMatchEulerDiscreteScheduler(shift=3.0), coder,
        clip(projected=True), token, clip(projected=True), token, None, None,
    )  # fmt: skip


def _dit_of_flux(d: Any, **channels: int) -> Any:
    return d.FluxTransformer2DModel(
        patch_size=1, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6), guidance_embeds=True, **channels,
    )  # fmt: skip


def _flux(d: Any, scheduler: Any, net: Any = None) -> Any:
    net, token = net or _dit_of_flux(d, in_channels=16), tokenizer()
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return d.FluxPipeline(scheduler or flow, vae(d, shift_factor=0.06), clip(), token, t5(), token, net)


def _pixart(d: Any, scheduler: Any) -> Any:
    net = d.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
        out_channels=8, cross_attention_dim=32, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return d.PixArtSigmaPipeline(tokenizer(), t5(), vae(d), net, scheduler or d.DPMSolverMultistepScheduler())


def _chroma(d: Any, scheduler: Any) -> Any:
    net = d.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return d.ChromaPipeline(scheduler or flow, vae(d, shift_factor=0.06), t5(), tokenizer(), net)


def _sana(d: Any, scheduler: Any) -> Any:
    import transformers

    net = d.SanaTransformer2DModel(
        sample_size=16, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
    )  # fmt: skip
    each: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8), "layers_per_block": (1, 1),
            "qkv_multiscales": ((), (5,)),
        }.items()
    }  # fmt: skip
    vae = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, downsample_block_type="conv",
        upsample_block_type="interpolate", scaling_factor=0.4, **each,
    )  # fmt: skip
    text = transformers.Gemma2Config(
        vocab_size=514, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, bos_token_id=512, eos_token_id=513, pad_token_id=513,
    )  # fmt: skip
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return d.SanaPipeline(tokenizer(), transformers.Gemma2Model(text), vae, net, scheduler or flow)


def _dit(d: Any, scheduler: Any) -> Any:
    net = d.DiTTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=4, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000,
    )  # fmt: skip
    return d.DiTPipeline(net, vae(d), scheduler or d.DDIMScheduler(clip_sample=False), id2label={0: "a", 1: "b"})


def _ddpm(d: Any, scheduler: Any) -> Any:
    net = d.UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return d.DDPMPipeline(net, scheduler or d.DDPMScheduler())


def _wan(d: Any, scheduler: Any) -> Any:
    net = d.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=32, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    vae = d.AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    flow = d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return d.WanPipeline(tokenizer(), t5(many=True), vae, scheduler or flow, net)


_MAKERS: dict[str, Callable] = {
    "sd": _sd, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "chroma": _chroma, "pixart": _pixart, "sana": _sana,
    "dit": _dit, "ddpm": _ddpm, "wan": _wan, "inpaint": _inpaint, "inpaint_xl": _inpaint_xl,
    "inpaint_sd3": _inpaint_sd3, "fill": _fill, "controlnet": _controlnet, "controlnet_xl": _controlnet_xl,
    "controlnet_sd3": _controlnet_sd3, "controlnet_flux": _controlnet_flux, **tiny_newer.MAKERS,
}  # fmt: skip
_XL: dict[str, Any] = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 8 * 6 + 32,
}  # fmt: skip
_SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _unet(d: Any, **extra: Any) -> Any:
    given: dict[str, Any] = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1,
        "norm_num_groups": 8, "attention_head_dim": 8, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return d.UNet2DConditionModel(**given | extra)

"""Small pipelines of the flow transformers in `newer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tiny_parts import clip, language_model, t5, tokenizer, vae


def _flow(d: Any, scheduler: Any, **options: Any) -> Any:
    return scheduler or d.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_dynamic_shifting": True} | options)


def _qwen(d: Any, scheduler: Any) -> Any:
    net = d.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    coder = d.AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip
    pipe = d.QwenImagePipeline(_flow(d, scheduler), coder, language_model("Qwen3"), tokenizer(), net)
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "picture of {}", 4  # letters are tokens here
    return pipe


def _z_image(d: Any, scheduler: Any) -> Any:
    net = d.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=32,
        axes_dims=[4, 6, 6], axes_lens=[128, 16, 16],
    )  # fmt: skip
    for pads in (net.x_pad_token, net.cap_pad_token):
        pads.data.normal_()  # they are made without values
    return d.ZImagePipeline(
        _flow(d, scheduler), vae(d, shift_factor=0.06), language_model("Qwen3"), tokenizer(told=True), net
    )


def _flux2(d: Any, scheduler: Any) -> Any:
    net = d.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return d.Flux2Pipeline(_flow(d, scheduler), _normed(d), language_model("Mistral"), tokenizer(told=True), net)


def _klein(d: Any, scheduler: Any) -> Any:
    net = d.Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    return d.Flux2KleinPipeline(_flow(d, scheduler), _normed(d), language_model("Qwen3"), tokenizer(told=True), net)


def _normed(d: Any) -> Any:
    """A VAE whose norm has seen something."""
    coder = d.AutoencoderKLFlux2(
        block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1, sample_size=32, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    coder.bn.running_mean.normal_()
    coder.bn.running_var.uniform_(0.5, 2.0)
    return coder


def _ltx(d: Any, scheduler: Any) -> Any:
    net = d.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    coder = d.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8), down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8), layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3, downsample_type=("conv", "conv"), upsample_residual=(False, False),
        upsample_factor=(1, 1), patch_size=4,
    )  # fmt: skip
    coder.latents_mean.normal_()
    coder.latents_std.uniform_(0.5, 2.0)
    return d.LTXPipeline(_flow(d, scheduler, shift_terminal=0.1), coder, t5(), tokenizer(), net)


def _hunyuan(d: Any, scheduler: Any) -> Any:
    net = d.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=32, pooled_projection_dim=32,
        rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    coder = d.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4, norm_num_groups=4, layers_per_block=1,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
    )  # fmt: skip
    token, flow = tokenizer(), _flow(d, scheduler, shift=7.0, use_dynamic_shifting=False)
    return d.HunyuanVideoPipeline(language_model("Llama"), token, net, coder, flow, clip(), token)


MAKERS: dict[str, Callable] = {
    "qwen": _qwen, "z_image": _z_image, "flux2": _flux2, "klein": _klein, "ltx": _ltx, "hunyuan": _hunyuan,
}  # fmt: skip

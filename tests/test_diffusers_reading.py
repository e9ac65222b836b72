"""Pictures as states of pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import guidekit as gk
from guidekit.integrations.diffusers.tiny import tiny

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

SIZES: dict[str, dict[str, Any]] = {
    "wan": {"height": 32, "width": 32, "num_frames": 5}, "flux": {"height": 32, "width": 32},
}  # fmt: skip


def pictures(name: str, model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    size = 16 if name == "ddpm" else 32
    return torch.rand(*((2, 5) if name == "wan" else (2,)), 3, size, size, generator=generator)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "dit", "wan"])
def test_pipelines_read_pictures_by_their_vae(name: str):
    """States are what the VAE encodes, brought to the network's scale: decoding brings them back to the VAE's."""
    pipe = tiny(name)
    model = gk.from_diffusers(pipe, **SIZES.get(name, {}))
    images = pictures(name, model)
    x = model.read(images)
    assert x.shape == (2, *model.shape) and x.dtype == torch.float32
    seen = 2 * images - 1
    with torch.no_grad():
        encoded = pipe.vae.encode(seen.transpose(1, 2) if name == "wan" else seen).latent_dist.mode()
    assert torch.allclose(model.family.latents(x, pipe.vae), encoded, atol=1e-5)
    one = model.read(images[:1])
    assert torch.allclose(one, x[:1], atol=1e-5)


def test_the_pipeline_of_image_to_image_makes_the_same_states():
    pipe = tiny("sd")
    images = pictures("sd", None)
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    ready = other.image_processor.preprocess(images)
    zeros = pipe.scheduler.config
    assert zeros is not None
    pipe.scheduler.set_timesteps(10)
    first = pipe.scheduler.timesteps[-1:].repeat(2)
    noised = other.prepare_latents(ready, first, 2, 1, torch.float32, "cpu", torch.Generator().manual_seed(0))
    alpha = pipe.scheduler.alphas_cumprod[first[0]] ** 0.5
    scale = pipe.vae.config.scaling_factor
    with torch.no_grad():  # it samples from the encoding and adds noise: the same draws around our mean
        spread = pipe.vae.encode(2 * images - 1).latent_dist.std * scale
    x = gk.from_diffusers(pipe).read(images)
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(x.shape, generator=generator), torch.randn(x.shape, generator=generator)
    expected = alpha * (x + spread * z) + (1 - alpha**2) ** 0.5 * noise
    assert torch.allclose(noised, expected, atol=1e-4)


TO_IMAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("StableDiffusionImg2ImgPipeline", {"requires_safety_checker": False}),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", {"add_watermarker": False}),
    "sd3": ("StableDiffusion3Img2ImgPipeline", {}),
    "flux": ("FluxImg2ImgPipeline", {}),
    "qwen": ("QwenImageImg2ImgPipeline", {}),
    "z_image": ("ZImageImg2ImgPipeline", {}),
}
SHORT: dict[str, Any] = {"max_sequence_length": 20}


@pytest.mark.parametrize(
    "name", [name if name in ("sd", "flux") else pytest.param(name, marks=pytest.mark.slow) for name in TO_IMAGE]
)
def test_image_to_image_is_a_run_that_starts_from_the_picture(name: str, monkeypatch: pytest.MonkeyPatch):
    """The pipeline's own call at strength .7 of five steps: the last three of Stable Diffusion, and four of others."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Encoding

    monkeypatch.setattr(Encoding, "sample", lambda self, generator=None: self.mode())  # the mean, as the model takes it
    pipe = tiny(name, diffusers.DDIMScheduler(clip_sample=False) if name == "sd" else None)
    kind, options = TO_IMAGE[name]
    image, text = pictures(name, None)[:1], SHORT if name in ("flux", "qwen", "z_image") else {}
    no = {"qwen": {"true_cfg_scale": 1.0}, "z_image": {"guidance_scale": 0.0}, "flux": {"guidance_scale": 3.5}}
    parts = {k: v for k, v in pipe.components.items() if v is not None or name != "sdxl"}
    other = getattr(diffusers, kind)(**parts, **options)
    for told in ("prompt_template_encode", "prompt_template_encode_start_idx"):
        if hasattr(pipe, told):
            setattr(other, told, getattr(pipe, told))
    size = {} if name in ("sd", "sdxl") else {"height": 32, "width": 32}
    theirs = other(
        prompt="a cat", image=image, strength=0.7, num_inference_steps=5, num_images_per_prompt=2, output_type="latent",
        generator=torch.Generator().manual_seed(3), **no.get(name, {"guidance_scale": 1.0}), **size, **text,
    ).images  # fmt: skip
    base = gk.from_diffusers(pipe, height=32, width=32, encode=text)
    noise = base.noise(2, torch.Generator().manual_seed(3), steps=5)
    noise = noise[0] if noise.dim() > 1 + len(base.shape) else noise
    level = base.level(0.7, steps=5)
    ours = gk.sample(base, 2, steps=5, cond="a cat", noise=noise, guides=[gk.StartFrom(image, level)])
    assert theirs.std() > 0.1 and (ours.x - theirs).abs().max() < 5e-4 * theirs.abs().max()
    for bad in (0.0, 1.1, 0.1 if name == "sd" else -1.0):
        with pytest.raises(ValueError, match=rf"strength={bad}: a share of 5 steps"):
            base.level(bad, 5)


def test_pipelines_in_pixels_read_exactly():
    model = gk.from_diffusers(tiny("ddpm"))
    images = pictures("ddpm", model)
    assert torch.allclose(model.decode(model.read(images)), images, atol=1e-6)
    arrays = [np.asarray(i.permute(1, 2, 0) * 255).round().astype(np.uint8) for i in images]
    assert torch.allclose(model.read([Image.fromarray(a) for a in arrays]), model.read(images), atol=2 / 255)
    with pytest.raises(
        ValueError, match=r"a colour image of 32 x 32 pixels.*What can be read: colour pictures of 16 x"
    ):
        model.read(torch.zeros(1, 3, 32, 32))


def test_with_latents_as_samples_reading_is_the_identity():
    model = gk.from_diffusers(tiny("sd"), output="latent")
    x = torch.randn(2, 4, 16, 16)
    assert torch.equal(model.read(x), x)
    by_hand = gk.from_diffusers(tiny("sd"), output=lambda x: x[:, :3])
    assert by_hand.read(torch.rand(1, 3, 32, 32)).shape == (1, 4, 16, 16)

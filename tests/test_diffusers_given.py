"""Pipelines that are given pictures, as base models: equal to their own calls."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import guidekit as gk
from guidekit.integrations.diffusers.tiny import tiny

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]
CASES = [(1.0, 2, ["a cat"]), (7.5, 1, ["a cat"]), (5.0, 2, ["a cat", "two dogs"])]


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def mask() -> Image.Image:
    white = np.zeros((32, 32), dtype=np.uint8)
    white[8:24, 12:] = 255
    return Image.fromarray(white)


def agree(
    pipe: Any, base: Any, scale: float, n: int, prompts: list[str], within: float = 0.0, pictures: bool = True,
    **given: Any,
) -> None:  # fmt: skip
    """The pipeline's own latents and pictures, with the noise that it draws."""
    noise = base.noise(n, torch.Generator().manual_seed(3), steps=4, groups=len(prompts))
    guides = [gk.CFG(scale)] if scale > 1 else []
    result = gk.sample(base, n, steps=4, guides=guides, cond=prompts, noise=noise)
    for kind, ours in [("latent", result.x), ("pt", result.samples)][: 1 + pictures]:
        theirs = pipe(
            prompts, num_images_per_prompt=n, num_inference_steps=4, generator=torch.Generator().manual_seed(3),
            guidance_scale=scale, output_type=kind, **given,
        ).images  # fmt: skip
        assert theirs.std() > 0.05 and (ours - theirs).abs().max() <= within


def test_painting_into_a_picture_equals_its_pipeline():
    """Given the same latents of the rest, of which the model takes the mean and the pipeline by itself a draw."""
    pipe = tiny("inpaint")
    base = gk.from_diffusers(pipe, image=picture(), mask_image=mask())
    assert base.shape == (4, 16, 16)
    rest = base.family.net.given[1]
    for scale, n, prompts in CASES:
        given = {"image": picture(), "mask_image": mask(), "height": 32, "width": 32}
        agree(pipe, base, scale, n, prompts, masked_image_latents=rest.repeat(n * len(prompts), 1, 1, 1), **given)


def test_painting_equals_a_pipeline_that_encodes_by_itself_where_its_vae_is_sure():
    """Up to what is left of its draw, of 3e-7; latents have a standard deviation of 4."""
    pipe = tiny("inpaint")
    with torch.no_grad():  # log-variances of the encoding, at their lower bound
        pipe.vae.quant_conv.weight[4:], pipe.vae.quant_conv.bias[4:] = 0, -40
    base = gk.from_diffusers(pipe, image=picture(), mask_image=mask())
    agree(pipe, base, 5.0, 2, ["a cat"], 1e-4, image=picture(), mask_image=mask(), height=32, width=32)


def test_what_is_painted_depends_on_the_picture_and_the_mask_and_keep_pastes_the_rest():
    pipe = tiny("inpaint")
    white = torch.as_tensor(np.asarray(mask()) > 127)
    options: dict[str, Any] = {"steps": 3, "cond": "a cat", "guides": [gk.Keep(picture(), ~white, method="replace")]}
    found = [
        gk.sample(gk.from_diffusers(pipe, image=image, mask_image=where), 2, **options)
        for image, where in ((picture(), mask()), (picture(1), mask()), (picture(), Image.new("L", (32, 32), 255)))
    ]
    pixels = torch.as_tensor(np.asarray(picture())).permute(2, 0, 1).float() / 255
    assert all(torch.equal(r.samples[..., ~white], pixels[:, ~white].expand(2, -1, -1)) for r in found)
    assert not any(torch.equal(r.x, found[0].x) for r in found[1:])
    assert len({str(r.config["model"]) for r in found}) == 3


@pytest.fixture
def sure(monkeypatch):
    """A VAE whose encoding has no noise, so that the pipeline takes the mean that the model takes."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Encoding

    monkeypatch.setattr(Encoding, "sample", lambda self, generator=None: self.mode())


@pytest.mark.parametrize("name", ["inpaint_xl", "inpaint_sd3"])
def test_other_networks_that_paint_equal_their_pipelines(name: str, sure: None):
    pipe = tiny(name)
    base = gk.from_diffusers(pipe, image=picture(), mask_image=mask())
    given = {"image": picture(), "mask_image": mask(), "height": 32, "width": 32, "strength": 1.0}
    for scale, n, prompts in CASES:
        # what SD3 encodes less the VAE's shift, its pipeline that paints decodes without it
        agree(pipe, base, scale, n, prompts, pictures=name == "inpaint_xl", **given)
    options: dict[str, Any] = {"steps": 3, "cond": "a cat"}
    for image, where in ((picture(1), mask()), (picture(), Image.new("L", (32, 32), 255))):
        other = gk.sample(gk.from_diffusers(pipe, image=image, mask_image=where), 1, **options)
        assert (gk.sample(base, 1, **options).x - other.x).abs().max() > 1e-4


def test_flux_fill_equals_its_pipeline_from_the_same_noise(sure: None):
    """Its pipeline encodes the picture before it draws its noise, so the noise is handed to both."""
    pipe, size = tiny("fill"), {"height": 32, "width": 32}
    base = gk.from_diffusers(pipe, image=picture(), mask_image=mask(), embedded_guidance=30.0, **size)
    assert base.shape == (64, 16)
    for n, prompts in ((2, ["a cat"]), (1, ["a cat", "two dogs"])):
        noise = base.noise(n, torch.Generator().manual_seed(3), steps=4, groups=len(prompts))
        ours = gk.sample(base, n, steps=4, cond=prompts, noise=noise)
        for kind, found in (("latent", ours.x), ("pt", ours.samples)):
            theirs = pipe(
                prompts, image=picture(), mask_image=mask(), latents=noise, num_images_per_prompt=n,
                num_inference_steps=4, guidance_scale=30.0, output_type=kind, **size,
            ).images  # fmt: skip
            assert theirs.std() > 0.05 and torch.equal(found, theirs)


@pytest.mark.parametrize("name", ["inpaint_xl", "inpaint_sd3", "fill"])
def test_keep_pastes_what_is_not_painted(name: str):
    white = torch.as_tensor(np.asarray(mask()) > 127)
    base = gk.from_diffusers(tiny(name), image=picture(), mask_image=mask(), height=32, width=32)
    found = gk.sample(base, 2, steps=3, cond="a cat", guides=[gk.Keep(picture(), ~white, method="replace")])
    pixels = torch.as_tensor(np.asarray(picture())).permute(2, 0, 1).float() / 255
    assert torch.equal(found.samples[..., ~white], pixels[:, ~white].expand(2, -1, -1))
    assert (found.samples[0] - found.samples[1])[..., white].abs().max() > 0.01


@pytest.mark.parametrize("name", ["controlnet", "controlnet_xl", "controlnet_sd3"])
def test_a_controlnet_equals_its_pipeline(name: str, sure: None):
    pipe = tiny(name)
    base = gk.from_diffusers(pipe, image=picture(), controlnet_conditioning_scale=0.8)
    takes, within = ("control_image", 5e-6) if name == "controlnet_sd3" else ("image", 0.0)
    for scale, n, prompts in CASES if takes == "image" else CASES[:2]:  # SD3 encodes the picture for each sample
        given = {takes: [picture()] * len(prompts) if takes == "image" else picture()}
        agree(pipe, base, scale, n, prompts, within, **given, controlnet_conditioning_scale=0.8)
    options: dict[str, Any] = {"steps": 3, "cond": "a cat"}
    other = gk.sample(gk.from_diffusers(pipe, image=picture(1)), 1, **options)
    assert not torch.allclose(gk.sample(base, 1, **options).x, other.x, atol=1e-3)


@pytest.mark.parametrize("hint", [False, True], ids=["latents", "pictures"])
def test_a_controlnet_of_flux_equals_its_pipeline(hint: bool, sure: None):
    pipe, size = tiny("controlnet_flux"), {"height": 32, "width": 32}
    if hint:
        config = dict(pipe.controlnet.config) | {"conditioning_embedding_channels": 16}
        torch.manual_seed(1)
        pipe.controlnet = diffusers.FluxControlNetModel.from_config(config).eval()
        for parameter in pipe.controlnet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    base = gk.from_diffusers(pipe, image=picture(), controlnet_conditioning_scale=0.8, **size)
    given = {"control_image": picture(), "controlnet_conditioning_scale": 0.8}
    noise = base.noise(2, torch.Generator().manual_seed(3), steps=4)
    ours = gk.sample(base, 2, steps=4, cond="a cat", noise=noise)
    theirs = pipe(
        "a cat", num_images_per_prompt=2, num_inference_steps=4, generator=torch.Generator().manual_seed(3),
        guidance_scale=3.5, output_type="latent", **given, **size,
    ).images  # fmt: skip
    assert theirs.std() > 0.05 and (ours.x - theirs).abs().max() < 5e-6
    other = gk.sample(gk.from_diffusers(pipe, image=picture(1), **size), 2, steps=4, cond="a cat", noise=noise)
    assert not torch.allclose(ours.x, other.x, atol=1e-3)


def test_several_controlnets_equal_their_pipeline():
    parts = tiny("controlnet").components
    nets = [parts["controlnet"], tiny("controlnet", seed=1).controlnet]
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts | {"controlnet": nets}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    images, scales = [picture(), picture(1)], [0.5, 1.5]
    base = gk.from_diffusers(pipe, image=images, controlnet_conditioning_scale=scales)
    agree(pipe, base, 5.0, 1, ["a cat"], image=images, controlnet_conditioning_scale=scales)
    with pytest.raises(ValueError, match="1 for 2 ControlNets"):
        gk.from_diffusers(pipe, image=picture())


def test_attention_is_perturbed_in_the_denoiser_alone_as_in_the_pipeline_of_diffusers():
    pipe = tiny("controlnet", diffusers.DDIMScheduler(clip_sample=False))
    base = gk.from_diffusers(pipe, image=picture())
    noise = base.noise(2, torch.Generator().manual_seed(3), steps=4)
    guides = [gk.CFG(5.0), gk.PAG(3.0, layers="mid_block")]
    ours = gk.sample(base, 2, steps=4, guides=guides, cond="a cat", noise=noise)
    theirs = diffusers.StableDiffusionControlNetPAGPipeline(
        **pipe.components, requires_safety_checker=False, pag_applied_layers="mid"
    )(
        "a cat", image=picture(), num_images_per_prompt=2, num_inference_steps=4, guidance_scale=5.0, pag_scale=3.0,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    assert (ours.x - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("inpaint", {}, r"paints into a picture: give from_diffusers\(pipe, image=\.\.\., mask_image"),
        ("inpaint", {"image": picture()}, "paints into a picture"),
        ("inpaint_sd3", {"image": picture()}, "paints into a picture"),
        ("fill", {}, "FluxFillPipeline paints into a picture"),
        ("controlnet", {}, "the picture that its ControlNet takes"),
        ("controlnet_flux", {}, "the picture that its ControlNet takes"),
        ("controlnet", {"image": picture(), "mask_image": mask()}, "mask_image: .* takes none"),
        ("controlnet", {"image": [picture(), picture()]}, "2 pictures: a base model is given one"),
        ("sd", {"image": picture()}, r"is not given pictures here.*gk\.Keep"),
    ],
)
def test_what_a_pipeline_needs_or_does_not_take_is_said(name: str, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        gk.from_diffusers(tiny(name), **options)


def test_pipelines_that_are_not_supported_say_which_are():
    parts = tiny("controlnet").components
    later = diffusers.StableDiffusionControlNetImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(ValueError, match=r"Img2ImgPipeline is not supported: of ControlNets those of text to image"):
        gk.from_diffusers(later, image=picture())
    pipe = tiny("controlnet_flux")
    pipe.controlnet.register_to_config(num_mode=4)
    with pytest.raises(ValueError, match="a ControlNet with num_mode is not supported"):
        gk.from_diffusers(pipe, image=picture())
    pipe.controlnet = diffusers.FluxMultiControlNetModel([pipe.controlnet])
    with pytest.raises(ValueError, match="several ControlNets of Flux are not supported"):
        gk.from_diffusers(pipe, image=[picture()])
    pipe = tiny("inpaint_xl")
    pipe.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(ValueError, match="aesthetic scores"):
        gk.from_diffusers(pipe, image=picture(), mask_image=mask())
    pipe = tiny("fill")
    pipe.transformer = tiny("controlnet_flux").transformer
    with pytest.raises(ValueError, match="is not given pictures here"):
        gk.from_diffusers(pipe, image=picture(), mask_image=mask())

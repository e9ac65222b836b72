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


def agree(pipe: Any, base: Any, scale: float, n: int, prompts: list[str], within: float = 0.0, **given: Any) -> None:
    """The pipeline's own latents and pictures, with the noise that it draws."""
    noise = base.noise(n, torch.Generator().manual_seed(3), steps=4, groups=len(prompts))
    guides = [gk.CFG(scale)] if scale > 1 else []
    result = gk.sample(base, n, steps=4, guides=guides, cond=prompts, noise=noise)
    for kind, ours in (("latent", result.x), ("pt", result.samples)):
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
    rest = base.family.net.rest
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


@pytest.mark.parametrize("name", ["controlnet", "controlnet_xl"])
def test_a_controlnet_equals_its_pipeline(name: str):
    pipe = tiny(name)
    base = gk.from_diffusers(pipe, image=picture(), controlnet_conditioning_scale=0.8)
    for scale, n, prompts in CASES:
        agree(pipe, base, scale, n, prompts, image=[picture()] * len(prompts), controlnet_conditioning_scale=0.8)
    options: dict[str, Any] = {"steps": 3, "cond": "a cat"}
    other = gk.sample(gk.from_diffusers(pipe, image=picture(1)), 1, **options)
    assert not torch.allclose(gk.sample(base, 1, **options).x, other.x, atol=1e-3)


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
        ("controlnet", {}, "the picture that its ControlNet takes"),
        ("controlnet", {"image": picture(), "mask_image": mask()}, "mask_image: .* takes none"),
        ("controlnet", {"image": [picture(), picture()]}, "2 pictures: a base model is given one"),
        ("sd", {"image": picture()}, r"is not given pictures here.*gk\.Keep"),
    ],
)
def test_what_a_pipeline_needs_or_does_not_take_is_said(name: str, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        gk.from_diffusers(tiny(name), **options)

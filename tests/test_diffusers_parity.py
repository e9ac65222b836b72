"""A pipeline as a base model gives the pipeline's own latents and pictures, bit for bit, from the same generator."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import guidekit as gk
from guidekit.integrations.diffusers import tiny

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CAT, BOTH = ["a cat"], ["a cat", "two dogs"]
LONG = {"max_sequence_length": 20}


def generator():
    return torch.Generator().manual_seed(3)


def scheduler(name: str, **options):
    clip = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler") else {}
    return getattr(diffusers, name)(**SD | clip | options)


def steered(base, n, prompts, scale, steps=5, **options):
    noise = base.noise(n, generator(), steps=steps, groups=len(prompts))
    guides = [gk.CFG(scale)] if scale > 1 else []
    return gk.sample(base, n, steps=steps, guides=guides, cond=list(prompts), noise=noise, **options)


def own(pipe, n, prompts, steps=5, **options):
    def call(kind):
        return pipe(
            list(prompts), num_images_per_prompt=n, num_inference_steps=steps, generator=generator(),
            output_type=kind, **options,
        ).images  # fmt: skip

    return call("latent"), call("pt")


def agree(result, latents, pictures, within=0.0):
    assert pictures.std() > 0.05 and len(result) == len(latents)
    if within:
        assert (result.x - latents).abs().max() <= within and (result.samples - pictures).abs().max() <= within
    else:
        assert torch.equal(result.x, latents) and torch.equal(result.samples, pictures)


SCHEDULERS = {
    "DDIM": ("DDIMScheduler", {"set_alpha_to_one": False}, 0.0),
    "DDIM, eta 1": ("DDIMScheduler", {}, 1.0),
    "DDIM, v": ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 0.0),
    "DDPM": ("DDPMScheduler", {}, 0.0),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, 0.0),
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.0),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, 0.0),
    "DPM++ 2M, Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 0.0),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}, 0.0),
    "SDE-DPM++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 0.0),
    "UniPC": ("UniPCMultistepScheduler", {}, 0.0),
    "LCM": ("LCMScheduler", {}, 0.0),
    "TCD": ("TCDScheduler", {}, 0.3),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, 0.0),
    "Heun": ("HeunDiscreteScheduler", {}, 0.0),
    "DEIS": ("DEISMultistepScheduler", {}, 0.0),
    "LMS": ("LMSDiscreteScheduler", {}, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_stable_diffusion_equals_its_pipeline(name: str):
    """Without guidance, with it for one picture, and for two prompts at once. DDPM that ends at timestep 1 draws noise
    of standard deviation 1e-10 in its last step, which is left out as nothing to weigh by."""
    plan, options, eta = SCHEDULERS[name]
    pipe = tiny("sd", scheduler(plan, **options))
    base = gk.from_diffusers(pipe, eta=eta)
    for scale, n, prompts in ((1.0, 2, CAT), (7.5, 1, CAT), (7.5, 2, BOTH)):
        expected = own(pipe, n, prompts, guidance_scale=scale, eta=eta)
        agree(steered(base, n, prompts, scale), *expected, within=1e-8 if name == "DDPM" else 0.0)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_sdxl_equals_its_pipeline(name: str):
    pipe = tiny("sdxl", scheduler(name))
    base = gk.from_diffusers(pipe)
    for scale, n, prompts in ((1.0, 2, CAT), (5.0, 1, CAT), (5.0, 2, BOTH)):
        agree(steered(base, n, prompts, scale), *own(pipe, n, prompts, guidance_scale=scale))


def test_sdxl_with_latents_scaled_by_channel_equals_its_pipeline():
    """As in Playground 2.5."""
    pipe = tiny("sdxl", scheduler("EulerDiscreteScheduler"))
    plain = own(pipe, 2, CAT, guidance_scale=1.0)
    pipe.vae.register_to_config(latents_mean=[0.5, -0.4, 0.3, 1.2], latents_std=[4.0, 3.0, 5.0, 6.0])
    expected = own(pipe, 2, CAT, guidance_scale=1.0)
    assert not torch.equal(expected[1], plain[1])
    agree(steered(gk.from_diffusers(pipe), 2, CAT, 1.0), *expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_sd3_equals_its_pipeline(dynamic: bool):
    pipe = tiny("sd3", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic))
    base = gk.from_diffusers(pipe)
    for scale, n, prompts in ((1.0, 2, CAT), (5.0, 1, CAT), (5.0, 2, BOTH)):
        agree(steered(base, n, prompts, scale), *own(pipe, n, prompts, guidance_scale=scale))


def test_flux_equals_its_pipeline():
    """Its pipeline calls the network twice for real CFG; so does a batch_size of one row, else it is close."""
    pipe, size = tiny("flux"), {"height": 32, "width": 48}
    base = gk.from_diffusers(pipe, **size, encode=LONG, embedded_guidance=2.0)
    more = {**size, **LONG, "guidance_scale": 2.0}
    for n, prompts in ((1, CAT), (2, BOTH)):
        agree(steered(base, n, prompts, 1.0), *own(pipe, n, prompts, **more))
    expected = own(pipe, 1, CAT, true_cfg_scale=3.0, negative_prompt="", **more)
    agree(steered(base, 1, CAT, 3.0, batch_size=1), *expected)
    agree(steered(base, 1, CAT, 3.0), *expected, within=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plan", [None, "DDIMScheduler"])
def test_pixart_equals_its_pipeline(plan: str | None):
    pipe = tiny("pixart", plan and getattr(diffusers, plan)())
    base = gk.from_diffusers(pipe, encode=LONG)
    for scale, n, prompts in ((1.0, 2, CAT), (4.5, 2, BOTH)):
        agree(
            steered(base, n, prompts, scale),
            *own(pipe, n, prompts, guidance_scale=scale, use_resolution_binning=False, clean_caption=False, **LONG),
        )


def test_chroma_equals_its_pipeline():
    """With CFG in two forward passes, as in its pipeline, and else up to rounding."""
    pipe, size = tiny("chroma"), {"height": 32, "width": 48}
    base = gk.from_diffusers(pipe, **size, encode=LONG)
    for n, prompts in ((1, CAT), (2, BOTH)):
        agree(steered(base, n, prompts, 1.0, 3), *own(pipe, n, prompts, 3, guidance_scale=1.0, **size, **LONG))
    expected = own(pipe, 1, CAT, 3, guidance_scale=3.0, negative_prompt="", **size, **LONG)
    agree(steered(base, 1, CAT, 3.0, 3, batch_size=1), *expected)
    agree(steered(base, 1, CAT, 3.0, 3), *expected, within=1e-4)


def test_sana_equals_its_pipeline():
    """With several pictures of several prompts it gives masks to the wrong prompts."""
    told, small = {**LONG, "complex_human_instruction": None}, {"height": 32, "width": 32}  # its pipeline makes 1024
    pipe = tiny("sana")
    base = gk.from_diffusers(pipe, encode=told)
    for scale, n, prompts in ((1.0, 2, CAT), (4.5, 1, BOTH)):
        expected = own(pipe, n, prompts, 3, guidance_scale=scale, use_resolution_binning=False, **told, **small)
        agree(steered(base, n, prompts, scale, 3), *expected)
    assert base.read(expected[1]).shape == expected[0].shape
    half = tiny("sana").to(torch.bfloat16)  # whose guidance is computed in float32
    noise = gk.from_diffusers(half, encode=told).noise(1, generator(), steps=2)
    ours = gk.sample(gk.from_diffusers(half, encode=told), 1, steps=2, cond=CAT, noise=noise, guides=[gk.CFG(4.5)])
    options = {"guidance_scale": 4.5, "use_resolution_binning": False, **told, **small}
    assert torch.equal(ours.x, own(half, 1, CAT, 2, **options)[0].float())


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_dit_equals_its_pipeline(scale: float):
    pipe = tiny("dit")
    options = {"guidance_scale": scale, "num_inference_steps": 5, "generator": generator(), "output_type": "pt"}
    pictures = pipe([3, 7], **options).images
    assert torch.equal(steered(gk.from_diffusers(pipe), 1, [3, 7], scale).samples, pictures)
    by_name = steered(gk.from_diffusers(pipe), 1, ["b", 7], scale).samples
    assert torch.equal(by_name[1], pictures[1]) and not torch.equal(by_name[0], pictures[0])


@pytest.mark.parametrize("plan", ["DDPMScheduler", "DDIMScheduler"])
def test_an_unconditional_pipeline_is_reproduced(plan: str):
    pipe = tiny("ddpm", getattr(diffusers, plan)())
    pictures = pipe(batch_size=3, num_inference_steps=5, generator=generator(), output_type="pt").images
    base = gk.from_diffusers(pipe)
    result = gk.sample(base, 3, steps=5, noise=base.noise(3, generator(), steps=5))
    assert torch.equal(result.samples, pictures)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_negative_prompts_of_the_model_of_each_prompt_and_of_a_list(name: str):
    """A list of negatives, one in each condition, and one for all are the pipeline's."""
    pipe = tiny(name)
    away = ["ugly", "dark night"]
    expected = own(pipe, 1, BOTH, guidance_scale=5.0, negative_prompt=away)
    agree(steered(gk.from_diffusers(pipe, negative_prompt=away), 1, BOTH, 5.0), *expected)
    apart = [{"prompt": p, "negative_prompt": a} for p, a in zip(BOTH, away, strict=True)]
    agree(steered(gk.from_diffusers(pipe), 1, apart, 5.0), *expected)
    expected = own(pipe, 1, CAT, guidance_scale=5.0, negative_prompt=["ugly"])
    agree(steered(gk.from_diffusers(pipe, negative_prompt="ugly"), 1, CAT, 5.0), *expected)
    plain = steered(gk.from_diffusers(pipe), 1, CAT, 5.0)
    assert not torch.equal(plain.x, expected[0])


def test_embeddings_serve_as_conditions_and_the_encoders_are_then_not_needed():
    pipe = tiny("sd")
    expected = steered(gk.from_diffusers(pipe), 2, CAT, 5.0)
    text, away = pipe.encode_prompt("a cat", "cpu", 1, True)
    pipe.text_encoder = None
    base = gk.from_diffusers(pipe)
    given = {"prompt_embeds": text, "negative_prompt_embeds": away}
    assert torch.equal(steered(base, 2, [given], 5.0).x, expected.x)
    with pytest.raises(ValueError, match=r"text_encoder is not loaded.*prompt_embeds"):
        gk.sample(base, 1, steps=2, cond="a cat")


def test_one_generator_for_each_picture():
    pipe = tiny("sd", scheduler("EulerAncestralDiscreteScheduler"))
    base = gk.from_diffusers(pipe)
    own_seeds = [torch.Generator().manual_seed(s) for s in (5, 6)]
    again = [torch.Generator().manual_seed(s) for s in (5, 6)]
    pictures = pipe(
        "a cat", num_images_per_prompt=2, num_inference_steps=4, generator=again, guidance_scale=1.0, output_type="pt"
    ).images
    result = gk.sample(base, 2, steps=4, cond="a cat", noise=base.noise(2, own_seeds, steps=4))
    assert torch.equal(result.samples, pictures)


def test_a_saved_pipeline_gives_the_same_and_a_denoiser_alone_too(tmp_path):
    pipe = tiny("sd", scheduler("DDIMScheduler"))
    expected = steered(gk.from_diffusers(pipe), 2, CAT, 5.0)
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(steered(gk.from_diffusers(loaded), 2, CAT, 5.0).x, expected.x)
    text, away = pipe.encode_prompt("a cat", "cpu", 1, True)
    alone = gk.from_diffusers((pipe.unet, pipe.scheduler), null=away[0])
    assert torch.equal(steered(alone, 2, [text[0]], 5.0).x, expected.x)


def test_sharing_a_batch_with_another_prompt_changes_nothing_but_roundings():
    base = gk.from_diffusers(tiny("sd", scheduler("DDIMScheduler")), eta=1.0)
    both = gk.sample(base, 2, steps=4, cond=BOTH, guides=[gk.CFG(5.0)])
    alone = gk.sample(base, 2, steps=4, cond=BOTH[1], guides=[gk.CFG(5.0)])
    assert (both.x[2:] - alone.x).abs().max() < 1e-4
    parts = gk.sample(base, 2, steps=4, cond=BOTH, guides=[gk.CFG(5.0)], batch_size=3)
    assert (both.x - parts.x).abs().max() < 1e-4

"""Newer flow transformers as base models: their pipelines' own latents and samples, bit for bit."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from typing import Any

import pytest
import torch

import guidekit as gk
from guidekit.integrations.diffusers import tiny
from guidekit.integrations.diffusers.known import FAMILIES

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

CAT, BOTH = ["a cat"], ["a cat", "two dogs"]
LAYERS: dict[str, Any] = {"text_encoder_out_layers": (1,)}
SIZES = {
    "ltx": {"height": 32, "width": 64, "num_frames": 9}, "hunyuan": {"height": 16, "width": 32, "num_frames": 5},
}  # fmt: skip
PICTURE = {"height": 32, "width": 48}
# how the call of the pipeline is told a scale s of u + s (c - u), with what, and whether it evaluates c and u apart
SCALES: dict[str, tuple[Any, bool]] = {
    "qwen": (lambda s: {"true_cfg_scale": s, "negative_prompt": "ugly"}, True),
    "z_image": (lambda s: {"guidance_scale": s - 1, "negative_prompt": ["ugly"]}, False),
    "flux2": (lambda s: {"guidance_scale": 2.5}, True),
    "klein": (lambda s: {"guidance_scale": s}, True),
    "ltx": (lambda s: {"guidance_scale": s, "negative_prompt": ["ugly"]}, False),
    "hunyuan": (lambda s: {"true_cfg_scale": s, "negative_prompt": "ugly", "guidance_scale": 2.5}, True),
}


def seldom(*often: str) -> list[Any]:
    """All families, of which these are tested by default."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.slow) for name in SCALES]


def generator():
    return torch.Generator().manual_seed(3)


def base_of(name: str, pipe: Any, **options: Any) -> gk.Model:
    given = {"embedded_guidance": 2.5} if name in ("flux2", "hunyuan") else {}
    text = {"max_sequence_length": 20} | (LAYERS if name in ("flux2", "klein") else {})
    return gk.from_diffusers(pipe, **SIZES.get(name, PICTURE), encode=text, **given, **options)


def own(name: str, pipe: Any, n: int, prompts: list[str], scale: float, kind: str) -> torch.Tensor:
    options = SIZES.get(name, PICTURE) | {"max_sequence_length": 20} | (LAYERS if name in ("flux2", "klein") else {})
    many = "num_videos_per_prompt" if name in SIZES else "num_images_per_prompt"
    told = SCALES[name][0](scale)
    told = {k: v for k, v in told.items() if scale > 1 or k != "negative_prompt"}
    found = pipe(
        prompt=list(prompts),
        num_inference_steps=3,
        generator=generator(),
        output_type=kind,
        **{many: n},
        **told,
        **options,
    )
    return found.frames if name in SIZES else found.images


def steered(name: str, base: gk.Model, n: int, prompts: list[Any], scale: float, **options: Any) -> gk.Result:
    noise = base.noise(n, generator(), steps=3, groups=len(prompts))  # type: ignore[attr-defined]
    guides = [gk.CFG(scale)] if scale > 1 else []
    apart: dict[str, Any] = {"batch_size": 1} if scale > 1 and SCALES[name][1] else {}
    return gk.sample(base, n, steps=3, cond=list(prompts), noise=noise, guides=guides, **apart | options)


@pytest.mark.parametrize("name", SCALES)
def test_a_family_equals_its_pipeline(name: str):
    """Of two prompts of different lengths without guidance, and of one with it. The videos of several rows that
    HunyuanVideo decodes are equal but for roundings; klein returns other latents than those that it steps."""
    pipe = tiny(name)
    plain, ugly = base_of(name, pipe), base_of(name, pipe, negative_prompt="ugly" if name != "klein" else None)
    for base, prompts, scale in ((plain, BOTH, 1.0), (ugly, CAT, 3.0)):
        if name == "flux2" and scale > 1:
            continue  # its pipeline has no CFG
        ours, pictures = steered(name, base, 1, prompts, scale), own(name, pipe, 1, prompts, scale, "pt")
        assert pictures.std() > 0.05
        if name == "hunyuan":
            assert (ours.samples - pictures).abs().max() < 1e-5
        else:
            assert torch.equal(ours.samples, pictures)
        assert name == "klein" or torch.equal(ours.x, own(name, pipe, 1, prompts, scale, "latent"))


@pytest.mark.parametrize("name", SCALES)
def test_a_family_reads_what_it_shows(name: str):
    """States of latents are the inverse of the VAE's latents of states, and pictures become states."""
    pipe = tiny(name)
    base = base_of(name, pipe)
    x = torch.randn(2, *base.shape, generator=generator())
    latents = base.family.latents(x, pipe.vae)  # type: ignore[attr-defined]
    assert torch.allclose(base.family.state(latents, pipe.vae), x, atol=1e-5)  # type: ignore[attr-defined]
    assert not torch.allclose(latents.flatten(), x.flatten(), atol=1e-2)
    with torch.no_grad():
        shown = base.decode(x)
    assert base.read(shown).shape == x.shape


@pytest.mark.parametrize("name", seldom("qwen", "z_image"))
def test_evaluations_share_a_forward_pass(name: str):
    """Guidance and perturbed attention, of texts of several lengths, are in one pass what each is in its own."""
    base = base_of(name, tiny(name))
    guides = [gk.CFG(3.0), gk.PAG(2.0)]
    options: dict[str, Any] = {"steps": 2, "cond": BOTH, "noise": base.noise(2, generator(), steps=2, groups=2)}  # type: ignore[attr-defined]
    once, apart = (gk.sample(base, 2, guides=guides, **options, batch_size=b).x for b in (None, 1))
    assert torch.allclose(once, apart, atol=2e-4)
    for fewer in ([], guides[:1], guides[1:]):
        assert (gk.sample(base, 2, guides=fewer, **options).x - once).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["qwen", "z_image", "hunyuan"])
def test_texts_may_come_encoded(name: str):
    pipe = tiny(name)
    base = base_of(name, pipe)
    expected = steered(name, base, 1, CAT, 3.0).x
    ready: dict[str, Any] = {}
    for away, text in (("", "a cat"), ("negative_", "")):
        found = pipe.encode_prompt([text], device="cpu", max_sequence_length=20)
        if name != "hunyuan":
            ready[f"{away}prompt_embeds"] = found[0]
        else:
            names = ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
            ready |= {away + k: v for k, v in zip(names, found, strict=True)}
    pipe.text_encoder = None
    assert torch.equal(steered(name, base, 1, [ready], 3.0).x, expected)


@pytest.mark.parametrize("name", seldom("hunyuan"))
def test_in_half_precision_a_family_equals_its_pipeline(name: str):
    pipe, scale = tiny(name).to(torch.bfloat16), 1.0 if name == "flux2" else 3.0
    base = base_of(name, pipe, negative_prompt=None if name in ("flux2", "klein") else "ugly")
    ours = steered(name, base, 1, CAT, scale)
    assert torch.equal(ours.samples, own(name, pipe, 1, CAT, scale, "pt").float())
    assert name == "klein" or torch.equal(ours.x, own(name, pipe, 1, CAT, scale, "latent").float())


def edits() -> Any:
    return gk.from_diffusers(diffusers.QwenImageEditPipeline(**tiny("qwen").components, processor=None))


def layered() -> Any:
    pipe = tiny("qwen")
    pipe.transformer.register_to_config(use_layer3d_rope=True)
    return gk.from_diffusers(pipe)


def patched() -> Any:
    pipe = tiny("ltx")
    pipe.transformer.register_to_config(patch_size=2)
    return gk.from_diffusers(pipe)


BAD = {
    "a picture with the prompt": (edits, r"QwenImageEditPipeline encodes a picture with each prompt, which is not"),
    "layers": (layered, "Qwen-Image-Layered, which makes several layers, is not supported"),
    "patches": (patched, "a network with patches of several latents is not supported"),
    "a scale that is not taken": (lambda: base_of("qwen", tiny("qwen"), embedded_guidance=3.0), r"use gk.CFG\(3.0\)"),
    "frames": (lambda: gk.from_diffusers(tiny("ltx"), num_frames=6), r"num_frames=6: one more than a multiple of 4"),
    "a picture": (lambda: gk.from_diffusers(tiny("qwen"), image=torch.rand(3, 32, 32)), "is not given pictures here"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case: str):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_sizes_are_the_pipelines():
    found = {name: gk.from_diffusers(tiny(name)).shape for name in SCALES}
    assert found == {
        "qwen": (64 * 64, 16), "z_image": (4, 512, 512), "flux2": (64 * 64, 16), "klein": (64 * 64, 16),
        "ltx": (41 * 32 * 44, 8), "hunyuan": (4, 33, 90, 160),
    }  # fmt: skip
    assert {"QwenImage", "ZImage", "Flux2", "LTX", "HunyuanVideo"} < {kind.__name__ for kind in FAMILIES.values()}

"""Keeping a part of a picture in pipelines whose states are latents."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path
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
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("FutureWarning", "UserWarning", "DeprecationWarning", "guidekit.CollapseWarning")
]

SIZES: dict[str, dict[str, Any]] = {
    "wan": {"height": 32, "width": 32, "num_frames": 9}, "flux": {"height": 32, "width": 32},
}  # fmt: skip
MASK = torch.zeros(32, 32, dtype=torch.bool)
MASK[:, :11], MASK[:7] = True, True


def picture(side: int = 32) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (side, side, 3), dtype=np.uint8)


def free(mask: Tensor, scale: int) -> Tensor:
    """Which cells have a pixel that is not kept, said pixel by pixel."""
    out = torch.zeros(mask.shape[0] // scale, mask.shape[1] // scale, dtype=torch.bool)
    for i, j in (~mask).nonzero().tolist():
        out[i // scale, j // scale] = True
    return out


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "dit"])
def test_outside_the_mask_the_picture_is_kept_bit_for_bit_and_whole_latents_are_kept_in_the_run(name: str):
    model = gk.from_diffusers(tiny(name), **SIZES.get(name, {}))
    given = Image.fromarray(picture())
    guide = gk.Keep(given, MASK, method="replace")
    result = gk.sample(model, 2, steps=3, cond=0 if name == "dit" else "a cat", guides=[guide])
    pixels = torch.as_tensor(np.asarray(given)).permute(2, 0, 1).float() / 255
    assert torch.equal(result.samples[..., MASK], pixels[:, MASK].expand(2, -1, -1))
    plain = model.decode(result.x)
    assert torch.equal(result.samples[..., ~MASK], plain[..., ~MASK])
    assert not torch.equal(result.samples[..., MASK], plain[..., MASK])
    found, read = (model.family.unpack(x) for x in (result.x, model.read([given])))
    held = ~free(MASK, model.family.scale)
    assert 0 < held.sum() < held.numel()
    assert torch.equal(found[..., held], read[..., held].expand(2, -1, -1))
    assert (found[..., ~held] != read[..., ~held]).all()


def test_a_picture_may_be_a_file_an_array_or_a_tensor_and_the_mask_a_picture(tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "mine.png")
    tensor = torch.as_tensor(picture()).permute(2, 0, 1).float() / 255
    model, white = gk.from_diffusers(tiny("sd")), Image.fromarray(MASK.numpy())
    options: dict[str, Any] = {"steps": 2, "cond": "a cat"}
    found = [
        gk.sample(model, 1, guides=[gk.Keep(given, mask, method="replace")], **options).samples
        for given in (tmp_path / "mine.png", picture(), tensor, tensor[None])
        for mask in (MASK, white)
    ]
    assert all(torch.equal(samples, found[0]) for samples in found)
    assert torch.equal(found[0][0][:, MASK], tensor[:, MASK])


def test_a_state_without_a_vae_is_a_picture():
    model = gk.from_diffusers(tiny("ddpm"))
    mask = MASK[:16, :16]
    result = gk.sample(model, 2, steps=3, guides=[gk.Keep(picture(16), mask)])
    pixels = torch.as_tensor(picture(16)).permute(2, 0, 1).float() / 255
    assert torch.equal(result.samples[..., mask], pixels[:, mask].expand(2, -1, -1))


def test_videos_keep_frames_and_pixels():
    """A first latent frame of one frame, then one of each four."""
    model = gk.from_diffusers(tiny("wan"), **SIZES["wan"])
    video = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(9, 3, 32, 32, dtype=torch.bool)
    mask[:6], mask[..., :8] = True, True
    result = gk.sample(model, 1, steps=2, cond="a cat", guides=[gk.Keep([video], mask, method="replace")])
    assert torch.equal(result.samples[0][mask], video[mask])
    read = model.read([video])
    cells = model.family.size[-1] * 8 // 32
    held = torch.zeros(read.shape[2:], dtype=torch.bool)
    held[:2], held[..., :cells] = True, True
    assert torch.equal(result.x[..., held], read[..., held])
    assert (result.x[..., ~held] != read[..., ~held]).all()


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_weights_need_a_stochastic_solver_and_the_error_says_what_to_take(name: str):
    model = gk.from_diffusers(tiny(name))
    guides = [gk.Keep(picture(), MASK)]
    with pytest.raises(ValueError, match=r'deterministic.*solver=gk.solvers.DDPM\(\).*method="replace"'):
        gk.sample(model, 2, steps=3, cond="a cat", guides=guides)
    result = gk.sample(model, 2, steps=3, cond="a cat", guides=guides, solver=gk.solvers.DDPM())
    assert result.log_z.isfinite().all()
    pixels = torch.as_tensor(picture()).permute(2, 0, 1).float() / 255
    assert torch.equal(result.samples[..., MASK], pixels[:, MASK].expand(2, -1, -1))


def test_a_scheduler_that_draws_noise_weighs_by_itself():
    pipe = tiny("sd", diffusers.DDPMScheduler(clip_sample=False))
    result = gk.sample(gk.from_diffusers(pipe), 4, steps=4, cond="a cat", guides=[gk.Keep(picture(), MASK)])
    assert result.log_z.isfinite().all()


def test_each_prompt_has_its_own_picture_and_rewards_see_what_is_pasted():
    model = gk.from_diffusers(tiny("sd"))
    two = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def kept(pictures: Tensor) -> Tensor:
        return pictures[..., MASK].mean((1, 2))

    guides = [gk.CFG(5.0), gk.Keep(two, MASK, method="replace")]
    result = gk.sample(model, 2, steps=2, cond=["a cat", "two dogs"], guides=guides, reward=kept, batch_size=3)
    assert torch.equal(result.samples[..., MASK], two[result.group][..., MASK])
    assert result.rewards is not None and torch.equal(result.rewards, kept(two[result.group]).double())


@pytest.mark.parametrize(
    ("options", "given", "mask", "words"),
    [
        ({}, picture(16), MASK, "a colour image of 16 x 16 pixels; needed is a colour one of 32 x 32"),
        ({}, picture(), MASK[:16], r"where of shape \(16, 32\)"),
        ({"output": lambda x: x}, picture(), MASK, r"decodes to \(4, 16, 16\), into which it cannot be pasted"),
        ({"output": "latent"}, picture(), MASK, "Keep"),
    ],
    ids=["picture", "mask", "other samples", "latents"],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], given: np.ndarray, mask: Tensor, words: str):
    model = gk.from_diffusers(tiny("sd"), **options)
    with pytest.raises(ValueError, match=words):
        gk.sample(model, 1, steps=2, cond="a cat", guides=[gk.Keep(given, mask, method="replace")])

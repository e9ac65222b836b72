"""What a pipeline's owner expects: clear errors, and the pipeline as it was, whatever happens in a run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import contextlib
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.integrations.diffusers import tiny
from rewards.images import ClipScore

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]


def noisy(name: str = "sd"):
    return tiny(name, diffusers.DDIMScheduler(clip_sample=False))


def state(pipe) -> dict:
    """All that a run might leave changed."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in pipe.unet.modules()]
    modes = [m.training for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules()]
    grads = [p.requires_grad for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()]
    plan = {k: v for k, v in vars(pipe.scheduler).items() if not isinstance(v, torch.Tensor)}
    processors = {k: id(v) for k, v in pipe.unet.attn_processors.items()}
    return {"hooks": hooks, "modes": modes, "grads": grads, "plan": plan, "processors": processors}


def raising(pictures):
    raise OSError("no disk")


@pytest.mark.parametrize("guide", [gk.PAG(2.0), gk.SEG(2.0), gk.SLG(2.0), gk.CFG(3.0)])
def test_a_run_leaves_the_pipeline_as_it_was_even_when_the_reward_raises(guide):
    pipe = noisy()
    pipe.unet.train()
    before = state(pipe)
    base = gk.from_diffusers(pipe, eta=1.0)
    gk.sample(base, 2, steps=3, cond="a cat", guides=[guide])
    assert state(pipe) == before
    with pytest.raises(gk.RewardError, match=r"no disk"):
        gk.sample(base, 2, steps=3, cond="a cat", guides=[guide, gk.FKSteering(raising, 1.0)])
    with pytest.raises(gk.RewardError):
        gk.sample(base, 2, steps=3, cond="a cat", guides=[guide, gk.DPS(raising, 1.0)])
    assert state(pipe) == before and type(pipe.scheduler) is diffusers.DDIMScheduler


def test_what_was_offloaded_is_freed_when_a_run_ends_or_fails(monkeypatch):
    pipe, freed = noisy(), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(1))
    base = gk.from_diffusers(pipe, eta=1.0)
    gk.sample(base, 1, steps=2, cond="a cat")
    assert freed == [1]
    with contextlib.suppress(gk.RewardError):
        gk.sample(base, 1, steps=2, cond="a cat", guides=[gk.FKSteering(raising, 1.0)])
    assert freed == [1, 1]


def test_the_progress_bar_is_the_one_that_the_pipeline_was_told_of(capsys):
    pipe = noisy()
    pipe.set_progress_bar_config(disable=True)
    gk.sample(gk.from_diffusers(pipe), 1, steps=2, cond="a cat", progress=True)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="cats")
    gk.sample(gk.from_diffusers(pipe), 1, steps=2, cond="a cat", progress=True)
    assert "cats" in capsys.readouterr().err


def test_a_compiled_denoiser_gives_the_same_and_can_be_perturbed():
    pipe = noisy()
    options = {"steps": 2, "cond": "a cat"}
    plain = gk.sample(gk.from_diffusers(pipe), 1, **options)
    pag = gk.sample(gk.from_diffusers(pipe), 1, guides=[gk.PAG(3.0)], **options)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    base = gk.from_diffusers(pipe)
    assert torch.allclose(gk.sample(base, 1, **options).x, plain.x, atol=1e-5)
    perturbed = gk.sample(base, 1, guides=[gk.PAG(3.0)], **options)
    assert torch.allclose(perturbed.x, pag.x, atol=1e-5) and not torch.allclose(pag.x, plain.x, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_the_pipelines(dtype):
    """To the last bit in half precision; in double precision to that of the clean mean, which is double too."""
    pipe = tiny("sd3")
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.to(dtype)

    def seed():
        return torch.Generator().manual_seed(0)

    base = gk.from_diffusers(pipe)
    result = gk.sample(base, 2, steps=3, cond="a cat", noise=base.noise(2, seed(), steps=3), guides=[gk.CFG(5.0)])
    latents = pipe(
        "a cat",
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=seed(),
        output_type="latent",
    ).images
    assert (
        latents.dtype == dtype and (result.x.double() - latents).abs().max() < 1e-9 * (dtype == torch.float64) + 1e-30
    )


def test_checkpoints_continue_to_the_same_bytes_with_a_scheduler_that_remembers(tmp_path):
    pipe = tiny("sd", diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"))
    base, options = gk.from_diffusers(pipe), {"steps": 6, "cond": "a cat"}
    whole = gk.sample(base, 2, **options)

    def stop(population, step):
        if step.index == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gk.sample(base, 2, **options, checkpoint=tmp_path / "run", callbacks=[stop])
    again = gk.sample(gk.from_diffusers(pipe), 2, **options, checkpoint=tmp_path / "run")
    assert torch.equal(again.x, whole.x)
    other = gk.from_diffusers(tiny("sd", diffusers.DPMSolverMultistepScheduler()))
    with pytest.raises(gk.CheckpointError, match=r"another run"):
        gk.sample(other, 2, **options, checkpoint=tmp_path / "run")


def test_pictures_come_in_the_size_that_was_asked_for_and_decoding_in_parts_changes_nothing():
    pipe = noisy()
    base = gk.from_diffusers(pipe, height=48, width=32, decode_batch=1)
    result = gk.sample(base, 3, steps=2, cond="a cat")
    assert result.samples.shape == (3, 3, 48, 32)
    whole = gk.from_diffusers(pipe, height=48, width=32).decode(result.x)
    assert torch.allclose(result.samples, whole, atol=1e-6)


def test_a_vae_that_overflows_in_half_precision_is_an_error_that_says_what_to_do():
    pipe = noisy()
    base = gk.from_diffusers(pipe)

    class Overflowing(nn.Module):
        config, dtype = SimpleNamespace(scaling_factor=1.0), torch.float16

        def decode(self, x, return_dict=True):
            return (x.half() * 1e5,)

    with pytest.raises(gk.NetworkError, match=r"overflowed in float16.*float32"):
        base.decoder(Overflowing())(torch.randn(1, 4, 16, 16))


def test_sdxl_decodes_in_float32_where_the_vae_asks_for_it_and_gives_it_back_in_half():
    pipe = tiny("sdxl")
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pipe.vae.half()
    expected = pipe.vae.float().decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0]
    pipe.vae.half()
    base = gk.from_diffusers(pipe)
    assert torch.equal(base.decode(x), (expected / 2 + 0.5).clamp(0, 1)) and pipe.vae.dtype == torch.float16


def without(name: str, part: str):
    pipe = tiny(name)
    setattr(pipe, part, None)
    return pipe


BAD = {
    "no pipeline": (lambda: gk.from_diffusers("sd"), TypeError, "a pipeline, or .denoiser, scheduler., and not str"),
    "no denoiser": (lambda: gk.from_diffusers(without("sd", "unet")), ValueError, "unet is not loaded"),
    "no scheduler": (lambda: gk.from_diffusers(without("sd", "scheduler")), ValueError, "scheduler is not loaded"),
    "no vae": (lambda: gk.from_diffusers(without("sd", "vae")), ValueError, "vae is not loaded.*latent"),
    "unknown denoiser": (
        lambda: gk.from_diffusers((nn.Linear(1, 1), diffusers.DDIMScheduler())), ValueError, "Linear is not a denoiser",
    ),
    "unknown levels": (
        lambda: gk.from_diffusers(tiny("sd", diffusers.EDMEulerScheduler())), ValueError, "EDMEuler.*take DDIM",
    ),
    "two stages": (
        lambda: gk.from_diffusers(tiny("sd", diffusers.KDPM2DiscreteScheduler())), ValueError, "KDPM2.*Heun",
    ),
    "learned variance": (
        lambda: gk.from_diffusers(tiny("ddpm", diffusers.DDPMScheduler(variance_type="learned_range"))),
        ValueError, "learned variance.*fixed_small",
    ),
    "eta": (lambda: gk.from_diffusers(tiny("sd3"), eta=1.0), ValueError, "FlowMatchEulerDiscreteScheduler has none"),
    "eta too large": (lambda: gk.from_diffusers(noisy(), eta=2.0), ValueError, "0, 1"),
    "height": (lambda: gk.from_diffusers(noisy(), height=33), ValueError, "multiple of 2"),
    "output": (lambda: gk.from_diffusers(noisy(), output="pil"), ValueError, "'image', 'latent'"),
    "guidance": (lambda: gk.from_diffusers(noisy(), embedded_guidance=3.5), ValueError, r"use gk.CFG\(3.5\)"),
    "a number for a prompt": (
        lambda: gk.sample(gk.from_diffusers(noisy()), 1, cond=3), TypeError, "a prompt is needed",
    ),
    "a prompt of nothing": (
        lambda: gk.sample(gk.from_diffusers(noisy()), 1, cond={"promt": "a cat"}), TypeError, "'promt'.*'prompt'",
    ),
    "two rows for one group": (
        lambda: gk.sample(gk.from_diffusers(noisy()), 1, cond={"prompt_embeds": torch.zeros(2, 77, 32)}),
        ValueError, "one group has one prompt",
    ),
    "negatives": (
        lambda: gk.sample(gk.from_diffusers(noisy(), negative_prompt=["a", "b"]), 1, cond="a cat"),
        ValueError, "2 entries and cond 1",
    ),
    "a label too large": (
        lambda: gk.sample(gk.from_diffusers(tiny("dit")), 1, cond=1001), ValueError, "0 to 999",
    ),
    "a prompt for nothing": (
        lambda: gk.sample(gk.from_diffusers(tiny("ddpm")), 1, cond="a cat"), ValueError, "takes no condition",
    ),
    "a tiny one": (lambda: tiny("sd4"), ValueError, "there is sd, sdxl"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_what_to_do(case: str):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def test_diffusers_is_imported_when_it_is_used():
    code = "import guidekit as gk, sys; gk.from_diffusers; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_steers_towards_red(tmp_path, monkeypatch, capsys):
    example = Path(__file__).parent.parent / "examples" / "stable_diffusion.py"
    monkeypatch.setattr(sys, "argv", [example.name, "--n", "3", "--steps", "4", "--out", str(tmp_path)])
    runpy.run_path(str(example), run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    score = {" ".join(row[:-2]): float(row[-2]) for row in rows}
    assert score["best child"] > score["pipeline"] and len(list(tmp_path.glob("*.png"))) == 12


def test_a_reward_that_needs_a_text_says_so():
    with pytest.raises(TypeError, match="a text is needed"):
        ClipScore(None)  # type: ignore[arg-type]

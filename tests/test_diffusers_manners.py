"""What a pipeline's owner expects: clear errors, and the pipeline as it was, whatever happens in a run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import contextlib
import runpy
import subprocess
import sys
import warnings
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


# what owners do to their pipelines -----------------------------------------------------------------------------------


def own(pipe, scale: float = 5.0, prompt: object = "a cat", **options):
    """The pictures of the pipeline's own call."""
    return pipe(
        prompt, num_images_per_prompt=2, num_inference_steps=4, guidance_scale=scale, output_type="pt",
        generator=torch.Generator().manual_seed(3), **options,
    ).images  # fmt: skip


def ours(pipe, *more, scale: float = 5.0, cond: object = "a cat", **options):
    """The same by gk.sample, with more guides than CFG."""
    base = gk.from_diffusers(pipe, **options)
    noise = base.noise(2, torch.Generator().manual_seed(3), steps=4, groups=len(cond) if isinstance(cond, list) else 1)
    guides = [*([gk.CFG(scale)] if scale > 1 else []), *more]
    return gk.sample(base, 2, steps=4, cond=cond, guides=guides, noise=noise).samples


def brightness(pictures):
    return pictures.flatten(1).mean(1)


MORE = [gk.PAG(3.0), gk.SLG(2.0), gk.DPS(brightness, 100.0)]


def parts(pipe):
    return (pipe.unet, pipe.vae, pipe.text_encoder)


def sequential(pipe):
    """As enable_sequential_cpu_offload does, which itself takes no CPU for an accelerator."""
    for part in parts(pipe):
        pytest.importorskip("accelerate").cpu_offload(part, torch.device("cpu"))


OFFLOADS = {
    "sequential": sequential,
    "model": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group": lambda pipe: pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level"),
}


def placed(pipe) -> list:
    """Where the weights are, and what offloading has put into the modules."""
    weights = [(p.device.type, p.requires_grad) for part in parts(pipe) for p in part.parameters()]
    hooks = [(hasattr(m, "_hf_hook"), "forward" in vars(m)) for part in parts(pipe) for m in part.modules()]
    return weights + hooks


@pytest.mark.parametrize("how", OFFLOADS)
def test_an_offloaded_pipeline_gives_the_same_pictures_and_stays_offloaded(how: str):
    """The reference is the pipeline that was not offloaded; gradients pass through weights that come late."""
    plain, pipe = noisy(), noisy()
    OFFLOADS[how](pipe)
    before = placed(pipe)
    assert before != placed(plain) and (how != "sequential" or {d for d, _ in before[:9]} == {"meta"})
    assert torch.equal(ours(pipe), own(pipe)) and torch.equal(ours(pipe), own(plain))
    for guide in MORE:
        expected = ours(plain, guide)
        assert torch.equal(ours(pipe, guide), expected) and (expected - own(plain)).abs().max() > 1e-3
    assert placed(pipe) == before
    assert torch.equal(own(pipe), own(plain))


def sliced_vae(pipe):
    pipe.vae.enable_slicing()


def tiled_vae(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8


SAVING = {
    "attention slicing": lambda pipe: pipe.enable_attention_slicing(1),
    "VAE slicing": sliced_vae,
    "VAE tiling": tiled_vae,
    "joined projections": lambda pipe: pipe.fuse_qkv_projections(),
    "FreeU": lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6),
}


@pytest.mark.parametrize("how", SAVING)
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_what_saves_memory_or_changes_the_denoiser_is_the_pipelines(name: str, how: str):
    """Perturbed attention is right with it, or refused: sliced attention is no call that could be seen."""
    plain, pipe = noisy(name), noisy(name)
    SAVING[how](pipe)
    before = {k: id(v) for k, v in pipe.unet.attn_processors.items()}
    assert torch.equal(ours(pipe), own(pipe))
    if how == "attention slicing":
        with pytest.raises(gk.NetworkError, match=r"nothing was perturbed in 'mid_block'.*sliced"):
            ours(pipe, gk.PAG(3.0))
    elif how in ("VAE slicing", "joined projections"):
        assert torch.allclose(ours(pipe, gk.PAG(3.0)), ours(plain, gk.PAG(3.0)), atol=1e-5)
    assert (ours(pipe, gk.SLG(3.0)) - own(pipe)).abs().max() > 1e-3
    assert before == {k: id(v) for k, v in pipe.unet.attn_processors.items()}


class LowRank(nn.Module):
    """A linear layer with a low-rank addition, in its place, as LoRA libraries put it there."""

    def __init__(self, base: nn.Linear, generator: torch.Generator):
        super().__init__()
        self.base_layer = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator) / 4)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator) / 4)

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def test_adapters_in_the_denoiser_count_even_where_they_came_after_from_diffusers():
    """A hand-made LoRA. Perturbed attention is that of the network into whose weights it was merged."""
    pipe, merged = noisy(), noisy()
    base = gk.from_diffusers(pipe)
    gk.sample(base, 1, steps=1, cond="a cat", guides=[gk.PAG(1.0)])  # what this has remembered must not count
    without, generator = own(pipe), torch.Generator().manual_seed(0)
    for name, module in list(pipe.unet.named_modules()):
        if name.endswith(("to_q", "to_v")):
            adapter = LowRank(module, generator)
            pipe.unet.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], adapter)
            merged.unet.get_submodule(name).weight.data += (adapter.up @ adapter.down).data
    assert (own(pipe) - without).abs().max() > 1e-2
    noise = base.noise(2, torch.Generator().manual_seed(3), steps=4)
    options = {"steps": 4, "cond": "a cat", "noise": noise}
    assert torch.equal(gk.sample(base, 2, guides=[gk.CFG(5.0)], **options).samples, own(pipe))
    perturbed = gk.sample(base, 2, guides=[gk.CFG(5.0), gk.PAG(3.0)], **options).samples
    assert torch.allclose(perturbed, ours(merged, gk.PAG(3.0)), atol=1e-4)


def test_lora_weights_of_a_file_by_diffusers_and_peft(tmp_path):
    """Loaded, scaled, switched off and fused by the pipeline's own methods; the adapter stays as it was set."""
    peft = pytest.importorskip("peft")
    donor = noisy()
    torch.manual_seed(1)
    donor.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(donor).save_lora_weights(tmp_path, unet_lora_layers=peft.get_peft_model_state_dict(donor.unet))
    pipe = noisy()
    without = own(pipe)
    pipe.load_lora_weights(tmp_path, adapter_name="style")
    whole = own(pipe)
    assert (whole - without).abs().max() > 1e-2 and torch.equal(ours(pipe), whole)
    pipe.set_adapters("style", 0.5)
    half = own(pipe)
    assert (half - whole).abs().max() > 1e-3 and torch.equal(ours(pipe), half)
    perturbed = ours(pipe, gk.PAG(3.0))
    assert (perturbed - half).abs().max() > 1e-3 and torch.equal(own(pipe), half)
    pipe.fuse_lora()
    assert torch.allclose(ours(pipe, gk.PAG(3.0)), perturbed, atol=1e-5)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert torch.equal(ours(pipe), own(pipe)) and torch.allclose(own(pipe), without, atol=1e-5)


def test_the_scale_of_a_lora_comes_by_the_call_to_network_and_text_encoder():
    """As cross_attention_kwargs of the pipeline; the layers are left as they were, and PAG sees the scaled ones."""
    peft, pipe = pytest.importorskip("peft"), noisy()
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), pipe.text_encoder
    )
    whole, half = own(pipe), own(pipe, cross_attention_kwargs={"scale": 0.5})
    assert (half - whole).abs().max() > 1e-3
    given: dict = {"attention_kwargs": {"scale": 0.5}}
    assert torch.equal(ours(pipe, **given), half) and torch.equal(own(pipe), whole)
    assert (ours(pipe, gk.PAG(3.0), **given) - half).abs().max() > 1e-3
    other = gk.from_diffusers(pipe, attention_kwargs={"scale": 0.6}).identity()
    assert other != gk.from_diffusers(pipe, **given).identity() != gk.from_diffusers(pipe).identity()


def test_what_attention_is_told_goes_with_a_controlnet():
    peft = pytest.importorskip("peft")
    pipe = tiny("controlnet", diffusers.DDIMScheduler(clip_sample=False))
    torch.manual_seed(1)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    expected = own(pipe, image=picture(0), cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(ours(pipe, image=picture(0), attention_kwargs={"scale": 0.5}), expected)
    assert (own(pipe, image=picture(0)) - expected).abs().max() > 1e-3


# pictures as conditions ----------------------------------------------------------------------------------------------


def picture(seed: int):
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def adapted(name: str, count: int = 1):
    """A pipeline with IP-Adapters, as load_ip_adapter leaves it."""
    import transformers

    pipe, generator = noisy(name), torch.Generator().manual_seed(5)
    width = pipe.unet.config.cross_attention_dim

    def random(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    def weights():
        crossing = [m for n, m in pipe.unet.named_modules() if n.endswith("attn2")]
        keys = {f"{2 * i + 1}.to_{k}_ip.weight": m.inner_dim for i, m in enumerate(crossing) for k in "kv"}
        norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        proj = {"proj.weight": random(4 * width, 16), "proj.bias": torch.zeros(4 * width)}
        return {"image_proj": norm | proj, "ip_adapter": {k: random(rows, width) for k, rows in keys.items()}}

    pipe.unet._load_ip_adapter_weights([weights() for _ in range(count)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32,
            patch_size=8, projection_dim=16,
        )  # fmt: skip
        pipe.register_modules(image_encoder=transformers.CLIPVisionModelWithProjection(config).eval())
    return pipe


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_pictures_reach_an_ip_adapter_as_in_the_pipeline(name: str):
    """From pictures and from embeddings, for one prompt and for two, with CFG and without."""
    pipe, both = adapted(name), ["a cat", "two dogs"]
    cond = {"prompt": "a cat", "ip_adapter_image": picture(0)}
    for scale in (1.0, 5.0):
        expected = own(pipe, scale, ip_adapter_image=picture(0))
        assert torch.equal(ours(pipe, scale=scale, cond=cond), expected)
        assert (own(pipe, scale, ip_adapter_image=picture(1)) - expected).abs().max() > 1e-3
    embeds = pipe.prepare_ip_adapter_image_embeds(picture(0), None, "cpu", 1, True)
    assert torch.equal(ours(pipe, cond={"prompt": "a cat", "ip_adapter_image_embeds": embeds}), expected)
    shared = ours(pipe, cond=both, encode={"ip_adapter_image": picture(0)})
    assert torch.equal(shared, own(pipe, prompt=both, ip_adapter_image=picture(0)))
    other = {"prompt": "a cat", "ip_adapter_image": picture(1)}
    first, second = ours(pipe, cond=[cond, other]), ours(pipe, cond=[other, cond])
    assert torch.allclose(first[:2], expected, atol=1e-5)
    assert torch.allclose(second[:2], own(pipe, ip_adapter_image=picture(1)), atol=1e-5)
    assert (first[2:] - second[2:]).abs().max() > 1e-3  # the same noise


def test_each_of_several_ip_adapters_has_its_own_pictures():
    pipe, pictures = adapted("sd", 2), [picture(0), picture(1)]
    pipe.set_ip_adapter_scale([0.4, 0.9])
    for order in (pictures, pictures[::-1]):
        expected = own(pipe, ip_adapter_image=order)
        assert torch.equal(ours(pipe, cond={"prompt": "a cat", "ip_adapter_image": order}), expected)


def test_masks_say_where_the_pictures_of_ip_adapters_act():
    pipe, pictures = adapted("sd", 2), [picture(0), picture(1)]
    left = torch.zeros(1, 1, 32, 32)
    left[..., :16] = 1
    cond, free = {"prompt": "a cat", "ip_adapter_image": pictures}, own(pipe, ip_adapter_image=pictures)
    for masks in ([left, 1 - left], [1 - left, left]):
        told = {"ip_adapter_masks": masks}
        expected = own(pipe, ip_adapter_image=pictures, cross_attention_kwargs=told)
        assert torch.equal(ours(pipe, cond=cond, attention_kwargs=told), expected)
        assert (expected - free).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_perturbed_attention_goes_with_an_ip_adapter_as_in_the_pag_pipeline_of_diffusers(name: str):
    pipe = adapted(name)
    kind, options = {
        "sd": ("StableDiffusionPAGPipeline", {"requires_safety_checker": False}),
        "sdxl": ("StableDiffusionXLPAGPipeline", {"add_watermarker": False}),
    }[name]
    theirs = getattr(diffusers, kind)(**pipe.components, pag_applied_layers="mid", **options)
    theirs.set_progress_bar_config(disable=True)
    expected = own(theirs, pag_scale=3.0, ip_adapter_image=picture(0))
    cond = {"prompt": "a cat", "ip_adapter_image": picture(0)}
    before = {k: id(v) for k, v in pipe.unet.attn_processors.items()}
    assert torch.allclose(ours(pipe, gk.PAG(3.0, layers="mid_block"), cond=cond), expected, atol=1e-5)
    assert not torch.allclose(ours(pipe, cond=cond), expected, atol=1e-3)
    assert before == {k: id(v) for k, v in pipe.unet.attn_processors.items()}


CAT = {"prompt": "a cat", "ip_adapter_image": picture(0)}
UNSEEN = {
    "masks": (
        lambda: ours(noisy(), attention_kwargs={"ip_adapter_masks": [picture(0)]}),
        "has no IP-Adapter; load one",
    ),
    "no attention to tell": (
        lambda: gk.from_diffusers(tiny("ddpm"), attention_kwargs={"scale": 1.0}),
        "attention_kwargs: UNet2DModel takes none",
    ),
    "an adapter without a picture": (lambda: ours(adapted("sd")), "needs a picture.*'ip_adapter_image'.*unload"),
    "a picture without an adapter": (lambda: ours(noisy(), cond=CAT), "has no IP-Adapter; load one"),
    "a picture for SD3": (
        lambda: gk.sample(gk.from_diffusers(tiny("sd3")), 1, cond=CAT),
        "SD3Transformer2DModel takes",
    ),
    "both": (lambda: ours(adapted("sd"), cond=CAT | {"ip_adapter_image_embeds": [torch.ones(2, 1, 16)]}), "not both"),
    "a tensor for a list": (
        lambda: ours(adapted("sd"), cond={"prompt": "a cat", "ip_adapter_image_embeds": torch.ones(2, 1, 16)}),
        r"a list with one tensor for each",
    ),
    "no negative": (
        lambda: ours(adapted("sd"), cond={"prompt": "a cat", "ip_adapter_image_embeds": [torch.ones(1, 1, 16)]}),
        r"\(2, pictures, ...\), that of no picture first",
    ),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_a_picture_is_never_silently_ignored(case: str):
    call, message = UNSEEN[case]
    with pytest.raises(ValueError, match=message):
        call()


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


def test_a_decoder_that_runs_out_of_memory_takes_fewer_pictures_at_a_time_and_keeps_to_that(monkeypatch):
    base = gk.from_diffusers(tiny("sd"))
    vae, sizes, room = base.pipe.vae, [], 3
    whole, decode = base.decode(x := torch.randn(7, 4, 16, 16, generator=torch.Generator().manual_seed(0))), vae.decode

    def small(z, **options):
        sizes.append(len(z))
        if len(z) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(z, **options)

    monkeypatch.setattr(vae, "decode", small)
    assert torch.allclose(base.decode(x), whole, atol=1e-5)
    assert sizes == [7, 4, 2, 2, 2, 1]
    sizes.clear()
    base.decode(x)
    assert sizes == [2, 2, 2, 1]
    room = 0
    with pytest.raises(gk.NetworkError, match="enable_tiling"):
        base.decode(x)


def test_a_release_of_diffusers_that_was_not_tested_warns():
    from guidekit.integrations.diffusers.build import warn_of

    with pytest.warns(UserWarning, match=r"diffusers 0.99.1 is installed.*0.41, 0.42 only"):
        warn_of("0.99.1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of("0.42.7")
        warn_of("0.41.0")

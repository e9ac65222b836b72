"""Videos: Wan 2.1 and 2.2 as base models, equal to their pipelines bit for bit."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import guidekit as gk
from guidekit.integrations.diffusers import guider, step_hook, tiny
from rewards.images import Brightness, Frames, TotalVariation

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

SIZE, LONG = {"height": 32, "width": 48, "num_frames": 5}, {"max_sequence_length": 20}
CAT, BOTH = ["a cat"], ["a cat", "two dogs"]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "UniPC": ("UniPCMultistepScheduler", FLOW),
    "Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", FLOW),
}


def generator():
    return torch.Generator().manual_seed(3)


def base_of(pipe, **options):
    return gk.from_diffusers(pipe, **SIZE, encode=LONG, **options)


def experts():
    """Wan 2.2: another network below a timestep; of 999, 923, 818, 667 and 429 it is called at the last two."""
    pipe = tiny("wan")
    pipe.register_modules(transformer_2=tiny("wan", seed=1).transformer)
    pipe.register_to_config(boundary_ratio=0.818)
    return pipe


def own(pipe, n, prompts, scale, steps=5, **options):
    options = {"guidance_scale": scale, "num_inference_steps": steps, **SIZE, **LONG, **options}

    def call(kind):
        return pipe(prompts, num_videos_per_prompt=n, generator=generator(), output_type=kind, **options).frames

    return call("latent"), call("pt")


def equal(base, n, prompts, scale, expected, **options):
    """The pipeline calls its network once for the prompts and once for the negative ones: so does a batch size of 1 for
    one video, and where there are more, roundings differ."""
    noise = base.noise(n, generator(), steps=5, groups=len(prompts))
    guides = [gk.CFG(scale)] if scale > 1 else []
    rows = n * len(prompts)
    options = {"steps": 5, "cond": prompts, "noise": noise, "batch_size": 1 if rows == 1 else None} | options
    result = gk.sample(base, n, guides=guides, **options)
    latents, videos = expected
    assert videos.shape == (rows, 5, 3, 32, 48) and videos.std() > 0.05
    if rows == 1 or scale == 1:
        return torch.equal(result.x, latents) and torch.equal(result.samples, videos)
    return (result.x - latents).abs().max() < 1e-5 and (result.samples - videos).abs().max() < 1e-5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_wan_equals_its_pipeline(name: str):
    plan, options = SCHEDULERS[name]
    pipe = tiny("wan", getattr(diffusers, plan)(**options))
    base = base_of(pipe)
    assert base.shape == (16, 2, 4, 6)
    for scale, n, prompts in ((1.0, 2, CAT), (5.0, 1, CAT), (5.0, 2, BOTH)):
        assert equal(base, n, prompts, scale, own(pipe, n, prompts, scale))


def test_prompts_are_as_long_as_in_the_pipeline():
    pipe = tiny("wan")
    expected = own(pipe, 1, CAT, 1.0, max_sequence_length=512)  # its default
    assert equal(gk.from_diffusers(pipe, **SIZE), 1, CAT, 1.0, expected)
    assert not torch.equal(own(pipe, 1, CAT, 1.0)[0], expected[0])


def test_in_one_forward_it_is_the_same_but_for_roundings():
    pipe = tiny("wan")
    base, expected = base_of(pipe), own(pipe, 1, CAT, 5.0)[0]
    noise = base.noise(1, generator(), steps=5)
    result = gk.sample(base, 1, steps=5, cond=CAT, noise=noise, guides=[gk.CFG(5.0)])
    assert result.cost.network_calls == 5 and (result.x - expected).abs().max() < 1e-5


def test_wan_2_2_calls_the_expert_of_the_timestep():
    """Both experts matter, and the change is where the pipeline has it."""
    pipe = experts()
    expected = own(pipe, 1, CAT, 5.0)
    assert equal(base_of(pipe), 1, CAT, 5.0, expected)
    for one in (tiny("wan"), tiny("wan", seed=1)):
        assert not torch.equal(own(one, 1, CAT, 5.0)[0], expected[0])
    pipe.register_to_config(boundary_ratio=0.9)  # 818 is below it too
    assert not equal(base_of(pipe), 1, CAT, 5.0, expected)
    assert equal(base_of(pipe), 1, CAT, 5.0, own(pipe, 1, CAT, 5.0))


def test_a_guidance_scale_for_each_expert_is_a_function_of_time():
    pipe = experts()
    expected, base = own(pipe, 1, CAT, 4.0, guidance_scale_2=2.0), base_of(pipe)
    noise = base.noise(1, generator(), steps=5)
    guide = gk.CFG(lambda t: 4.0 if t >= 0.818 else 2.0)
    result = gk.sample(base, 1, steps=5, cond="a cat", noise=noise, guides=[guide], batch_size=1)
    assert torch.equal(result.x, expected[0])


def test_wan_2_2_with_a_timestep_for_each_token():
    pipe = tiny("wan")
    pipe.register_to_config(expand_timesteps=True)
    shapes = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, options: shapes.append(options["timestep"].shape), with_kwargs=True
    )
    expected = own(pipe, 1, CAT, 5.0)
    asked = set(shapes)
    shapes.clear()
    assert equal(base_of(pipe), 1, CAT, 5.0, expected)
    assert asked == set(shapes) == {(1, 2 * 2 * 3)}


def test_states_stay_in_float32_where_the_networks_are_in_half_precision():
    pipe = tiny("wan").to(torch.bfloat16)
    expected = own(pipe, 1, CAT, 5.0)
    assert expected[0].dtype == torch.float32 and equal(base_of(pipe), 1, CAT, 5.0, [v.float() for v in expected])


def test_the_precision_of_the_network_is_that_of_most_of_it(tmp_path):
    """diffusers keeps time embedding and norms of Wan in float32."""
    tiny("wan").save_pretrained(tmp_path)
    pipe = diffusers.WanPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert {p.dtype for p in pipe.transformer.parameters()} == {torch.float32, torch.bfloat16}
    assert equal(base_of(pipe), 1, CAT, 5.0, [v.float() for v in own(pipe, 1, CAT, 5.0)])


def test_negative_prompts_and_embeddings():
    pipe = tiny("wan")
    expected = own(pipe, 1, BOTH, 5.0, negative_prompt=["ugly", "dark night"])
    assert equal(base_of(pipe, negative_prompt=["ugly", "dark night"]), 1, BOTH, 5.0, expected)
    assert not equal(base_of(pipe), 1, BOTH, 5.0, expected)
    apart = [{"prompt": p, "negative_prompt": a} for p, a in zip(BOTH, ["ugly", "dark night"], strict=True)]
    assert equal(base_of(pipe), 1, apart, 5.0, expected)
    with torch.no_grad():
        text, away = pipe.encode_prompt(CAT, ["ugly"], **LONG)
    another, pipe.text_encoder = tiny("wan"), None
    ready = [{"prompt_embeds": text, "negative_prompt_embeds": away}]
    assert equal(base_of(pipe), 1, ready, 5.0, own(another, 1, CAT, 5.0, negative_prompt=["ugly"]))
    alone = gk.from_diffusers((pipe.transformer, pipe.scheduler), null=away[0], **SIZE)
    noise = alone.noise(1, generator(), steps=5)
    result = gk.sample(alone, 1, steps=5, guides=[gk.CFG(5.0)], cond=[text[0]], noise=noise, batch_size=1)
    assert torch.equal(result.x, base_run(base_of(pipe), ready))


def base_run(base, cond):
    noise = base.noise(1, generator(), steps=5)
    return gk.sample(base, 1, steps=5, guides=[gk.CFG(5.0)], cond=cond, noise=noise, batch_size=1).x


class Values:
    """Self-attention in which each token sees itself alone, written for diffusers' protocol of processors."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        return attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))


@pytest.mark.parametrize("stages", [False, True])
def test_perturbed_attention_is_that_of_a_processor_that_returns_the_values(stages: bool):
    """One Euler step from t = 1 is x - v, guided v + 2 (v - v_perturbed); the layer has one name in all experts."""
    pipe = experts() if stages else tiny("wan")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    base = base_of(pipe)
    noise = base.noise(2, generator(), steps=1)
    options = {"steps": 1, "cond": "a cat", "noise": noise}
    plain = gk.sample(base, 2, **options).x
    guided = gk.sample(base, 2, guides=[gk.PAG(2.0, layers="blocks.1")], **options).x
    attention = pipe.transformer.blocks[1].attn1
    before, attention.processor = attention.processor, Values()
    perturbed = gk.sample(base, 2, **options).x
    attention.processor = before
    assert (perturbed - plain).abs().max() > 1e-3
    assert torch.allclose(guided, plain + 2 * (plain - perturbed), atol=1e-5)


def test_the_default_layer_is_perturbed_in_the_expert_that_runs():
    base = base_of(experts())
    options = {"steps": 4, "cond": "a cat", "noise": base.noise(1, generator(), steps=4)}
    by_name = gk.sample(base, 1, guides=[gk.PAG(2.0, layers="blocks.1.attn1")], **options).x
    assert torch.equal(gk.sample(base, 1, guides=[gk.PAG(2.0)], **options).x, by_name)
    assert not torch.equal(gk.sample(base, 1, **options).x, by_name)


def red(images):
    r, g, b = images.mean((2, 3)).unbind(1)
    return r - (g + b) / 2


def test_videos_are_steered_by_a_reward_of_their_frames():
    """Selection, weights, and gradients through the VAE and the network; on a flow by the solver with its marginals."""
    base, reward = base_of(tiny("wan")), Frames(red)
    options = {"steps": 6, "cond": "a cat", "solver": gk.solvers.DDPM()}
    plain = gk.sample(base, 8, reward=reward, **options)
    for guide in (gk.SVDD(reward, candidates=4), gk.FKSteering(reward, 1e-4, ess=1.0), gk.DPS(reward, 1e6)):
        result = gk.sample(base, 8, guides=[guide], reward=reward, **options)
        assert result.x.isfinite().all()
        error = float(plain.rewards.std()) / 8**0.5
        assert result.rewards.mean() > plain.rewards.mean() + 2 * error, type(guide).__name__
    with pytest.raises(ValueError, match=r"UniPCMultistepScheduler is deterministic.*gk.solvers.DDPM"):
        gk.sample(base, 2, cond="a cat", guides=[gk.FKSteering(reward, 1.0)])


def test_a_hook_inside_the_pipelines_call():
    """Without guides nothing changes; with them the kept video is the best by the reward of what was decoded."""
    pipe, reward = tiny("wan"), Frames(red)
    call = {"num_videos_per_prompt": 4, "num_inference_steps": 5, "output_type": "pt", **SIZE, **LONG}
    plain = pipe("a cat", generator=generator(), **call).frames
    with step_hook(pipe, reward=reward, **SIZE) as hook:
        assert torch.equal(pipe("a cat", generator=generator(), **call).frames, plain)
    assert hook.result is not None and torch.allclose(hook.result.rewards.float(), reward(plain), atol=1e-6)


def test_guides_as_the_guider_of_its_modular_pipeline():
    """CFG to the last bit; with PAG what gk.sample makes of the same noise."""
    guiders = pytest.importorskip("diffusers.guiders")
    classic = tiny("wan")
    pipe = diffusers.WanBlocks().init_pipeline()
    parts = {k: v for k, v in classic.components.items() if v is not None and k in pipe._component_specs}
    pipe.update_components(**parts)

    def latents(guide):
        pipe.update_components(guider=guide)
        call = {"num_videos_per_prompt": 2, "num_inference_steps": 5, "output": "latents", **SIZE}
        return pipe(prompt="a cat", negative_prompt="", generator=generator(), **call)

    assert torch.equal(latents(guider([gk.CFG(5.0)])), latents(guiders.ClassifierFreeGuidance(5.0)))
    guides, base = [gk.CFG(5.0), gk.PAG(3.0, layers="blocks.1")], gk.from_diffusers(classic, **SIZE)
    noise = base.noise(2, generator(), steps=5)
    expected = gk.sample(base, 2, steps=5, cond="a cat", guides=guides, noise=noise).x
    assert (latents(guider(guides)) - expected).abs().max() < 1e-5
    assert (latents(guider([gk.CFG(5.0)])) - expected).abs().max() > 1e-3


def test_an_offloaded_pipeline_decodes_and_is_freed(monkeypatch):
    pipe, freed = tiny("wan"), []
    base = base_of(pipe)
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda self: freed.append(1))
    assert gk.sample(base, 2, steps=2, cond="a cat").samples.shape == (2, 5, 3, 32, 48) and freed


def test_pictures_of_a_report_are_frames_side_by_side(tmp_path):
    from guidekit.report import write_result
    from guidekit.report.images import pixels

    x = torch.rand(2, 5, 3, 8, 6)
    strip = pixels(x)
    assert strip is not None and strip.shape == (2, 3, 8, 18)
    assert torch.equal(strip[..., 6:12], (x[:, 2] * 255).round().byte())
    assert torch.equal(strip[..., 12:], (x[:, 4] * 255).round().byte())
    result = gk.sample(base_of(tiny("wan")), 2, steps=2, cond="a cat", reward=Frames(red))
    page = write_result(result, tmp_path / "report.html")
    assert page.read_text().count("data:image/png") >= 2


def unloaded():
    pipe = experts()
    pipe.transformer_2 = None
    return base_of(pipe)


def painted():
    """A network that sees a first frame too, as those of pictures to videos do."""
    pipe = tiny("wan")
    net = type(pipe.transformer).from_config({**pipe.transformer.config, "in_channels": 36})
    pipe.register_modules(transformer=net)
    return base_of(pipe)


BAD = {
    "frames": (lambda: gk.from_diffusers(tiny("wan"), num_frames=6), r"num_frames=6: one more than a multiple of 4"),
    "no frames": (lambda: gk.from_diffusers(tiny("wan"), num_frames=0), r"num_frames=0"),
    "size": (lambda: gk.from_diffusers(tiny("wan"), height=40, width=32), r"\(21, 5, 4\) in latents: multiples of"),
    "frames of a picture": (lambda: gk.from_diffusers(tiny("sd"), num_frames=5), r"num_frames=5: .* makes pictures"),
    "an expert": (unloaded, r"boundary_ratio takes transformer and transformer_2; load both"),
    "channels": (painted, r"takes 36 channels and the VAE has 16"),
    "no prompt": (lambda: gk.sample(base_of(tiny("wan")), 1, cond=3), r"cond=3: a prompt is needed"),
    "pictures for videos": (lambda: Frames(red)(torch.rand(2, 3, 8, 8)), r"videos are a tensor \(rows, frames"),
    "every": (lambda: Frames(red, every=0), r"Frames\(every=0\)"),
    "pool": (lambda: Frames(red, pool="max"), r"Frames\(pool='max'\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case: str):
    call, message = BAD[case]
    with pytest.raises((ValueError, TypeError, gk.RewardError), match=message):
        call()


def test_defaults_are_the_pipelines():
    """480 x 832 pixels, 81 frames."""
    assert gk.from_diffusers(tiny("wan")).shape == (16, 21, 60, 104)


def test_frames_of_a_video():
    video = torch.rand(3, 4, 3, 8, 8)
    video[1, 2] = float("nan")
    each = torch.stack([red(video[:, i]) for i in range(4)], 1)
    assert torch.allclose(Frames(red)(video), each.mean(1), equal_nan=True)
    assert torch.allclose(Frames(red, pool="min")(video), each.amin(1), equal_nan=True)
    assert torch.allclose(Frames(red, every=3)(video), each[:, [0, 3]].mean(1))
    assert not Frames(TotalVariation()).higher_is_better and Frames(Brightness()).higher_is_better

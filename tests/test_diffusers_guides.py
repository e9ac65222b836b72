"""Guides on diffusers pipelines: laws on denoisers whose answer is known, perturbed attention, and the hook."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import guidekit as gk
from guidekit.integrations.diffusers import Preview, step_hook, tiny
from guidekit.integrations.diffusers.families import Plain

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MEAN, STD, ALPHA = 0.7, 0.5, 0.6


class UNet2DModel(nn.Module):
    """The exact network for data N(MEAN, STD^2), of the kind that the scheduler asks for."""

    def __init__(self, scheduler):
        super().__init__()
        self.config = SimpleNamespace(
            get=lambda name, default=None: {"sample_size": 1}.get(name, default), in_channels=1
        )
        self.one, self.scheduler = nn.Parameter(torch.ones(())), scheduler
        self.flow = not hasattr(scheduler, "alphas_cumprod")

    def forward(self, x, t, return_dict=True):
        t = t.view(-1, 1, 1, 1).double()
        if self.flow:
            alpha, sigma = 1 - t / 1000, t / 1000
        else:
            at = self.scheduler.alphas_cumprod.double()
            low = t.long().clamp(max=len(at) - 2)
            log = (at[low].log() + (t - low) * (at[low + 1].log() - at[low].log())).exp()
            alpha, sigma = log.sqrt(), (1 - log).sqrt()
        x = x.double()
        clean = MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        noise = (x - alpha * clean) / sigma
        return ((noise - clean if self.flow else noise).to(self.one.dtype),)


def exact(name: str, **options):
    scheduler = getattr(diffusers, name)(**({} if name.startswith("Flow") else SD) | options)
    return (UNet2DModel(scheduler), scheduler)


def reward(x):
    return x.flatten(1).sum(1)


WEIGHED = {
    "DDPM": (("DDPMScheduler", {"clip_sample": False}), 0.0),
    "DDIM": (("DDIMScheduler", {"clip_sample": False}), 1.0),
    "Euler ancestral": (("EulerAncestralDiscreteScheduler", {}), 0.0),
    "SDE-DPM++ 1": (("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}), 0.0),
    "SDE-DPM++ 2M": (("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}), 0.0),
    "LCM": (("LCMScheduler", {"clip_sample": False}), 0.0),
    "flow": (("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": True}), 0.0),
}


def base_of(name: str) -> gk.Model:
    (kind, options), eta = WEIGHED[name]
    return gk.from_diffusers(exact(kind, **options), eta=eta)


@pytest.mark.parametrize("name", WEIGHED)
@pytest.mark.parametrize("guide", [gk.FKSteering, gk.TDS, gk.SVDD])
def test_weights_on_a_scheduler_follow_the_tilted_law(name: str, guide):
    """Against weighing of 40,000 unguided samples of the same chain; the bounds are four standard errors of 3,000
    particles (log Z of a Gaussian reward of variance v has about sqrt((exp(v/alpha^2) - 1)/n))."""
    base, steps = base_of(name), 40 if guide is gk.TDS else 6  # its proposals need small steps
    plain = gk.sample(base, 40_000, steps=steps).x.flatten().double()
    weights = (plain / ALPHA).softmax(0)
    mean, log_z = weights @ plain, (plain / ALPHA).exp().mean().log()
    options = {"candidates": 3} if guide is gk.SVDD else {"ess": 1.0}
    result = gk.sample(base, 3000, steps=steps, guides=[guide(reward, ALPHA, **options)])
    spread = math.sqrt((math.exp(float(plain.var()) / ALPHA**2) - 1) / 3000)
    assert float(mean - plain.mean()) > 0.08 > 4 * spread
    assert abs(result.weights @ result.x.flatten().double() - mean) < 4 * spread
    assert abs(float(result.log_z) - log_z) < 4 * spread


@pytest.mark.parametrize("name", WEIGHED)
def test_the_rows_of_the_table_say_what_the_scheduler_does(name: str):
    """a x + sum b d + c z, with the numbers found, is the step of the scheduler; so is the log-probability's mean."""
    base = base_of(name)
    process = base.process
    z = torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    x, history = 0.9 * z.flip(0), ()
    for move in process.moves(6, None):
        d = base(x, move.t, None)
        kernel = process.kernel(x, (d, *history), move)
        table = move.a * x + sum(b * v for b, v in zip(move.b, (d, *history), strict=True))
        x_s = kernel.push(z.clone())
        assert (x_s - table - move.c * z).abs().max() < 2e-4 * (1 + x.abs().max())
        if kernel.random:
            law = torch.distributions.Normal(kernel.mean, move.c)
            assert torch.allclose(kernel.log_prob(x_s), law.log_prob(x_s).flatten().double(), atol=1e-3)
        x, history = x_s, kernel.history


def test_a_deterministic_scheduler_is_refused_for_weights_and_the_error_names_those_that_serve():
    base = gk.from_diffusers(exact("DPMSolverMultistepScheduler"))
    with pytest.raises(ValueError, match=r"DPMSolverMultistepScheduler is deterministic.*gk.solvers.DDPM.*eta=1"):
        gk.sample(base, 4, guides=[gk.FKSteering(reward, 1.0)])
    with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler is deterministic.*stochastic_sampling"):
        gk.sample(gk.from_diffusers(exact("FlowMatchEulerDiscreteScheduler")), 4, guides=[gk.SVDD(reward)])


@pytest.mark.parametrize("solver", [gk.solvers.DDPM(), gk.solvers.SDEDPMpp(2)])
@pytest.mark.parametrize(
    "kind", ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_any_scheduler_can_be_weighed_on_by_a_stochastic_solver_of_the_same_marginals(kind: str, solver):
    """The data are N(0.7, 0.25), so the tilted law is N(0.7 + 0.25/alpha, 0.25): 100 steps come within 0.1."""
    base = gk.from_diffusers(exact(kind))
    plain = gk.sample(base, 4000, steps=100, solver=solver)
    assert abs(plain.x.mean() - MEAN) < 0.05 and abs(plain.x.std() - STD) < 0.08
    result = gk.sample(base, 4000, steps=100, solver=solver, guides=[gk.FKSteering(reward, ALPHA)])
    assert abs(result.weights @ result.x.flatten().double() - (MEAN + STD**2 / ALPHA)) < 0.1
    assert torch.equal(plain.x, gk.sample(base, 4000, steps=100, solver=solver).x)
    assert plain.trace["t"][0] == gk.sample(base, 1, steps=100).trace["t"][0]  # the scheduler's own grid


@pytest.mark.parametrize("name", ["SDE-DPM++ 2M", "Euler ancestral"])
def test_an_infinite_temperature_is_the_pipeline_itself(name: str):
    base = base_of(name)
    noise = base.noise(16, torch.Generator().manual_seed(0), steps=6)
    plain = gk.sample(base, 16, steps=6, noise=noise)
    for guide in (gk.FKSteering(reward, math.inf, ess=1.0), gk.CFG(1.0) if base.null else gk.Resample(0.0)):
        assert torch.equal(gk.sample(base, 16, steps=6, noise=noise, guides=[guide]).x, plain.x)


def test_what_a_multistep_scheduler_remembers_follows_its_particle():
    """After a selection that reverses the particles, the run goes on as theirs."""
    base = base_of("SDE-DPM++ 2M")
    run = gk.Run(base, 6, steps=6)
    with torch.no_grad():
        pop = run.start()
        for index in range(3):
            pop = run.advance(pop, index)
        turned = pop.select(torch.arange(5, -1, -1)[None], pop.log_w[None])
        noise = run.noise(pop, 4)
        run.noise = lambda pop, index: noise.clone()
        straight = run.move(run.branch(pop, 3), 3).x
        run.noise = lambda pop, index: noise.flip(0).clone()
        assert torch.equal(run.move(run.branch(turned, 3), 3).x, straight.flip(0))


def test_pag_equals_the_processors_of_diffusers():
    """Its PAG pipeline, with CFG 5 and PAG 3 on the middle block, within float32 of three batched forwards."""
    pipe = tiny("sd", diffusers.DDIMScheduler(**SD, clip_sample=False))
    theirs = diffusers.StableDiffusionPAGPipeline(
        **pipe.components, pag_applied_layers="mid", requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)

    def seed():
        return torch.Generator().manual_seed(0)

    options = {"num_inference_steps": 4, "generator": seed(), "output_type": "latent"}
    expected = theirs("a cat", guidance_scale=5.0, pag_scale=3.0, **options).images
    base = gk.from_diffusers(pipe)
    noise, cond = base.noise(1, seed(), steps=4), {"steps": 4, "cond": "a cat"}
    result = gk.sample(base, 1, noise=noise, guides=[gk.CFG(5.0), gk.PAG(3.0, layers="mid_block")], **cond)
    without = gk.sample(base, 1, noise=noise, guides=[gk.CFG(5.0)], **cond)
    assert (result.x - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (without.x - expected).abs().max() > 100 * (result.x - expected).abs().max()
    assert result.cost.network_rows == 12 and result.cost.network_calls == 4


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "dit", "ddpm"])
def test_perturbed_attention_reaches_every_family_and_leaves_the_denoiser_as_it_was(name: str):
    pipe = tiny(name)
    sized = {"height": 32, "width": 32} if name == "flux" else {}
    base = gk.from_diffusers(pipe, **sized, encode={"max_sequence_length": 20} if name in ("flux", "pixart") else None)
    cond = {"dit": 3, "ddpm": None}.get(name, "a cat")
    plain = gk.sample(base, 2, steps=3, cond=cond)
    for guide in (gk.PAG(2.0), gk.SEG(2.0), gk.SLG(2.0)):
        assert not torch.allclose(gk.sample(base, 2, steps=3, cond=cond, guides=[guide]).x, plain.x, atol=1e-5)
    assert torch.equal(gk.sample(base, 2, steps=3, cond=cond).x, plain.x)


def brightness(pictures):
    return 40 * pictures.flatten(1).mean(1)


@pytest.mark.parametrize("output", ["image", "latent"])
def test_gradients_reach_the_state_through_the_denoiser_and_the_decoder(output: str):
    """The tilt of DPS is (sigma^2/alpha) grad, compared with a difference quotient in float64."""
    pipe = tiny("sd", diffusers.DDIMScheduler(**SD, clip_sample=False))
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.double()
    base = gk.from_diffusers(pipe, output=output)
    cond = {k: v[None] for k, v in base.encode("a cat").items()}
    t, x = (
        base.process.moves(4, None)[2].t,
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1)).double(),
    )

    def value(x):
        return brightness(base.decode(base(x, t, cond))).double()

    with torch.enable_grad():
        leaf = x.requires_grad_()
        (slope,) = torch.autograd.grad(value(leaf).sum(), leaf)
    with torch.no_grad():
        step = 1e-3 * slope / slope.norm()
        rise = (value(x + step) - value(x - step)).item()
    assert abs(rise - 2e-3 * slope.norm().item()) < 0.02 * rise and rise > 0


@pytest.mark.parametrize(
    "guide", [gk.DPS(brightness, 3.0), gk.MPGD(brightness, 3.0), gk.SVDD(brightness, candidates=4)]
)
@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_guides_climb_on_pictures(name: str, guide):
    base = gk.from_diffusers(tiny(name))
    options = {"steps": 5, "cond": ["a cat", "two dogs"], "solver": gk.solvers.DDPM()}
    plain = gk.sample(base, 3, reward=brightness, **options)
    steered = gk.sample(base, 3, guides=[guide], **options)
    assert (steered.rewards.view(2, 3).mean(1) > plain.rewards.view(2, 3).mean(1)).all()


def test_a_preview_looks_ahead_through_another_decoder_and_the_pipeline_judges_in_the_end():
    base = gk.from_diffusers(tiny("sd", diffusers.DDIMScheduler(**SD, clip_sample=False)), eta=1.0)
    small = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    decode, seen = base.decoder(small), []

    def look(x):
        return seen.append(len(x)) or decode(x)

    guide = gk.FKSteering(brightness, 0.5, value=Preview(brightness, look), every=2)
    result = gk.sample(base, 4, steps=5, cond="a cat", guides=[guide])
    assert seen == [4, 4] and torch.equal(result.rewards, brightness(result.samples).double())
    with pytest.raises(TypeError, match=r"base.decoder"):
        Preview(brightness, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"],
)
def test_a_hook_without_guides_changes_nothing(name: str):
    pipe = tiny("sd", getattr(diffusers, name)(**SD, **({"clip_sample": False} if name == "DDIMScheduler" else {})))

    def call():
        return pipe(
            ["a cat", "two dogs"], num_images_per_prompt=2, num_inference_steps=5, output_type="pt",
            generator=torch.Generator().manual_seed(2),
        ).images  # fmt: skip

    before = call()
    with step_hook(pipe, groups=2, reward=brightness) as hook:
        inside = call()
    assert torch.equal(before, inside) and torch.equal(hook.result.samples, before) and torch.equal(call(), before)
    assert torch.equal(hook.result.rewards, brightness(before).double())


def test_a_hook_steers_the_pipeline_as_gk_sample_would():
    """The same noise and the same guides give the same pictures, weights and log Z."""
    pipe = tiny("sd", diffusers.EulerAncestralDiscreteScheduler(**SD))
    base, steering = gk.from_diffusers(pipe), gk.FKSteering(brightness, 0.05, ess=1.0)

    def seed():
        return torch.Generator().manual_seed(2)

    noise = base.noise(6, seed(), steps=5)
    expected = gk.sample(base, 6, steps=5, cond="a cat", noise=noise, guides=[gk.CFG(5.0), steering])
    with step_hook(pipe, guides=[steering]) as hook:
        pictures = pipe(
            "a cat",
            num_images_per_prompt=6,
            num_inference_steps=5,
            guidance_scale=5.0,
            generator=seed(),
            output_type="pt",
        ).images
    assert torch.allclose(pictures, expected.samples, atol=1e-4) and torch.equal(hook.result.samples, pictures)
    assert torch.allclose(hook.result.log_z, expected.log_z, atol=1e-2) and hook.result.log_z != 0
    assert len(set(hook.result.lineage()[0].tolist())) < 6


def test_a_hook_refuses_what_it_cannot_serve_and_is_gone_when_a_reward_raises():
    pipe = tiny("sd", diffusers.EulerAncestralDiscreteScheduler(**SD))
    for guide in (gk.SVDD(brightness), gk.TDS(brightness, 1.0), gk.PAG(1.0), gk.BestOfN(brightness, 2)):
        with pytest.raises(ValueError, match=r"gk.from_diffusers"), step_hook(pipe, guides=[guide]):
            pass
    kind = type(pipe.scheduler)

    def broken(pictures):
        raise OSError("no disk")

    with pytest.raises(gk.RewardError, match=r"no disk"), step_hook(pipe, guides=[gk.FKSteering(broken, 1.0)]):
        pipe("a cat", num_images_per_prompt=2, num_inference_steps=3)
    assert type(pipe.scheduler) is kind
    with pytest.raises(ValueError, match=r"3 pictures are not 2 groups"), step_hook(pipe, groups=2):
        pipe("a cat", num_images_per_prompt=3, num_inference_steps=2)


def test_the_stand_in_is_taken_for_what_its_name_says():
    assert isinstance(base_of("DDPM").net, Plain)

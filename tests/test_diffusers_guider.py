"""A list of guides as the guider of diffusers' modular pipelines: against its own guiders and against gk.sample."""

from __future__ import annotations

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import dataclass

import pytest
import torch

import guidekit as gk
from guidekit.engine.guide import Guide
from guidekit.guides.pag import Identity
from guidekit.guides.shared.contrast import Contrast
from guidekit.integrations.diffusers import guider, tiny
from guidekit.models.attention import Perturbed
from guidekit.models.evaluations import Null

from .conformance.cases import CASES
from .test_diffusers_manners import adapted, picture
from .test_more_guidance import laplacian, up

diffusers = pytest.importorskip("diffusers")
guiders = pytest.importorskip("diffusers.guiders")
hooks = pytest.importorskip("diffusers.hooks")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]

STEPS, MID = 5, "mid_block.attentions.0"
BLOCKS = {"sdxl": "StableDiffusionXLAutoBlocks", "sd3": "StableDiffusion3AutoBlocks"}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(autouse=True)
def quiet():
    """Their loops print every exception on its way, and a bar for every run."""
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(60)
    yield
    diffusers.utils.logging.set_verbosity(level)


def modular(name: str, scheduler=None, classic=None):
    """A modular pipeline of the parts of a tiny one, and that one."""
    classic = classic or tiny(name, scheduler)
    pipe = getattr(diffusers, BLOCKS[name])().init_pipeline()
    parts = {k: v for k, v in classic.components.items() if v is not None and k in pipe._component_specs}
    pipe.update_components(**parts)
    return pipe, classic


def latents(pipe, guides=None, n: int = 2, steps: int = STEPS, **options):
    """The pipeline's run with these guides, or another guider, or the one that it has."""
    if guides is not None:
        pipe.update_components(guider=guides if isinstance(guides, guiders.BaseGuidance) else guider(guides))
    given = {"prompt": "a cat", "negative_prompt": "", "height": 32, "width": 32} | options
    return pipe(
        **given, num_images_per_prompt=n, num_inference_steps=steps, generator=torch.Generator().manual_seed(3),
        output="latents",
    )  # fmt: skip


def sampled(classic, guides, n: int = 2, steps: int = STEPS, **more):
    """The same by the engine, from the same noise."""
    base = gk.from_diffusers(classic, output="latent")
    noise = base.noise(n, torch.Generator().manual_seed(3), steps=steps)
    cond = {"prompt": "a cat", "negative_prompt": "", **more}
    return gk.sample(base, n, steps=steps, cond=cond, guides=guides, noise=noise).x


def apart(a, b) -> float:
    """The largest difference, as a share of the largest latent."""
    return float((a - b).abs().max() / b.abs().max())


def perturbing(kind: str, **options):
    """PAG or SLG of diffusers on the middle, with CFG 5; their windows leave the first step out."""
    pag = kind == "PerturbedAttentionGuidance"
    layers = "mid_block.attentions" if pag else f"{MID}.transformer_blocks"
    config = hooks.LayerSkipConfig(
        indices=[0], fqn=layers, skip_attention=not pag, skip_attention_scores=pag, skip_ff=not pag
    )
    name, where = (
        ("perturbed_guidance", "perturbed_guidance_config") if pag else ("skip_layer_guidance", "skip_layer_config")
    )
    given = {f"{name}_scale": 30.0, f"{name}_start": 0.0, f"{name}_stop": 1.0, where: config}
    return getattr(guiders, kind)(guidance_scale=5.0, **given, **options)


# what it does --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_cfg_is_that_of_diffusers_to_the_last_bit(name: str):
    pipe, classic = modular(name)
    expected = latents(pipe, guiders.ClassifierFreeGuidance(5.0))
    ours = latents(pipe, [gk.CFG(5.0)])
    assert torch.equal(ours, expected) and isinstance(pipe.guider, guiders.BaseGuidance)
    assert apart(latents(pipe, []), expected) > 0.02
    assert apart(ours, sampled(classic, [gk.CFG(5.0)])) < 1e-5  # two forwards there, one of twice the rows here


@pytest.mark.parametrize("kind", ["PerturbedAttentionGuidance", "SkipLayerGuidance"])
def test_perturbed_guidance_is_that_of_diffusers(kind: str):
    """Up to the order of three sums in float32; SLG of diffusers skips blocks alone, and not a whole stack of them."""
    pipe, _ = modular("sdxl")
    expected = latents(pipe, perturbing(kind))
    late = 1 / STEPS  # their first step is without it
    own = {
        "PerturbedAttentionGuidance": gk.PAG(30.0, layers=MID, start=late),
        "SkipLayerGuidance": gk.SLG(30.0, layers=f"{MID}.transformer_blocks.0", start=late),
    }
    assert apart(latents(pipe, [gk.CFG(5.0), own[kind]]), expected) < 1e-6
    assert apart(latents(pipe, [gk.CFG(5.0)]), expected) > 1e-2


COMBINED = {
    "CFG and PAG": [gk.CFG(5.0), gk.PAG(3.0)],
    "PAG alone": [gk.PAG(3.0)],
    "SEG": [gk.CFG(3.0), gk.SEG(3.0)],
    "SLG in an interval": [gk.CFG(5.0), gk.SLG(2.0, start=0.2, stop=0.7)],
    "three": [gk.CFG(3.0, stop=0.8), gk.PAG(2.0), gk.SLG(-1.0, start=0.4)],
    "two of a kind": [gk.PAG(2.0), gk.PAG(1.0, strength=0.5)],
    "none": [],
}


@pytest.mark.parametrize("guides", COMBINED.values(), ids=list(COMBINED))
@pytest.mark.parametrize("name", BLOCKS)
def test_guides_do_what_they_do_in_gk_sample(name: str, guides):
    """On a network that predicts noise and on one that predicts a velocity; every guide of a list counts."""
    pipe, classic = modular(name)
    ours = latents(pipe, guides)
    assert apart(ours, sampled(classic, guides)) < 1e-5
    for i in range(len(guides)):
        assert apart(latents(pipe, guides[:i] + guides[i + 1 :]), ours) > 1e-4


def test_intervals_are_fractions_of_the_steps_in_every_run_and_the_negative_prompt_is_encoded_in_all():
    pipe, classic = modular("sdxl")
    guides, seen = [gk.CFG(5.0, start=0.2, stop=0.6)], []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    first = latents(pipe, guides)
    second = latents(pipe)  # at its last step the guide was idle
    handle.remove()
    times = pipe.scheduler.timesteps.tolist()
    assert seen == 2 * [times[i] for i in (0, 1, 1, 2, 2, 3, 4)]
    assert torch.equal(first, second) and apart(first, sampled(classic, guides)) < 1e-5
    pipe.guider.disable()
    assert pipe.guider.num_conditions == 1


@pytest.mark.parametrize(
    ("name", "scheduler"), [("sdxl", None), ("sdxl", "HeunDiscreteScheduler"), ("sdxl", "DDIMScheduler"), ("sd3", None)]
)
def test_scales_may_be_functions_of_t_where_the_scheduler_is_given(name: str, scheduler: str | None):
    pipe, classic = modular(name, scheduler and getattr(diffusers, scheduler)(**SD))
    guides = [gk.CFG(lambda t: 1 + 9 * t**2), gk.PAG(lambda t: 4 * (1 - t))]
    expected = sampled(classic, guides)
    assert apart(latents(pipe, guider(guides, scheduler=pipe.scheduler)), expected) < 1e-4
    assert apart(latents(pipe, [gk.CFG(4.0), gk.PAG(2.0)]), expected) > 1e-3
    with pytest.raises(ValueError, match=r"not the scheduler that the pipeline runs; give pipe.scheduler"):
        latents(pipe, guider(guides, scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config)))


def test_half_precision_stays_half_and_equal():
    pipe, _ = modular("sd3")
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.half()
    expected = latents(pipe, guiders.ClassifierFreeGuidance(5.0))
    ours = latents(pipe, [gk.CFG(5.0)])
    assert ours.dtype == torch.float16 and torch.equal(ours, expected)


def test_an_evaluation_of_ones_own_may_perturb_the_negative_prompt():
    """A guide is served by what it asks for, and not by its name: PAG of the unconditional model."""

    @dataclass(frozen=True)
    class PerturbedNull(Perturbed):
        cond, check_null = Null.cond, Null.check

    need = PerturbedNull(Identity(), (MID,))

    @dataclass(frozen=True)
    class Own(Guide):
        @property
        def needs(self):
            return Null(), need

        def check(self, model, steps):
            need.check(model)

        def tilt(self, view):
            return 4 * (view.evals[Null()] - view.evals[need])

    pipe, classic = modular("sdxl")
    ours = latents(pipe, [Own()], negative_prompt="dogs")
    expected = sampled(classic, [Own()], negative_prompt="dogs")
    assert apart(ours, expected) < 1e-5 < 1e-4 < apart(latents(pipe, [gk.PAG(4.0, layers=MID)]), expected)


def test_control_nets_and_ip_adapters_are_the_pipelines():
    """In guess mode a control net is left out of the predictions at the negative prompt, so it asks which those are."""
    pipe, _ = modular("sdxl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32)).eval()
        for p in control.parameters():  # it begins as zero
            p.data.normal_(0, 0.2)
    pipe.update_components(controlnet=control)
    given = {"control_image": picture(0), "controlnet_conditioning_scale": 1.0}
    for guess in (False, True):
        ours = latents(pipe, [gk.CFG(5.0)], guess_mode=guess, **given)
        assert torch.equal(ours, latents(pipe, guiders.ClassifierFreeGuidance(5.0), guess_mode=guess, **given))
        assert apart(latents(pipe, [gk.CFG(5.0)], guess_mode=not guess, **given), ours) > 1e-3
    guides = [gk.CFG(5.0), gk.PAG(3.0)]
    pipe, classic = modular("sdxl", classic=adapted("sdxl"))
    ours = latents(pipe, guides, ip_adapter_image=picture(0))
    assert apart(ours, sampled(classic, guides, ip_adapter_image=picture(0))) < 1e-5
    assert apart(latents(pipe, guides, ip_adapter_image=picture(1)), ours) > 1e-3


# what it refuses -----------------------------------------------------------------------------------------------------

SERVED = {"CFG", "PAG", "SEG", "SLG", "PAG heads", "FreSca", "ERG"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_guide_that_needs_more_than_predictions_is_refused_with_its_name_and_the_way_out(case):
    guide = case.make(case.on(case.processes[0]))
    if case.name in SERVED:
        assert guider([guide]).guides == (guide,)
        return
    with pytest.raises(
        ValueError, match=rf"guider\(\[{type(guide).__name__}\]\): .*; gk.sample with gk.from_diffusers"
    ):
        guider([gk.CFG(2.0), guide])


def test_a_hook_is_named_where_a_hook_does_it():
    with pytest.raises(ValueError, match=r"chooses among particles.*step_hook"):
        guider([gk.FKSteering(lambda x: x[:, 0], 1.0)])
    with pytest.raises(ValueError, match=r"from_diffusers\(pipe\) takes it$"):
        guider([gk.SVDD(lambda x: x[:, 0])])


def test_what_depends_on_the_coordinates_of_the_prediction_is_refused_whatever_it_is_called():
    @dataclass(frozen=True)
    class Half(Contrast):
        scale: float = 1.0

        neutral = 0.0

        def tilt(self, view):
            return -self.scale * view.evals[Null()]  # coefficients that add up to 0 and not to 1

    @dataclass(frozen=True)
    class Late(Half):
        start: float = 0.95

    for guide in (Half(), Late(), gk.CFG(5.0, rescale=0.7)):
        with pytest.raises(ValueError, match=r"depends on what the network predicts"):
            guider([guide])
    assert guider([Half(0.0)])


BAD = {
    "function of t": (lambda: guider([gk.CFG(lambda t: t)]), ValueError, r"function of t, for which.*pipe.scheduler"),
    "another condition": (lambda: guider([gk.Compose("rain")]), ValueError, "another condition than the prompt"),
    "no list": (lambda: guider(gk.CFG(2.0)), TypeError, r"like \[gk.CFG\(5.0\)\]"),  # type: ignore[arg-type]
    "no guide": (lambda: guider([2.0]), TypeError, r"guider\(\[2.0\]\): a guide is needed"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_when_the_guider_is_made(case: str):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def test_no_guidance_is_never_silent():
    """SD3 encodes no negative prompt unless there is one: the guider of diffusers then runs unguided."""
    pipe, _ = modular("sd3")
    silent = latents(pipe, guiders.ClassifierFreeGuidance(5.0), negative_prompt=None)
    assert torch.equal(silent, latents(pipe, [], negative_prompt=None))
    with pytest.raises(ValueError, match=r"give the pipeline negative_prompt=''"):
        latents(pipe, [gk.CFG(5.0)], negative_prompt=None)
    assert apart(latents(pipe, [gk.PAG(3.0)], negative_prompt=None), silent) > 1e-3  # needs none
    with pytest.raises(ValueError, match=r"no module 'transformer_block.1'; near it are transformer_blocks.1"):
        latents(pipe, [gk.PAG(3.0, layers="transformer_block.1")])
    heun, _ = modular("sdxl", diffusers.HeunDiscreteScheduler(**SD))
    with pytest.raises(ValueError, match=r"evaluation 5 of a run of 5 steps.*start and stop"):
        latents(heun, [gk.CFG(5.0, start=0.2)])


def test_from_diffusers_takes_classic_pipelines_and_says_so():
    with pytest.raises(ValueError, match=r"StableDiffusion3ModularPipeline has no encode_prompt.*guider"):
        gk.from_diffusers(modular("sd3")[0])


def test_guides_are_not_read_from_a_folder(tmp_path):
    pipe, _ = modular("sdxl")
    pipe.update_components(guider=guider([gk.CFG(5.0)]))
    pipe.guider.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"make its guider again"):
        type(pipe.guider).from_pretrained(tmp_path)
    with pytest.raises(TypeError, match=r"make its guider again"):
        pipe.guider.new()


# manners -------------------------------------------------------------------------------------------------------------


def left(net) -> list:
    """All that a run might leave in a denoiser."""
    return [
        (vars(m).get("forward"), len(m._forward_hooks), len(m._forward_pre_hooks), m._compiled_call_impl, m.training)
        for m in net.modules()
    ]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_denoiser_is_as_it_was_also_after_an_exception_in_it(error):
    """Their loop has no finally: nothing is called after it but the next run."""
    pipe, _ = modular("sdxl")
    before, good = left(pipe.unet), latents(pipe, [gk.CFG(5.0), gk.PAG(3.0, layers=MID)])
    assert left(pipe.unet) == before
    calls, attend = [], torch.nn.functional.scaled_dot_product_attention

    def stop(module, args):
        calls.append(vars(pipe.unet).get("forward"))
        if len(calls) == 6:  # the perturbed pass of the second step
            raise error("stop")

    handle = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.register_forward_pre_hook(stop)
    with pytest.raises(error):
        latents(pipe)
    handle.remove()
    assert [c is not None for c in calls] == 2 * [False, False, True] and left(pipe.unet) == before
    q = torch.randn(1, 2, 4, 8)
    assert torch.equal(torch.nn.functional.scaled_dot_product_attention(q, q, q), attend(q, q, q))
    assert torch.equal(latents(pipe), good)
    after = latents(pipe, guiders.ClassifierFreeGuidance(5.0))
    assert torch.equal(after, latents(pipe, [gk.CFG(5.0)]))


def test_an_offloaded_denoiser_is_perturbed_and_stays_offloaded():
    accelerate = pytest.importorskip("accelerate")
    pipe, _ = modular("sdxl")
    good = latents(pipe, [gk.CFG(5.0), gk.PAG(3.0, layers=MID)])
    accelerate.cpu_offload(pipe.unet, torch.device("cpu"))
    before = left(pipe.unet)
    assert torch.equal(latents(pipe), good) and left(pipe.unet) == before
    assert {p.device.type for p in pipe.unet.parameters()} == {"meta"}


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_denoiser_is_perturbed_too(in_place: bool):
    pipe, _ = modular("sdxl")
    guides = [gk.CFG(5.0), gk.PAG(30.0, layers=MID)]
    good = latents(pipe, guides)
    if in_place:
        pipe.unet.compile(backend="eager")
    else:
        pipe.update_components(unet=torch.compile(pipe.unet, backend="eager"))
    before = left(pipe.unet)
    assert apart(latents(pipe, guides), good) < 1e-5 and left(pipe.unet) == before
    torch.compiler.reset()


# guides with a guider of diffusers' own, on the same predictions ------------------------------------------------------


def stepped(guides, their, steps: int = 8):
    """Both guided predictions at every step of a run, of a network of clean means for pictures."""
    fields = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = gk.GaussianModel(
        lambda x, t, c: (0.5 * x + fields[c]).tanh(), (2, 16, 16), gk.schedules.Cosine(), "clean", null=1,
        dtype=torch.float64,
    )  # fmt: skip
    run = gk.Run(base, 2, steps=steps, cond=0, guides=guides)
    with torch.no_grad():
        pop = run.start()
        for index, move in enumerate(run.moves):
            cond, null = (base(pop.x, move.t, torch.full((2,), c)) for c in (0, 1))
            their.set_state(step=index, num_inference_steps=steps, timestep=torch.tensor(move.t))
            their.prepare_inputs({})
            yield pop.predictions[0], their.forward(pred_cond=cond, pred_uncond=null).pred
            pop = run.advance(pop, index)


def test_the_projected_mix_is_that_of_diffusers():
    """In its original formulation, d_cond + (w - 1) D; by default it adds w D to d_null, which the bound leaves out."""
    their = guiders.AdaptiveProjectedMixGuidance(
        1.0, adaptive_projected_guidance_scale=5.0, adaptive_projected_guidance_rescale=1.5, eta=0.2,
        adaptive_projected_guidance_start_step=3, use_original_formulation=True,
    )  # fmt: skip
    ours = gk.APGMix(6.0, 0.2, radius=1.5, momentum=-0.5, before=2.0, switch=0.5)
    found = list(stepped([ours], their))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in found) and len(found) == 8


def test_guidance_by_bands_is_that_of_diffusers(monkeypatch):
    """Its pyramid comes from kornia, whose functions are those of the test by hand."""
    module = sys.modules["diffusers.guiders.frequency_decoupled_guidance"]
    monkeypatch.setattr(module, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(module, "build_laplacian_pyramid_func", laplacian)
    monkeypatch.setattr(module, "upsample_and_blur_func", up)
    their = guiders.FrequencyDecoupledGuidance([4.0, 2.5, 1.5])
    found = list(stepped([gk.FrequencyDecoupled((4.0, 2.5, 1.5))], their))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in found) and len(found) == 8

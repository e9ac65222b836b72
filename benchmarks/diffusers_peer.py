"""What guided sampling costs beside the pipeline's own loop, on the same model and in one run.

    python benchmarks/diffusers_peer.py [--device cuda] [--model FOLDER] [--out benchmarks/results/diffusers.json]

Both sides take the same prompts, scheduler, steps and noise; times are ratios, ours over theirs, of pairs in turn.

    CFG         the pipeline of diffusers, StableDiffusionPipeline
    CFG + PAG   its pipeline for that, StableDiffusionPAGPipeline, which also has one forward a step
    modular     CFG + PAG by a modular pipeline of SDXL with the guider for that, which has three forwards a step

Without --model the first two have a U-Net with random weights, of the shape of Stable Diffusion and about a tenth of
its width; the last has always one of the shape of SDXL.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from rewards.base import needs

PROMPT, STEPS = "a red fox in snow", 10


def pipeline(folder: str | None, device: str) -> Any:
    """Stable Diffusion with DDIM."""
    diffusers = needs("diffusers", "diffusers", "this benchmark")
    if folder is not None:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    else:
        pipe = gk.integrations.diffusers.tiny("sd", diffusers.DDIMScheduler(clip_sample=False, steps_offset=1))
        torch.manual_seed(0)
        pipe.register_modules(unet=_wide(diffusers))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _wide(diffusers: Any, **options: Any) -> Any:
    return diffusers.UNet2DConditionModel(**{
        "sample_size": 32, "block_out_channels": (64, 128, 128), "layers_per_block": 1, "cross_attention_dim": 32,
        "attention_head_dim": 8, "norm_num_groups": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    } | options).eval()  # fmt: skip


def modular(diffusers: Any, device: str) -> tuple[Any, Any]:
    """SDXL, and its parts in a modular pipeline with CFG + PAG."""
    from diffusers.guiders.perturbed_attention_guidance import PerturbedAttentionGuidance
    from diffusers.hooks.layer_skip import LayerSkipConfig

    classic = gk.integrations.diffusers.tiny("sdxl", diffusers.DDIMScheduler(clip_sample=False, steps_offset=1))
    kept = ("cross_attention_dim", "addition_embed_type", "addition_time_embed_dim")
    kept += ("projection_class_embeddings_input_dim",)
    torch.manual_seed(0)
    classic.register_modules(unet=_wide(diffusers, **{k: classic.unet.config[k] for k in kept}))
    classic.to(device).set_progress_bar_config(disable=True)
    pipe = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in classic.components.items() if v is not None and k in pipe._component_specs}
    where = LayerSkipConfig(
        [0], "mid_block.attentions", skip_attention=False, skip_attention_scores=True, skip_ff=False
    )
    guider = PerturbedAttentionGuidance(5.0, 3.0, 0.0, 1.0, perturbed_guidance_config=where)
    pipe.update_components(**parts, guider=guider)
    pipe.set_progress_bar_config(disable=True)
    return classic, pipe


def timed(call: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Seconds and the latents."""
    start = time.perf_counter()
    out = call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def compared(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], repeats: int, device: str) -> dict[str, float]:
    """Ratio of times, median and quartiles over pairs, and the largest difference of latents."""
    ratios, seconds, apart = [], [], 0.0
    for i in range(repeats + 1):
        (a, x), (b, y) = (timed(f, device) for f in ((ours, theirs) if i % 2 else (theirs, ours)))
        (a, x), (b, y) = ((a, x), (b, y)) if i % 2 else ((b, y), (a, x))
        apart = max(apart, float((x - y).abs().max() / y.abs().max()))
        if i:  # the first pair warms up
            ratios.append(a / b)
            seconds.append(b)
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": round(middle, 3), "lower quartile": round(low, 3), "upper quartile": round(high, 3),
        "their seconds": round(statistics.median(seconds), 3), "difference": apart,
    }  # fmt: skip


def measured(pipe: Any, n: int, repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Both comparisons for n pictures."""
    diffusers = needs("diffusers", "diffusers", "this benchmark")
    pag = diffusers.StableDiffusionPAGPipeline(
        **pipe.components, pag_applied_layers="mid", requires_safety_checker=False
    )
    pag.set_progress_bar_config(disable=True)
    model = gk.from_diffusers(pipe, output="latent")
    noise = model.noise(n, torch.Generator(device).manual_seed(0), steps=STEPS)

    def ours(*guides: gk.Guide) -> Callable[[], Tensor]:
        return lambda: gk.sample(model, n, steps=STEPS, cond=PROMPT, guides=[gk.CFG(5.0), *guides], noise=noise).x

    def theirs(call: Any, **options: Any) -> Callable[[], Tensor]:
        return lambda: call(
            PROMPT, num_images_per_prompt=n, num_inference_steps=STEPS, guidance_scale=5.0, latents=noise.clone(),
            output_type="latent", **options,
        ).images  # fmt: skip

    found = {"CFG": compared(ours(), theirs(pipe), repeats, device)}
    found["CFG + PAG"] = compared(ours(gk.PAG(3.0, layers="mid_block")), theirs(pag, pag_scale=3.0), repeats, device)
    return found | {"modular": beside_the_guider(n, repeats, device)}


def beside_the_guider(n: int, repeats: int, device: str) -> dict[str, float]:
    """CFG + PAG of SDXL, whose sizes of the picture are part of the condition."""
    classic, pipe = modular(needs("diffusers", "diffusers", "this benchmark"), device)
    model = gk.from_diffusers(classic, output="latent")
    noise = model.noise(n, torch.Generator(device).manual_seed(0), steps=STEPS)
    later = gk.PAG(3.0, layers="mid_block.attentions.0", start=1 / STEPS)  # their window leaves the first step out
    guides, side = [gk.CFG(5.0), later], 32 * classic.vae_scale_factor
    cond = {"prompt": PROMPT, "negative_prompt": ""}

    def ours() -> Tensor:
        return gk.sample(model, n, steps=STEPS, cond=cond, guides=guides, noise=noise).x

    def theirs() -> Tensor:
        return pipe(
            **cond, num_images_per_prompt=n, num_inference_steps=STEPS, latents=noise.clone(), height=side,
            width=side, output="latents",
        )  # fmt: skip

    return compared(ours, theirs, repeats, device)


BESIDE = {
    "CFG": "CFG, `StableDiffusionPipeline`",
    "CFG + PAG": "CFG + PAG, `StableDiffusionPAGPipeline`",
    "modular": "CFG + PAG, modular SDXL with its guider",
}


def lines(results: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The rows of the table in docs/diffusers.md."""
    found = []
    for key, title in BESIDE.items():
        of = [by[key] for by in results.values()]
        ratios = [f"{r['ratio']:.3f} ({r['lower quartile']:.3f} to {r['upper quartile']:.3f})" for r in of]
        found.append(f"| {title} | {' | '.join(ratios)} | {max(r['difference'] for r in of):.2g} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diffusers.json"))
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    pipe = pipeline(given.model, given.device)
    rows = {f"n = {n}": measured(pipe, n, given.repeats, given.device) for n in given.n}
    about = {"steps": STEPS, "device": given.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about["diffusers"] = needs("diffusers", "diffusers", "this benchmark").__version__
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(about | {"results": rows}, indent=2) + "\n")
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Stable Diffusion with CFG, perturbed attention and a reward, beside the pipeline's own pictures.

    python examples/stable_diffusion.py                                       # random weights, to see it run
    python examples/stable_diffusion.py --model FOLDER --device cuda --steps 50 --clip FILE

FOLDER is a pipeline that was saved with save_pretrained, and FILE the weights of open_clip's ViT-B-32; nothing is
downloaded. Without --clip the reward is how red a picture is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import guidekit as gk
from rewards.base import Reward, needs
from rewards.images import ClipScore


class Red(Reward):
    """Red light less the mean of green and blue."""

    name, differentiable = "redness", True

    def score(self, samples: torch.Tensor) -> torch.Tensor:
        r, g, b = samples.mean((2, 3)).unbind(1)
        return r - (g + b) / 2


def pipeline(folder: str | None, device: str) -> Any:
    """The saved pipeline, or a small one with random weights."""
    diffusers = needs("diffusers", "diffusers", "this example")
    if folder is None:
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        plan = diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1)
        return gk.integrations.diffusers.tiny("sd", plan).to(device)
    half = torch.float16 if device != "cpu" else torch.float32
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=half, local_files_only=True).to(device)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def judge(file: str | None, prompt: str) -> Reward:
    """How well a picture goes with the prompt, by a CLIP model."""
    return Red() if file is None else ClipScore(prompt, checkpoint=file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = {"model": None, "clip": None, "device": "cpu", "prompt": "a red fox in snow", "out": "out"}
    for name, default in (texts | {"n": 4, "steps": 10, "seed": 0}).items():
        parser.add_argument(f"--{name}", default=default, type=str if name in texts else int)
    given = parser.parse_args()
    base = gk.from_diffusers(pipeline(given.model, given.device), eta=1.0, decode_batch=4)
    reward = judge(given.clip, given.prompt)
    cfg, pag = gk.CFG(5.0), gk.PAG(2.0, layers="mid_block", stop=0.8)
    methods: dict[str, list[gk.Guide]] = {
        "pipeline": [cfg],
        "PAG": [cfg, pag],
        "FK steering": [cfg, pag, gk.FKSteering(reward, alpha=0.01, every=2)],
        "best child": [cfg, gk.SVDD(reward, candidates=3)],
    }
    Path(given.out).mkdir(parents=True, exist_ok=True)
    print(f"{'':<12} {reward.name:>10}  network rows")
    for name, guides in methods.items():
        options = {"steps": given.steps, "cond": given.prompt, "seed": given.seed}
        result = gk.sample(base, given.n, guides=guides, reward=reward, **options)
        assert result.rewards is not None
        mean = float((result.weights * result.rewards).sum())
        print(f"{name:<12} {mean:>10.4f}  {result.cost.network_rows}")
        for i, picture in enumerate(base.pipe.numpy_to_pil(result.samples.permute(0, 2, 3, 1).cpu().numpy())):
            picture.save(Path(given.out) / f"{name.replace(' ', '_')}_{i:02}.png")


if __name__ == "__main__":
    main()

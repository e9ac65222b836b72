"""Guided images: classifier-free and perturbed-attention guidance, then a CLIP reward that prefers a caption.

    python examples/images.py --cond sneaker --prompt "a photo of a ankle boot" --out out/images

Rows of the picture: unguided, CFG, CFG + PAG, CFG + PAG + steering by CLIP. The classifiers that judge took no part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import guidekit as gk
from rewards.images import ClipScore


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cond", default="sneaker")
    parser.add_argument("--prompt", default="a photo of a ankle boot")
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/images"))
    args = parser.parse_args(arguments)
    model, judge = gk.zoo.load("fashion"), gk.zoo.network("fashion-judge")
    classes = gk.zoo.card("fashion")["classes"]
    reward = ClipScore(args.prompt, model=gk.zoo.clip())
    bend = [gk.CFG(2.0), gk.PAG(1.0)]
    runs = {
        "unguided": [],
        "CFG": bend[:1],
        "CFG + PAG": bend,
        "CFG + PAG + CLIP": [*bend, gk.FKSteering(reward, alpha=0.03)],
    }
    grids = []
    for name, guides in runs.items():
        result = gk.sample(model, args.n, steps=args.steps, guides=guides, cond=args.cond, reward=reward)
        samples = result.resample(seed=0).samples
        with torch.no_grad():
            of_class = (judge(samples).argmax(1) == classes.index(args.cond)).double().mean()
        print(f"{name:18s} CLIP {reward(samples).mean():.3f}   judged {args.cond} {of_class:.2f}")
        grids.append(torch.cat(list(samples[:12, 0]), 1))
    args.out.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    picture = Image.fromarray((torch.cat(grids) * 255).byte().numpy())
    picture.resize((3 * picture.width, 3 * picture.height), Image.Resampling.NEAREST).save(args.out / "images.png")
    print(args.out / "images.png")


if __name__ == "__main__":
    main()

"""Reconstruct pictures with physics of deepinv and a diffusers model as the prior.

    python examples/deepinv_physics.py                           # random weights, to see it run
    python examples/deepinv_physics.py --model FOLDER --steps 100 --device cuda

FOLDER is a pipeline of pixels that was saved with save_pretrained (DDPM or DDIM); nothing is downloaded. The physics
measures a smooth picture, and each method draws samples of its posterior, so that their residual should be about 1 in
units of the noise; random weights know nothing of pictures. For a latent model take DAPS, DPS or TDS, which
differentiate through the decoder.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import guidekit as gk
from rewards.base import needs


def model(folder: str | None, device: str) -> gk.Model:
    """The saved pipeline, or a small one with random weights, of pictures between 0 and 1."""
    diffusers = needs("diffusers", "diffusers", "this example")
    if folder is None:
        return gk.from_diffusers(gk.integrations.diffusers.tiny("ddpm").to(device))
    return gk.from_diffusers(diffusers.DDPMPipeline.from_pretrained(folder, local_files_only=True).to(device))


def physics(shape: tuple[int, ...], device: str) -> dict[str, Any]:
    """Operators of deepinv: a blur, holes, and fewer pixels."""
    p = needs("deepinv", "inverse", "this example").physics
    kernel = p.functional.gaussian_blur(sigma=(1.5, 1.5))
    return {
        "deblurring": p.BlurFFT(img_size=shape, filter=kernel, device=device),
        "inpainting": p.Inpainting(img_size=shape, mask=0.5, device=device),
        "super-resolution": p.Downsampling(img_size=shape, filter="gaussian", factor=2, device=device),
    }


def picture(shape: tuple[int, ...]) -> torch.Tensor:
    """Colours that change from the left to the right and from the top to the bottom."""
    across, down = torch.linspace(0.2, 0.8, shape[2]), torch.linspace(0.3, 0.7, shape[1])
    colours = [(across[None] + shift * down[:, None]) / (1 + shift) for shift in range(shape[0])]
    return torch.stack(colours)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = {"model": None, "device": "cpu"}
    for name, default in (texts | {"n": 4, "steps": 20, "seed": 0}).items():
        parser.add_argument(f"--{name}", default=default, type=str if name in texts else int)
    parser.add_argument("--noise", default=0.05, type=float)
    given = parser.parse_args()
    torch.manual_seed(given.seed)  # deepinv draws masks and matrices by torch's own numbers
    base = model(given.model, given.device)
    options = {"steps": given.steps, "solver": gk.solvers.DDIM(eta=1.0)}
    truth = picture(base.shape).to(given.device)
    print(f"{'':<20}{'':<10} residual / noise  PSNR of the mean")
    for name, operator in physics(tuple(truth.shape[1:]), given.device).items():
        measured = gk.Measurement(operator, operator.A(truth)[0], given.noise)
        measured = measured.of(measured.simulate(truth, given.seed)[0])
        methods: dict[str, list[gk.Guide]] = {
            "unguided": [],
            "DiffPIR": [gk.DiffPIR(measured, lam=1.0)],
            "TMPD": [gk.TMPD(measured)],
        }
        for method, guides in methods.items():
            samples = gk.sample(base, given.n, guides=guides, seed=given.seed, **options).samples
            residual = float(measured.residual(samples).mean()) / given.noise
            quality = float(-10 * (samples.mean(0) - truth[0]).square().mean().log10())
            print(f"{name:<20}{method:<10} {residual:>16.2f} {quality:>17.1f}")


if __name__ == "__main__":
    main()

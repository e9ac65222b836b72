r"""Samplers for ComfyUI: reward search and steering, where it asks for a SAMPLER. The nodes are in examples/comfyui.

ComfyUI calls sampler.sample(wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar), in
which wrap(x, sigma, **extra_args) returns the clean mean, guided by the prompts, for x = x_0 + sigma z or, of flows,
x = (1 - sigma) x_0 + sigma z. So wrap is the network of a Gaussian model whose time is t = sigma/sigma_0, and a run of
guidekit has the given sigmas as its times.

Every image of a batch has a population, or a search, of its own, and its best sample is returned. No code of ComfyUI is
imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.result import Result
from ..engine.sample import sample
from ..engine.view import Step, View
from ..models import GaussianModel, Model

Run = Callable[..., Result]  # (model, noise, **given) -> the samples of one image, whose best is taken


@dataclass(frozen=True)
class Levels:
    """sigma = most t, with alpha = 1 or, of a flow, 1 - sigma."""

    most: float
    flow: bool

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.most * torch.as_tensor(t)
        return (1 - sigma if self.flow else torch.ones_like(sigma)), sigma


@dataclass(frozen=True)
class Image:
    """One image of a batch, as ComfyUI gives it.

    wrap     (x, sigma, **extra) -> the clean mean
    noise    standard normal, (1, *shape), and latent, from which the run starts, like it
    mask     1 where it is painted and 0 where the latent stays, or None
    """

    wrap: Any
    extra: dict[str, Any]
    sigmas: Tensor
    noise: Tensor
    latent: Tensor
    mask: Tensor | None

    @property
    def law(self) -> Any:
        """What ComfyUI calls model_sampling."""
        return self.wrap.inner_model.model_sampling

    @property
    def levels(self) -> Levels:
        flow = any(kind.__name__ == "CONST" for kind in type(self.law).__mro__)
        return Levels(float(self.sigmas[0]), flow)

    @property
    def times(self) -> list[float]:
        return (self.sigmas.double() / self.sigmas[0].double()).tolist()

    def started(self, noise: Tensor) -> Tensor:
        """The state at the first sigma, where ComfyUI scales noise of the largest sigma by itself."""
        most, first = float(self.law.sigma_max), float(self.sigmas[0])
        return self.law.noise_scaling(self.sigmas[0], noise, self.latent.expand_as(noise), first > most * (1 - 1e-5))

    def denoised(self, x: Tensor, t: Tensor, cond: None) -> Tensor:
        sigma = self.levels(t)[1].to(x)
        if self.mask is None:
            return self.wrap(x, sigma, **self.extra)
        there = self.law.noise_scaling(sigma.view(-1, *[1] * (x.ndim - 1)), self.noise, self.latent)
        out = self.wrap(x * self.mask + there * (1 - self.mask), sigma, **self.extra)
        return out * self.mask + self.latent * (1 - self.mask)

    def finished(self, x: Tensor) -> Tensor:
        return self.law.inverse_noise_scaling(self.sigmas[-1], x)


class Begin(Guide):
    """Starts where ComfyUI starts, from guidekit's noise."""

    def __init__(self, image: Image):
        object.__setattr__(self, "image", image)

    def begin(self, view: View, noise: Tensor) -> Tensor:
        return self.image.started(noise)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Sampler:
    """A SAMPLER of ComfyUI that makes one run of guidekit for every image.

    run         (model, noise, guides=, steps=, seed=, batch_size=, callbacks=) -> Result: see `steered` and `searched`
    vae         a VAE of ComfyUI, by which rewards see images; None shows them latents
    batch_size  rows of one forward of the network, and latents of one decoding; None is all
    """

    run: Run
    vae: Any = None
    batch_size: int | None = None

    def sample(
        self, wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        _check(sigmas, noise, extra_args, denoise_mask)
        latent = torch.zeros_like(noise) if latent_image is None else latent_image
        mask = None if denoise_mask is None else denoise_mask.expand_as(noise)
        seed, found = int(extra_args.get("seed") or 0), []
        for i in range(len(noise)):
            own = slice(i, i + 1)
            image = Image(wrap, extra_args, sigmas, noise[own], latent[own], None if mask is None else mask[own])
            result = self._one(image, seed + i, callback)
            best = result.x[:1] if result.rewards is None else result.best(1).x
            found.append(image.finished(best.to(noise)))
        return torch.cat(found)

    def _one(self, image: Image, seed: int, callback: Any) -> Result:
        model = GaussianModel(
            image.denoised, tuple(image.noise.shape[1:]), image.levels, "clean", decode=self._decoder(image),
            dtype=image.noise.dtype, device=image.noise.device,
        )  # fmt: skip
        total = len(image.times) - 1

        def shown(population: Population, step: Step) -> None:
            callback(step.index - 1, population.seen[:1], population.x[:1], total)

        return self.run(
            model, image.noise, guides=[Begin(image)], steps=image.times, seed=seed, batch_size=self.batch_size,
            callbacks=[] if callback is None else [shown],
        )  # fmt: skip

    def _decoder(self, image: Image) -> Callable[[Tensor], Tensor] | None:
        if self.vae is None:
            return None
        out = image.wrap.inner_model.process_latent_out

        def decode(x: Tensor) -> Tensor:
            parts = [self.vae.decode(out(part)) for part in x.split(self.batch_size or len(x))]
            return torch.cat(parts).movedim(-1, 1).clamp(0, 1)

        return decode


def steered(n: int, guides: list[Guide], solver: Any = None) -> Run:
    """n particles with these guides, of which the first starts from ComfyUI's noise."""

    def run(model: Model, noise: Tensor, **given: Any) -> Result:
        keys = random.fold(random.fold(random.key(given["seed"], noise.device), "comfyui"), torch.arange(1, n))
        others = random.normal(keys, tuple(noise.shape[1:]), noise.dtype)
        whole = torch.cat([noise, others]) if n > 1 else noise
        own = [*given.pop("guides"), *guides]
        return sample(model, n, guides=own, noise=whole, solver=solver, **given)

    return run


def searched(search: Callable[..., Result], reward: Any, solver: Any = None, **options: Any) -> Run:
    """A search of `gk.search` for one sample, over noise of its own."""

    def run(model: Model, noise: Tensor, **given: Any) -> Result:
        del given["callbacks"]  # of a run, of which a search makes many
        return search(model, 1, reward, solver=solver, **given, **options)

    return run


def _check(sigmas: Tensor, noise: Tensor, extra: dict[str, Any], mask: Tensor | None) -> None:
    if len(sigmas) < 2 or float(sigmas[-1]) != 0:
        given = [round(v, 3) for v in sigmas.tolist()]
        raise ValueError(f"guidekit samples to the end, and these sigmas are {given}: the last has to be 0")
    if noise.ndim != 4:
        raise ValueError(f"latents of shape {tuple(noise.shape)}: images are needed, (batch, channels, height, width)")
    if mask is not None and "denoise_mask_function" in extra.get("model_options", {}):
        raise ValueError("Differential Diffusion changes the mask at every step, which guidekit does not: remove it")

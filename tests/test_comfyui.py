"""Samplers and nodes for ComfyUI, in a stub of its protocol around an exact denoiser."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.integrations.comfyui import Sampler, searched, steered

SHAPE = (2, 2, 1)
MEANS, STDS, SHARES = torch.tensor([[-1.0, 0.5, 0.2, -0.3], [1.2, 0.3, -0.8, 0.6]]), (0.4, 0.7), (0.6, 0.4)


def best_guess(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_0 + sigma z] of a mixture of two normal distributions."""
    flat, sigma = x.flatten(1), sigma[:, None]
    logs, guesses = [], []
    for share, m, s in zip(SHARES, MEANS, STDS, strict=True):
        v = s**2 + sigma**2
        logs.append(torch.tensor(share).log() - ((flat - m) ** 2 / v + v.log()).sum(1) / 2)
        guesses.append(m + s**2 / v * (flat - m))
    w = torch.stack(logs).softmax(0)
    return sum(w[k][:, None] * guesses[k] for k in range(2)).view_as(x)  # type: ignore[union-attr]


class EPS:
    sigma_max = torch.tensor(10.0)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * ((1 + sigma**2) ** 0.5 if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class CONST:
    sigma_max = torch.tensor(1.0)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class Wrap:
    """What a sampler gets: `inner_model`, and a call that returns the clean mean of each row at its own sigma."""

    def __init__(self, law: Any):
        self.inner_model, self.model_sampling, self.rows = self, law, 0

    def process_latent_out(self, x: Tensor) -> Tensor:
        return x / 0.5

    def __call__(self, x: Tensor, sigma: Tensor, model_options: dict, seed: int) -> Tensor:
        assert sigma.shape == (len(x),) and seed == 3
        self.rows += len(x)
        if isinstance(self.model_sampling, CONST):
            keep = (1 - sigma).clamp(min=1e-4)
            return best_guess(x / keep[:, None, None, None], sigma / keep)
        return best_guess(x, sigma)


class VAE:
    """Decodes to (rows, height, width, 3), as ComfyUI's do."""

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents[:, :1] + 2) / 4).movedim(1, -1).expand(-1, -1, -1, 3)


EXTRA = {"model_options": {}, "seed": 3}
SIGMAS = {"eps": torch.tensor([10.0, 4.0, 1.5, 0.5, 0.1, 0.0]), "flow": torch.tensor([1.0, 0.8, 0.5, 0.3, 0.1, 0.0])}
LAWS = {"eps": EPS, "flow": CONST}


def normal(key: int, n: int) -> Tensor:
    return gk.random.normal(gk.random.fold(gk.random.key(key), torch.arange(n)), SHAPE, torch.float32)


def first(images: Tensor) -> Tensor:
    """A reward of decoded images that is not the same for all their pixels."""
    assert images.shape[1:] == (3, 2, 1) and float(images.min()) >= 0 and float(images.max()) <= 1
    return images[:, 0, 0, 0] - 0.5 * images[:, 2, 1, 0]


def euler(wrap: Wrap, sigmas: Tensor, x: Tensor) -> Tensor:
    """Euler's method as k-diffusion has it."""
    for a, b in pairwise(sigmas):
        d = (x - wrap(x, a.expand(len(x)), **EXTRA)) / a
        x = x + d * (b - a)
    return x


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("start", [0, 1])
def test_one_particle_without_noise_is_eulers_method_from_comfyuis_noise(kind: str, start: int):
    """Of two images, from the largest sigma or from a latent at a smaller one. DDIM is Euler's method in sigma for
    x_0 + sigma z and for flows."""
    wrap, sigmas, noise, latent = Wrap(LAWS[kind]()), SIGMAS[kind][start:], normal(1, 2), normal(2, 2) * start
    seen = []
    sampler = Sampler(steered(1, [], gk.solvers.DDIM()))
    out = sampler.sample(wrap, sigmas, EXTRA, lambda *given: seen.append(given), noise, latent)
    x = wrap.model_sampling.noise_scaling(sigmas[0], noise, latent, start == 0)
    assert torch.allclose(out, euler(wrap, sigmas, x), atol=1e-5)
    assert [i for i, *_ in seen] == [*range(len(sigmas) - 1)] * 2 and seen[0][3] == len(sigmas) - 1
    assert all(d.shape == (1, *SHAPE) for _, d, _, _ in seen) and torch.equal(seen[-1][2][0], out[1])


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_fk_steering_is_that_of_guidekit_for_each_image_and_sees_decoded_ones(kind: str):
    """The second image of a batch, against gk.sample on the same denoiser with the same noise; ComfyUI samples in
    inference mode."""
    law, sigmas, noise = LAWS[kind](), SIGMAS[kind], normal(1, 2)
    wrap, guide = Wrap(law), gk.FKSteering(first, alpha=0.2, every=2)
    with torch.inference_mode():
        out = Sampler(steered(6, [guide], gk.solvers.DDIM(1.0)), VAE(), 4).sample(wrap, sigmas, EXTRA, None, noise + 0)
    assert wrap.rows == 2 * 6 * (len(sigmas) - 1)
    most = float(sigmas[0])
    levels = gk.schedules.Flow() if kind == "flow" else lambda t: (torch.ones_like(t), most * t)
    model = gk.GaussianModel(
        lambda x, t, c: Wrap(law)(x, most * t, **EXTRA), SHAPE, levels, "clean",
        decode=lambda x: VAE().decode(x / 0.5).movedim(-1, 1).clamp(0, 1),
    )  # fmt: skip
    own = gk.random.fold(gk.random.fold(gk.random.key(4), "comfyui"), torch.arange(1, 6))
    start = torch.cat([noise[1:], gk.random.normal(own, SHAPE, torch.float32)])
    scale = (1 + most**2) ** 0.5 / most if kind == "eps" else 1.0
    times = (sigmas.double() / most).tolist()
    result = gk.sample(model, 6, steps=times, guides=[guide], solver=gk.solvers.DDIM(1.0), seed=4, noise=scale * start)
    assert torch.allclose(out[1], result.best(1).x[0], atol=1e-5)
    assert len({*result.lineage()[0].tolist()}) < 6  # some were resampled


def test_a_search_returns_the_best_of_what_it_tried():
    sampler = Sampler(searched(gk.search.random, first, gk.solvers.DDIM(), rounds=2, candidates=8), VAE())
    out = sampler.sample(Wrap(EPS()), SIGMAS["eps"], EXTRA, None, normal(1, 2))
    images = VAE().decode(out / 0.5).movedim(-1, 1).clamp(0, 1)
    x = EPS().noise_scaling(SIGMAS["eps"][0], normal(9, 400), 0, True)
    usual = first(VAE().decode(euler(Wrap(EPS()), SIGMAS["eps"], x) / 0.5).movedim(-1, 1).clamp(0, 1))
    assert bool((first(images) >= usual.quantile(0.7)).all())  # the best of 16 is below it once in 300


def test_what_a_mask_keeps_is_the_latent_and_the_rest_knows_of_it():
    """Zeros of a mask keep the latent; what is painted comes from the component that the kept part belongs to."""
    mask = torch.tensor([[0.0], [1.0]]).expand(1, 1, 2, 1)
    latent = (MEANS[1] + 0.01).view(1, *SHAPE).repeat(2, 1, 1, 1)
    out = Sampler(steered(4, [gk.FKSteering(first, 1.0)]), VAE()).sample(
        Wrap(EPS()), SIGMAS["eps"], EXTRA, None, normal(1, 2), latent, mask
    )
    assert torch.equal(out[:, :, 0], latent[:, :, 0]) and not torch.allclose(out[:, :, 1], latent[:, :, 1])
    with pytest.raises(ValueError, match="Differential Diffusion changes the mask"):
        Sampler(steered(1, [])).sample(
            Wrap(EPS()), SIGMAS["eps"], {"seed": 3, "model_options": {"denoise_mask_function": len}}, None,
            normal(1, 1), None, mask,
        )  # fmt: skip


def test_runs_that_do_not_end_and_latents_of_films_are_refused():
    sampler = Sampler(steered(1, []))
    with pytest.raises(ValueError, match=r"these sigmas are \[4\.0, 1\.5\]: the last has to be 0"):
        sampler.sample(Wrap(EPS()), SIGMAS["eps"][1:3], EXTRA, None, normal(1, 1))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 2, 5, 2, 1\): images are needed"):
        sampler.sample(Wrap(EPS()), SIGMAS["eps"], EXTRA, None, torch.zeros(1, 2, 5, 2, 1))


@pytest.fixture(scope="module")
def nodes() -> Any:
    """The folder as ComfyUI imports it: as a module of its own, by its path."""
    file = Path(__file__).parent.parent / "examples" / "comfyui" / "__init__.py"
    spec = importlib.util.spec_from_file_location("custom_nodes_guidekit", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def defaults(node: Any) -> dict[str, Any]:
    """What ComfyUI gives a node whose widgets nobody has touched; sockets have no default."""
    found = {}
    for name, (kind, *options) in node.INPUT_TYPES()["required"].items():
        if isinstance(kind, list):
            found[name] = kind[0]
        elif options:
            found[name] = options[0]["default"]
    return found


@pytest.mark.filterwarnings("ignore::guidekit.CollapseWarning")
def test_the_nodes_follow_the_protocol_and_go_together(nodes: Any):
    assert {*nodes.NODE_CLASS_MAPPINGS} == {*nodes.NODE_DISPLAY_NAME_MAPPINGS}
    made = {name: node() for name, node in nodes.NODE_CLASS_MAPPINGS.items()}
    for node in made.values():
        sockets = [kind for kind, *options in node.INPUT_TYPES()["required"].values() if not options]
        assert {kind for kind in sockets if isinstance(kind, str)} <= {"GUIDEKIT_REWARD", "VAE"}
        assert node.CATEGORY == "guidekit" and isinstance(node.RETURN_TYPES, tuple)
        assert callable(getattr(node, node.FUNCTION))
    (reward,) = made["GuidekitReward"].make(**defaults(made["GuidekitReward"]))
    assert reward(torch.full((1, 3, 2, 2), 0.25)).tolist() == [0.25]
    for name in ("GuidekitFKSteering", "GuidekitRewardSearch"):
        (sampler,) = made[name].make(reward=reward, vae=VAE(), **defaults(made[name]))
        out = sampler.sample(Wrap(EPS()), SIGMAS["eps"], EXTRA, None, normal(1, 1))
        assert out.shape == (1, *SHAPE) and bool(out.isfinite().all())
    with pytest.raises(ValueError, match="rewards of images are needed, not QED"):
        made["GuidekitReward"].make("qed")
    with pytest.raises(ValueError, match="rewards of images are needed, not none"):
        made["GuidekitReward"].make(" ")

"""Schedulers whose variance the network says, for each number: their pipeline bit for bit, and exact weights."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import guidekit as gk
from guidekit.integrations.diffusers import step_hook, tiny

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning", "DeprecationWarning")
]


def pipeline(kind: str = "learned_range", **network: Any) -> Any:
    pipe = tiny("ddpm", diffusers.DDPMScheduler(variance_type=kind))
    torch.manual_seed(0)
    config = {k: v for k, v in pipe.unet.config.items() if not k.startswith("_")} | {"out_channels": 6} | network
    pipe.register_modules(unet=type(pipe.unet).from_config(config).eval())
    return pipe


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_the_pipeline_is_reproduced_and_the_variance_matters():
    pipe = pipeline()
    pictures = pipe(batch_size=2, num_inference_steps=5, generator=generator(), output_type="pt").images
    base = gk.from_diffusers(pipe)
    noise = base.noise(2, generator(), steps=5)  # type: ignore[attr-defined]
    assert torch.equal(gk.sample(base, 2, steps=5, noise=noise).samples, pictures)
    assert torch.allclose(gk.sample(base, 2, steps=5, noise=noise, batch_size=1).samples, pictures, atol=1e-5)
    with torch.no_grad():
        pipe.unet.conv_out.bias[3:] += 1.0
    assert (gk.sample(base, 2, steps=5, noise=noise).samples - pictures).abs().max() > 1e-3


def test_guidance_leaves_the_variance_at_the_condition():
    """A loop by hand: u + w (c - u) of the noise, and the variance of c."""
    pipe = pipeline(num_class_embeds=3)
    pipe.scheduler.register_to_config(clip_sample=False)
    net, scheduler = pipe.unet, pipe.scheduler
    base = gk.from_diffusers((net, scheduler), null=0)
    noise = base.noise(2, generator(), steps=4)  # type: ignore[attr-defined]
    ours = gk.sample(base, 2, steps=4, cond=2, noise=noise, guides=[gk.CFG(3.0)]).x
    scheduler.set_timesteps(4)
    x, draws = noise[0], generator()
    torch.randn(2, 3, 16, 16, generator=draws)
    for t in scheduler.timesteps:
        with torch.no_grad():
            out = net(torch.cat([x, x]), t, class_labels=torch.tensor([2, 2, 0, 0])).sample.chunk(2)
        c, u = (v.chunk(2, 1) for v in out)
        guided = torch.cat([u[0] + 3.0 * (c[0] - u[0]), c[1]], 1)
        x = scheduler.step(guided, t, x, generator=draws).prev_sample
    assert (ours - x).abs().max() < 1e-4 * x.abs().max()


@pytest.mark.parametrize("kind", ["learned_range", "learned"])
def test_kernels_have_the_variance_of_the_paper_and_its_density(kind: str):
    """Nichol and Dhariwal's (15): exp(v log beta + (1 - v) log beta~), v = (1 + network)/2. The weights of a proposal
    with another mean have mean one, and bring back the mean of the target."""
    base: Any = gk.from_diffusers(pipeline(kind))
    move, grids, rows = base.moves(4, base.solver)[1], base.process.grids, 40_000
    draws = generator()
    x = torch.randn(1, 3, 1, 1, generator=draws).expand(rows, -1, -1, -1)
    said = torch.tensor([-0.6, 0.1, 0.9]) if kind == "learned_range" else torch.tensor([0.2, 0.5, 0.9])
    spread = said.view(1, 3, 1, 1).expand(rows, -1, -1, -1)
    d = 0.3 * torch.ones(rows, 3, 1, 1)
    p = base.process.kernel(x, (d,), move, spread)
    q = base.process.kernel(x, (d + 0.2,), move, spread)
    stepper, index = grids.place(move)
    t = int(stepper.timesteps[index])
    a_t, a_s = (float(grids.scheduler.alphas_cumprod[k]) for k in (t, int(stepper.timesteps[index + 1])))
    beta = 1 - a_t / a_s
    small = (1 - a_s) / (1 - a_t) * beta
    share = (1 + said.double()) / 2
    variance = beta**share * small ** (1 - share) if kind == "learned_range" else said.double()
    z = torch.randn(rows, 3, 1, 1, generator=draws)
    y = q.push(z)
    assert torch.allclose((y - q.mean).double(), z.double() * variance.sqrt().view(1, 3, 1, 1), atol=1e-5)
    normal = torch.distributions.Normal(p.mean.double(), variance.sqrt().view(1, 3, 1, 1).expand_as(y))
    assert torch.allclose(p.log_prob(y), normal.log_prob(y.double()).flatten(1).sum(1), atol=1e-5)
    w = q.correction(p, y).exp()
    assert abs(w.mean() - 1) < 5 * w.std() / rows**0.5
    brought = w[:, None] * (y - p.mean).double().flatten(1)
    assert (brought.mean(0).abs() < 5 * brought.std(0) / rows**0.5).all()
    assert ((y - p.mean).double().flatten(1).mean(0).abs() > 5 * brought.std(0) / rows**0.5).all()


@dataclass(frozen=True)
class Turned(gk.Guide):
    """The particles in reverse order after the second move."""

    def select(self, population: Any, step: Any) -> Any:
        if step.index != 2:
            return population
        index = torch.arange(step.n).flip(0)[None]
        return population.select(index, population.by_group(population.log_w))


def test_the_variance_follows_its_particle():
    """With particles turned about between two moves, as if the noise of the later ones had been turned about."""
    base = gk.from_diffusers(pipeline())
    noise = base.noise(3, generator(), steps=5)  # type: ignore[attr-defined]
    turned = torch.cat([noise[:3], noise[3:].flip(1)])
    ours = gk.sample(base, 3, steps=5, noise=noise, guides=[Turned()]).x
    assert torch.allclose(ours, gk.sample(base, 3, steps=5, noise=turned).x.flip(0), atol=1e-5)
    assert not torch.allclose(ours, gk.sample(base, 3, steps=5, noise=noise).x, atol=1e-2)


def bright(pictures: Tensor) -> Tensor:
    return pictures.flatten(1).mean(1)


def test_rewards_steer_it():
    base = gk.from_diffusers(pipeline())
    plain = gk.sample(base, 8, steps=6, reward=bright)
    for guide in (gk.SVDD(bright, candidates=4), gk.FKSteering(bright, 1e-3), gk.DPS(bright, 100.0, steer=True)):
        result = gk.sample(base, 8, steps=6, reward=bright, guides=[guide])
        assert result.log_weights.isfinite().all()
        assert isinstance(guide, gk.DPS) or result.rewards.mean() > plain.rewards.mean()  # type: ignore[union-attr]


def narrow() -> Any:
    pipe = tiny("ddpm", diffusers.DDPMScheduler(variance_type="learned_range"))
    return gk.from_diffusers(pipe)


def hooked() -> None:
    with step_hook(pipeline()):
        pass


def kept() -> Any:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:4] = True
    return gk.sample(gk.from_diffusers(pipeline()), 2, steps=3, guides=[gk.Keep(torch.rand(3, 16, 16), mask)])


BAD = {
    "a network that does not say it": (narrow, "a UNet2DModel with twice as many channels out as in"),
    "another family": (
        lambda: gk.from_diffusers(tiny("sd", diffusers.DDPMScheduler(variance_type="learned"))), "fixed_small",
    ),
    "a hook": (hooked, "step_hook takes no learned variance"),
    "a guide of one variance": (kept, r"Keep takes the noise of a move to have one variance.*gk.solvers.DDPM"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_supported_is_said(case: str):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_another_solver_takes_its_own_variance():
    base = gk.from_diffusers(pipeline())
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:4] = True
    kept = [gk.Keep(torch.rand(3, 16, 16), mask)]
    result = gk.sample(base, 2, steps=3, solver=gk.solvers.DDPM(), guides=kept)
    assert result.log_weights.isfinite().all()

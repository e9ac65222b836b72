"""Samplers of deepinv and azula beside those of benchmarks.inverse: their networks, and their draws in gk.coverage.

Both packages sample with a prior that is lent to them: `Denoiser` is a network as deepinv asks for it, and
`azula_denoiser` one as azula does; either calls E[x_0 | x_t] of a model with the cosine schedule, which is `Clean`.

`deepinv_samplers` and `azula_samplers` are those of their samplers that take any linear operator, for measurements
y (rows, m) of vectors, with their own times and defaults, and one network evaluation for each row and step. A guide,
`Drawn`, hands their draws to gk.coverage.

What is left out: deepinv's samplers of Langevin type and azula's RePaint, which is for masks. azula's DPS divides by
the norm over its whole batch, so that a row depends on the others; deepinv's is the same method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from guidekit.measurements import Linear
from guidekit.models import Model

Sampler = Callable[[Tensor, int], Tensor]  # y (rows, m) in groups of n rows to x (rows, d)
RANGE = 8.0  # of the numbers of a vector, as a picture between 0 and 1


class Clean:
    """E[x_0 | x_t] of a model without a condition, for states of any shape, and how many rows it has been asked for."""

    def __init__(self, model: Model):
        self.model, self.rows = model, 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        null, states = self.model.null, x.reshape(len(x), *self.model.shape).to(self.model.dtype)
        self.rows += len(x)
        cond = None if null is None else torch.as_tensor(null).expand(len(x))
        return self.model(states, t, cond).view_as(x).to(x)


class Denoiser(torch.nn.Module):
    """x + sigma z -> E[x] for deepinv, where x = mean + std x_0."""

    def __init__(self, clean: Clean, mean: float, std: float):
        super().__init__()
        self.clean, self.mean, self.std = clean, mean, std

    def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
        level = float(torch.as_tensor(sigma).flatten()[0]) / self.std
        t = min(2 / torch.pi * float(torch.atan(torch.tensor(level))), 0.999)
        alpha = float(torch.cos(torch.tensor(torch.pi * t / 2)))
        return self.clean(alpha * (x - self.mean) / self.std, t) * self.std + self.mean


def azula_denoiser(clean: Clean) -> Any:
    """The model for azula; the time is that at which it sees this ratio of noise to signal."""
    from azula import denoise, noise  # type: ignore[import-not-found]

    class Net(denoise.Denoiser):
        schedule = noise.CosineSchedule()

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            seen = min(float(2 / torch.pi * torch.atan(sigma / alpha)), 0.999)
            return denoise.DiracPosterior(clean(x / (alpha**2 + sigma**2).sqrt(), seen))

    return Net()


def vector_samplers(net: Clean, A: Linear, d: int, noise: float, steps: int, cov: Tensor) -> dict[str, Sampler]:
    """Those of the packages that are installed."""
    found: dict[str, Sampler] = {}
    for package, make in (("deepinv", deepinv_samplers), ("azula", azula_samplers)):
        if find_spec(package) is None:
            print(f"{package} is not installed, and left out")
            continue
        found |= {f"{package} {name}": draw for name, draw in make(net, A, d, noise, steps, cov).items()}
    return found


def deepinv_samplers(clean: Clean, A: Linear, d: int, noise: float, steps: int, _: Tensor) -> dict[str, Sampler]:
    """DDRM, DiffPIR and DPS for vectors that are shown as pictures between 0 and 1, as their defaults ask for; PiGDM
    and MomentMatching for the vectors themselves, whose variance is about 1, as PiGDM asks for."""
    import deepinv

    dinv: Any = deepinv
    matrix = A.A(torch.eye(d).double()).mT.float()
    times, sde = torch.linspace(1, 0, steps + 1), dinv.sampling.VariancePreservingDiffusion
    shift = matrix.sum(1) / 2

    def physics(noise: float) -> Any:
        U, s, Vt = torch.linalg.svd(matrix)
        return dinv.physics.DecomposablePhysics(
            U=lambda v: v @ U.mT, U_adjoint=lambda v: v @ U, V=lambda v: v @ Vt, V_adjoint=lambda v: v @ Vt.mT,
            mask=s.view(1, 1, 1, -1), noise_model=dinv.physics.GaussianNoise(noise),
        )  # fmt: skip

    def of_pictures(make: Callable[[Denoiser], Any]) -> Sampler:
        def draw(y: Tensor, n: int) -> Tensor:
            with torch.no_grad():
                x = make(Denoiser(clean, 0.5, 1 / RANGE))(
                    (y.float() / RANGE + shift)[:, None, None], physics(noise / RANGE)
                )
            return (x[:, 0, 0].to(y) - 0.5) * RANGE

        return draw

    def of_vectors(fidelity: Any) -> Sampler:
        def draw(y: Tensor, n: int) -> Tensor:
            sampler = dinv.sampling.PosteriorDiffusion(
                fidelity, Denoiser(clean, 0.0, 1.0), sde(alpha=1.0), dinv.sampling.DDPMSolver(times),
                minus_one_one=False,
            )  # fmt: skip
            return sampler(y.float()[:, None, None], physics(noise))[:, 0, 0].to(y)

        return draw

    fidelities: Any = dinv.sampling
    return {
        "DDRM": of_pictures(lambda net: dinv.sampling.DDRM(net, sigmas=torch.linspace(1, 0, steps).numpy())),
        "DiffPIR": of_pictures(
            lambda net: dinv.sampling.DiffPIR(net, dinv.optim.data_fidelity.L2(), sigma=noise / RANGE, max_iter=steps)
        ),
        "DPS": of_pictures(lambda net: dinv.sampling.DPS(net, num_steps=steps + 1)),
        "PiGDM": of_vectors(fidelities.PiGDMDataFidelity()),
        "MomentMatching": of_vectors(fidelities.MomentMatchingDataFidelity()),
    }


def azula_samplers(clean: Clean, A: Linear, d: int, noise: float, steps: int, cov: Tensor) -> dict[str, Sampler]:
    """MMPS, TMPD, DiffPIR, JFPS, which is told the covariance of the prior, PGDM and TDS, whose twist is the likelihood
    with the posterior variance of unit data."""
    from azula import guidance, linalg, sample  # type: ignore[import-not-found]

    pinv = torch.linalg.pinv(A.A(torch.eye(d).double()).mT)
    level = linalg.covariance.IsotropicCovariance(noise**2)
    prior = linalg.covariance.FullCovariance(*reversed(torch.linalg.eigh(cov)))
    net = azula_denoiser(clean)

    def ddpm(guided: Callable[[Tensor], Any]) -> Sampler:
        def draw(y: Tensor, n: int) -> Tensor:
            sampler = sample.DDPMSampler(guided(y), steps=steps, silent=True, dtype=y.dtype)
            return sampler(sampler.init((len(y), d), dtype=y.dtype))

        return draw

    def pgdm(y: Tensor, n: int) -> Tensor:
        sampler = guidance.pgdm.PGDMSampler(
            net, y, A.A, lambda v: v @ pinv.mT, eta=1.0, steps=steps, silent=True, dtype=y.dtype
        )
        return sampler(sampler.init((len(y), d), dtype=y.dtype))

    def tds(y: Tensor, n: int) -> Tensor:
        """A population of n particles for each measurement."""
        square = A.A(A.A(torch.eye(d).to(y)).mT)

        def twist(each: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
            def log_p(x: Tensor, ratio: Tensor) -> Tensor:
                S = noise**2 * torch.eye(len(square)).to(y) + ratio**2 / (1 + ratio**2) * square
                return torch.distributions.MultivariateNormal(A.A(x), S).log_prob(each)

            return log_p

        drawn = []
        for each in y[::n]:
            sampler = guidance.tds.TDSSampler(net, twist(each), steps=steps, silent=True, dtype=y.dtype)
            drawn.append(sampler(sampler.init((n, d), dtype=y.dtype)))
        return torch.cat(drawn)

    return {
        "MMPS": ddpm(lambda y: guidance.mmps.MMPSDenoiser(net, y, A.A, level, iterations=3)),
        "TMPD": ddpm(lambda y: guidance.tmpd.TMPDenoiser(net, y, A.A, noise**2)),
        "DiffPIR": ddpm(lambda y: guidance.diffpir.DiffPIRDenoiser(net, y, A.A, noise**2)),
        "JFPS": ddpm(lambda y: guidance.jfps.JFPSDenoiser(net, y, A.A, level, prior, iterations=3)),
        "PGDM": pgdm,
        "TDS": tds,
    }


@dataclass(frozen=True)
class Drawn(gk.Guide):
    """Samples that were drawn elsewhere, (groups, n, d), as those of a run of one step."""

    x: Tensor

    def finish(self, view: gk.View, prediction: Tensor) -> Tensor:
        return self.x[view.group, view.slot].to(prediction)

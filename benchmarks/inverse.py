"""Posterior samplers side by side: against a posterior in closed form, and on pictures of the bundled model of clothes.

    python -m benchmarks.inverse
    python -m benchmarks.inverse --methods DDRM TMPD   # these alone; the other rows are kept

Mixture: three Gaussians in eight dimensions, two operators, and measurements that are simulated. Every method gets
the same network rows, which is 64 samples (or particles) for each measurement at 48 steps, or a third of the steps
where a step takes three rows. Errors are in units of the exact posterior: of the mean, in its standard deviations; of
the covariance, relative in the Frobenius norm; and the sliced Wasserstein distance (of order 2, over 64 directions),
in its standard deviations. "exact draws" is what 64 independent exact samples would have.

Coverage: `gk.coverage` of the deblurring of the mixture, from truths that the mixture itself drew. p is the p-value
of all statistics together; the bias and the central shares are those of log p(y | x), 0, 0.5 and 0.9 if the posterior
is right.

Pictures: test images of Fashion-MNIST, not seen in training, measured with noise 0.05. Residual is the root mean
square of y - A x of single samples over the noise; PSNR is that of the mean of the samples; features is the distance
of single samples to the truth, as LPIPS measures it, in unit features of the classifier that judges; spread is the root
mean square standard deviation of the samples over the root mean square error of their mean, ((n - 1)/(n + 1))^1/2
if they are n draws of the posterior.

Populations: the same of weighted particles, of which 4 draws are taken in three ways. DDRM: beside that of deepinv on
more images, by the PSNR of single images, so that the difference has a standard error. MMPS: TMPD beside azula's MMPS,
the same method, on --more-images with --seeds.

With --peers the samplers of deepinv and of azula, where they are installed, run on the same network and the same
measurements, through the wrappers of benchmarks.inverse_peers; `--parts --peers coverage` runs those of one part alone.
Written to benchmarks/results/inverse.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import guidekit as gk
from guidekit.measurements import Blur, Downsample, Linear, Mask, Matrix
from guidekit.measurements.measurement import problem
from guidekit.search.coverage import Coverage
from guidekit.zoo import card, data
from rewards import ByGroup

from .inverse_peers import Clean, Denoiser, Drawn, azula_denoiser, vector_samplers

OUT = Path(__file__).parent / "results" / "inverse.json"
Methods = dict[str, tuple[Callable[[Any], list[gk.Guide]], int]]  # and rows per step
D = 8


def likelihood(m: Any, covariance: str) -> Any:
    return gk.values.Likelihood(m, covariance, iters=3)


def squares(each: ByGroup) -> ByGroup:
    """-|y - A x|^2, whose normalised gradient is the step of the paper on DPS."""
    return ByGroup([lambda x, m=m: -m.residual(x).square() * count(m) for m in each.rewards])  # type: ignore[misc]


def count(m: Any) -> int:
    where = m.operator.measured
    return m.y.numel() if where is None else int(where.expand(m.y.shape).sum())


METHODS: Methods = {
    "unguided": (lambda m: [], 1),
    "DPS": (lambda m: [gk.DPS(m, 1.0)], 1),
    "DPS, normalised": (lambda m: [gk.DPS(squares(m), 1.0, schedule="constant", normalise=True)], 1),
    "ScoreSDE": (lambda m: [gk.ScoreSDE(m)], 1),
    "DDNM": (lambda m: [gk.DDNM(m)], 1),
    "DDRM": (lambda m: [gk.DDRM(m)], 1),
    "DDS": (lambda m: [gk.DDS(m)], 1),
    "DiffPIR": (lambda m: [gk.DiffPIR(m)], 1),
    "DiffPIR, lam=1": (lambda m: [gk.DiffPIR(m, 1.0)], 1),
    "PiGDM": (lambda m: [gk.PiGDM(m)], 1),
    "TMPD": (lambda m: [gk.TMPD(m)], 1),
    "DAPS": (lambda m: [gk.DAPS(m, inner=3, iters=20)], 3),
    "ReSample": (lambda m: [gk.ReSample(m)], 1),
    "STSL": (lambda m: [gk.STSL(m)], 2),
    "TReg": (lambda m: [gk.TReg(m)], 1),
    "CDDB": (lambda m: [gk.CDDB(m)], 1),
    "FKSteering": (lambda m: [gk.FKSteering(m, 1.0)], 1),
    "TDS": (lambda m: [gk.TDS(m, 1.0)], 1),
    "DAS": (lambda m: [gk.DAS(m, 1.0)], 1),
    "TDS, unit": (lambda m: [gk.TDS(m, 1.0, value=likelihood(m, "unit"))], 1),
    "TDS, tweedie": (lambda m: [gk.TDS(m, 1.0, value=likelihood(m, "tweedie"))], 1),
}

# the mixture -------------------------------------------------------------------------------------------------------


def base() -> gk.analytic.GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means, stds = torch.randn(3, D, generator=g).double(), torch.tensor([0.4, 0.5, 0.6]).double()
    return gk.analytic.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]).double(), means, stds)


def operators() -> dict[str, Linear]:
    blur = sum(torch.diag(torch.full((D - abs(k),), 1 / 3), k) for k in (-1, 0, 1))
    return {"inpainting": Mask(torch.arange(D) % 2 == 0), "deblurring": Matrix(torch.as_tensor(blur).double())}


def posterior(model: gk.analytic.GaussianMixture, A: Linear, y: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of p(x | y)."""
    M = A.A(torch.eye(D).double()).flatten(1).mT
    log_w, means, covs = [], [], []
    for w, m, s in zip(model.weights, model.means, model.stds, strict=True):
        S = s**2 * M @ M.mT + noise**2 * torch.eye(len(M)).double()
        gain = s**2 * M.mT @ torch.linalg.inv(S)
        log_w.append(w.log() + torch.distributions.MultivariateNormal(M @ m, S).log_prob(y))
        means.append(m + gain @ (y - M @ m))
        covs.append(s**2 * torch.eye(D) - s**2 * gain @ M)
    return torch.stack(log_w).softmax(0), torch.stack(means), torch.stack(covs)


def exact_draws(weights: Tensor, means: Tensor, covs: Tensor, n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    k = torch.multinomial(weights, n, replacement=True, generator=g)
    z = torch.randn(n, D, generator=g).double()
    return means[k] + (torch.linalg.cholesky(covs)[k] @ z[..., None])[..., 0]


def errors(law: tuple[Tensor, Tensor, Tensor], x: Tensor, w: Tensor, seed: int) -> Tensor:
    """Of the mean and the covariance, and the sliced Wasserstein distance."""
    weights, means, covs = law
    mean = weights @ means
    cov = (weights[:, None, None] * (covs + (means - mean)[:, :, None] * (means - mean)[:, None])).sum(0)
    size = cov.trace().sqrt()
    own = w @ x
    spread = (x - own).mT @ (w[:, None] * (x - own))
    ways = torch.nn.functional.normalize(torch.randn(64, D, generator=torch.Generator().manual_seed(1)).double())
    level = (torch.arange(256) + 0.5) / 256
    there = (exact_draws(*law, 4096, seed) @ ways.mT).quantile(level.double(), 0)
    here = torch.stack([quantiles(v, w, level) for v in (x @ ways.mT).mT], 1)
    sliced = (here - there).square().mean().sqrt() / size * D**0.5
    return torch.stack([(own - mean).norm() / size, (spread - cov).norm() / cov.norm(), sliced])


def quantiles(v: Tensor, w: Tensor, level: Tensor) -> Tensor:
    """Of weighted numbers."""
    order = v.argsort()
    place = torch.searchsorted(w[order].cumsum(0), level.double()).clamp(max=len(v) - 1)
    return v[order][place]


def mixture(
    methods: Methods, name: str, A: Linear, noise: float, count: int, n: int, steps: int
) -> list[dict[str, Any]]:
    model = base()
    truth = model.exact_sample(count, seed=3)
    m = gk.Measurement(A, A.A(truth[:1])[0] * 0, noise)
    y = m.simulate(truth, 1)
    where = A.measured
    laws = [posterior(model, _kept(A), v if where is None else v[where], noise) for v in y]
    each = ByGroup([m.of(v) for v in y])
    rows = []
    for method, (make, cost) in methods.items():
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gk.CollapseWarning)
            result = gk.sample(model, n, steps=steps // cost, cond=[None] * count, seed=list(range(count)),
                               guides=make(each))  # fmt: skip
        seconds = time.process_time() - start
        x, w = result.x.view(count, n, D), result.weights.view(count, n)
        rows.append(_line(name, method, [errors(*v, i) for i, v in enumerate(zip(laws, x, w, strict=True))], seconds))
        rows[-1]["rows"] = result.cost.network_rows
    drawn = [(exact_draws(*law, n, 100 + i), torch.full((n,), 1 / n).double()) for i, law in enumerate(laws)]
    rows.append(
        _line(name, "exact draws", [errors(law, *v, i) for i, (law, v) in enumerate(zip(laws, drawn, strict=True))])
    )
    return rows


def _kept(A: Linear) -> Linear:
    """Of a mask, the rows that are measured, as a matrix."""
    return A if A.measured is None else Matrix(torch.eye(D).double()[A.measured])


def _line(problem: str, method: str, found: list[Tensor], seconds: float = 0.0) -> dict[str, Any]:
    mean = torch.stack(found).mean(0).tolist()
    return {"problem": problem, "method": method, **dict(zip(("mean", "covariance", "sliced"), mean, strict=True)),
            "seconds": seconds}  # fmt: skip


def covered(methods: Methods, count: int, draws: int, steps: int, noise: float) -> list[dict[str, Any]]:
    """gk.coverage of every method, for the deblurring of the mixture."""
    model, A, rows = base(), operators()["deblurring"], []
    m = gk.Measurement(A, torch.zeros(D), noise)
    truth = model.exact_sample(count, seed=7)
    for method, (make, cost) in methods.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", gk.CollapseWarning)
            found = gk.coverage(model, m, make, count, draws=draws, steps=steps // cost, truth=truth)
        rows.append(_covers(method, found, found.result.cost.network_rows))
    return rows


def covered_peers(count: int, draws: int, steps: int, noise: float) -> list[dict[str, Any]]:
    """The same of the samplers of the packages that are installed: on the same measurements, with as many network
    evaluations, by the same statistics."""
    model, A, rows = base(), operators()["deblurring"], []
    m = gk.Measurement(A, torch.zeros(D), noise)
    truth = model.exact_sample(count, seed=7)
    net, mean = Clean(model), model.weights @ model.means
    apart = model.means - mean
    cov = (model.weights @ model.stds**2) * torch.eye(D) + apart.mT @ (model.weights[:, None] * apart)
    for name, draw in vector_samplers(net, A, D, noise, steps, cov).items():
        before = net.rows

        def drawn(each: Any, draw: Any = draw) -> list[gk.Guide]:
            y = torch.stack([m.y for m in each.rewards]).repeat_interleave(draws, 0)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return [Drawn(draw(y, draws).view(count, draws, D))]

        found = gk.coverage(model, m, drawn, count, draws=draws, steps=1, truth=truth)
        rows.append(_covers(name, found, net.rows - before))
    return rows


def _covers(method: str, found: Coverage, rows: int) -> dict[str, Any]:
    """A row of the table of coverage."""
    first, *_, last = found.table
    line = {"problem": "deblurring", "method": method, "p": found.p, "fit": first["bias"], "half": first["within 50 %"],
            "most": first["within 90 %"], "tarp": last["p"], "rows": rows}  # fmt: skip
    print(_text(line), flush=True)
    return line


# pictures ----------------------------------------------------------------------------------------------------------

NOISE = 0.05


def measured(count: int) -> tuple[Tensor, dict[str, Linear]]:
    """Test images, and operators for them."""
    images, _ = data.fashion("test")
    hole = torch.ones(1, 28, 28, dtype=torch.bool)
    hole[:, :, 14:] = False
    return images[:count], {"blur": Blur(sigma=1.5), "down-sampling": Downsample(4), "inpainting": Mask(hole)}


def pictures(methods: Methods, count: int, n: int, steps: int) -> list[dict[str, Any]]:
    model, rows = gk.zoo.load("fashion"), []
    for name, _, each, truth in simulated(count):
        for method, (make, cost) in methods.items():
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gk.CollapseWarning)
                result = gk.sample(model, n, steps=steps // cost, cond=[None] * count, guides=make(each))
            seconds = time.process_time() - start
            line = {"problem": name, "method": method, **judged(each, truth, result.samples, result.weights, n)}
            rows.append(line | {"rows": result.cost.network_rows, "seconds": seconds})
            print(_text(rows[-1]), flush=True)
    return rows


def simulated(count: int) -> list[tuple[str, Linear, ByGroup, Tensor]]:
    """Name, operator, measurements and truth of every problem."""
    truth, found = measured(count)
    listed = []
    for name, A in found.items():
        m = gk.Measurement(A, A.A(truth[:1])[0] * 0, NOISE)
        listed.append((name, A, ByGroup([m.of(y) for y in m.simulate(truth, 1)]), truth))
    return listed


def peers(count: int, n: int, steps: int) -> list[dict[str, Any]]:
    """The samplers of the packages that are installed."""
    model, rows = gk.zoo.load("fashion"), []
    for package, run in (("deepinv", _deepinv), ("azula", _azula)):
        if find_spec(package) is None:
            print(f"{package} is not installed, and left out")
            continue
        for given in simulated(count):
            rows += run(model, *given, n, steps)
    return rows


def populations(steps: int, count: int = 3) -> list[dict[str, Any]]:
    """Four draws of weighted particles: one population of 4 or 16, or one draw of each of four populations of 4."""
    model, (truth, found) = gk.zoo.load("fashion"), measured(count)
    rows = []
    for name in ("blur", "inpainting"):
        m = gk.Measurement(found[name], found[name].A(truth[:1])[0] * 0, NOISE)
        each = [m.of(y) for y in m.simulate(truth, 1)]
        for method, many, n in (("4 particles", 1, 4), ("16 particles", 1, 16), ("4 times 4, one of each", 4, 4)):
            groups = ByGroup([m for m in each for _ in range(many)])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gk.CollapseWarning)
                result = gk.sample(model, n, steps=steps, cond=[None] * count * many, seed=list(range(count * many)),
                                   guides=[gk.TDS(groups, 1.0, value=likelihood(groups, "unit"))])  # fmt: skip
            samples, weights = result.samples, result.weights
            if many > 1:
                drawn = torch.multinomial(weights.view(-1, n), 1, generator=torch.Generator().manual_seed(0))
                samples = samples.view(-1, n, *samples.shape[1:])[torch.arange(len(drawn)), drawn[:, 0]]
                weights = torch.full((len(drawn),), 1 / many).double()
            line = judged(ByGroup(each), truth, samples, weights, len(samples) // count)
            rows.append({"problem": name, "method": method, **line, "rows": result.cost.network_rows})
            print(_text(rows[-1]), flush=True)
    return rows


def restored(n: int, steps: int, count: int = 12) -> list[dict[str, Any]]:
    """DDRM, with even times and with times even in the noise level, and deepinv's, which has the latter."""
    import deepinv

    model, (truth, found) = gk.zoo.load("fashion"), measured(count)
    rows = []
    for name in ("blur", "inpainting"):
        m = gk.Measurement(found[name], found[name].A(truth[:1])[0] * 0, NOISE)
        each = ByGroup([m.of(y) for y in m.simulate(truth, 1)])
        y = torch.stack([m.y for m in each.rewards]).repeat_interleave(n, 0)  # type: ignore[attr-defined]
        peer = deepinv.sampling.DDRM(pictured(Clean(model)), sigmas=torch.linspace(1, 0, steps).numpy())
        torch.manual_seed(0)
        with torch.no_grad():
            other = _psnr(peer(y, _physics(name, found[name]), seed=0).float().clamp(0, 1), truth, n)
        runs: dict[str, Any] = {"DDRM": steps, "DDRM, even in the noise level": even(steps)}
        for method, times in runs.items():
            result = gk.sample(model, n, steps=times, cond=[None] * count, guides=[gk.DDRM(each)])
            gain = _psnr(result.samples, truth, n) - other
            line = {"problem": name, "method": method, "psnr": float((gain + other).mean()),
                    "gain": float(gain.mean()), "error": float(gain.std() / count**0.5)}  # fmt: skip
            rows.append(line)
            print(_text(line), flush=True)
        rows.append({"problem": name, "method": "deepinv DDRM", "psnr": float(other.mean())})
    return rows


def paired(n: int, steps: int, count: int, seeds: int) -> list[dict[str, Any]]:
    """TMPD and azula's MMPS, which is the same method, on more images, each with the mean over seeds."""
    if find_spec("azula") is None:
        print("azula is not installed, and left out")
        return []
    model, rows = gk.zoo.load("fashion"), []
    for name, A, each, truth in simulated(count):
        found: dict[str, list[Tensor]] = {"TMPD": [], "azula MMPS": []}
        for seed in range(seeds):
            result = gk.sample(model, n, steps=steps, cond=[None] * count, guides=[gk.TMPD(each)], seed=seed)
            other = azula_drawn(Clean(model), A, each, n, steps, "MMPS", seed)
            for method, x in (("TMPD", result.samples), ("azula MMPS", other)):
                far = _far(x, truth, n).mean(1)
                found[method].append(torch.stack([far, _psnr(x, truth, n)]).double())
        mean = {method: torch.stack(each).mean(0) for method, each in found.items()}
        gain = mean["TMPD"] - mean["azula MMPS"]
        error = gain.std(1) / count**0.5
        for method, (far, psnr) in mean.items():
            rows.append({"problem": name, "method": method, "distance": float(far.mean()), "psnr": float(psnr.mean())})
        rows[-2] |= {"farther": float(gain[0].mean()), "width": float(error[0]), "gain": float(gain[1].mean()),
                     "error": float(error[1])}  # fmt: skip
        print(*map(_text, rows[-2:]), sep="\n", flush=True)
    return rows


def even(steps: int) -> list[float]:
    """Times whose noise levels, in units of pictures, are even from 1 to 0; the first is pure noise."""
    levels = torch.linspace(1, 0, steps + 1)[1:] / card("fashion")["std"]
    return [1.0, *(2 / torch.pi * levels.double().atan()).tolist()]


def _psnr(samples: Tensor, truth: Tensor, n: int) -> Tensor:
    """Of the mean of the samples of every image."""
    mean = samples.view(len(truth), n, *truth.shape[1:]).mean(1)
    return -10 * (mean - truth).square().flatten(1).mean(1).log10()


def _far(samples: Tensor, truth: Tensor, n: int) -> Tensor:
    """The distance of every sample to its truth in features."""
    return (seen(samples).view(len(truth), n, -1) - seen(truth)[:, None]).norm(dim=-1)


def judged(each: ByGroup, truth: Tensor, samples: Tensor, weights: Tensor, n: int) -> dict[str, float]:
    """Residual, PSNR and spread of the samples of every image."""
    residual = torch.cat([m.residual(v) for m, v in zip(each.rewards, samples.split(n), strict=True)])  # type: ignore
    x, w = samples.view(len(truth), n, *truth.shape[1:]), weights.view(-1, n, 1, 1, 1).float()
    mean = (w * x).sum(1)
    error = (mean - truth).square().flatten(1).mean(1)
    spread = (w * (x - mean[:, None]).square()).sum(1).flatten(1).mean(1)
    far = _far(samples, truth, n)
    return {
        "residual": float((weights * residual).sum() / len(truth) / NOISE),
        "psnr": float((-10 * error.log10()).mean()),
        "features": float((weights.view(-1, n) * far).sum(1).mean()),
        "spread": float(spread.mean().sqrt() / error.mean().sqrt()),
    }


def seen(images: Tensor) -> Tensor:
    """Features of images by the classifier that judges, of length 1."""
    judge: Any = gk.zoo.network("fashion-judge")
    with torch.no_grad():
        return torch.nn.functional.normalize(judge.features(images.float()), dim=1)


def pictured(net: Clean) -> Denoiser:
    """The bundled network, of images between 0 and 1."""
    own = card("fashion")
    return Denoiser(net, own["mean"], own["std"])


def _deepinv(
    model: gk.Model, name: str, A: Linear, each: ByGroup, truth: Tensor, n: int, steps: int
) -> list[dict[str, Any]]:
    """deepinv's DDRM and DiffPIR, with as many steps."""
    import deepinv

    physics = _physics(name, A)
    y = torch.stack([m.y for m in each.rewards]).repeat_interleave(n, 0)  # type: ignore[attr-defined]
    rows = []
    for method in ("DiffPIR",) if name == "down-sampling" else ("DDRM", "DiffPIR"):  # its DDRM needs singular values
        net = Clean(model)
        if method == "DDRM":
            sampler = deepinv.sampling.DDRM(pictured(net), sigmas=torch.linspace(1, 0, steps).numpy())
        else:
            fidelity = deepinv.optim.data_fidelity.L2()
            sampler = deepinv.sampling.DiffPIR(pictured(net), fidelity, sigma=NOISE, max_iter=steps)
        start = time.process_time()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            samples = sampler(y, physics, seed=0).float()
        seconds, even = time.process_time() - start, torch.full((len(y),), 1 / n).double()
        line = {"problem": name, "method": f"deepinv {method}", **judged(each, truth, samples.clamp(0, 1), even, n)}
        rows.append(line | {"rows": net.rows, "seconds": seconds})
        print(_text(rows[-1]), flush=True)
    return rows


def _azula(
    model: gk.Model, name: str, A: Linear, each: ByGroup, truth: Tensor, n: int, steps: int
) -> list[dict[str, Any]]:
    """azula's MMPS, TMPD and DiffPIR."""
    rows = []
    for method in ("MMPS", "TMPD", "DiffPIR"):
        net, start = Clean(model), time.process_time()
        samples = azula_drawn(net, A, each, n, steps, method, 0)
        seconds, even = time.process_time() - start, torch.full((len(samples),), 1 / n).double()
        line = {"problem": name, "method": f"azula {method}", **judged(each, truth, samples, even, n)}
        rows.append(line | {"rows": net.rows, "seconds": seconds})
        print(_text(rows[-1]), flush=True)
    return rows


def azula_drawn(net: Clean, A: Linear, each: ByGroup, n: int, steps: int, method: str, seed: int) -> Tensor:
    """Samples of a method of azula, in states, with as many steps of its DDPM."""
    from azula import guidance, linalg, sample  # type: ignore[import-not-found]

    model = net.model
    own, size = problem("azula", each, model), model.shape
    y, variance = own.y.repeat_interleave(n, 0).flatten(1), own.noise**2
    apply = lambda x: A.A(x.view(len(x), *size)).flatten(1)  # noqa: E731
    if method == "MMPS":
        cov = linalg.covariance.IsotropicCovariance(variance)
        guided = guidance.mmps.MMPSDenoiser(azula_denoiser(net), y, apply, cov, iterations=3)
    else:
        make = guidance.tmpd.TMPDenoiser if method == "TMPD" else guidance.diffpir.DiffPIRDenoiser
        guided = make(azula_denoiser(net), y, apply, variance)
    sampler = sample.DDPMSampler(guided, steps=steps, silent=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = sampler(sampler.init((len(y), y.new_zeros(size).numel())))
    return model.decode(x.view(len(y), *size).float()).clamp(0, 1)


def _physics(name: str, A: Linear) -> Any:
    """The same operator of deepinv; of block means, as any linear operator."""
    import deepinv

    physics: Any = deepinv.physics

    noise, size = physics.GaussianNoise(NOISE), (1, 28, 28)
    if isinstance(A, Mask):
        return physics.Inpainting(size, mask=A.where.float(), noise_model=noise)
    if isinstance(A, Blur):
        return physics.BlurFFT(size, filter=A.kernel.float()[None, None], noise_model=noise)
    return physics.LinearPhysics(A=lambda x, **_: A.A(x), A_adjoint=lambda y, **_: A.adjoint(y), noise_model=noise)


def _text(line: dict[str, Any]) -> str:
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in line.items())


PEERS = ("coverage", "pictures")
COLUMNS = {
    "mixture": {"mean": "mean", "covariance": "covariance", "sliced": "sliced Wasserstein", "seconds": "seconds"},
    "coverage": {"p": "p", "fit": "bias of the fit", "half": "within 50 %", "most": "within 90 %", "tarp": "p of TARP"},
    "pictures": {"residual": "residual", "psnr": "PSNR", "features": "features", "spread": "spread", "rows": "rows",
                 "seconds": "seconds"},
    "populations": {"residual": "residual", "psnr": "PSNR", "spread": "spread", "rows": "rows"},
    "DDRM": {"psnr": "PSNR", "gain": "more than deepinv's", "error": "standard error"},
    "MMPS": {"distance": "features", "farther": "more than azula's", "width": "standard error", "psnr": "PSNR",
             "gain": "more than azula's", "error": "standard error"},
}  # fmt: skip


def table(found: dict[str, Any], part: str) -> str:
    """The rows of docs/inverse.md: a method in each, with one cell for every problem."""
    problems = list(dict.fromkeys(row["problem"] for row in found[part]))
    methods = list(dict.fromkeys(row["method"] for row in found[part]))
    at = {(row["problem"], row["method"]): row for row in found[part]}

    def cell(row: dict[str, Any] | None, name: str) -> str:
        value = None if row is None else row.get(name)
        fine = dict.fromkeys(("distance", "farther", "width"), ".3f")
        digits = {"psnr": ".1f", "p": ".2g", "tarp": ".2g", "rows": "d", **fine}.get(name, ".2f")
        return "–" if value is None else format(value, digits)

    lines = []
    for method in methods:
        cells = [" / ".join(cell(at.get((p, method)), k) for p in problems) for k in COLUMNS[part]]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    head = f"| {' / '.join(problems)} | {' | '.join(COLUMNS[part].values())} |"
    return "\n".join([head, "|---" * (len(COLUMNS[part]) + 1) + "|", *lines])


def merged(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows, the new ones in the place of those that they make again, methods in their order."""
    rows = {(row["problem"], row["method"]): row for row in [*known, *new]}
    problems, place = list(dict.fromkeys(problem for problem, _ in rows)), {name: i for i, name in enumerate(METHODS)}
    return sorted(rows.values(), key=lambda row: (problems.index(row["problem"]), place.get(row["method"], len(place))))


def run(part: str, methods: Methods, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one part."""
    if part == "coverage":
        return covered(methods, args.simulations, args.n, args.steps, args.noise)
    if part == "pictures":
        return pictures(methods, args.images, args.samples, args.image_steps)
    if part == "populations":
        return populations(args.image_steps)
    if part == "DDRM":
        return restored(args.samples, args.image_steps)
    if part == "MMPS":
        return paired(args.samples, args.image_steps, args.more_images, args.seeds)
    rows = []
    for name, A in operators().items():
        rows += mixture(methods, name, A, args.noise, args.measurements, args.n, args.steps)
    print(*map(_text, rows), sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measurements", type=int, default=20)
    parser.add_argument("--noise", type=float, default=0.3)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--simulations", type=int, default=100, help="measurements of the test of coverage")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--more-images", type=int, default=12, help="of the part MMPS")
    parser.add_argument("--seeds", type=int, default=4, help="of the part MMPS")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--image-steps", type=int, default=24)
    parser.add_argument("--parts", nargs="*", choices=list(COLUMNS), default=list(COLUMNS), help="the others are kept")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=(), help="their samplers in these parts, or in all"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="print the tables of docs/inverse.md, and run nothing")
    args = parser.parse_args()
    args.peers = PEERS if args.peers == [] else args.peers
    if args.table:
        known = json.loads(args.out.read_text())
        print(*(table(known, part) for part in COLUMNS), sep="\n\n")
        return
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        new = run(part, {name: METHODS[name] for name in args.methods}, args)
        found[part] = merged(found.get(part, []), new)
    for part in args.peers:
        new = (
            peers(args.images, args.samples, args.image_steps)
            if part == "pictures"
            else covered_peers(args.simulations, args.n, args.steps, args.noise)
        )
        found[part] = merged(found.get(part, []), new)
    found["settings"] = {k: v for k, v in vars(args).items() if k not in ("out", "peers", "table", "parts", "methods")}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

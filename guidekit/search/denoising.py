r"""Whether the predictions of a model are those of its process: the denoising test, and coverage, on given data.

For x_0 from the data and x_t its noised version, the prediction of a model that is right is the best guess of x_0.
What is *affine* in it and in x_t can then be no better. So with d = E[x_0 | x_t] as the model says it, and the best
a, b, c in d' = a d + b x_t + c, fitted on the other half of the data,

    excess = E|x_0 - d|^2/E|x_0 - d'|^2 - 1

is 0 but for noise. All that is commonly wrong is affine at a given t: the parameterisation (noise told as velocity), a
sign, a scale of the data, a schedule. Of tokens the rivals of p(x_0^i | x_t) are p to the power of 1/2, 4/5, 5/4 and 2,
normalised, and the frequencies of the data together with the noise, p(v) q(x_t^i | v), by the log-loss: a vocabulary in
another order, and a wrong time, lose to them.

Coverage: x_0 is one more draw from p(x_0 | x_t), so its ranks among the model's own draws from there are uniform
(`guidekit.search.coverage`), along random directions (SBC) and by the distance from another of the data (TARP). Samples
of the model itself may stand for the data: then the test is whether its chain undoes its own noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from .. import random
from ..engine.guide import Guide
from ..engine.sample import sample
from ..engine.view import View
from ..models.base import Model
from ..process import LOG_ZERO, Gaussian, Masked, Uniform
from .coverage import Coverage, ranked
from .laws import FAILS, OPEN, Finding, Probe, finding

PARTS = (0.2, 0.4, 0.6, 0.8)  # of the longest time, at which the predictions are tested
EXCESS = 0.1  # of the squared error or of the log-loss: what a network that has learned less than all may lose
LEAST = 1e-3  # the p-value below which coverage fails


def schedule(probe: Probe) -> Finding:
    """Predictions against their rivals, at four times."""
    loss = _loss(probe.model)
    if not probe.given or loss is None:
        return Finding("schedule", OPEN, "no data=... was given" if loss else "of Gaussian and token models only")
    half = torch.arange(len(probe.clean), device=probe.clean.device) % 2 == 0
    worst, where = -1.0, 0.0
    for t in probe.times(PARTS):
        x = probe.noised(t)
        own, rivals = loss(probe, probe.model(x, t, probe.cond), x, t, half)
        if not bool(own.isfinite().all()):
            return Finding("schedule", FAILS, f"the loss at t={t:.3g} is not finite")
        for rival in rivals:
            worst, where = max((worst, where), (_excess(own, rival), t))
    found = f"at t={where:.3g} a rival made of the same prediction is better by {100 * max(worst, 0):.0f} %"
    return finding("schedule", worst <= EXCESS, found if worst > EXCESS else f"{found}, of {100 * EXCESS:.0f} allowed")


def _excess(own: Tensor, rival: Tensor) -> float:
    """How much worse the model is than a rival, less three standard errors, by the loss of the rival."""
    gain = own - rival
    error = gain.std() / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float((gain.mean() - 3 * error) / rival.mean().clamp(min=1e-12))


def _loss(model: Model) -> Callable[..., tuple[Tensor, list[Tensor]]] | None:
    if isinstance(model.process, Gaussian):
        return _squares
    return _logs if isinstance(model.process, Masked | Uniform) else None


def _squares(probe: Probe, d: Tensor, x: Tensor, t: float, half: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Mean squared errors of every row, of the prediction and of what is affine in it and in x_t."""
    target, d, x = (v.double().flatten(1) for v in (probe.clean, d, x))
    features = torch.stack([d, x, torch.ones_like(d)], -1)
    best = torch.empty_like(d)
    for own in (half, ~half):
        fitted = torch.linalg.lstsq(features[~own].flatten(0, 1), target[~own].reshape(-1, 1), driver="gelsd").solution
        best[own] = (features[own] @ fitted)[..., 0]
    return (target - d).square().mean(1), [(target - best).square().mean(1)]


def _logs(probe: Probe, log_p: Tensor, x: Tensor, t: float, half: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Log-losses of every row, of the prediction and of its rivals, at the positions that the model has to say."""
    process, log_p = cast(Masked | Uniform, probe.model.process), log_p.double()
    asked = _asked(process, x)
    kept = asked.any(1)
    target, asked, half = probe.clean[kept], asked[kept], half[kept]
    log_p, x = log_p[kept], x[kept]

    def loss(log_q: Tensor) -> Tensor:
        said = log_q.log_softmax(-1).clamp(min=LOG_ZERO).gather(-1, target[..., None])[..., 0]
        return -(said * asked).sum(1) / asked.sum(1)

    rivals = [loss(power * log_p) for power in (0.5, 0.8, 1.25, 2.0)]
    return loss(log_p), [*rivals, loss(_frequencies(process, target, asked, half, x, t))]


def _asked(process: Masked | Uniform, x: Tensor) -> Tensor:
    """Positions of which the prediction is tested: all, those that are masked, or the first of these where tokens are
    drawn from the left."""
    if isinstance(process, Uniform):
        return torch.ones_like(x, dtype=torch.bool)
    masked = (x == process.V) & ~process.decided(x)[:, None]
    return masked & (masked.cumsum(1) == 1) if process.places else masked


def _frequencies(process: Masked | Uniform, target: Tensor, asked: Tensor, half: Tensor, x: Tensor, t: float) -> Tensor:
    """log of p(v) q(x_t^i | v), with the frequencies of tokens in the other half of the data."""
    log_q = torch.zeros(*x.shape, process.V, dtype=torch.float64, device=x.device)
    if isinstance(process, Uniform):
        log_q += t / process.V
        log_q = log_q.scatter_add(-1, x[..., None], torch.full_like(log_q[..., :1], 1 - t)).log()
    for own in (half, ~half):
        counts = target[~own][asked[~own]].bincount(minlength=process.V).double()[: process.V] + 0.5
        log_q[own] += (counts / counts.sum()).log()
    return log_q


class Begin(Guide):
    """Begins every group at a state of its own."""

    def __init__(self, x: Tensor):
        object.__setattr__(self, "x", x)

    def begin(self, view: View, noise: Tensor) -> Tensor:
        return self.x[view.group].clone()  # type: ignore[attr-defined]


def coverage(probe: Probe) -> Finding:
    """Ranks of the data among the model's draws from p(x_0 | x_t) half-way."""
    if not probe.draws:
        return Finding("coverage", OPEN, "draws=..., the number of draws for each of the data, is needed")
    n, draws, model = len(probe.clean), probe.draws, probe.model
    t = probe.times([0.5])[0]
    times = [t * (1 - i / probe.steps) for i in range(probe.steps)] + [0.0]
    conds = [probe.conds[i % len(probe.conds)] if probe.conds else None for i in range(n)]
    found = sample(model, draws, steps=times, cond=conds, guides=[Begin(probe.noised(t))],
                   seed=[probe.seed + 1 + i for i in range(n)])  # fmt: skip
    weights = torch.full((n, draws), 1 / draws, dtype=torch.float64)
    keys = random.fold(random.fold(random.key(probe.seed), "ranks"), torch.arange(n))
    values = {name: (f(probe.clean), f(found.x)) for name, f in _statistics(model, probe.seed).items()}
    other = probe.clean.roll(1, 0)  # which knows nothing of the row
    values["TARP"] = _apart(probe.clean, other), _apart(found.x, other.repeat_interleave(draws, 0))
    ranks = {
        name: ranked(a.cpu(), b.view(n, draws).cpu(), weights, random.uniform(random.fold(keys, name)))
        for name, (a, b) in values.items()
    }
    p, what = Coverage(ranks, found).p, "the data" if probe.given else f"{n} simulated samples"
    return finding("coverage", p >= LEAST, f"ranks of {what} among {draws} draws from half-way: p = {p:.2g}")


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """Distances of rows: of tokens, at how many places they differ."""
    return (a - b if a.is_floating_point() else a != b).double().flatten(1).norm(dim=1)


def _statistics(model: Model, seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions of states: along random directions, or the sum of random numbers of each token at each position."""
    wide = () if isinstance(model.process, Gaussian) else (getattr(model, "vocab_size", 2) + 1,)
    keys = random.fold(random.key(seed, model.device), torch.arange(4))
    ways = random.normal(random.fold(keys, "statistics"), (*model.shape, *wide), torch.float64)
    if not wide:
        return {f"direction {i + 1}": lambda x, w=w: x.double().flatten(1) @ w.flatten() for i, w in enumerate(ways)}
    return {f"tokens {i + 1}": lambda x, w=w: w[torch.arange(x.shape[1]), x].sum(1) for i, w in enumerate(ways)}

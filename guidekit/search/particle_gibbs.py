r"""Particle Gibbs over whole runs: PG-DDM (Dang et al., 2025), https://arxiv.org/abs/2507.08390, after Andrieu, Doucet
and Holenstein (2010), https://doi.org/10.1111/j.1467-9868.2009.00736.x.

A chain keeps one path x_T, ..., x_0 of the sampler. A sweep is conditional SMC: a run of N particles of which the first
is the kept path, which no resampling removes, while the others are as in any run,

    place 1 descends from place 1;   the others from place i with probability W_i, independently;

and then one path of the N is drawn by the final weights and kept. For any N >= 2 and any look-ahead the law

    p(x_T, ..., x_0) exp(r(x_0)/alpha)/Z

of paths stays as it is, and every chain tends to it as it makes sweeps, without weights; N decides how fast. What it
adds to a single run of N particles is that the bias of few particles goes away.

A path is kept as the noise that makes it: the sampler is a function of its noise, and each particle has that of its own
place at each move, so that the noise of a path is read off its lineage. Hence every process, and all guides that weigh
or bend, can take part; guides that branch or that change the number of particles cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.checks import bound
from ..engine.cost import Cost
from ..engine.result import Result, Trace
from ..engine.run import Run
from ..engine.sample import sample
from ..errors import CollapseWarning, is_count
from ..guides import Guide
from ..models import Model
from ..values import Rollout


def particle_gibbs(
    model: Model,
    n: int,
    guides: Iterable[Guide],
    *,
    particles: int = 16,
    sweeps: int = 10,
    steps: int | Sequence[float] = 50,
    cond: Any = None,
    seed: int = 0,
    **options: Any,
) -> Result:
    """n chains for every condition, each of which ends in a sample of the tilted distribution, without weights.

    guides      that weigh, like [gk.FKSteering(reward, 0.5)]; they resample multinomially here, keeping the first place
    particles   N of each sweep and chain
    sweeps      the first of which starts from a path of the model
    options     reward, solver, batch_size and holdout, as in `gk.sample`

    The trace has one row for each sweep, with the share of chains whose sample is another one than before (`changed`),
    and of those that have another start (`renewed`).

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> steering = gk.FKSteering(lambda x: x[:, 0], alpha=0.5)
    >>> found = particle_gibbs(base, 8, [steering], particles=8, sweeps=3, steps=5)
    >>> found.x.shape, bool(found.x.mean() > 2)
    (torch.Size([8, 1]), True)
    """
    for name, value, least in (("n", n, 1), ("particles", particles, 2), ("sweeps", sweeps, 1)):
        if not is_count(value, least):
            raise ValueError(f"{name}={value!r}: an int of at least {least}")
    conditions = cond if isinstance(cond, list) else [cond]
    groups = [g for g in range(len(conditions)) for _ in range(n)]
    own = [_conditional(guide).regrouped(model, groups, len(conditions)) for guide in bound(guides, model)]
    given = {"steps": steps, "guides": own, "cond": [conditions[g] for g in groups], **options}
    keys = random.fold(random.fold(random.key(seed), "particle gibbs"), torch.arange(sweeps)[:, None])
    seeds = random.fold(keys, torch.arange(len(groups)))
    found, kept, chosen = None, None, torch.zeros(len(groups), dtype=torch.long)
    rows, cost = [], Cost()
    for number in range(sweeps):
        run = Run(model, particles, seed=seeds[number].tolist(), **given)
        noise = run.chain_noise()
        if kept is not None:
            noise[:, ::particles] = kept
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)  # a sweep of few particles is what is wanted
            found = sample(model, particles, seed=seeds[number].tolist(), noise=noise, **given)
        cost, chosen = cost + found.cost, _drawn(found, seeds[number])
        kept = _path(found, noise, chosen)
        rows.append(_row(found, chosen, number))
    assert found is not None
    return _result(found, chosen, Trace(rows), cost, len(conditions), n)


def first_stays(weights: Tensor, n: int, key: Tensor) -> Tensor:
    """Multinomial resampling in which the first place keeps its own particle."""
    edges = weights.cumsum(-1)
    u = random.uniform(key, (n,)) * edges[..., -1:]
    drawn = torch.searchsorted(edges.contiguous(), u.contiguous(), right=True).clamp_(max=weights.shape[-1] - 1)
    return torch.cat([torch.zeros_like(drawn[..., :1]), drawn[..., 1:]], -1)


def _conditional(guide: Guide) -> Guide:
    """The guide with a resampling that keeps the first place, or an error where its particles do not live in their
    places, or move by what the others do or by new random numbers."""
    resamples = hasattr(guide, "resampler")
    selects = guide.has("plan") or guide.has("begin") or guide.has("noise") or (guide.has("select") and not resamples)
    if selects or (guide.has("weigh") and guide.tilts) or isinstance(getattr(guide, "value", None), Rollout):
        raise ValueError(
            f"guides holds {guide!r}, by which a path is no function of its own noise: particle Gibbs takes guides "
            "that weigh and resample, like FKSteering, TDS or TaylorSMC, whose values draw nothing"
        )
    return guide.having(resampler=first_stays) if resamples else guide


def _drawn(found: Result, keys: Tensor) -> Tensor:
    """The place of the particle that each chain keeps, by the weights."""
    log_w = found.log_weights.view(found.groups, -1)
    return (log_w + random.gumbel(random.fold(keys.to(log_w.device), "kept"), log_w.shape[1:])).argmax(1)


def _path(found: Result, noise: Tensor, chosen: Tensor) -> Tensor:
    """The noise of the chosen particles' paths, (moves + 1, chains, ...): that of the start at the place where each
    began, and that of every move at the place from which it was made."""
    size = len(found) // found.groups
    rows = chosen + torch.arange(found.groups, device=chosen.device) * size
    lineage = found.lineage()[:, rows]
    places = torch.cat([lineage[:1], lineage[:-1]])
    return torch.stack([own[place] for own, place in zip(noise, places, strict=True)])


def _row(found: Result, chosen: Tensor, number: int) -> dict[str, Any]:
    """What a sweep leaves in the trace."""
    size, groups = len(found) // found.groups, torch.arange(found.groups, device=chosen.device)
    started = found.lineage()[0].view(found.groups, size).gather(1, chosen[:, None])[:, 0] - groups * size
    states = found.x.view(found.groups, size, -1)
    same = (states[groups, chosen] == states[:, 0]).all(1)
    rewards = None if found.rewards is None else found.rewards.view(found.groups, size).gather(1, chosen[:, None])
    return {
        "sweep": number,
        "ess": float(found.ess.mean()),
        "changed": float((~same).double().mean()),
        "renewed": float((started != 0).double().mean()),
        "mean_reward": float("nan") if rewards is None else float(rewards.nanmean()),
    }


def _result(found: Result, chosen: Tensor, trace: Trace, cost: Cost, groups: int, n: int) -> Result:
    """The kept samples, n for each condition, with equal weights."""
    one = found.select(chosen[:, None])
    row = torch.arange(groups * n, device=chosen.device)
    return replace(
        one,
        group=row // n,
        row=row,
        log_weights=torch.zeros(groups * n, dtype=torch.float64, device=chosen.device),
        ancestors=row.new_empty(0, groups * n),
        trace=trace,
        cost=cost,
        noise=None,
        memos=(),
        config=found.config | {"search": "particle_gibbs", "particles": found.config["n"], "n": n},
    )

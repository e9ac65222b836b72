r"""Resampling: from normalised weights W of M particles to the places of N survivors, for all groups at once.

Every scheme is unbiased, E[offspring_i] = N W_i, and works on (groups, M) weights on their device without a host
synchronisation; u are uniform numbers from the run's addresses.

    multinomial   N independent draws
    stratified    one draw in each [i/N, (i+1)/N)
    systematic    the same draw in each; offspring is floor(N W_i) or ceil(N W_i)
    residual      floor(N W_i) copies, the rest multinomial (Liu and Chen, 1998)
    ssp           Srinivasan's pivotal rounding of N W_i: floor or ceil, negatively associated
                  (Gerber, Chopin and Whiteley, 2019). Pairs are settled as in a knock-out tournament, so that log2 M
                  rounds of tensor arithmetic do it.

References: Douc, Cappe and Moulines (2005), https://arxiv.org/abs/cs/0507025; https://arxiv.org/abs/1708.04221 (SSP).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import random
from .population import Population, log_mean_exp
from .view import Step

Resampler = Callable[[Tensor, int, Tensor], Tensor]


def multinomial(weights: Tensor, n: int, key: Tensor) -> Tensor:
    return _invert(weights, random.uniform(key, (n,)).sort(-1).values)


def stratified(weights: Tensor, n: int, key: Tensor) -> Tensor:
    return _invert(weights, (torch.arange(n, device=weights.device) + random.uniform(key, (n,))) / n)


def systematic(weights: Tensor, n: int, key: Tensor) -> Tensor:
    return _invert(weights, (torch.arange(n, device=weights.device) + random.uniform(key, (1,))) / n)


def residual(weights: Tensor, n: int, key: Tensor) -> Tensor:
    copies = _floor(n * weights)
    settled = copies.sum(-1, keepdim=True)
    rest = _invert((n * weights - copies).clamp(min=0), random.uniform(key, (n,)))  # unsorted: a part of it is used
    place = torch.arange(n, device=weights.device).expand_as(rest)
    return torch.where(place < settled, _repeat(copies, n), rest).sort(-1).values


def ssp(weights: Tensor, n: int, key: Tensor) -> Tensor:
    copies = _floor(n * weights)
    return _repeat(copies + _pivot((n * weights - copies).clamp(0, 1), key), n)


RESAMPLERS: dict[str, Resampler] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}


def get(name: str | Resampler) -> Resampler:
    """A resampler by name; a function (weights (groups, M), n, key (groups,)) -> (groups, n) is one already."""
    if callable(name):
        return name
    if name not in RESAMPLERS:
        raise ValueError(f"resampler={name!r}: there is {', '.join(RESAMPLERS)}, or a function (weights, n, key)")
    return RESAMPLERS[name]


def _floor(v: Tensor) -> Tensor:
    """Integer part, forgiving the rounding of N W_i just below an integer."""
    return (v + 1e-9).floor()


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """The places at which the cumulative weights pass u in (0, 1); a place of weight zero is never met."""
    total = weights.cumsum(-1)
    edges = torch.where(total[..., -1:] > 0, total / total[..., -1:], _even(total))
    return torch.searchsorted(edges.contiguous(), u.contiguous(), right=True).clamp_(max=weights.shape[-1] - 1)


def _even(total: Tensor) -> Tensor:
    """Cumulative weights of a group without any (all dead, or nothing left to draw): equal ones."""
    m = total.shape[-1]
    return (torch.arange(1, m + 1, device=total.device, dtype=total.dtype) / m).expand_as(total)


def _repeat(copies: Tensor, n: int) -> Tensor:
    """Place i repeated copies_i times."""
    place = torch.arange(n, device=copies.device, dtype=copies.dtype).expand(*copies.shape[:-1], n)
    found = torch.searchsorted(copies.cumsum(-1).contiguous(), place.contiguous(), right=True)
    return found.clamp_(max=copies.shape[-1] - 1)


def _pivot(p: Tensor, key: Tensor) -> Tensor:
    """Round fractions p with an integer sum to 0 and 1, keeping their means (p is the chance of a 1).

    A pair (p, q) with p + q < 1 becomes (p + q, 0) with probability p/(p + q), else (0, p + q); with p + q >= 1 it
    becomes (1, p + q - 1) with probability (1 - q)/(2 - p - q), else (p + q - 1, 1). The entry that is still a
    fraction goes on to the next round.
    """
    m = p.shape[-1]
    won = torch.zeros_like(p)
    place = torch.arange(m, device=p.device).expand_as(p)
    level = 0
    while p.shape[-1] > 1:
        if p.shape[-1] % 2:
            p, place = torch.nn.functional.pad(p, (0, 1)), torch.nn.functional.pad(place, (0, 1))
        (a, b), (i, j) = p.unflatten(-1, (-1, 2)).unbind(-1), place.unflatten(-1, (-1, 2)).unbind(-1)
        total, full = a + b, a + b >= 1
        chance = torch.where(full, (1 - b) / (2 - total).clamp(min=1e-300), a / total.clamp(min=1e-300))
        first = random.uniform(random.fold(key, level), (a.shape[-1],)) < chance
        one = torch.where(first, i, j)  # if full, this one is settled at 1 and the other goes on
        other = torch.where(first, j, i)
        won = won.scatter_add(-1, torch.where(full, one, 0), full.to(won))
        p, place = torch.where(full, total - 1, total), torch.where(full, other, one)
        level += 1
    return won.scatter_add(-1, place, p.round())


def check_resampling(ess: float, resampler: str | Resampler) -> None:
    if not 0 <= ess <= 1:
        raise ValueError(f"ess={ess}: the threshold is a share of the population, in [0, 1]")
    get(resampler)


def resample(
    population: Population, step: Step, ess: float, resampler: str | Resampler, masses: Tensor | None = None
) -> Population:
    """Resample the groups that need it; all of them where they meet children that are to be thinned to step.n.

    By their weights; or by normalised log-masses m (groups, M), and then with the weights w/(M m)."""
    log_w = population.by_group(population.log_w)
    size = log_w.shape[1]
    if ess == 0 and size == step.n:
        return population
    needed = (
        population.ess < ess * size * (1 - 1e-9) if size == step.n else torch.ones_like(log_w[:, 0], dtype=torch.bool)
    )
    if needed.device.type == "cpu" and not needed.any():
        return population
    drawn = get(resampler)((log_w if masses is None else masses).softmax(-1), step.n, step.key)
    mean = log_mean_exp(log_w)[:, None]
    after = mean.expand_as(drawn) if masses is None else (log_w - masses - math.log(size)).gather(1, drawn)
    if size != step.n:
        return population.select(drawn, after)
    needed = needed[:, None]
    index = torch.where(needed, drawn, torch.arange(size, device=drawn.device))
    return population.select(index, torch.where(needed, after, log_w))

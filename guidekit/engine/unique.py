r"""Populations without copies, whose weights stay right.

Copies of one sample are merged into one particle with the sum of their weights W, so that every weighted mean stays as
it is. For the places that become free the run is made again with other noise; by `gk.join` the particles of all runs
estimate the same distribution, and so on until a group has n distinct samples. Of D > n, n remain (Fearnhead and
Clifford, 2003, https://doi.org/10.1111/1467-9868.00421), with c such that sum_i min(W_i/c, 1) = n:

    W_i >= c    remains with its weight;        W_i < c    remains with probability W_i/c, and then has the weight c.

The draw is systematic, so none is drawn twice. It is unbiased, E[W'_i] = W_i, and no other one without copies has less
variance. The number of runs R depends on the samples. By Wald's identity E[sum_(r <= R) Z_r E_r[f]] = E[R] Z E[f], so
weighted means are ratios of sums whose expectations have the right ratio, as those of one run are. log Z is consistent,
and of finite n it has a bias where R > 1. Samples of greedy methods have no more meaning in their weights than before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from .. import random
from .join import join, pooled_error
from .population import log_mean_exp
from .resampling import systematic
from .result import Result, Trace

_STALE = 3, 64  # runs, and particles, without a new sample that end the search for more
_MOST = 32, 1024  # of all


def distinct(first: Result, further: Callable[[int], Result], keys: Tensor) -> Result:
    """The result with n distinct samples in every group, or with as many as were found. `further(r)` makes run number
    r = 1, 2, ...; `keys` are those of the groups."""
    n, runs = len(first) // first.groups, [first]
    merged = [_Merged(n) for _ in range(first.groups)]
    _take(merged, first)
    while any(not group.done for group in merged):
        runs.append(further(len(runs)))
        _take(merged, runs[-1])
    if all(group.runs == 1 and len(group.places) == n for group in merged):
        return first
    whole = join(runs) if len(runs) > 1 else first
    log_w = torch.stack([group.weights(w) for group, w in zip(merged, _by_group(whole), strict=True)])
    size = min(n, *(len(group.places) for group in merged))
    if size < n:
        warnings.warn(
            f"{size} distinct samples instead of {n} were found in {max(g.runs for g in merged)} runs: the reward "
            "leaves no more, or the model has no more. Take a larger alpha, or a smaller n",
            stacklevel=4,
        )
    log_z = torch.stack([log_mean_exp(w[: g.runs * n]) for g, w in zip(merged, _by_group(whole), strict=True)])
    order, log_kept = thinned(log_w, size, random.fold(keys, "unique"))
    error = [float(pooled_error(runs[: group.runs])[g]) for g, group in enumerate(merged)]
    return replace(
        whole.select(order),
        log_weights=(log_kept + log_z[:, None] + torch.tensor(float(size)).log()).flatten(),
        trace=Trace([*whole.trace[:-1], whole.trace[-1] | {"log_z_error": error}]),
        config=first.config | {"unique": {"runs": [group.runs for group in merged], "samples": size}},
    )


class _Merged:
    """The distinct samples of a group: the place of the first copy by name, and of every particle's first copy."""

    def __init__(self, n: int):
        self.n, self.runs, self.stale = n, 0, 0
        self.places: dict[Hashable, int] = {}
        self.of: list[int] = []

    @property
    def done(self) -> bool:
        ended = (k >= runs and k * self.n >= particles for k, (runs, particles) in self._spent())
        return len(self.places) >= self.n or any(ended)

    def _spent(self) -> list[tuple[int, tuple[int, int]]]:
        return [(self.stale, _STALE), (self.runs, _MOST)]

    def take(self, names: list[Hashable], weightless: list[bool]) -> None:
        """Another run's samples; those of weight zero are nobody's copies."""
        if self.runs and self.done:
            return
        before, start = len(self.places), len(self.of)
        for i, (name, nothing) in enumerate(zip(names, weightless, strict=True), start):
            self.of.append(i if nothing else self.places.setdefault(name, i))
        self.runs += 1
        self.stale = self.stale + 1 if len(self.places) == before else 0

    def weights(self, log_w: Tensor) -> Tensor:
        """Normalised log-weights of all particles, each sum at the place of the first copy, -inf elsewhere."""
        of = torch.tensor(self.of, device=log_w.device)
        share = log_w[: len(of)].softmax(0)
        return torch.zeros_like(log_w).index_add(0, of, share).log()


def _take(merged: list[_Merged], run: Result) -> None:
    """Give every group its samples of a run."""
    text = isinstance(run.samples, list) and all(isinstance(s, str) for s in run.samples)
    states = run.x.flatten(1).cpu()
    rows = states.double() if states.is_floating_point() else states
    names = run.samples if text else [row.numpy().tobytes() for row in rows]
    for g, group in enumerate(merged):
        mine = (run.group == g).nonzero()[:, 0].tolist()
        weightless = (run.log_weights[run.group == g] == -torch.inf).tolist()
        group.take([names[i] for i in mine], weightless)


def _by_group(result: Result) -> Tensor:
    return result.log_weights.view(result.groups, -1)


def thinned(log_w: Tensor, n: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    """n different places of each group, and their log-weights: see the module. log_w (groups, M) are normalised, and at
    least n of them finite."""
    sorted_w, place = log_w.exp().sort(dim=1, descending=True)
    log_c = _threshold(sorted_w, n)
    share = (sorted_w / log_c.exp()).clamp(max=1.0)
    drawn = systematic(share / n, n, keys)
    return place.gather(1, drawn), torch.maximum(sorted_w.gather(1, drawn).log(), log_c)


def _threshold(w: Tensor, n: int) -> Tensor:
    """log c with sum_i min(w_i/c, 1) = n, of weights in falling order (groups, M): if the largest A remain, c is the
    sum of the others over n - A, and the least A is right for which the next is below that c."""
    rest = w.sum(1, keepdim=True) - w.cumsum(1) + w  # the sum from place A on
    c = rest[:, :n] / torch.arange(n, 0, -1, device=w.device)
    fits = w[:, :n] <= c * (1 + 1e-12)
    first = torch.where(fits.any(1), fits.double().argmax(1), n - 1)
    return c.gather(1, first[:, None]).log()

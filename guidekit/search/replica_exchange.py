r"""Replica exchange over whole runs (parallel tempering; Swendsen and Wang, 1986,
https://doi.org/10.1103/PhysRevLett.57.2607), as CREPE brings it to diffusion models (He et al., 2025,
https://arxiv.org/abs/2509.23265). CREPE exchanges between noise levels; here it is between temperatures.

The sampler makes x(z) of its noise z, whose numbers are independent. Of every sample there are K replicas at the
temperatures alpha_1 < ... < alpha_K, whose joint law prod_k p(z_k) exp(r(x(z_k))/alpha_k)/Z_k a sweep leaves as it is:

    move        each number of z_k is drawn anew with probability s_k; the new noise z' is accepted with probability
                min(1, exp((r(x(z')) - r(x(z_k)))/alpha_k)), since drawing anew is reversible with respect to p(z)
    exchange    z_k and z_(k+1) with probability min(1, exp((1/alpha_k - 1/alpha_(k+1)) (r_(k+1) - r_k))),
                k even and odd in turn

The hottest replica has alpha_K = infinity and s_K = 1: it is the unguided model, whose samples go down the ladder as
far as their rewards allow, so that the chain forgets where it began. The coldest is the result: samples of p
exp(r/alpha)/Z without weights. The sampler runs as it is, so that any process, and any guide that bends the prediction,
can take part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.cost import Cost
from ..engine.result import Result, Trace
from ..engine.run import Run
from ..engine.sample import sample
from ..errors import is_count
from ..guides import Guide
from ..models import Model


def replica_exchange(
    model: Model,
    n: int,
    reward: Any,
    *,
    alphas: Sequence[float],
    sweeps: int = 50,
    share: float = 0.1,
    guides: Iterable[Guide] = (),
    seed: int = 0,
    **options: Any,
) -> Result:
    """n samples of p exp(reward/alpha)/Z, for alpha = alphas[0], from chains of whole runs.

    alphas    the temperatures from cold to hot; the unguided model is added at their end
    share     of the numbers of its noise that the coldest replica draws anew in a sweep; of a replica at alpha_k it is
              share^(alphas[0]/alpha_k), which rises to 1
    sweeps    each costs a run of n samples for every replica
    options   steps, cond (one condition), solver, batch_size as in `gk.sample`

    The trace has one row for each sweep: the share of accepted moves and exchanges, by replica, and the mean reward of
    the coldest. `Result.noise` is the noise of the whole chain, from which `gk.sample` makes the samples again.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    >>> found = replica_exchange(base.exact(), 100, lambda x: x[:, 0], alphas=[0.7, 1.5], sweeps=20, steps=2)
    >>> abs(float(found.x.mean()) - 1 / 0.7) < 0.5
    True
    """
    return _Replicas(model, n, reward, _ladder(alphas), sweeps, share, tuple(guides), seed, options).run()


def _ladder(alphas: Sequence[float]) -> list[float]:
    found = [float(a) for a in alphas]
    if not found or found[0] <= 0 or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"alphas={list(alphas)!r}: positive temperatures that rise, from the one that is wanted")
    return found if math.isinf(found[-1]) else [*found, math.inf]


@dataclass
class _Replicas:
    """The chains. Rows of a run are replica by replica: row k n + i is replica k of sample i."""

    model: Model
    n: int
    reward: Any
    alphas: list[float]
    sweeps: int
    share: float
    guides: tuple[Guide, ...]
    seed: int
    options: dict[str, Any]

    def __post_init__(self) -> None:
        if not is_count(self.n) or not is_count(self.sweeps):
            raise ValueError(f"n={self.n!r}, sweeps={self.sweeps!r}: both are ints of at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share!r}: the part of the noise that a move draws anew, in (0, 1]")
        if isinstance(self.options.get("cond"), list):
            raise ValueError("cond is a list: run the chains of one condition at a time")
        for guide in self.guides:
            if not guide.independent:
                raise ValueError(
                    f"guides holds {type(guide).__name__}, which weighs, branches or selects particles; the replicas "
                    "are independent runs. Take guides that bend the prediction"
                )
        self.beta = 1 / torch.tensor(self.alphas, dtype=torch.float64, device=self.model.device)
        self.shares = self.share ** (self.beta / self.beta[0])
        self.key = random.fold(random.key(self.seed, self.model.device), "replica exchange")
        self.cost = Cost()

    def run(self) -> Result:
        """All sweeps, and the coldest samples made once more, with their noise."""
        z, rows = self._fresh(0), []
        r = self._rewards(z)
        for number in range(1, self.sweeps + 1):
            z, r, moved = self._moved(z, r, number)
            z, r, swapped = self._exchanged(z, r, number)
            told = {"accepted": moved.tolist(), "exchanged": swapped.tolist(), "mean_reward": float(r[0].mean())}
            rows.append({"sweep": number} | told)
        found = self._sampled(z[:, 0])
        config = found.config | {"search": "replica_exchange", "alphas": self.alphas}
        return replace(found, noise=z[:, 0], trace=Trace(rows), cost=self.cost, config=config)

    def _moved(self, z: Tensor, r: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """One move of all replicas; the share that was accepted, by replica."""
        key = random.fold(random.fold(self.key, "move"), number)
        anew = random.uniform(key, z.shape) < self.shares.view(1, -1, *[1] * (z.dim() - 2))
        other = torch.where(anew, self._fresh(number), z)
        rewards = self._rewards(other)
        ratio = self.beta[:, None] * _rise(r, rewards)
        taken = random.uniform(random.fold(key, "accepted"), r.shape).log() < ratio
        z = torch.where(taken.view(1, *r.shape, *[1] * (z.dim() - 3)), other, z)
        return z, torch.where(taken, rewards, r), taken.double().mean(1)

    def _exchanged(self, z: Tensor, r: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Exchanges of neighbours; the share that was made, by pair (NaN where it was not their turn)."""
        low = torch.arange(number % 2, len(self.alphas) - 1, 2, device=r.device)
        made = torch.full((len(self.alphas) - 1,), torch.nan, dtype=torch.float64, device=r.device)
        if not len(low):
            return z, r, made
        ratio = (self.beta[low] - self.beta[low + 1])[:, None] * _rise(r[low], r[low + 1])
        key = random.fold(random.fold(self.key, "exchange"), number)
        taken = random.uniform(key, ratio.shape).log() < ratio
        of = torch.arange(len(self.alphas), device=r.device)[:, None].repeat(1, self.n)
        of[low] = torch.where(taken, low[:, None] + 1, low[:, None])
        of[low + 1] = torch.where(taken, low[:, None], low[:, None] + 1)
        made[low] = taken.double().mean(1)
        sample = torch.arange(self.n, device=r.device)
        return z[:, of, sample], r.gather(0, of), made

    def _fresh(self, number: int) -> Tensor:
        """Noise of whole chains, (moves + 1, replicas, n, ...)."""
        seed = int(random.fold(random.fold(self.key, "noise"), number))
        rows = self.n * len(self.alphas)
        return (
            Run(self.model, rows, guides=self.guides, seed=seed, **self.options)
            .chain_noise()
            .unflatten(1, (-1, self.n))
        )

    def _rewards(self, z: Tensor) -> Tensor:
        """Rewards, float64 (replicas, n), -inf where one could not be scored."""
        found = self._sampled(z.flatten(1, 2))
        assert found.rewards is not None
        self.cost += found.cost
        return found.rewards.nan_to_num(-torch.inf).view(len(self.alphas), self.n)

    def _sampled(self, noise: Tensor) -> Result:
        options = {"guides": self.guides, "reward": self.reward, **self.options}
        return sample(self.model, noise.shape[1], noise=noise, seed=self.seed, **options)


def _rise(before: Tensor, after: Tensor) -> Tensor:
    """r' - r: samples without a score are never moved to, and always left."""
    return torch.where(before == -torch.inf, 0.0, after - before)

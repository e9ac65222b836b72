r"""Bayesian optimisation in a subspace of noise, for a few dozen evaluations per sample.

A combination of independent Gaussian noises b_1, ..., b_D with a unit vector w of weights is Gaussian noise again
(Bodin et al., 2024, Linear combinations of Gaussian latents in generative models, https://arxiv.org/abs/2408.08558):

    z = sum_i w_i b_i,    |w| = 1,    z ~ N(0, 1).

So the noise is searched on a low-dimensional sphere. The first round evaluates the b_i themselves, of which the first
is the plain sampler's own. Then a Gaussian process (`guidekit.search.gp`) models the rewards on the sphere, for each
sample separately, with mean mu and standard deviation sd at w. The next points maximise the expected improvement over
the best reward y* so far,

    EI(w) = (mu - y*) Phi(u) + sd phi(u),    u = (mu - y*)/sd,

among random directions and rotations of the best w by small and large angles. Several points per round are chosen by
the kriging believer (Ginsbourger et al., 2010, https://doi.org/10.1007/978-3-642-10701-6_6): a chosen point counts as
seen, with y = mu, when the next is chosen. Candidates without a score are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Model
from .core import Found, Options, drive, limits
from .gp import Process, expected_improvement
from .random_search import at_least
from .space import Space
from .sphere import turned

if TYPE_CHECKING:
    from typing_extensions import Unpack

POOL = 256  # random directions that are compared, and the same number near the best one


class Subspace:
    """`dims` noises per sample in the first round, then `candidates` combinations of them per round."""

    def __init__(self, candidates: int = 4, dims: int = 8):
        at_least(candidates, 1, "candidates", "combinations in a round")
        at_least(dims, 2, "dims", "noises that are combined")
        self.candidates, self.dims = candidates, dims

    def begin(self, space: Space) -> None:
        self.space, self.round = space, 0
        self.basis = space.draw(range(self.dims))
        one = torch.eye(self.dims, dtype=torch.float64, device=space.keys.device)
        self.asked = one.expand(space.cells, -1, -1)
        self.w, self.y = self.asked[:, :0], self.asked[:, :0, 0]

    def ask(self) -> Tensor:
        if self.round == 0:
            return self.basis
        self.asked = self._chosen(self._pool())
        return self.space.shaped(self.asked @ self.space.flat(self.basis))

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        self.w, self.y = torch.cat([self.w, self.asked], 1), torch.cat([self.y, rewards.to(self.y)], 1)
        self.round += 1

    def _pool(self) -> Tensor:
        """Unit vectors (cells, 2 POOL, D): random ones, and the best so far rotated by angles of 1 to 60 degrees."""
        key = self.space.key("subspace", self.round)
        u = random.normal(key, (2 * POOL, self.dims), torch.float64)
        best = self.w[torch.arange(len(self.w)), self.y.argmax(1), None].expand(-1, POOL, -1)
        angle = (60 ** random.uniform(random.fold(key, "angle"), (POOL,))).deg2rad()
        return torch.cat([u[:, :POOL] / u[:, :POOL].norm(dim=-1, keepdim=True), turned(best, u[:, POOL:], angle)], 1)

    def _chosen(self, pool: Tensor) -> Tensor:
        """The next points w, chosen one by one; each counts as seen, with y = mu, when the next is chosen."""
        w, y, cell = self.w, self.y, torch.arange(len(pool), device=pool.device)
        process = Process.fitted(w, y)
        for _ in range(self.candidates):
            mu, sd = process.posterior(pool)
            best = torch.where(process.seen, y, -torch.inf).amax(1, keepdim=True)
            place = expected_improvement(mu, sd, best.nan_to_num(neginf=0.0)).argmax(1)
            w, y = torch.cat([w, pool[cell, place, None]], 1), torch.cat([y, mu[cell, place, None]], 1)
            process = Process.given(w, y, process.length, process.noise)[0]
        return w[:, -self.candidates :]


def subspace(
    model: Model,
    n: int,
    reward: Any,
    *,
    rounds: int | None = None,
    candidates: int = 4,
    dims: int = 8,
    **options: Unpack[Options],
) -> Found:
    """Combine `dims` noises for each of n samples; 6 rounds unless rounds or a budget are given.

    In d dimensions, the norm of a combination deviates from that of noise by a fraction of about sqrt(dims/d), so d
    should be many times dims.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [[-2.0] * 64, [2.0] * 64], [0.5, 0.5])
    >>> reward = lambda x: -(x.mean(1) - 1).square()
    >>> found = gk.search.subspace(base, 3, reward, rounds=4, steps=8, solver=gk.solvers.DDIM())
    >>> found.noise.shape, found.cost.reward_calls
    (torch.Size([3, 64]), 60)
    """
    return drive(model, n, reward, Subspace(candidates, dims), limits(rounds, options, 6), options)

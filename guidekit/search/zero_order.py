r"""Zero-order search (Ma et al., 2025, https://arxiv.org/abs/2501.09732): climb from a pivot to its best neighbour.

    z' = cos(radius) z + sin(radius) |z| w,      w a random unit vector perpendicular to z,

with `neighbours` of them per round; the best one becomes the pivot if it is better. Norms do not change, so the noise
stays typical for a Gaussian. The radius has the cosine 0.95, as in tt-scale-flux; that implementation discards the
pivot if no neighbour is better and starts again from another. Here it is kept, and with shrink < 1 its radius is
reduced.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.base import Model
from .core import Found, Options, drive, limits
from .random_search import at_least
from .space import Space
from .sphere import turned

if TYPE_CHECKING:
    from typing_extensions import Unpack

RADIUS = math.acos(0.95)


class ZeroOrder:
    """One pivot per sample, at first the plain sampler's own noise; radius is an angle in radians."""

    def __init__(self, neighbours: int = 4, radius: float = RADIUS, shrink: float = 1.0):
        at_least(neighbours, 1, "neighbours", "of the pivot in a round")
        if not 0 < radius <= math.pi / 2:
            raise ValueError(f"radius={radius}: an angle in (0, pi/2]")
        if not 0 < shrink <= 1:
            raise ValueError(f"shrink={shrink}: a factor in (0, 1]")
        self.neighbours, self.radius, self.shrink = neighbours, radius, shrink

    def begin(self, space: Space) -> None:
        if torch.Size(space.shape).numel() < 2:
            raise ValueError("zero-order search turns the noise, and noise of one number has no directions")
        self.space, self.round = space, 0
        self.pivot = space.flat(space.draw([0]))[:, 0]
        self.reward = self.pivot.new_full((space.cells,), -torch.inf)
        self.angle = self.pivot.new_full((space.cells,), self.radius)

    def ask(self) -> Tensor:
        w = self.space.directions("zero_order", self.round, self.neighbours)
        near = turned(self.pivot[:, None].expand_as(w), w, self.angle[:, None].expand(w.shape[:2]))
        return self.space.shaped(near if self.round else torch.cat([self.pivot[:, None], near], 1))

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        top, place = rewards.max(1)
        better = top > self.reward
        chosen = self.space.flat(noises)[torch.arange(len(noises), device=noises.device), place]
        self.pivot = torch.where(better[:, None], chosen, self.pivot)
        self.reward = torch.where(better, top, self.reward)
        self.angle = torch.where(better, self.angle, self.angle * self.shrink)
        self.round += 1


def zero_order(
    model: Model,
    n: int,
    reward: Any,
    *,
    rounds: int | None = None,
    neighbours: int = 4,
    radius: float = RADIUS,
    shrink: float = 1.0,
    **options: Unpack[Options],
) -> Found:
    """Hill climbing on the sphere of noise, for each of n samples; 16 rounds unless rounds or a budget are given.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = gk.search.zero_order(base, 3, lambda x: x[:, 0], rounds=4, steps=10)
    >>> bool((found.rewards >= gk.sample(base, 3, steps=10).x[:, 0]).all())
    True
    """
    return drive(model, n, reward, ZeroOrder(neighbours, radius, shrink), limits(rounds, options, 16), options)

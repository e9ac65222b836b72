r"""An evolution strategy on the sphere of noise, for each sample separately.

    child = turned(between(a, b, u), w, mutation),      u uniform in [0, 1],  w a random direction,

with parents a, b drawn from the better half of the population; the best of parents and children survive. A child lies
on the great circle through its parents, so its norm stays typical for noise; the mean of two independent noise vectors
would be too short by a factor of sqrt(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random
from ..models.base import Model
from .core import Found, Options, drive, limits
from .random_search import at_least
from .space import Space
from .sphere import between, turned

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Evolution:
    """A `population` of noise vectors per sample, with as many children per round; mutation is an angle in radians."""

    def __init__(self, population: int = 8, mutation: float = 0.2):
        at_least(population, 2, "population", "noises that live")
        if not 0 <= mutation <= torch.pi / 2:
            raise ValueError(f"mutation={mutation}: an angle in [0, pi/2]")
        self.population, self.mutation = population, mutation

    def begin(self, space: Space) -> None:
        if torch.Size(space.shape).numel() < 2:
            raise ValueError("evolution turns the noise, and noise of one number has no directions")
        self.space, self.round = space, 0

    def ask(self) -> Tensor:
        if self.round == 0:
            return self.space.draw(range(self.population))
        key = self.space.key("parents", self.round)
        parents = (random.uniform(key, (2, self.population)) * ((self.population + 1) // 2)).long()
        a, b = (self._picked(self.z, parents[:, i]) for i in (0, 1))
        share = random.uniform(random.fold(key, "share"), (self.population,))
        w = self.space.directions("mutation", self.round, self.population)
        return self.space.shaped(turned(between(a, b, share), w, torch.full_like(share, self.mutation)))

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        z = self.space.flat(noises)
        pool = (z, rewards) if self.round == 0 else (torch.cat([self.z, z], 1), torch.cat([self.rewards, rewards], 1))
        best = pool[1].sort(dim=1, descending=True, stable=True).indices[:, : self.population]
        self.z, self.rewards = self._picked(pool[0], best), pool[1].gather(1, best)
        self.round += 1

    def _picked(self, z: Tensor, place: Tensor) -> Tensor:
        return z.gather(1, place[..., None].expand(-1, -1, z.shape[-1]))


def evolution(
    model: Model,
    n: int,
    reward: Any,
    *,
    rounds: int | None = None,
    population: int = 8,
    mutation: float = 0.2,
    **options: Unpack[Options],
) -> Found:
    """Evolve a population of noise vectors for each of n samples; 8 rounds unless rounds or a budget are given."""
    return drive(model, n, reward, Evolution(population, mutation), limits(rounds, options, 8), options)

r"""Starting from given samples, noised part of the way (SDEdit, Meng et al., 2021, https://arxiv.org/abs/2108.01073).

    x_t ~ q(x_t | x_0),     t the first time of the run

Gaussian: x_t = alpha_t x_0 + sigma_t z. Tokens: each is noised with probability t. It is what refinement, evolution
and editing begin with; give the run times that start below 1, like steps=[.5, .4, .3, .2, .1, 0.].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..models.base import Model
from ..population import Population
from ..view import Step
from .base import Guide


@dataclass(frozen=True, eq=False)
class StartFrom(Guide):
    """Begin at these samples, in the coordinates of x: (n*groups, *shape), or one (*shape) for all rows. No cost."""

    x: Tensor

    sees_prediction = False

    def check(self, model: Model, steps: int) -> None:
        given = tuple(self.x.shape)
        if given[-len(model.shape) :] != model.shape or len(given) - len(model.shape) not in (0, 1):
            raise ValueError(
                f"StartFrom(x of shape {given}): samples have shape {model.shape}, perhaps with a row axis"
            )

    def begin(self, model: Model, population: Population, noise: Tensor, step: Step) -> Tensor:
        single = self.x.dim() == len(model.shape)
        rows = len(population.group) if single else step.n * population.groups
        if not single and len(self.x) != rows:
            raise ValueError(f"StartFrom has {len(self.x)} samples for {rows} rows ({step.n} for each condition)")
        own = self.x.to(population.x)
        own = own.expand_as(population.x) if single else own[population.group * step.n + population.slot]
        return model.process.noised(own, noise, step.t)

r"""MagicMix (Liew et al., 2022, https://arxiv.org/abs/2210.16056). Between k_max and k_min the latent is mixed with the
layout's, x_s <- nu x_s + (1 - nu) (alpha_s x_ref + sigma_s z); after that the condition alone decides. For a
deterministic solver and the z that makes x_t of the layout, z = (x_t - alpha_t x_ref)/sigma_t, this is

    d <- nu d + (1 - nu) x_ref,

and so it is done here, for all solvers. The paper's z is drawn apart, so that the noise in the mixture falls short of
sigma_s. Start as the paper does from the noised layout, with gk.StartFrom(x_ref) and times that begin at k_max. If the
layout is a prompt as well, gk.Compose(layout, 1 - nu, own=nu, start=..., stop=...) mixes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engine.guide import Guide, Scale, at
from ..engine.population import Population
from ..engine.view import Step, View
from ..models.base import Model
from ..process import Gaussian


@dataclass(frozen=True, eq=False)
class MagicMix(Guide):
    """Keep the layout of a given sample while `start` <= fraction < `stop`. No cost; after all tilts.

    layout   x_ref in the coordinates of x: *shape, or one for each group (groups, *shape)
    mix      nu, a number or a function of t: 1 takes nothing of the layout
    """

    layout: Tensor
    mix: Scale = 0.5

    def check(self, model: Model, steps: int) -> None:
        if not isinstance(model.process, Gaussian):
            raise ValueError("MagicMix mixes clean means, and tokens have none: use StartFrom or Compose with them")
        if self.layout.shape[-len(model.shape) :] != model.shape or self.layout.dim() > len(model.shape) + 1:
            raise ValueError(f"MagicMix(layout of shape {tuple(self.layout.shape)}): samples have shape {model.shape}")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        own = self.layout.view(-1, *model.shape)
        return self.having(layout=own[list(groups)]) if len(own) == of > 1 else self

    def begin(self, model: Model, population: Population, noise: Tensor, step: Step) -> Tensor:
        given = self.layout.numel() // population.x[0].numel()
        if given not in (1, len(step.keys)):
            raise ValueError(
                f"MagicMix(layout=...): {given} layouts for {len(step.keys)} conditions; one, or one for each"
            )
        return population.x

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own = self.layout.to(prediction).view(-1, *view.model.shape)
        mix = at(self.mix, view.t)
        return mix * prediction + (1 - mix) * own[view.group if len(own) > 1 else view.group * 0]

r"""MagicMix (Liew et al., 2022), https://arxiv.org/abs/2210.16056: the layout of one sample, the content of a
condition.

Between the times k_max and k_min the latent is mixed with that of a layout, x_s <- nu x_s + (1 - nu) (alpha_s x_ref +
sigma_s z); after that only the condition matters. For a deterministic solver, and with the z that turns the layout into
x_t, z = (x_t - alpha_t x_ref)/sigma_t, this is

    d <- nu d + (1 - nu) x_ref,

which is what is done here, with any solver. The paper draws z independently, so that its mixture has less noise than
sigma_s. To start from the noised layout as the paper does, add gk.StartFrom(x_ref) and times that begin at k_max. If
the layout is given as a prompt, gk.Compose(layout, 1 - nu, own=nu, start=..., stop=...) mixes in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian


@dataclass(frozen=True, eq=False)
class MagicMix(Guide):
    """Keep the layout of a given sample while start <= fraction < stop. No extra NFE. Applied after all tilts.

    layout   x_ref in the coordinates of x: *shape, or one for each group, (groups, *shape)
    mix      nu, a number or a function of t: 1 ignores the layout
    """

    layout: Tensor
    mix: Scale = 0.5

    card = Card(
        "keeps the layout of a given sample",
        section="Composition",
        processes=(Gaussian,),
        refusal="mixes clean means, and tokens have none: use StartFrom or Compose with them",
        changes="target",
        paper=Paper(
            "liew2022magicmix",
            "Liew, Jun Hao and Yan, Hanshu and Zhou, Daquan and Feng, Jiashi",
            "MagicMix: Semantic Mixing with Diffusion Models",
            2022,
            "2210.16056",
        ),
        example="gk.MagicMix(point, 0.5, stop=0.7)",
    )

    def check(self, model: Model, steps: int) -> None:
        if self.layout.shape[-len(model.shape) :] != model.shape or self.layout.dim() > len(model.shape) + 1:
            raise ValueError(f"MagicMix(layout of shape {tuple(self.layout.shape)}): samples have shape {model.shape}")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        own = self.layout.view(-1, *model.shape)
        return self.having(layout=own[list(groups)]) if len(own) == of > 1 else self

    def begin(self, view: View, noise: Tensor) -> Tensor:
        given = self.layout.numel() // view.x[0].numel()
        if given not in (1, len(view.step.keys)):
            raise ValueError(
                f"MagicMix(layout=...): {given} layouts for {len(view.step.keys)} conditions; one, or one for each"
            )
        return view.x

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        own = self.layout.to(prediction).view(-1, *view.model.shape)
        mix = at(self.mix, view.t)
        return mix * prediction + (1 - mix) * own[view.group if len(own) > 1 else view.group * 0]

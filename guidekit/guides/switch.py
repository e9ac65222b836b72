r"""Concepts switched in time and mixed in space: early steps make the layout of a sample, late ones its details.

**Switch.** Another condition from a fraction of the run on.

**MagicMix** (Liew et al., 2022, https://arxiv.org/abs/2210.16056). Between k_max and k_min the latent is mixed with the
layout's, x_s <- nu x_s + (1 - nu) (alpha_s x_ref + sigma_s z); after that the condition alone decides. For a
deterministic solver and the z that makes x_t of the layout, z = (x_t - alpha_t x_ref)/sigma_t, this is

    d <- nu d + (1 - nu) x_ref,

and so it is done here, for all solvers. The paper's z is drawn apart, so that the noise in the mixture falls short of
sigma_s. Start as the paper does from the noised layout, with gk.StartFrom(x_ref) and times that begin at k_max. If the
layout is a prompt as well, gk.Compose(layout, 1 - nu, own=nu, start=..., stop=...) mixes the same way.

**Regions** (TweedieMix, Kwon and Ye, 2024, https://arxiv.org/abs/2410.05591, the second of its two stages). The first
stage runs at a condition that names all concepts; from `start` on the clean estimates of single concepts are put
together by masks M_k, and the rest of the picture is that of the run's condition:

    d <- (1 - sum_k M_k) d + sum_k M_k d_k,      each d with its guidance, n + scale (d - n).

The paper finds the masks with a segmenter in the clean estimate at the change of stages; a function of the decoded
estimates does that here. A concept may be another model, like the paper's fine-tuned ones: At("a cat", model). What is
not here: the paper's resampling of the first step, its noise of CFG++ (see gk.CFGpp) and its attention maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..models.base import Cond, Encoded, Model
from ..population import Population
from ..process import Gaussian
from ..tree import Tree
from ..view import Step, View
from .base import Guide, Scale, at
from .compose import evaluation, listed, networks


@dataclass(frozen=True)
class Switch(Guide):
    """Other conditions in later parts of the run. No cost. The null branch of CFG stays as it is.

    conditions  one or a list, the same for all groups; None is the null condition
    at          the fractions of the run from which each of them holds, rising; before the first it is the run's own
    """

    conditions: Any
    at: float | Sequence[float] = 0.5

    def __post_init__(self) -> None:
        points = listed(self.at)
        if len(points) != len(listed(self.conditions)) or not all(0 <= p <= 1 for p in points):
            raise ValueError(f"Switch(at={self.at!r}): a fraction of the run in [0, 1] for each condition")
        if any(a >= b for a, b in pairwise(points)):
            raise ValueError(f"Switch(at={self.at!r}): the fractions must rise")

    def check(self, model: Model, steps: int) -> None:
        for need in map(evaluation, listed(self.conditions)):
            if need.model(model) is not model:
                raise ValueError(
                    f"Switch(conditions=...): {need!r} is of another model; only conditions can be switched"
                )
            need.check(model)

    def condition(self, view: View, cond: Encoded) -> Encoded:
        past = [c for c, p in zip(listed(self.conditions), listed(self.at), strict=True) if p <= view.step.fraction]
        return evaluation(past[-1]).cond(view.model, cond) if past else cond


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


@dataclass(frozen=True, eq=False)
class Regions(Guide):
    """Another condition in every region. One row for each condition, in one forward for each network. Tokens: masks of
    positions, which choose (or average the log-probabilities) there.

    conditions  one or a list, each as in gk.Compose
    masks       (conditions, *axes that broadcast to a sample, positions for tokens), in [0, 1] with sums of at most 1;
                or a function of the decoded estimates at `start` that gives (rows, conditions, *axes), kept from then
    scale       that of the gk.CFG beside it, a number or a function of t, so that the regions are guided alike
    """

    conditions: Any
    masks: Tensor | Callable[[Any], Tensor]
    scale: Scale = 1.0

    @property
    def needs(self) -> tuple[Cond, ...]:
        return tuple(evaluation(c) for c in listed(self.conditions))

    @property
    def models(self) -> tuple[Model, ...]:
        return networks(self.needs)

    def check(self, model: Model, steps: int) -> None:
        if not callable(self.masks):
            _in_range(self._spread(self.masks[None], model))

    def tilt(self, view: View) -> Tensor:
        masks = self._masks(view, view.memo)
        if not isinstance(view.model.process, Gaussian):
            masks = masks[..., None]
        own, scale = view.evals[Cond()], at(self.scale, view.t)
        return sum(scale * masks[:, k] * (view.evals[need] - own) for k, need in enumerate(self.needs))  # type: ignore

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if memo is not None or not callable(self.masks) or view.step.last or not self.active(view.step):
            return 0.0, memo
        return 0.0, self._masks(view, memo)

    def _masks(self, view: View, memo: Tree) -> Tensor:
        """(rows or 1, conditions, axes that broadcast to a sample)."""
        if not callable(self.masks):
            return self._spread(self.masks.to(view.evals[Cond()])[None], view.model)
        return view.once(("masks", id(self)), lambda: self._found(view)) if memo is None else memo

    def _found(self, view: View) -> Tensor:
        assert callable(self.masks)
        own = view.evals[Cond()].detach()
        given = self.masks(view.model.decode(view.model.process.clean(own, view.x.detach()))).to(own)
        if len(given) != len(own):
            raise ValueError(f"Regions(masks=function): it gave masks for {len(given)} of {len(own)} samples")
        return _in_range(self._spread(given, view.model))

    def _spread(self, masks: Tensor, model: Model) -> Tensor:
        """Masks (rows, conditions, *axes) with as many axes as samples have."""
        count, axes = len(self.needs), masks.shape[2:]
        whole = masks.view(*masks.shape[:2], *[1] * (len(model.shape) - len(axes)), *axes)
        if whole.dim() != len(model.shape) + 2 or masks.shape[1] != count or not _fits(whole.shape[2:], model.shape):
            raise ValueError(
                f"Regions: {masks.shape[1] if masks.dim() > 1 else 0} masks of shape {tuple(axes)}; needed is one for "
                f"each of the {count} conditions, of a shape that broadcasts to {model.shape}"
            )
        return whole


def _fits(axes: Sequence[int], shape: Sequence[int]) -> bool:
    return all(a in (1, b) for a, b in zip(axes, shape, strict=True))


def _in_range(masks: Tensor) -> Tensor:
    if float(masks.min()) < 0 or float(masks.sum(1).max()) > 1 + 1e-5:
        raise ValueError("Regions: masks lie in [0, 1] and add up to 1 at most; the rest is the run's own condition")
    return masks

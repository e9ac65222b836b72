r"""Classifier guidance of masked tokens (Schiff et al., 2025, https://arxiv.org/abs/2412.10193; as rates, Nisonoff et
al., 2025, https://arxiv.org/abs/2406.01572) weighs the reverse kernel, position by position, by the classifier at x_t
with that token alone changed,

    q(x_s^i = v | x_t) p(y | x_t^{i -> v})^gamma, normalised over v.

A masked position stays masked with probability u = s/t and becomes v with (1 - u) p_i(v); others stay. So this is

    log p_i(v) <- log p_i(v) + gamma log p(y | x_t^{i -> v}),

a tilt, and a position leaves the mask with probability (1 - u) Z_i/(u + (1 - u) Z_i), where
Z_i = sum_v p_i(v) (p(y | x_t^{i -> v})/p(y | x_t))^gamma. For gamma = 1 and the exact classifier of masked sequences
Z_i = 1: the tilt is all there is and gives the marginals of p(x_0 | x_t, y), so for many steps samples of p(x | y).
Otherwise the paper's kernel leaves the mask sooner where Z_i > 1; here the tokens are weighed, and when they appear is
left to the model.

Uniform noise is refused: there the weight of a next token is no weight of the clean one, which is what a tilt is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..engine.guide import Scale, at
from ..engine.view import View
from ..models.base import Model
from ..models.tokens import LOG_ZERO
from ..process import Gaussian, Masked
from .shared.labelled import Classifier, Label, Labelled

_ROWS = 4096  # sequences for the classifier at a time, where the run has no batch_size


class Discrete(Labelled):
    """What both share; a dataclass with classifier, scale and label."""

    scale: Scale

    def check(self, model: Model, steps: int) -> None:
        super().check(model, steps)
        name, noise = type(self).__name__, type(model.process).__name__
        if isinstance(model.process, Gaussian):
            raise ValueError(f"{name} changes one token at a time, and there are none: use gk.ClassifierGuidance")
        if not isinstance(model.process, Masked):
            raise ValueError(
                f"{name} guides masked tokens; under {noise} noise the weight of a next token is "
                "none of the clean one: use a masked model, or gk.FKSteering or gk.SVDD with log p(y | x)"
            )

    def tilt(self, view: View) -> Tensor | float:
        scale, masked = at(self.scale, view.t), view.x == view.model.process.states - 1  # type: ignore[attr-defined]
        if scale == 0:
            return 0.0
        log_p = self.ratios(view, masked).clamp(min=LOG_ZERO)
        tilt = torch.where(masked[..., None], scale * (log_p - log_p.amax(-1, keepdim=True)), 0.0)
        return tilt.to(view.model.dtype)

    def ratios(self, view: View, masked: Tensor) -> Tensor:
        """log p(y | x_t^{i -> v}) up to a constant of each position, (rows, length, V); read where masked."""
        raise NotImplementedError(f"{type(self).__name__} does not say how likely each token makes the label")


@dataclass(frozen=True)
class DCBG(Discrete):
    """Exact classifier guidance of masked tokens. No network rows; the classifier sees V sequences for each position
    that is masked, at most `batch_size` of the run at a time.

    classifier   (tokens with masks, which have the id V, t with one entry per row) -> logits (rows, classes), or
                 log p(y | x_t) (rows,) and no label
    scale        gamma, a number or a function of t: 1 samples given the label, 0 does nothing

    >>> import torch
    >>> DCBG(lambda x, t: -(x == 2).sum(1).double(), scale=2.0).label is None
    True
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    def ratios(self, view: View, masked: Tensor) -> Tensor:
        found = torch.zeros(*view.x.shape, view.model.process.V, dtype=torch.float64, device=view.x.device)  # type: ignore
        row, place = masked.nonzero(as_tuple=True)
        token = torch.arange(found.shape[-1], device=view.x.device)
        width = max(1, (view.limit or _ROWS) // len(token))
        for rows, places in zip(row.split(width), place.split(width), strict=True) if len(row) else ():
            each = rows.repeat_interleave(len(token))
            x = view.x[each].scatter(1, places.repeat_interleave(len(token))[:, None], token.repeat(len(rows))[:, None])
            found[rows, places] = self.own(self.log_probs(x, view.t), view.group[each]).view(-1, len(token))
        return found

r"""Discrete classifier-based guidance, D-CBG (Schiff et al., 2024), https://arxiv.org/abs/2412.10193.

The reverse kernel is reweighted, position by position, by the classifier at x_t with that one token changed:

    q(x_s^i = v | x_t) p(y | x_t^{i -> v})^gamma, normalised over v.

A masked position stays masked with probability u = s/t and becomes v with probability (1 - u) p_i(v); all others stay
as they are. So this is the tilt

    log p_i(v) <- log p_i(v) + gamma log p(y | x_t^{i -> v}),

together with a changed rate of unmasking: a position is unmasked with probability (1 - u) Z_i/(u + (1 - u) Z_i), where
Z_i = sum_v p_i(v) (p(y | x_t^{i -> v})/p(y | x_t))^gamma. For gamma = 1 and the exact classifier of masked sequences
Z_i = 1, the tilt alone gives the marginals of p(x_0 | x_t, y), and in the limit of many steps the samples follow
p(x | y). Otherwise the paper's kernel unmasks earlier where Z_i > 1; by default only the choice of tokens is guided
here, and the model decides when they are unmasked.

With posterior=True it is the paper's kernel, for masked tokens and for uniform noise. Uniform noise is refused
otherwise: there the classifier reweights the next token, and a tilt reweights the clean one. For gamma = 1, the exact
classifier and in the limit of many steps the samples follow p(x | y) with both kinds of noise. Nisonoff et al. (2024),
https://arxiv.org/abs/2406.01572, guide the rates of jumps instead: see `PredictorGuidance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..models.base import Model
from ..models.tokens import LOG_ZERO
from ..process import Masked, Uniform
from ..solvers import Move
from .shared.bending import Bending
from .shared.labelled import Classifier, Label, Labelled

_ROWS = 4096  # sequences per call of the classifier, if the run has no batch_size


_REFUSED = (
    "guides masked tokens; under Uniform noise the weight of a next token is not that of the clean one: give "
    "posterior=True, which reweights the next token, or use gk.PredictorGuidance"
)


class Discrete(Labelled, Bending):
    """Base of classifier guidance of tokens: a dataclass with classifier, scale, label and posterior."""

    scale: Scale
    posterior: bool

    neutral = 0.0

    card = replace(
        Labelled.card,
        processes=(Masked, Uniform),
        refusal="guides tokens; with a Gaussian process use gk.ClassifierGuidance",
    )

    def reweights(self, model: Model) -> bool:
        return self.posterior

    def bind(self, model: Model) -> Guide:
        if not self.posterior and isinstance(model.process, Uniform):
            raise ValueError(f"{type(self).__name__} {_REFUSED}")
        return super().bind(model)

    def tilt(self, view: View) -> Tensor | float:
        scale, masked = at(self.scale, view.t), view.x == view.model.process.states - 1  # type: ignore[attr-defined]
        if self.bends or scale == 0:
            return 0.0
        log_p = self.ratios(view, masked).clamp(min=LOG_ZERO)
        tilt = torch.where(masked[..., None], scale * (log_p - log_p.amax(-1, keepdim=True)), 0.0)
        return tilt.to(view.model.dtype)

    def ratios_of(self, view: View, move: Move) -> Tensor:
        """gamma log p(y | x_t^{i -> v})/p(y | x_t), (rows, length, states); 0 where nothing changes."""
        process = view.model.process
        masked = isinstance(process, Masked)
        where = view.x == process.V if masked else torch.ones_like(view.x, dtype=torch.bool)  # type: ignore[attr-defined]
        now = self.now(view)[:, None, None].clamp(min=LOG_ZERO)
        log_p = at(self.scale, view.t) * (self.ratios(view, where).clamp(min=LOG_ZERO) - now)
        log_p = torch.cat([log_p, log_p[..., :1] * 0], -1) if masked else log_p.scatter(-1, view.x[..., None], 0.0)
        return torch.where(where[..., None], log_p, 0.0)

    def now(self, view: View) -> Tensor:
        """log p(y | x_t), up to the constant of `ratios`, (rows,)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how likely the label is")

    def ratios(self, view: View, where: Tensor) -> Tensor:
        """log p(y | x_t^{i -> v}) up to a constant per position, (rows, length, V); only those `where` are read."""
        raise NotImplementedError(f"{type(self).__name__} does not say how likely each token makes the label")


class Exact(Discrete):
    """Base of guides whose classifier evaluates every change of one token."""

    def now(self, view: View) -> Tensor:
        return self.own(self.log_probs(view.x, view.told), view.group)

    def ratios(self, view: View, where: Tensor) -> Tensor:
        found = torch.zeros(*view.x.shape, view.model.process.V, dtype=torch.float64, device=view.x.device)  # type: ignore
        (row, place), told = where.nonzero(as_tuple=True), view.told
        token = torch.arange(found.shape[-1], device=view.x.device)
        width = max(1, (view.limit or _ROWS) // len(token))
        for rows, places in zip(row.split(width), place.split(width), strict=True) if len(row) else ():
            each = rows.repeat_interleave(len(token))
            x = view.x[each].scatter(1, places.repeat_interleave(len(token))[:, None], token.repeat(len(rows))[:, None])
            at = told[each] if isinstance(told, Tensor) else told
            found[rows, places] = self.own(self.log_probs(x, at), view.group[each]).view(-1, len(token))
        return found


@dataclass(frozen=True)
class DCBG(Exact):
    """Exact classifier guidance of tokens. No extra NFE; the classifier evaluates V sequences per position that can
    change, at most the run's `batch_size` at a time.

    classifier   (tokens, in which V stands for the mask, t with one entry per row) -> logits (rows, classes), or
                 log p(y | x_t) (rows,) without a label
    scale        gamma, a number or a function of t: 1 samples given the label, 0 does nothing
    label        the class to guide towards, or a list with one for each condition of the run
    posterior    False: of masked tokens the choice is guided, not when they are unmasked. True: the kernel of the
                 paper, for masked and uniform noise

    >>> import torch
    >>> DCBG(lambda x, t: -(x == 2).sum(1).double(), scale=2.0).label is None
    True
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None
    posterior: bool = False

    card = replace(
        Discrete.card,
        about="reweights every token by a classifier",
        exact="p given the label, for the exact classifier and many steps",
        paper=Paper(
            "schiff2024simple",
            "Schiff, Yair and Sahoo, Subham Sekhar and others",
            "Simple Guidance Mechanisms for Discrete Diffusion Models",
            2024,
            "2412.10193",
        ),
        example="gk.DCBG(right, 2.0)",
        picture="tokens",
    )

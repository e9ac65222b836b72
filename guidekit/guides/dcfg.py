r"""Discrete classifier-free guidance, D-CFG (Schiff et al., 2024), https://arxiv.org/abs/2412.10193.

For masked noise the clean predictions are mixed, which is `CFG`:

    p_i(v) <- p_i(v | y)^w p_i(v)^(1 - w), normalised.

For uniform noise the reverse kernels themselves are mixed, made of the conditional and of the unconditional prediction:

    q_i(x_s = v | x_t, y) <- q_i(v | x_t, y)^w q_i(v | x_t)^(1 - w), normalised.

w = 1 is the conditional model, w = 0 the unconditional one. Under uniform noise the two rules have different targets:
`CFG` mixes the clean predictions there too, and its samples may be far from those of the paper's rule. The law is that
of the chain of these kernels; in the limit of many steps every rate of a jump is R(y)^w R^(1 - w), that of the paper.
Look-aheads (`FKSteering`, `SVDD`) see the conditional prediction under uniform noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Scale, at
from ..engine.view import View
from ..models.base import Model
from ..models.evaluations import Cond, Null
from ..models.tokens import LOG_ZERO
from ..process import Masked, Uniform
from ..solvers import Move
from .shared.bending import Bending


@dataclass(frozen=True)
class DCFG(Bending):
    """Classifier-free guidance of the kernel of tokens. One extra NFE per particle and step, in the same forward pass.

    scale   w, a number or a function of t; 1 does nothing

    >>> import guidekit as gk
    >>> gk.DCFG(2.0).needs
    (Null(),)
    """

    scale: Scale

    neutral = 1.0
    card = Card(
        "extrapolates from the unconditional to the conditional move of tokens",
        section="Classifier-free guidance and its relatives",
        processes=(Masked, Uniform),
        refusal="mixes the kernels of tokens; with a Gaussian process use gk.CFG",
        rows="1",
        changes="target",
        paper=Paper(
            "schiff2024simple",
            "Schiff, Yair and Sahoo, Subham Sekhar and others",
            "Simple Guidance Mechanisms for Discrete Diffusion Models",
            2024,
            "2412.10193",
        ),
        example="gk.DCFG(2.5)",
        picture="tokens",
    )

    @property
    def needs(self) -> tuple[Cond, ...]:
        return () if self.scale == 1 else (Null(),)

    def reweights(self, model: Model) -> bool:
        return isinstance(model.process, Uniform)

    def tilt(self, view: View) -> Tensor | float:
        if self.bends:
            return 0.0
        scale = at(self.scale, view.t)
        return view.model.guided(view.x, view.t, view.evals[Cond()], view.evals[Null()], scale)

    def ratios_of(self, view: View, move: Move) -> Tensor:
        own, null = (
            view.model.process.kernel(view.x, (view.evals[need],), move).log_probs.clamp(min=LOG_ZERO)  # type: ignore
            for need in (Cond(), Null())
        )
        return (at(self.scale, view.t) - 1) * (own - null)

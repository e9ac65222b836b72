r"""Anchored posterior sampling, APS (Rout et al., 2025), https://arxiv.org/abs/2510.02291: measurements of tokens, by
their embeddings.

Let E_v be the embedding of token v and p_i(v) the prediction at x_t (the tokens themselves where they are known). A
measurement takes embedded sequences, like the decoder of pictures behind their tokens, and no sequence has the mean
embedding. The quantised expectation is the sequence next to it, through which the gradient passes to the mean itself:

    u_i = argmin_{E_v} |E_v - sum_w q_i(w) E_w|,        g_i(v) = <d/du_i log p(y | u), E_v>.

q maximises the bound E_q log p(y | x_0) - KL(q | p) of log p(y | x_t), over products of the positions. With g for the
derivative of its first term, its maximum is q_i(v) ~ p_i(v) exp(g_i(v)), and `iters` steps of mirror ascent go there:

    q^0 = p,        log q <- (1 - rate) log q + rate (log p + scale g(q)).

The paper climbs by gradient steps in the table of probabilities; the bound and the fixed point are derived here. With
one step at rate 1, without quantisation, and E the one-hot rows, it is the proposal of TaylorSMC.

Anchored remasking, the paper's second part, reveals the positions first of which the posterior is sure: take the solver
`Confidence()`, which reads the prediction after all guides. Other solvers do as well. A heuristic, since q is a product
and g is first order; `steer=True` beside FKSteering with the same measurement makes it exact under weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.view import View
from ..errors import is_count
from ..measurements.measurement import listed
from ..models.base import Model
from ..process import LOG_ZERO, Masked, Uniform
from .shared.labelled import slope


@dataclass(frozen=True, eq=False)
class APS(Guide):
    """Follow a measurement of the embedded sequence, through the quantised expectation. No extra NFE; `iters`
    likelihoods with their gradients a step.

    measurement  a `gk.Measurement`, or a `rewards.ByGroup` of them, whose operator takes embedded sequences (rows,
                 length, d) and which torch can differentiate there: linear or not, with any noise
    embed        (V, d), the embedding of each token; None is one-hot rows
    scale        times the gradient, a number or a function of t
    iters        steps of mirror ascent
    rate         their size, in (0, 1]: with larger ones a sharp likelihood overshoots, since g is of first order
    quantised    False takes the mean embedding itself
    """

    measurement: Any
    embed: Tensor | None = None
    scale: Scale = 1.0
    iters: int = 60
    rate: float = 0.05
    quantised: bool = True

    grad = "clean"
    neutral = 0.0
    card = Card(
        "follows a measurement of embedded tokens",
        section="Inverse problems",
        processes=(Masked, Uniform),
        refusal="is for tokens: take DPS, DAPS or TDS, which differentiate in x",
        changes="target",
        paper=Paper(
            "rout2025anchored",
            "Rout, Litu and Lugmayr, Andreas and Jafarian, Yasamin and Varadharajan, Srivatsan and Caramanis, "
            "Constantine and Shakkottai, Sanjay and Kemelmacher-Shlizerman, Ira",
            "Test-Time Anchoring for Discrete Diffusion Posterior Sampling",
            2025,
            "2510.02291",
        ),
        example="gk.APS(seen, places)",
        picture="tokens",
    )

    def __post_init__(self) -> None:
        if any(m.exact for m in listed(self.measurement)):
            raise ValueError("APS(Measurement(noise=0)): there is no density p(y | x) to climb; give the noise a value")
        if not is_count(self.iters) or not 0 < self.rate <= 1:
            raise ValueError(
                f"APS(iters={self.iters!r}, rate={self.rate}): steps, at least 1, of a size in (0, 1], are needed"
            )

    def check(self, model: Model, steps: int) -> None:
        V, E = model.process.V, self.embed  # type: ignore[attr-defined]
        if E is not None and (E.dim() != 2 or len(E) != V or not E.is_floating_point()):
            raise ValueError(f"APS(embed of shape {tuple(E.shape)}): an embedding (V, d) of the {V} tokens is needed")
        for m in listed(self.measurement):
            u = m.operator(
                self._table(V, model.dtype, model.device).mean(0).expand(1, *model.shape, -1).requires_grad_()
            )
            if u.shape[1:] != m.y.shape:
                raise ValueError(m.misfit(u))
            if not u.requires_grad:
                raise ValueError(
                    "APS climbs the likelihood, and no gradient passes through the operator of Measurement (numpy, "
                    ".item(), detach(), rounding): use FKSteering, which needs none"
                )

    def tilt(self, view: View) -> Tensor:
        assert view.prediction is not None
        log_p = self._told(view)
        log_q = log_p
        for _ in range(self.iters):
            rise = at(self.scale, view.t) * self.climb(view, log_q.softmax(-1))
            log_q = (1 - self.rate) * log_q + self.rate * (log_p + rise)
        return torch.where(log_p.isfinite(), log_q - log_p, 0.0).to(view.prediction)

    def climb(self, view: View, q: Tensor) -> Tensor:
        """g_i(v), (rows, L, V), at the quantised expectation of q."""
        E = self._table(q.shape[-1], view.model.dtype, q.device)
        u = q.to(E) @ E
        if self.quantised:
            u = E[torch.cdist(u, E).argmin(-1)]
        return slope(lambda u: view.scorer(self.measurement, u, view.group), u).double() @ E.mT.double()

    def _told(self, view: View) -> Tensor:
        """log p_i(v), float64, with the tokens that x_t shows."""
        log_p = view.prediction.detach().double().log_softmax(-1)  # type: ignore[union-attr]
        if not isinstance(view.model.process, Masked):
            return log_p
        V = log_p.shape[-1]
        known = one_hot(view.x.clamp(max=V - 1), V).double().log().clamp(min=LOG_ZERO)
        return torch.where((view.x == V)[..., None], log_p, known)

    def _table(self, V: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.eye(V, dtype=dtype, device=device) if self.embed is None else self.embed.to(device, dtype)

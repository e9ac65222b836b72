r"""Twisted SMC of tokens by a first-order expansion of the reward (Ou, Pani and Li, 2025), after the gradient-based
proposal of https://arxiv.org/abs/2505.22524.

Let p_i(v) be the prediction at x_t (the tokens themselves where they are known), e the relaxed estimate, which has
p_i(v) in place of one-hot rows, and g the gradient of the reward at e. To first order

    r(x_0)  ~  r(e) + sum_i (g_i(x_0^i) - <g_i, p_i>),

under which the tilted law of x_0 is again a product over positions, and so is its mean weight:

    log p_i(v) <- log p_i(v) + scale g_i(v)/alpha                                            the proposal,
    V(x_t)/alpha = r(e)/alpha + sum_i (log sum_v p_i(v) exp(g_i(v)/alpha) - <g_i, p_i>/alpha)      the twist,
    log w += log p(x_s | x_t) - log q(x_s | x_t) + V(x_s)/alpha - V(x_t)/alpha,

with V = r(x_0) at the end. The weighted samples follow p exp(r/alpha)/Z for any reward and scale. If r is linear in the
one-hot rows and the tokens are independent, all weights are Z. The paper's proposal expands in x_t; here, at the clean
estimate, one formula serves masked and uniform noise.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Scale, at
from ..engine.scoring import same
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import View
from ..process import Masked, Uniform
from .shared.labelled import slope
from .shared.twist import TILTED, Twisted


@dataclass(frozen=True)
class TaylorSMC(Twisted):
    """Twisted SMC of tokens towards p exp(reward/alpha), along the gradient of the reward. No extra NFE; one reward
    call with its gradient per particle and step, at relaxed one-hot rows (rows, length, V) in the order of the model's
    tokens, and one of each sample.

    reward      a Reward, or a function, of decoded samples and of one-hot rows, that torch can differentiate there
    alpha       the temperature; or "auto", "kl=2", "ess=0.3", a budget that decides it (`gk.Auto`)
    scale       the strength of the bend, a number or a function of t; the target does not depend on it
    ess         resample a group when its effective sample size falls below this fraction of its particles
    resampler   "multinomial" | "stratified" | "systematic" | "residual" | "ssp", or a function (weights, n, key)
    """

    reward: Any
    alpha: float | str | Auto
    scale: Scale = 1.0
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"
    _: KW_ONLY
    steer: bool = True

    grad = "clean"
    card = Card(
        "bends the tokens along the reward's gradient, corrected by weights",
        section="Steering with rewards",
        processes=(Masked, Uniform),
        refusal="is for tokens; use TDS or DAS",
        exact=TILTED,
        changes="weights",
        paper=Paper(
            "ou2025discrete",
            "Ou, Zijing and Pani, Chinmay and Li, Yingzhen",
            "Inference-Time Scaling of Discrete Diffusion Models via Importance Weighting and Optimal Proposal Design",
            2025,
            "2505.22524",
        ),
        example="gk.TaylorSMC(right, 0.5)",
        picture="tokens",
    )

    def expanded(self, view: View) -> tuple[Tensor, Tensor]:
        """g/alpha, float64 (rows, L, V), and the twist (rows,), NaN where the reward is unknown; once for each
        prediction."""
        key = "taylor", same(self.reward), self.alpha, id(view.prediction)
        return view.once(key, lambda: (*self._expanded(view), view.prediction))[:2]

    def _expanded(self, view: View) -> tuple[Tensor, Tensor]:
        assert view.prediction is not None
        log_p, V = view.prediction.detach().double().log_softmax(-1), view.prediction.shape[-1]
        if isinstance(view.model.process, Masked):
            known = one_hot(view.x.clamp(max=V - 1), V).double()
            log_p = torch.where((view.x == V)[..., None], log_p, known.log())
        e = log_p.exp()
        scores = []
        g = slope(lambda e: self._scored(view, e, scores), e.to(view.model.dtype)).double() / float(self.alpha)
        rest = (log_p + g).logsumexp(-1) - (g * e).sum(-1)
        return g, scores[0] / float(self.alpha) + rest.sum(1)

    def _scored(self, view: View, e: Tensor, scores: list[Tensor]) -> Tensor:
        found = view.scorer(self.reward, e, view.group)
        scores.append(found.detach())
        return found

    def tilt(self, view: View) -> Tensor:
        assert view.prediction is not None
        return at(self.scale, view.t) * self.expanded(view)[0].to(view.prediction)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        before = view.zeros() if memo is None else memo
        now = view.score(self.reward) / float(self.alpha) if view.step.last else self.expanded(view)[1]
        now = torch.where(now.isfinite(), now, -torch.inf if view.step.last else before)
        return now - before, now

r"""Predictor guidance of tokens with exact ratios of rates (Nisonoff et al., 2024), https://arxiv.org/abs/2406.01572.

The reverse process jumps from x_t to x~, which differs in one token, at a rate R(x_t, x~); given a label y at the rate

    R(x_t, x~) (p(y | x~)/p(y | x_t))^gamma.

The kernel q of a move from t to s is that of positions that jump at constant rates: q_i stays with probability
exp(-R_i), and so R_i = -log q_i(x_t^i), shared out among the other tokens in proportion to q_i. With Z_i the mean of
(p(y | x_t^{i -> v})/p(y | x_t))^gamma over the jumps, weighted by q_i, the guided kernel

    stays with probability q_i(x_t^i)^Z_i, and else jumps to v in proportion to q_i(v) p(y | x_t^{i -> v})^gamma.

For masked tokens that is (s/t)^Z_i. For gamma = 1 and the exact p(y | x_t) samples follow p(x | y) in the limit of many
steps; masked ones with any number of steps are those of the conditional model, since Z_i = 1. `TAG` takes the ratios
from one gradient, and `DCBG` reweights clean tokens or, with posterior=True, the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.guide import Scale
from .dcbg import DCBG, Exact
from .shared.labelled import Classifier, Label
from .tag import TAG


@dataclass(frozen=True)
class PredictorGuidance(Exact):
    """Classifier guidance of the rates at which tokens change. No extra NFE; the classifier evaluates V sequences per
    position that can change, at most the run's `batch_size` at a time.

    classifier   (tokens, in which V stands for the mask, t with one entry per row) -> logits (rows, classes), or
                 log p(y | x_t) (rows,) without a label
    scale        gamma, a number or a function of t: 1 samples given the label, 0 does nothing
    label        the class to guide towards, or a list with one for each condition of the run
    """

    classifier: Classifier
    scale: Scale = 1.0
    label: Label = None

    posterior = True
    card = replace(
        DCBG.card,
        about="reweights the rates of all jumps by a classifier",
        refusal="guides the jumps of tokens; with a Gaussian process use gk.ClassifierGuidance",
        paper=TAG.card.paper,
        example="gk.PredictorGuidance(right, 2.0)",
    )

    def bent(self, log_q: Tensor, found: Tensor, x: Tensor) -> Tensor:
        own = x[..., None]
        stay, jumps = log_q.gather(-1, own), log_q.scatter(-1, own, -torch.inf)
        guided = jumps + found
        share = guided.logsumexp(-1, keepdim=True)
        rate = (share - jumps.logsumexp(-1, keepdim=True)).exp() * -stay
        stays = torch.where(stay == -torch.inf, stay, -rate)
        bent = (guided - share + torch.log(-stays.expm1())).scatter(-1, own, stays)
        return torch.where(share > -torch.inf, bent, log_q)

r"""A bank of samples as the look-ahead, after LiDAR (2026, https://arxiv.org/abs/2602.03211).

Given samples x_0^1 ... x_0^M of the model with rewards, Bayes' rule says that p(x_0 | x_t) has the masses
q(x_t | x_0^j), normalised, at these samples. So the soft value is closed form, without the network and its gradient,

    V(x_t) = alpha log sum_j k_j exp(r_j/alpha) / sum_j k_j,        k_j = u_j q(x_t | x_0^j),

with q the forward process and u_j the weight of a sample. It tends to alpha log E[exp(r(x_0)/alpha) | x_t] as the bank
grows. Of masked tokens q is the same for all samples that agree with what is unmasked, and zero for others; where none
agrees the value is unknown, and guides keep the last one that was known. So a bank helps long sequences in the first
part of a run alone, and high dimensions little: near the end one sample has all the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.view import View
from ..process import Gaussian, Masked


@dataclass(frozen=True, eq=False)
class Bank:
    """The soft mean of a bank's rewards, by how well its samples explain x_t. It reads x_t alone: with `SVDD`, children
    cost no network evaluation.

    x             final states of samples of the model at the run's condition, (M, *shape), as in `Result.x`
    rewards       of these samples, (M,); those that are NaN count as exp(r/alpha) = 0
    log_weights   of these samples, as in `Result.log_weights`, or None
    alpha         the temperature; None takes that of the guide

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [0.0], [1.0])
    >>> plain = gk.sample(base, 500, steps=20, reward=lambda x: x[:, 0])
    >>> value = gk.values.Bank(plain.x, plain.rewards)
    >>> guides = [gk.FKSteering(lambda x: x[:, 0], 1.0, value=value)]
    >>> abs(float(gk.sample(base, 500, steps=20, guides=guides).log_z) - 0.5) < 0.2
    True
    """

    x: Tensor
    rewards: Tensor
    log_weights: Tensor | None = None
    alpha: float | None = None

    sees_prediction = False

    def __post_init__(self) -> None:
        sizes = {len(v) for v in (self.x, self.rewards, self.log_weights) if v is not None}
        if len(sizes) != 1 or not len(self.x):
            raise ValueError(
                f"Bank: {len(self.x)} samples and {len(self.rewards)} rewards; one (and one weight) for each"
            )
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"Bank(alpha={self.alpha!r}): a positive temperature, or None for that of the guide")

    def at(self, alpha: float) -> Bank:
        return replace(self, alpha=alpha) if self.alpha is None and alpha > 0 else self

    def __call__(self, view: View) -> Tensor:
        if self.x.shape[1:] != view.model.shape:
            raise ValueError(f"Bank of states of shape {tuple(self.x.shape[1:])}: the model's are {view.model.shape}")
        log_k = self.explained(view).double()
        if self.log_weights is not None:
            log_k = log_k + self.log_weights.to(log_k)
        r = self.rewards.to(log_k)
        if self.alpha is None:  # the plain mean, of greedy guides
            return (log_k.where(r.isfinite(), -torch.inf).softmax(1) * r.nan_to_num(0.0)).sum(1)
        tilted = (log_k + (r / self.alpha).nan_to_num(-torch.inf)).logsumexp(1) - log_k.logsumexp(1)
        return self.alpha * tilted

    def explained(self, view: View) -> Tensor:
        """log q(x_t | x_0^j) up to a constant of each row, (rows, M)."""
        process, x, own = view.model.process, view.x.flatten(1), self.x.to(view.x.device).flatten(1)
        if isinstance(process, Gaussian):
            alpha, sigma = process.scales(view.t)
            return -0.5 * torch.cdist(x.double(), alpha * own.double()).square() / max(sigma, 1e-12) ** 2
        same = x[:, None] == own
        if isinstance(process, Masked):
            return torch.where((same | (x == process.V)[:, None]).all(-1), 0.0, -torch.inf)
        kept, other = 1 - view.t + view.t / process.V, max(view.t / process.V, 1e-300)  # type: ignore[attr-defined]
        return same.sum(-1) * (math.log(kept) - math.log(other))

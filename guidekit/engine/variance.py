r"""The standard error of log Z by one run, whatever the resampler.

A family is what descends from one starting particle. Its share of the weight of the group is 1/N at first. Where
particles move and are weighed it changes by dM_b, and where places are drawn from M_b to O_b/N, with O_b its offspring.
With h_i the final weight to be expected of what descends from i, by unit of weight and in units of the mean, the tower
property gives for every unbiased resampler

    Var(Z^)/Z^2 = E[sum_b S_b^2] - 1/N + sum over resamplings of E[C],   C = N^-2 sum_(b != b') Cov(O_i, O_j) h_i h_j,

S_b the final share, i in b and j in b': families are independent but for the places that they take from each other. The
covariances are those of the scheme (multinomial: -N W_i W_j; systematic: mostly of neighbours); h is not known. But
with h = 1 + d the products d_i d_j of unrelated particles vanish in the mean, so that h_i h_j = h_i + h_j - 1. Then, as
sum_b O_b = N, only covariances Cov(O_i, O_b) within families are left, which the run itself shows, and their unbiased
estimate makes the sum a square:

    Var(Z^)/Z^2 ~ sum_b (sum of dM_b over all moves)^2,                                                             (1)

of the shares without the jumps that resampling makes. What a family got or lost by chance counts by what becomes of it.

Small numbers: shares add up to 1, so that of the noise of a move dM_b^2 shows the part 1 - sum_b M_b^2. Therefore dM_b
is multiplied by sqrt(c), with c = N/(N - 1) at the start and

    c <- c (1 - sum_b M_b^2)/(1 - sum_b (O_b/N)^2)      where places are drawn: unrelated pairs before over after.

Without resampling (1) is then the square of sd(w)/(mean(w) sqrt(N)), exactly. With multinomial resampling c is in the
mean N/(N - 1) to the power of 1 + the resamplings, the factor of Lee and Whiteley (2018),
https://arxiv.org/abs/1509.00394. They have 1 - c (1 - sum_b S_b^2), which takes off too much where a resampler leaves
equal weights alone. Sums over families of centred shares are from Chan and Lai (2013), https://arxiv.org/abs/1312.5114.
Children of which one lives (SVDD) take no place from another family: that is noise within families, and counted.

Limits. It is the error by what the run has seen. Where rare heavy particles make up Z and it met too few of them, log Z
and its error are both too small, as for any mean of skewed weights: unbiased in Z^2 times it, but intervals of 95 % may
cover 80 %. Noise among the relatives of one family does not show: with fewer than FEW families it is NaN, unless none
was lost. Where guides choose greedily log Z estimates nothing, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

FEW = 5  # families; with as many, intervals of 95 % are found to cover 90 %
_TINY = 1e-12


class Recorded(Protocol):
    """What is needed of a step; see `trace.Record`."""

    @property
    def log_w(self) -> Tensor: ...
    @property
    def left(self) -> Tensor: ...
    @property
    def parent(self) -> Tensor: ...


def errors(records: Sequence[Recorded], groups: int, n: int) -> list[Tensor]:
    """For every step the standard error of the log of the mean weight up to there, (groups,); n particles begin."""
    if not records:
        return []
    like = records[0].log_w
    family = torch.arange(n, device=like.device).expand(groups, n)
    share = torch.full((groups, n), 1 / n, dtype=like.dtype, device=like.device)
    drift, c, found = torch.zeros_like(share), torch.full_like(share[:, :1], n / max(n - 1, _TINY)), []
    before = None
    for record in records:
        if record.left is record.log_w is before:  # nothing was weighed, and none selected: that would copy the weights
            found.append(found[-1])
            continue
        before, size = record.left, family.shape[1]
        born = family.repeat_interleave(len(record.log_w) // (groups * size), 1)  # children are side by side
        now = _shares(record.log_w, born, n)
        drift = drift + c.sqrt() * (now - share)
        found.append(_known(drift.square().sum(1).sqrt(), born, n))
        family = family.gather(1, record.parent.view(groups, -1) % size)
        share = _shares(record.left, family, n)
        c = c * _unrelated(now) / _unrelated(share)
    return found


def _shares(log_w: Tensor, family: Tensor, n: int) -> Tensor:
    """The share of every family in the weight of its group, (groups, n)."""
    w = log_w.view(len(family), -1).softmax(-1)
    return w.new_zeros(len(w), n).scatter_add(1, family, w)


def _unrelated(share: Tensor) -> Tensor:
    """The chance that two particles drawn by weight are of different families."""
    return (1 - share.square().sum(1, keepdim=True)).clamp(min=_TINY)


def _known(error: Tensor, family: Tensor, n: int) -> Tensor:
    """NaN where too few families are left."""
    alive = error.new_zeros(len(error), n).scatter(1, family, 1.0).sum(1)
    return error.where((n > 1) & ((alive >= FEW) | (alive == n)), torch.nan)

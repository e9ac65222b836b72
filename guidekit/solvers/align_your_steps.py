r"""The times of Align Your Steps (Sabour et al., 2024), https://arxiv.org/abs/2404.14507: a bound of the KL divergence.

With rho = sigma/alpha and D the clean prediction, a step from rho_i to rho_j that keeps D(x_i) differs from the true
reverse process, by Girsanov's theorem, by at most

    KL_ij = int_{rho_j}^{rho_i} E|D(x_rho) - D(x_i)|^2 rho^-3 drho.

The paper estimates that by drawing pairs (x_rho, x_i). D is a martingale of the reverse process, so that
E|D(x_rho) - D(x_i)|^2 = m(rho_i) - m(rho), with the loss of the denoiser m(rho) = E|x_0 - D(x_rho)|^2, and in terms of
the signal-to-noise ratio g = 1/rho^2

    sum KL_ij = 1/2 ( sum_i m(rho_i) (g_j - g_i) - int m dg ):

the error of a Riemann sum of the loss. So the loss at some levels, on samples of the model itself, is all that has to
be known, and dynamic programming finds the best of all paths among many levels, where the paper descends from a first
guess.

The divergence counts down to noise of the size `low` in the samples; at 0 it would be infinite for every solver, since
the last step is a point. For one Gaussian of deviation c the best times have log(1 + c^2 g) evenly spaced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FINE = 512  # levels among which times are chosen
HIGH = 200.0  # where sigma/alpha is infinite


def aligned(ratios: Sequence[float], losses: Sequence[float], steps: int, low: float) -> list[float]:
    """The levels sigma/alpha at which so many steps begin, given the loss at some levels, which fall."""
    known = torch.tensor([min(r, HIGH) for r in ratios], dtype=torch.float64).log()
    levels = torch.linspace(float(known[0]), math.log(low), FINE, dtype=torch.float64)
    m = _between(levels, known, torch.tensor(losses, dtype=torch.float64))
    g = (-2 * levels).exp()
    return levels[_shortest(m[:, None] * (g - g[:, None]), steps)[:-1]].exp().tolist()


def _between(at: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """The loss between known levels, by a line in log-log; the levels fall."""
    logs = values.clamp(min=1e-300).log()
    after = torch.searchsorted(-known, -at).clamp(1, len(known) - 1)
    share = (known[after - 1] - at) / (known[after - 1] - known[after])
    return (logs[after - 1] + share.clamp(0, 1) * (logs[after] - logs[after - 1])).exp()


def _shortest(cost: Tensor, steps: int) -> list[int]:
    """The path of so many edges from the first node to the last, forwards, with the least sum of costs."""
    size = len(cost)
    forward = torch.where(torch.ones(size, size, dtype=torch.bool).triu(1), cost, torch.inf)
    total, before = forward[0], []
    for _ in range(steps - 1):
        total, source = (total[:, None] + forward).min(0)
        before.append(source)
    path = [size - 1]
    for source in reversed(before):
        path.insert(0, int(source[path[0]]))
    return [0, *path]

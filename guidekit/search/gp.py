r"""Gaussian processes on a low-dimensional sphere, one for each of many cells, for `guidekit.search.subspace`.

    y(w) ~ GP(c, s^2 (k + g)),    |w| = 1,    k(w, w') = exp((w . w' - 1)/l^2),    g on the diagonal alone.

With K = k + g I over the w that have a score y, the mean c and s^2 maximise the likelihood for given l and g:

    c = 1'K^-1 y / 1'K^-1 1,    s^2 = (y - c)'K^-1 (y - c) / m,    log p(y) = -m/2 log s^2 - 1/2 log det K + const,

and l and g are the best of a grid (Rasmussen and Williams, 2006, chapters 2 and 5, https://gaussianprocess.org/gpml).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LENGTHS, NOISES = (0.25, 0.5, 1.0, 2.0, 4.0), (1e-4, 1e-2, 0.3)  # l and g


class Process(NamedTuple):
    """One Gaussian process per cell, fitted to w (cells, m, D); `seen` masks those that have a score."""

    w: Tensor
    seen: Tensor
    length: Tensor  # (cells,), like noise, mean and s2
    noise: Tensor
    mean: Tensor
    s2: Tensor
    factor: Tensor  # Cholesky factor of K
    solved: Tensor  # K^-1 (y - c)

    @staticmethod
    def given(w: Tensor, y: Tensor, length: Tensor, noise: Tensor) -> tuple[Process, Tensor]:
        """The process with these l and g (cells,), and log p(y) up to a constant; y is -inf where there is no score."""
        seen = y.isfinite()
        both = (seen[:, :, None] & seen[:, None]).double()
        k = both * _kernel(w, w, length) + torch.diag_embed(torch.where(seen, noise[:, None], 1.0))
        factor, y, one = torch.linalg.cholesky(k), torch.where(seen, y, 0.0)[..., None], seen.double()[..., None]
        by_one, by_y = torch.cholesky_solve(one, factor), torch.cholesky_solve(y, factor)
        mean = (one * by_y).sum(1) / (one * by_one).sum(1).clamp(min=1e-12)
        solved, count = by_y - mean[:, None] * by_one, seen.sum(1).clamp(min=1)
        square = ((y - mean[:, None]) * one * solved).sum((1, 2))
        square = torch.maximum(square, 1e-20 * y.square().sum((1, 2)) + 1e-200)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_p = -(count * (square / count).log() + log_det) / 2
        return Process(w, seen, length, noise, mean[:, 0], square / count, factor, solved), log_p

    @staticmethod
    def fitted(w: Tensor, y: Tensor) -> Process:
        """The process that maximises the likelihood over the grid of l and g."""
        grid = torch.tensor([(l, g) for l in LENGTHS for g in NOISES], dtype=w.dtype, device=w.device)
        log_p = torch.stack([Process.given(w, y, l.expand(len(w)), g.expand(len(w)))[1] for l, g in grid])
        return Process.given(w, y, *grid[log_p.argmax(0)].T)[0]

    def posterior(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of y, without its noise g, at points w (cells, points, D)."""
        k = _kernel(at, self.w, self.length) * self.seen[:, None]
        mu = self.mean[:, None] + (k @ self.solved)[..., 0]
        known = torch.linalg.solve_triangular(self.factor, k.mT, upper=False).square().sum(1)
        return mu, (self.s2[:, None] * (1 - known).clamp(min=1e-12)).sqrt()


def _kernel(a: Tensor, b: Tensor, length: Tensor) -> Tensor:
    return ((a @ b.mT - 1) / length[:, None, None] ** 2).exp()


def expected_improvement(mu: Tensor, sd: Tensor, best: Tensor) -> Tensor:
    """E[max(y - best, 0)] for y ~ N(mu, sd^2)."""
    u = (mu - best) / sd
    return sd * (u * torch.special.ndtr(u) + (-u.square() / 2).exp() / math.sqrt(2 * math.pi))

r"""CMA-ES with a diagonal covariance (Ros and Hansen, 2008, https://doi.org/10.1007/978-3-540-87700-4_30), on noise.

Candidates are z = m + sigma sqrt(C) w, and m, sigma and C are updated from the better half of them. The first round
samples the prior, m = 0, sigma = C = 1. A mean away from 0 would make the noise too large, and a small sigma too small.
So every candidate is rescaled to the norm of its own w, which is chi distributed like that of noise: only the direction
is learned.

For dimension d, weights w_i of the best mu of k candidates and mu_eff = 1/sum w_i^2:

    c_s = (mu_eff + 2)/(d + mu_eff + 5),      c_c = 4/(d + 4),      c_1 = 2/((d + 1.3)^2 + mu_eff) (d + 2)/3,
    c_mu = min(1 - c_1, 2 (mu_eff - 2 + 1/mu_eff)/((d + 2)^2 + mu_eff) (d + 2)/3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.base import Model
from .core import Found, Options, drive, limits
from .random_search import at_least
from .space import Space

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CMA:
    """CMA-ES with `candidates` per sample and round; with project=False, candidates are not rescaled."""

    def __init__(self, candidates: int = 8, project: bool = True):
        at_least(candidates, 4, "candidates", "of which the better half is learned from")
        self.candidates, self.project = candidates, project
        mu = candidates // 2
        w = math.log(mu + 0.5) - torch.arange(1, mu + 1, dtype=torch.float64).log()
        self.weights = w / w.sum()
        self.effective = float(1 / self.weights.square().sum())

    def begin(self, space: Space) -> None:
        self.space, self.round = space, 0
        d, e = torch.Size(space.shape).numel(), self.effective
        self.size, faster = d, (d + 2) / 3
        self.c_s, self.c_c = (e + 2) / (d + e + 5), 4 / (d + 4)
        self.damping = 1 + 2 * max(0.0, math.sqrt(max(e - 1, 0) / (d + 1)) - 1) + self.c_s
        self.c_1 = min(1.0, faster * 2 / ((d + 1.3) ** 2 + e))
        self.c_mu = min(1 - self.c_1, faster * 2 * (e - 2 + 1 / e) / ((d + 2) ** 2 + e))
        self.mean = torch.zeros(space.cells, d, dtype=torch.float64, device=space.keys.device)
        self.path_s, self.path_c, self.c = self.mean, self.mean, torch.ones_like(self.mean)
        self.sigma = torch.ones_like(self.mean[:, :1])

    def ask(self) -> Tensor:
        if self.round == 0:
            return self.space.draw(range(self.candidates))
        w = self.space.directions("cma", self.round, self.candidates)
        z = self.mean[:, None] + self.sigma[:, None] * self.c.sqrt()[:, None] * w
        if self.project:
            z = z * w.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return self.space.shaped(z)

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        z = (self.space.flat(noises) - self.mean[:, None]) / self.sigma[:, None]
        best = rewards.sort(dim=1, descending=True, stable=True).indices[:, : len(self.weights)]
        y = z.gather(1, best[..., None].expand(-1, -1, self.size))
        weights = self.weights.to(y.device)[:, None]
        step = (weights * y).sum(1)
        self.mean = self.mean + self.sigma * step
        self.path_s = _moved(self.path_s, self.c_s, self.effective, step / self.c.sqrt())
        self.path_c = _moved(self.path_c, self.c_c, self.effective, step)
        rank_mu = (weights * y.square()).sum(1)
        self.c = (1 - self.c_1 - self.c_mu) * self.c + self.c_1 * self.path_c.square() + self.c_mu * rank_mu
        usual = math.sqrt(self.size) * (1 - 1 / (4 * self.size) + 1 / (21 * self.size**2))
        length = self.path_s.norm(dim=-1, keepdim=True) / usual
        self.sigma = self.sigma * (self.c_s / self.damping * (length - 1)).exp()
        self.round += 1


def _moved(path: Tensor, rate: float, effective: float, step: Tensor) -> Tensor:
    return (1 - rate) * path + math.sqrt(rate * (2 - rate) * effective) * step


def cma(
    model: Model,
    n: int,
    reward: Any,
    *,
    rounds: int | None = None,
    candidates: int = 8,
    project: bool = True,
    **options: Unpack[Options],
) -> Found:
    """Diagonal CMA-ES on the noise of each of n samples; 8 rounds unless rounds or a budget are given."""
    return drive(model, n, reward, CMA(candidates, project), limits(rounds, options, 8), options)

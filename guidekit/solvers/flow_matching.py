r"""Discrete flow matching on mixture paths (Gat et al., 2024), https://arxiv.org/abs/2407.15595.

At the time tau, from 0 to 1, a position holds the clean token with probability kappa(tau), and else one of the source:
a mask, or a uniform token. That is our noise at t = 1 - kappa(tau), so a schedule kappa is a change of time: it says
where the steps lie, t_j = 1 - kappa(j/N), and what the network is told (`clock`). The path's velocities are, with p
the prediction and q the probabilities of the source's token given x_t,

    forward     u = kappa'/(1 - kappa) (p - delta_x)             to the data
    backward    w = kappa'/kappa (delta_x - q)                   to the source
    sampled     (1 + beta) u - beta w,    beta >= 0              which has the marginals of the path for every beta

so a corrector beta > 0 lets tokens return to noise as often as it takes them from there. Here rates are integrated
over a step with the prediction held, as kappa' dtau = -dt allows. With uniform noise, x_t^i comes from the data with
probability p(x_t^i) kappa/(kappa + (1 - kappa)/V), and in a step from t to s there are on average

    (1 + beta) log(t/s) p(v) + beta p(x_t^i)/(V - 1) log((V - (V - 1) s)/(V - (V - 1) t))

jumps to v other than x_t^i. With masks, a token is masked again with probability 1 - ((1 - t)/(1 - s))^beta, at most
as often as ReMDM allows, and so many more masks are revealed as leave the marginals of the step exact: beta = 0 is
`Ancestral`, and other beta are one schedule of `ReMDM`. The last step draws from the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import times
from .base import Move
from .token_solver import Leaping


@dataclass(frozen=True)
class FlowMatching(Leaping):
    """Steps and jumps of discrete flow matching.

    kappa       a number n for kappa(tau) = tau^n, or a function of tau in [0, 1] that rises from 0 to 1
    corrector   beta: 0 jumps to the prediction alone

    >>> FlowMatching(kappa=2).grid(4, 1.0)
    [1.0, 0.9375, 0.75, 0.4375, 0.0]
    """

    kappa: float | Callable[[float], float] = 1.0
    corrector: float = 0.0

    def __post_init__(self) -> None:
        if not callable(self.kappa) and not self.kappa > 0:
            raise ValueError(f"FlowMatching(kappa={self.kappa}): the exponent of tau is positive")
        ends = [self.share(i / 64) for i in range(65)]
        if abs(ends[0]) > 1e-6 or abs(ends[-1] - 1) > 1e-6 or ends != sorted(set(ends)):
            raise ValueError(f"FlowMatching(kappa): it rises from 0 to 1, and not from {ends[0]} to {ends[-1]}")
        if not self.corrector >= 0:
            raise ValueError(f"FlowMatching(corrector={self.corrector}): beta is 0 or more")

    def share(self, tau: float) -> float:
        """kappa(tau), the share of clean tokens."""
        return float(self.kappa(tau)) if callable(self.kappa) else tau**self.kappa

    def clock(self, t: Tensor) -> Tensor:
        """The tau at which a share 1 - t is clean, for networks that are told tau; by bisection."""
        return torch.tensor([_inverse(self.share, 1 - v) for v in t.tolist()], dtype=t.dtype, device=t.device)

    def grid(self, steps: int, t_max: float) -> list[float]:
        even = times.make(steps, self.times, None, t_max)
        return [t_max, *(t_max * (1 - self.share(1 - t)) for t in even[1:-1]), 0.0]

    def rates(self, p: Tensor, own: Tensor | None, move: Move) -> Tensor:
        assert own is not None  # masks do not leap here
        V, (t, s) = p.shape[-1], move[:2]
        back = math.log((V - (V - 1) * s) / (V - (V - 1) * t)) / (V - 1) if V > 1 else 0.0
        return (1 + self.corrector) * math.log(t / s) * p + self.corrector * back * own

    def leaps(self, move: Move, noising: str) -> bool:
        return super().leaps(move, noising) and noising == "uniform"

    def remasked(self, t: float, s: float) -> float:
        most = min(1.0, s / (1 - t)) if t < 1 else 1.0
        return min(1 - ((1 - t) / (1 - s)) ** self.corrector, most)


def _inverse(kappa: Callable[[float], float], share: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kappa(middle) < share else (low, middle)
    return (low + high) / 2

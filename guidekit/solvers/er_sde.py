r"""ER-SDE-Solvers: exponential integrators of the extended reverse SDE, whose amount of noise is a function phi.

With w = sigma/alpha and a noise scale phi(w), every SDE of the family has the marginals of the process, and its
solution is

    x_s = (alpha_s phi_s/(alpha_t phi_t)) x_t + alpha_s phi_s int_{w_s}^{w_t} phi'/phi^2 d dw
          + alpha_s sqrt(w_s^2 - (w_t phi_s/phi_t)^2) z.

The clean prediction d is a polynomial in w through the last `order` points, integrated exactly; by parts,

    int phi'/phi^2 L_j dw = L_j(w_s)/phi_s - L_j(w_t)/phi_t + int_{w_s}^{w_t} L_j'/phi dw.

phi = w is the probability flow, phi = w^2 the reverse SDE (DDPM). The paper's choice, w (exp(w^0.3) + 10), draws much
noise where there is much and little towards the data. Its third order takes the first derivative from two points alone,
which is an error of second order; here all terms go through the three points. The first steps have lower order, and the
last one, to sigma = 0, is the clean prediction.

The order is that of the deterministic part; the mean and variance of samples converge with it where they are known.

Reference: Cui et al. (2023), https://arxiv.org/abs/2309.06169.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np

from .base import Move, Point, Solver
from .ddim import posterior
from .multistep import integrals, lagrange, usable
from .schedules import Schedule
from .times import Grid

Scale = Callable[[np.ndarray], np.ndarray]


def published(w: np.ndarray) -> np.ndarray:
    """phi(w) = w (exp(w^0.3) + 10), the noise scale of the paper's experiments."""
    return w * (np.exp(w**0.3) + 10)


@dataclass(frozen=True)
class ERSDE(Solver):
    """ER-SDE of order 1 to 3: stochastic, one evaluation per step, for few steps with rewards and resampling.

    phi   the noise scale, a function of arrays of w = sigma/alpha; phi(w)/w must rise with w

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=ERSDE()).x.shape
    torch.Size([2, 1])
    """

    order: int = 2
    phi: Scale = published
    _: KW_ONLY
    times: str | Grid = "uniform"

    stochastic = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"ERSDE(order={self.order}): there is order 1 to 3")

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        t = past[0]
        if t.alpha == 0 or s.sigma == 0:
            return [posterior(t, s, 1.0)]
        nodes = [p.sigma / p.alpha for p in usable(past, self.order)]
        w_t, w_s = nodes[0], s.sigma / s.alpha
        phi_t, phi_s = self.phi(np.array([w_t, w_s])).tolist()
        r = phi_s / phi_t
        rest = w_s**2 - (w_t * r) ** 2
        if not rest > 0:
            raise ValueError(f"{self!r}: phi(w)/w must rise with w, and from {w_s:.4g} to {w_t:.4g} it does not")
        ends = lagrange(nodes, np.array([w_s, w_t])) * [1.0, -r]
        b = s.alpha * (ends.sum(1) + phi_s * np.array([self._inner(nodes, j, w_s) for j in range(len(nodes))]))
        return [Move(t.t, s.t, s.alpha / t.alpha * r, tuple(b.tolist()), s.alpha * rest**0.5)]

    def _inner(self, nodes: list[float], j: int, w_s: float) -> float:
        """int L_j'/phi dw."""
        poly = np.poly1d([n - nodes[0] for i, n in enumerate(nodes) if i != j], r=True)
        slope = poly.deriv() / poly(nodes[j] - nodes[0])

        def inner(v: np.ndarray) -> np.ndarray:  # in v = log w, where phi is smooth over many decades
            w = np.exp(v)
            return slope(w - nodes[0]) * w / self.phi(w)

        return integrals([0.0], inner, math.log(w_s), math.log(nodes[0]))[0]

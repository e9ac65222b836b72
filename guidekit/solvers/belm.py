r"""BELM: a sampler of second order that can be run backwards exactly, with any network and in any number of steps.

In the straight coordinates of `Heun`, y = x/r and w, let f = (y_t - d)/w_t be the slope of the path at x_t, and m the
slope of the line from x_t to the state x_b before it. With h = w_t - w_s and k = w_b - w_t,

    y_s = y_t - h f + A k (m - f),      y_b = y_t + k m,      A = min(1, h/k)^2.

The first two terms are DDIM. Both f and m miss the curvature of the path, and A = (h/k)^2 takes it out: that is O-BELM,
and leapfrog for equal steps. Where steps grow, A = 1 (BDIA with gamma = 1) keeps errors from growing with them; the
order is 2 as long as neighbouring steps are similar. The first step is that of DDIM.

A step is solved for m without asking the network again. So gk.invert(method="reversible") goes from x_s and x_t up to
x_b. From a sample one comes to two states of the first two times, which are not related by a step of DDIM. So the noise
that it returns has two parts, and the first step adds the second part, times sigma_s, to that of DDIM.

The paper uses w = sigma/alpha, which is infinite in pure noise; the coordinates here are finite.

Reference: Wang et al. (2024), https://arxiv.org/abs/2410.07273; BDIA is in `guidekit.solvers.bdia`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .base import Move, Point, Solver
from .ddim import posterior
from .heun import straight
from .schedules import Schedule, scales


@dataclass(frozen=True)
class BELM(Solver):
    """O-BELM: second order, one evaluation per step, deterministic, and reversible: for edits of one's own samples."""

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [two_step(t, s, last, lambda h, k, *_: min(1.0, h / k) ** 2)]

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        return opened(self, super().moves(schedule, times), schedule)


def two_step(t: Point, s: Point, last: Point | None, share: Callable[[float, float, float, float], float]) -> Move:
    """The formula above, with A = share(h, k, r_s, r_b); DDIM's step where nothing was before."""
    down, (w, r), (w_s, r_s) = posterior(t, s, 0.0), *(straight(p, t.alpha == s.alpha) for p in (t, s))
    f, h = (1 / (r * w), -1 / w), w - w_s  # of x_t and d
    if last is None:
        return down._replace(keep=(f,))
    w_b, r_b = straight(last, t.alpha == s.alpha)
    gain = share(h, w_b - w, r_s, r_b) * (w_b - w)  # A k
    a, b = (v - r_s * gain * u for v, u in zip((down.a, *down.b), f, strict=True))
    keep = (*(u * (1 + gain / h) for u in f), -gain / h)  # (y_t - y_s) / h
    return down._replace(a=a, b=(b, r_s * gain), keep=(keep,))


def opened(solver: Solver, table: list[Move], schedule: Schedule) -> list[Move]:
    """The table whose first step also takes the second part of the noise."""
    first, *rest = table
    if not rest or first.s > first.t:
        raise ValueError(f"solver={solver!r} needs two steps at least, and a first one that goes down in time")
    assert first.keep is not None
    t, s = (Point(v, *scales(schedule, v)) for v in first[:2])
    (w, _), (w_s, r_s) = (straight(p, t.alpha == s.alpha) for p in (t, s))
    keep = (*first.keep[0], -s.sigma / (r_s * (w - w_s)))
    return [first._replace(b=(*first.b, s.sigma), keep=(keep,)), *rest]

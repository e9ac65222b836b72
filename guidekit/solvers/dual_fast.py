r"""DualFast: the noise of a step, moved on from that of the step before, over any multistep solver.

Besides the error of its steps a sampler has that of its network, which is smaller where there is more noise. With the
predicted noise e = (x - alpha d)/sigma at t, and e_tau at a time tau before it, where there is more, the paper takes

    e -> (1 + c_t) e - c_t e_tau

in the first-order term of a solver, with c_t that grows towards data, and asks for no further evaluation. Every
deterministic step is DDIM's, x_s = (alpha_s/alpha_t) x_t + (sigma_s - alpha_s sigma_t/alpha_t) e, and a combination of
differences of predictions besides, so that

    x_s = x_s of the solver + (sigma_s - alpha_s sigma_t/alpha_t) c_t (e - e_tau).

Here tau is the step before, and c_t = c (1 - t), or a function of t. As e - e_tau falls with the steps, the limit of
many steps is the flow of the network. It is reached with order 1: over a solver of higher order the new term is an
error of the steps, c_t times the change of e in one of them. Over DDIM c_t = 1/2 is the method of Adams and Bashforth
of order 2, on steps that are even in sigma/alpha; there the term takes out an error of the steps.

The first step and the last one, to sigma = 0, are those of the solver.

Reference: Yu, Luo, Wang and Zhao (2025), https://arxiv.org/abs/2506.13058. The formula for e is the paper's as a
summary of it gives it, where tau is any step before and no c_t is named; that tau is the last one before, and how c_t
grows, is chosen here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

from .base import Move, Point, Solver
from .dpmpp import DPMpp
from .multistep import Line, gap, memories, noise
from .schedules import Schedule
from .times import Grid

_USUAL = DPMpp()


@dataclass(frozen=True)
class DualFast(Solver):
    """DualFast over a deterministic solver with one evaluation per step; c = 0 is that solver.

    c   how many steps ahead the noise is moved at data: a number, or c_t as a function of t

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=DualFast(gk.solvers.DDIM(), 0.5)).x.shape
    torch.Size([2, 1])
    """

    solver: Solver = _USUAL
    c: float | Callable[[float], float] = 0.3
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if not callable(self.c) and not 0 <= self.c <= 1:
            raise ValueError(f"DualFast(c={self.c}): c lies in [0, 1], or is a function of t")
        if self.solver.stochastic:
            raise ValueError(f"{self!r}: it is for deterministic solvers, like DPMpp() or DEIS()")
        if self.times == "uniform":
            object.__setattr__(self, "times", self.solver.times)

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        table = self.solver.moves(schedule, times)
        if len(table) != len(times) - 1:
            raise ValueError(f"{self!r}: it needs one evaluation per step, as DPMpp() and DEIS() have")
        rows = memories(schedule, table)
        return [row if s.t > t.t else self._beside(row, t, s, own, fresh) for row, t, s, own, fresh in rows]

    def _beside(self, move: Move, t: Point, s: Point, own: tuple[Line, ...], fresh: bool) -> Move:
        """A row of the solver with the noise of the step before in front of its own memory."""
        keep = (noise(t), *own)
        if fresh or s.sigma == 0:
            return move._replace(b=move.b if fresh else gap(move.b, 1), keep=keep)
        c = self.c(t.t) if callable(self.c) else self.c * (1 - t.t)
        more = c * (s.sigma - s.alpha * t.sigma / t.alpha)
        x, d = noise(t)
        b = (move.b[0] + more * d, -more, *move.b[1:])
        return move._replace(a=move.a + more * x, b=b, keep=keep)

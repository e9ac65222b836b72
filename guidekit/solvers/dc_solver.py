r"""DC-Solver: UniPC whose newest prediction is moved to another time, by ratios that are fitted to the model.

UniPC keeps predictions that were made before their states were corrected, so that they lag behind. Before each step the
newest prediction is replaced by the parabola in t through the last three (those before as they were replaced), at

    t_rho = rho t_0 + (1 - rho) t_1,      d_0 <- sum_j L_j(t_rho) d_j,

with t_0 and t_1 the times of the last two. Later steps remember the replaced one; the corrector of the state at t_0
sees the prediction as it was made. rho = 1 is UniPC, and so are steps with fewer than three predictions and the last
one. One ratio other than 1 for all numbers of steps makes it a method of first order; ratios are for few steps.

`compensated` finds the ratios in one pass, step after step: the probability flow in many steps, from the same noises,
says where steps should end, and rho is the one of some values in [0, 2], first by 1/4 and then by 1/16 around the best,
with the smallest mean squared distance of the corrected state at the end of the step, or of the clean prediction there
if nothing but that is used of it. Each value costs an evaluation; the paper takes gradients through the network.

Reference: Zhao et al. (2024), https://arxiv.org/abs/2409.03755. Its polynomials in the number of steps and the
guidance, which guess ratios from other fits, are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import is_count
from .base import Move, Point, Solver
from .fitting import INSIDE, Options, distance, flow, started
from .multistep import lagrange, remembered, usable
from .schedules import Schedule, scales
from .times import Grid
from .unipc import UniPC, corrector, predictor

if TYPE_CHECKING:
    from typing_extensions import Unpack

_FIRST = tuple(k / 4 for k in range(9))
_AROUND = tuple(k / 16 for k in (-3, -2, -1, 1, 2, 3))


@dataclass(frozen=True)
class DCSolver(Solver):
    """UniPC with dynamic compensation: deterministic, one evaluation per step. `ratios` are those of the third to the
    last but one step, as `gk.solvers.compensated` fits them, or one number for all.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> gk.sample(base, 2, steps=8, solver=DCSolver(0.9)).x.shape
    torch.Size([2, 1])
    """

    ratios: float | tuple[float, ...] = 1.0
    order: int = 2
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"DCSolver(order={self.order}): there is order 1 to 3")

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        if isinstance(self.ratios, tuple) and len(times) != len(self.ratios) + 4:
            raise ValueError(f"{self!r} was fitted for steps={len(self.ratios) + 3}, and there are {len(times) - 1}")
        return super().moves(schedule, times)

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        (row,) = UniPC(self.order).rows(schedule, s, past)
        if len(past) < 3 or s.sigma == 0:
            return [row]
        line = self._compensation(past)
        b = np.pad(row.b, (0, max(3 - len(row.b), 0)))
        b[:3] += predictor(s, usable(past, self.order))[0] * (line - [1.0, 0.0, 0.0])
        keep = remembered((0.0, *line.tolist()), min(len(past), max(self.order, 2)) - 1)
        return [row._replace(b=tuple(b.tolist()), keep=keep)]

    def _compensation(self, past: tuple[Point, ...]) -> np.ndarray:
        """The weights of the last three predictions in what takes the place of the newest one."""
        ratios = (*self.ratios, 1.0) if isinstance(self.ratios, tuple) else (self.ratios,) * len(past)
        rho = ratios[len(past) - 3]  # 1 in the last step
        nodes = [p.t for p in past[:3]]
        return lagrange(nodes, np.array([rho * nodes[0] + (1 - rho) * nodes[1]]))[:, 0]


def compensated(
    model: Any,
    steps: int,
    order: int = 2,
    *,
    times: str | Grid = "uniform",
    **options: Unpack[Options],
) -> DCSolver:
    """DC-Solver with ratios for so many steps of this model. The arguments are those of `gk.solvers.fit`; it takes
    n (28 steps - 45) network rows, twice as many with guidance, and no gradients.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> len(compensated(base, steps=6).ratios)
    3
    """
    if not is_count(steps) or steps < 4:
        raise ValueError(f"compensated(steps={steps!r}): the first ratio is that of the third step, so give at least 4")
    solver = DCSolver((1.0,) * (steps - 3), order, times=times)
    calls = (INSIDE + len(_FIRST) + len(_AROUND) + 1) * steps - 45
    with started("compensated", model, steps, times, calls, **options) as (grid, x, _, predict, *_):
        reference = flow(model.process, predict, x, grid)
        history = (predict(x, grid[0]),)
        for i in range(steps - 1):
            step = _Step(model.process, predict, grid, i, x, history, reference)
            if i >= 2:
                best = min(_FIRST, key=lambda rho: step.off(solver, rho))
                best = min((best, *(best + k for k in _AROUND)), key=lambda rho: step.off(solver, rho))
                solver = step.at(solver, best)
            x, history = step.taken(solver)
    return solver


@dataclass
class _Step:
    """The i-th step, from a state with its predictions."""

    process: Any
    predict: Any
    grid: Sequence[float]
    i: int
    x: Tensor
    history: tuple[Tensor, ...]
    reference: Tensor
    found: dict[float, float] = field(default_factory=dict)

    def at(self, solver: DCSolver, rho: float) -> DCSolver:
        assert isinstance(solver.ratios, tuple)
        return replace(solver, ratios=(*solver.ratios[: self.i - 2], rho, *solver.ratios[self.i - 1 :]))

    def taken(self, solver: DCSolver) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The state at the end, before it is corrected, and the predictions."""
        row = solver.moves(self.process.schedule, self.grid)[self.i]
        kernel = self.process.kernel(self.x, self.history, row)
        x = kernel.push(None)
        return x, (self.predict(x, row.s), *kernel.history[:3])

    def off(self, solver: DCSolver, rho: float) -> float:
        """The mean squared distance to the reference with this ratio; each one is tried once."""
        if rho not in self.found:
            x, (d, *older) = self.taken(self.at(solver, rho))
            if self.i == len(self.grid) - 3:  # of this state nothing but the prediction is used
                x, wanted = d, self.reference[-1]
            else:
                s, *past = (Point(t, *scales(self.process.schedule, t)) for t in self.grid[self.i + 1 :: -1])
                nodes = usable(past, solver.order)
                x = x + _combined(corrector(s, nodes), [d, *older]) - _combined(predictor(s, nodes), older)
                wanted = self.reference[self.i + 1]
            self.found[rho] = distance(x, wanted)
        return self.found[rho]


def _combined(weights: Sequence[float], tensors: Sequence[Tensor]) -> Any:
    return sum(w * d for w, d in zip(weights, tensors, strict=False))

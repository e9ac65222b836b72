r"""USF: another solver in every step; and S^3, the search for the best one in each.

The unified sampling framework (USF) lets each step of an exponential integrator choose its order, what it extrapolates
(the clean mean, as `DPMpp` does, or the noise, as `DEIS`) and the variable of its polynomial, whatever the steps before
chose. So `solvers` has one of `DDIM`, `DPMpp` and `DEIS` for each step but the last. A row is that solver's; the last
predictions of both kinds are remembered, and each row takes its own.

`gk.solvers.searched` finds them for a model, by a beam search along the times: a run so far is as good as its state is
near to the probability flow from the same noises in many steps, and at the end its sample. The rows that lead on from a
state cost nothing, and the `beam` best ones get an evaluation each. The paper's search trains a predictor of FID over
whole schedules instead. `gk.solvers.fit(what="coefficients")` fits the numbers of such rows and comes nearer; names of
solvers are easier to read and to carry over.

Reference: Liu et al. (2023), https://arxiv.org/abs/2312.07243.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from ..errors import is_count
from .base import Move, Point, Solver
from .ddim import DDIM
from .deis import DEIS
from .dpmpp import DPMpp
from .fitting import INSIDE, Options, check, distance, flow, started
from .multistep import noise
from .schedules import Schedule, scales
from .times import Grid

if TYPE_CHECKING:
    from typing_extensions import Unpack

AMONG = (
    *(DPMpp(order) for order in (1, 2, 3)),
    *(DEIS(order, space) for order in (2, 3) for space in ("t", "rho", "log_rho")),
)


@dataclass(frozen=True)
class USF(Solver):
    """A solver for each step but the last, which is the clean prediction: deterministic, one evaluation per step.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> solver = USF((gk.solvers.DDIM(), gk.solvers.DEIS(2), gk.solvers.DPMpp(2)))
    >>> gk.sample(base, 2, steps=4, solver=solver).x.shape
    torch.Size([2, 1])
    """

    solvers: tuple[Solver, ...]
    _: KW_ONLY
    times: str | Grid = "uniform"

    def __post_init__(self) -> None:
        for solver in self.solvers:
            if not isinstance(solver, DDIM | DPMpp | DEIS) or solver.stochastic or getattr(solver, "order", 1) > 3:
                raise ValueError(f"USF({solver!r}): a step is one of DDIM(), DPMpp() and DEIS(), up to order 3")

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        if len(times) != len(self.solvers) + 2:
            raise ValueError(f"{self!r} has solvers for steps={len(self.solvers) + 1}, and there are {len(times) - 1}")
        return super().moves(schedule, times)

    def rows(self, schedule: Schedule, s: Point, past: tuple[Point, ...]) -> list[Move]:
        solver = self.solvers[len(past) - 1] if len(past) <= len(self.solvers) else DDIM()
        return [_placed(solver.rows(schedule, s, past)[0], past[0])]


def _placed(row: Move, t: Point) -> Move:
    """A row of one kind that remembers both: d_1, d_2, e_1 and e_2."""
    first, *rest = row.b
    means, noises = ((), rest) if row.keep is not None else (rest, ())
    b = (first, *means, *(0.0,) * (2 - len(means)), *noises)
    keep = ((0.0, 1.0), (0.0, 0.0, 1.0), noise(t), (0.0, 0.0, 0.0, 0.0, 1.0))
    return row._replace(b=b, keep=keep)


class _State(NamedTuple):
    """A run so far: the solvers of its steps, x, the predictions, and the mean squared distance to the reference."""

    solvers: tuple[Solver, ...]
    x: Tensor
    history: tuple[Tensor, ...]
    error: float


def searched(
    model: Any,
    steps: int,
    among: Sequence[Solver] = AMONG,
    *,
    beam: int = 4,
    times: str | Grid = "uniform",
    **options: Unpack[Options],
) -> USF:
    """The solver of each of so many steps, among these, with which the samples of this model come nearest to its
    probability flow. It takes up to n steps (beam + 12) network rows, twice as many with guidance; the other arguments
    are those of `gk.solvers.fit`.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> len(searched(base, steps=6).solvers)
    5
    """
    check("searched", model, beam=beam)
    if not is_count(steps) or steps < 2:
        raise ValueError(f"searched(steps={steps!r}): the last step is no choice, so give at least 2")
    USF((*among,))  # which refuses what cannot be a step
    process, calls = model.process, steps * (beam + INSIDE)
    with started("searched", model, steps, times, calls, **options) as (grid, x, _, predict, *_):
        reference = flow(process, predict, x, grid)
        found = [_State((), x, (predict(x, grid[0]),), 0.0)]
        for i in range(1, steps):
            ahead = [_led(process, state, solver, grid[: i + 1], reference[i]) for state in found for solver in among]
            kept = {state.error: state for state in reversed(ahead)}  # of equal rows the first
            best = [kept[error] for error in sorted(kept)[:beam]]
            found = [state._replace(history=(predict(state.x, grid[i]), *state.history)) for state in best]
        last = min(found, key=lambda state: distance(state.history[0], reference[-1]))
    return USF(last.solvers, times=times)


def _led(process: Any, state: _State, solver: Solver, times: Sequence[float], wanted: Tensor) -> _State:
    """The state at the end of one more step, without its prediction."""
    solvers = (*state.solvers, solver)
    points = [Point(t, *scales(process.schedule, t)) for t in reversed(times)]
    (row,) = USF(solvers).rows(process.schedule, points[0], tuple(points[1:]))
    kernel = process.kernel(state.x, state.history, row)
    x = kernel.push(None)
    return _State(solvers, x, kernel.history, distance(x, wanted))

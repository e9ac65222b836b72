r"""gk.parallel: all steps of a run at once, by Picard iteration, in fewer network calls one after the other.

A run is x_{i+1} = q_i(x_i, d_i; z_i): the solver's row i with the prediction d_i of x_i, those before it, and the noise
z_i, which has an address and so is known before. Picard iteration guesses all states, evaluates the network at all of
them in one forward, each at its own time, and makes the whole chain again with these predictions,

    d_i <- d(x_i, t_i) for all i at once,      x_{i+1} <- q_i(x_i, d_i; z_i) for one i after the other,

until nothing moves. The second half calls no network. After k rounds the first k states are those of the run itself,
and most often many more are, as predictions change little from step to step. The rows of a table integrate what is
linear exactly, so that less has to be iterated than with steps of Euler.

A window of so many states moves along the chain. It moves on by at least one state in a round, and past all whose
change, root mean square over the numbers of a row, in units of hypot(alpha, sigma), is at most `tolerance` in every
row. With tolerance 0 the samples are those of `gk.sample`, but for the rounding of other batches. States that enter are
guessed with the newest prediction.

Reference: Shih et al. (2023), ParaDiGMS, https://arxiv.org/abs/2305.16317. There states are sums of Euler's drifts, and
the unit of the tolerance is the noise of DDPM at that step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NetworkError, is_count
from ..models.base import Mixed, Model
from ..models.evaluations import Cond, evaluate, joined
from ..process import Gaussian
from ..solvers import Solver
from .elsewhere import translated
from .guide import Guide
from .population import Population
from .progress import Bar
from .result import Result
from .run import Run
from .seats import HOOKS
from .tilts import tilted
from .view import View

_HOOKS = ("begin", "condition", "tilt", "finish", "paste")  # of guides that look at each state by itself
_DEAF = 0.02  # of a prediction, by which it may depend on the times of other rows


@dataclass
class _Chain:
    """The states of a run, of which those before `base` are final: the state at each point in the window and a little
    behind it, and what the network has last said there."""

    run: Run
    window: int
    tolerance: float
    points: dict[int, Population]
    told: dict[int, Tensor] = field(default_factory=dict)
    base: int = 0
    rounds: int = 0

    def advance(self) -> None:
        """One round: a forward, the chain made again, and the window moved."""
        last = len(self.run.moves)
        seen = [i for i in range(self.base, min(self.base + self.window, last)) if i in self.points]
        kept = {i: said for i, said in self.told.items() if i >= self.base - 1}
        self.told = kept | self._looked(seen)
        before, end = dict(self.points), min(self.base + self.window, last)
        for i in range(self.base, end):
            self.points[i + 1] = self._moved(i)
        still = [i for i in range(self.base + 2, end + 1) if i in before and self._near(before[i], self.points[i], i)]
        firm = next(i for i in range(self.base + 1, end + 1) if i + 1 not in still)
        for i in range(self.base + 1, firm + 1):
            self.points[i] = self.run.select(self.points[i], i)
            del self.points[i - 1]
        self.base, self.rounds = firm, self.rounds + 1
        for i in range(end, min(firm + self.window, last)):
            self.points[i + 1] = self._moved(i)

    def _moved(self, i: int) -> Population:
        """The state after move i, by what the network has said there, or where it was asked last."""
        pop = self.points[i]
        said = self.told.get(i, self.told[max(j for j in self.told if j <= i)])
        predictions = (said, *pop.predictions[: self.run.order - 1])
        return self.run.move(replace(pop, predictions=predictions), i)

    def _near(self, old: Population, new: Population, i: int) -> bool:
        change = (new.x - old.x).double().flatten(1).square().mean(1).sqrt().max()
        return float(change) <= self.tolerance * math.hypot(*self.run.model.process.scales(self.run.moves[i - 1].s))

    def _looked(self, seen: Sequence[int]) -> dict[int, Tensor]:
        """The predictions at these points, with the tilts of the guides, by one forward of the network."""
        views = [self._view(i) for i in seen]
        needs = list(dict.fromkeys(need for i in seen for need in self.run.acts[i].needs))
        rows = [len(view.x) for view in views]
        found: dict[Any, list[Tensor]] = {need: [] for need in needs}
        for x, times, cond in self._parts(views, len(needs)):
            said = evaluate(self.run.model, needs, x, times, cond, self.run.cost.network)
            for need, out in said.items():
                found[need].append(out)
        own = {need: torch.cat(parts).split(rows) for need, parts in found.items()}
        views = [
            replace(view, evals={need: out[k] for need, out in own.items()}, prediction=own[Cond()][k])
            for k, view in enumerate(views)
        ]
        if self.rounds == 1 and len(seen) > 1:
            self._listens(views[-1])
        return {i: self._tilted(view, i) for i, view in zip(seen, views, strict=True)}

    def _view(self, i: int) -> View:
        """The rows at a point, with the conditions that the network is to see."""
        view = self.run.view(self.points[i], i, seen=False)
        for seat in self.run.acts[i].condition:
            view = replace(view, cond=seat.guide.condition(view.own(seat.name, None), view.cond))
        return view

    def _parts(self, views: list[View], needs: int) -> Iterable[tuple[Tensor, Mixed, Any]]:
        """States, times and conditions of all points, for forwards of no more rows than are allowed."""
        most = sum(len(view.x) for view in views) if self.run.batch_size is None else self.run.batch_size // needs
        index = [torch.arange(len(view.x), device=view.x.device).split(max(1, most)) for view in views]
        small = [view.take(rows) for view, parts in zip(views, index, strict=True) for rows in parts]
        while small:
            count, rows = 0, 0
            while count < len(small) and (not count or rows + len(small[count].x) <= most):
                rows, count = rows + len(small[count].x), count + 1
            some, small = small[:count], small[count:]
            times = Mixed(tuple((view.t, len(view.x)) for view in some))
            yield torch.cat([view.x for view in some]), times, joined([view.cond for view in some])

    def _listens(self, view: View) -> None:
        """The network reads the time of every row: asked for rows of one time alone, it says the same."""
        assert view.prediction is not None
        own, mixed = view.evaluate(view.x, view.t)[Cond()].double(), view.prediction.double()
        if float((own - mixed).norm()) > _DEAF * float(own.norm()):
            raise NetworkError(
                f"the network says something else of rows at t={view.t:.4g} when rows at other times are in the same "
                "forward: it must read the time of each row, and not t[0]; gk.sample serves it as it is"
            )

    def _tilted(self, view: View, i: int) -> Tensor:
        pop = self.points[i]
        told, _ = tilted(view, self.run.acts[i], pop.memos, False)
        assert told.prediction is not None
        self.run.verify(told.prediction, i, pop.group, pop.slot, view=told)
        return told.prediction


@translated
def parallel(
    model: Model,
    n: int,
    *,
    steps: int | Sequence[float] = 50,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    reward: Any = None,
    solver: Solver | None = None,
    noise: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    window: int = 16,
    tolerance: float = 1e-3,
    progress: bool = False,
) -> Result:
    """The samples of `gk.sample`, with fewer network calls one after the other and more rows in each.

    It takes longer on a processor that is busy with one state already, and less time where a forward of many rows is
    hardly slower than one of few: a few samples on an accelerator, or a network served by many machines.

    window      states that are evaluated in one forward, of n rows for each condition
    tolerance   change between two rounds at which a state is taken, in units of hypot(alpha, sigma); with 0 the samples
                are those of gk.sample, but for the rounding of other batches

    The other arguments are those of `gk.sample`. Any solver of a Gaussian process will do, with and without noise, and
    guides that change each prediction by itself, like CFG: no weights, no selection and no gradients through the
    network. `Result.config["parallel"]` has the number of rounds: forwards one after the other, where batch_size does
    not divide them. One forward of n rows more finds out whether the network reads the time of each row.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 2.0], [0.5, 0.5])
    >>> one, other = gk.sample(base, 4, steps=50), parallel(base, 4, steps=50)
    >>> bool((one.x - other.x).abs().max() < 0.02), other.config["parallel"]["rounds"] < 25
    (True, True)
    """
    run = Run(
        model, n, steps=steps, guides=guides, cond=cond, reward=reward, solver=solver, noise=noise, seed=seed,
        batch_size=batch_size,
    )  # fmt: skip
    _check(run, window, tolerance)
    with run.borrowed(), Bar(run, progress) as bar:
        chain = _Chain(run, window, tolerance, {0: run.begun()})
        while chain.base < len(run.moves):
            chain.advance()
            bar.update(chain.base)
        result = run.result(run.look(chain.points[len(run.moves)], len(run.moves)))
    how = {"window": window, "tolerance": tolerance, "rounds": chain.rounds}
    return replace(result, config=result.config | {"parallel": how})


def _check(run: Run, window: int, tolerance: float) -> None:
    """What cannot be done in parallel is refused before the first call."""
    if not isinstance(run.model.process, Gaussian):
        raise ValueError(f"parallel is for Gaussian processes, not for {type(run.model.process).__name__}")
    if not is_count(window):
        raise ValueError(f"parallel(window={window!r}): states in one forward, an int of at least 1")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"parallel(tolerance={tolerance!r}): a number of at least 0")
    models = [run.model, *(need.model(run.model) for guide in run.guides for need in guide.needs)]
    if odd := [type(m).__name__ for m in models if type(m).mixed is Model.mixed]:
        raise ValueError(f"{odd[0]} evaluates its network at one time in each forward: take gk.sample")
    for guide in run.guides:
        name, odd = type(guide).__name__, [hook for hook in HOOKS if guide.has(hook) and hook not in _HOOKS]
        if guide.steer or guide.grad is True or odd:
            what = (
                f"has {', '.join(odd)}" if odd else "takes a gradient through the network" if guide.grad else "steers"
            )
            raise ValueError(f"{name} {what}, and in parallel every state is looked at by itself: take gk.sample")

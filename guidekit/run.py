"""One run of a sampler: the steps that `gk.sample` loops over, each of which can be called by hand.

    branch -> move -> look -> select,     population to population, for each move of the solver's table

`look` is the only place that calls the network: one forward per micro-batch serves the prediction, the clean estimate,
the look-ahead and every guide. The prediction stays with its particle, so survivors are not evaluated again.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks, random, tree
from .errors import NetworkError
from .finish import finish
from .guides.base import Guide
from .models.base import Cond, Model, borrowed, rows_of
from .population import Population
from .result import Result
from .rewarding import Cost, Scorer
from .solvers import Move, Solver
from .view import Step, View

_BLOCK = 1 << 17  # numbers of noise made at a time where a step needs fewer


class Record(NamedTuple):
    """What a step leaves behind for the trace, on the device: log-weights before the selection, survivors after it."""

    t: float
    seconds: float
    log_w: Tensor
    parent: Tensor
    rewards: Tensor
    more: dict[str, Tensor]  # what guides want to have traced, (groups,)


class Fault(NamedTuple):
    """The sums of a look's predictions, perhaps still on the device, in which NaN and infinity show."""

    index: int
    total: Tensor
    group: Tensor
    slot: Tensor
    size: int

    def raise_if_any(self, moves: Sequence[Move], view: View | None = None) -> None:
        bad = ~self.total.isfinite()
        if not bad.any():
            return
        rows = (self.group * self.size + self.slot)[bad].tolist()
        ours = view is not None and all(bool(e[bad].isfinite().all()) for e in view.evals.values())
        who = "the tilts of the guides made" if ours else "the network returned"
        raise NetworkError(
            f"{who} NaN or infinity at step {self.index} of {len(moves)} (t = {moves[self.index].t:.4g}) in "
            f"{len(rows)} rows: {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}"
        )


class Run:
    """A prepared run. Building it checks every argument and calls no network; the arguments are `gk.sample`'s."""

    def __init__(
        self,
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
        holdout: Any = None,
    ):
        checks.check_call(model, n, solver, batch_size, guides, reward, holdout)
        solver = model.solver if solver is None else solver
        self.model, self.n, self.guides, self.solver = model, n, tuple(guides), solver
        self.reward, self.noise, self.seed, self.batch_size, self.holdout = reward, noise, seed, batch_size, holdout
        moves = model.process.moves(steps, solver)
        self.conditions = checks.conditions(model, cond)
        self.groups = len(self.conditions)
        self.keys = checks.keys(seed, self.groups, model.device)
        checks.check_guides(self.guides, model, solver, len(moves))
        self.moves = reduce(lambda moves, guide: guide.moves(model, moves), self.guides, moves)
        if not self.moves:
            raise ValueError(f"the guides leave none of the {len(moves)} steps")
        self._steps = self._all_steps()
        self.rows = max(step.n for step in self._steps)  # of one group, at the widest
        checks.check_noise(noise, model, self.groups * self._steps[0].n, len(self.moves))
        self.names = _names(self.guides)
        self.order = max(1, *(len(m.b) for m in self.moves))
        self.steered = any(g.steer for g in self.guides)
        twists = [g.twist for g in self.guides]
        self._counts = [t is None or t not in twists[:i] for i, t in enumerate(twists)]
        self._branching = [g for g in self.guides if g.has("children")]
        self._draws = [model.process.draws(move) for move in self.moves]
        judges = [getattr(g, "reward", None) for g in self.guides]
        self.judge = next((r for r in judges if r is not None), None)
        self._ids = torch.arange(self.groups * self.rows, device=model.device)
        self._keys = self._address(self._ids // self.rows, self._ids % self.rows)
        self._block: tuple[int, Tensor] = (-1, self._keys)
        self.cost = Cost()
        self.score = Scorer(self.cost, model.device)
        self.records: list[Record] = []
        self._encoded = model.encode_all(self.conditions)
        self._faults: list[Fault] = []
        self._clock = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent, that before an interruption included."""
        return self.cost.seconds + time.perf_counter() - self._clock

    def step(self, index: int) -> Step:
        """The point of the grid at which a population stands after `index` moves."""
        return self._steps[index]

    def _all_steps(self) -> list[Step]:
        total, moves = len(self.moves), (None, *self.moves, None)
        alive = [self._alive(i / total) for i in range(total + 1)]
        return [
            Step(i, total, 0.0 if go is None else go.t, alive[i], alive[max(i - 1, 0)], self.keys, came, go)
            for i, (came, go) in enumerate(pairwise(moves))
        ]

    def _alive(self, fraction: float) -> int:
        """Rows of each group that are to live at this point of the run."""
        n = self.n
        for guide in self.guides if fraction < 1 else ():
            n = guide.particles(n, fraction)
        return n

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Context in which the networks are in evaluation mode; afterwards they are as they were."""
        with ExitStack() as stack:
            for model in dict.fromkeys(self.models):
                stack.enter_context(model.lent())
            stack.enter_context(borrowed(self.models))
            yield

    @property
    def models(self) -> list[Model]:
        """The base model and those of the guides."""
        return [self.model, *(m for g in self.guides for m in g.models)]

    # the four parts of a step ------------------------------------------------------------------------------------

    def start(self) -> Population:
        """Particles at the first time."""
        parts = (self._begun(self._born(rows)) for rows in self._chunks(self.groups * self.step(0).n))
        return Population.cat([self.look(p, 0) for p in parts])

    def advance(self, pop: Population, index: int) -> Population:
        """The whole step: move number `index`, in micro-batches, then the selection."""
        width = self.width(index)
        look = self.weigh if width > 1 and self.blind else self.look
        parts = (self.branch(pop, index, rows) for rows in self._chunks(len(pop) * width))
        pop = self.select(Population.cat([look(self.move(p, index), index + 1) for p in parts]), index + 1)
        if look == self.weigh:
            pop = Population.cat([self.predict(pop.take(rows), index + 1) for rows in self._chunks(len(pop))])
        return pop

    def width(self, index: int) -> int:
        """Children of each particle in this move."""
        step = self.step(index)
        return math.prod(g.children(step) for g in self._branching if g.active(step) and self._draws[index])

    @property
    def blind(self) -> bool:
        """Whether selections need no prediction, so that the network need not see those who die."""
        return not any(g.sees_prediction for g in self.guides if g.has("log_weight") or g.has("select"))

    def branch(self, pop: Population, index: int, rows: slice = slice(None)) -> Population:
        """Every particle's children (those rows of them), side by side, still where their parent is."""
        k = self.width(index)
        if k == 1:
            return replace(pop.take(rows), parent=self._ids[: len(pop)][rows], branch=1)
        child = torch.arange(len(pop) * k, device=pop.x.device)[rows]
        parent = child // k
        pop = pop.take(parent)  # the first child has its parent's address, and so the noise of an only child
        return replace(pop, parent=parent, slot=pop.slot + child % k * self.step(index).n, branch=k)

    def move(self, pop: Population, index: int) -> Population:
        """x_s = q.push(noise); where a guide steers, the weights take the ratio p/q."""
        move, process = self.moves[index], self.model.process
        p = process.kernel(pop.x, pop.predictions, move)
        q = process.kernel(pop.x, pop.proposals, move) if pop.proposals and p.random else p
        noise, memos = self._chosen(pop, index) if q.random else (None, pop.memos)
        x = q.push(noise)
        log_w = pop.log_w if q is p else pop.log_w + p.log_prob(x) - q.log_prob(x)
        predictions = getattr(p, "history", pop.predictions)  # of a solver that remembers more than predictions
        proposals = getattr(q, "history", pop.proposals) if pop.proposals else ()
        return replace(pop, x=x, log_w=log_w, memos=memos, predictions=predictions, proposals=proposals)

    def _chosen(self, pop: Population, index: int) -> tuple[Tensor, tuple]:
        """The noise of a move, drawn or as a guide chooses it, and the memos."""
        noise, memos = self._noise(pop, index + 1), list(pop.memos)
        for place, (guide, name) in enumerate(zip(self.guides, self.names, strict=True)):
            if guide.has("noise"):
                noise, memos[place] = guide.noise(pop, self.step(index).own(name, place), noise)
        return noise, tuple(memos)

    def look(self, pop: Population, index: int) -> Population:
        """Evaluate the network, apply the tilts, update the weights and memos."""
        view = self._view(pop, self.step(index))
        with torch.set_grad_enabled(view.x.requires_grad):
            view, proposal = self._predict(view, pop.memos)
            return self._predicted(self._weighed(pop, view), view, proposal)

    def weigh(self, pop: Population, index: int) -> Population:
        """The part of a look that needs no network, where no guide's weights do."""
        return self._weighed(pop, self._view(pop, self.step(index), seen=False))

    def predict(self, pop: Population, index: int) -> Population:
        """The rest of that look."""
        view = self._view(pop, self.step(index))
        with torch.set_grad_enabled(view.x.requires_grad):
            return self._predicted(pop, *self._predict(view, pop.memos))

    def select(self, pop: Population, index: int) -> Population:
        """The guides' selections, in the order of the list, and a line of the trace."""
        step, size = self.step(index), len(pop)
        named = [
            (g, step.own(name, place)) for place, (g, name) in enumerate(zip(self.guides, self.names, strict=True))
        ]
        for guide, own in named:
            weighed = guide.weigh(pop, own)
            pop = weighed if self._counts[own.place] else replace(weighed, log_w=pop.log_w)
        log_w = pop.log_w
        for guide, own in named:
            pop = guide.select(pop, own)
        if len(pop) != self.groups * step.n:
            raise ValueError(
                f"step {index}: {len(pop) // self.groups} of {size // self.groups} rows per group are left where "
                f"{step.n} were asked for; a guide that branches needs one that selects"
            )
        traced = {
            k: pop.by_group(v).nanmean(1) for g, own in named if g.has("traced") for k, v in g.traced(pop, own).items()
        }
        self.records.append(Record(step.t, self.seconds, log_w, pop.parent, pop.rewards, traced))
        self.score.forget()
        return pop

    def result(self, pop: Population) -> Result:
        """The result, from the population after the last move."""
        return finish(self, pop)

    # parts of a look ---------------------------------------------------------------------------------------------

    def _view(self, pop: Population, step: Step, seen: bool = True) -> View:
        """The rows with their evaluations; where a guide needs gradients, x carries them."""
        active = [g for g in self.guides if g.active(step)]
        x = pop.x
        if step.t > 0 and x.is_floating_point() and any(g.grad for g in active):
            x = x.detach().requires_grad_()
        cond = rows_of(self._encoded, pop.group)
        view = View(self.model, step, x, cond, pop.group, pop.slot, {}, None, self.score, self.batch_size)
        if step.t == 0 or not seen:
            return view
        for guide, name in zip(self.guides, self.names, strict=True):
            if guide.has("condition") and guide.active(step):
                view = replace(view, cond=guide.condition(view.own(name, None), view.cond))
        needs = tuple(dict.fromkeys([Cond(), *(n for g in active for n in g.needs)]))
        with torch.set_grad_enabled(x.requires_grad):
            evals = view.evaluate(x, step.t, needs)
        return replace(view, evals=evals, prediction=evals[Cond()])

    def _predict(self, view: View, memos: tuple) -> tuple[View, Tensor | None]:
        """Tilts, then the late ones (all with gradients are), which see the estimate that the first have made."""
        target, push = view.prediction, None
        if target is None:
            return view, None
        every = zip(self.guides, self.names, memos, strict=True)
        active = [(g, own) for g, *own in every if g.active(view.step) and g.tilts]
        for late in (False, True):
            for guide, own in active:
                if (guide.late or guide.grad) is not late:
                    continue
                tilt = guide.tilt(view.own(*own))
                if guide.steer:
                    push = tilt if push is None else push + tilt
                else:
                    target = target + tilt
            view = view.with_prediction(target)
        proposal = target if push is None else target + push
        for guide, own in active:
            proposal = guide.finish(view.own(*own), proposal)
            target = target if guide.steer else guide.finish(view.own(*own), target)
        return view.with_prediction(target), proposal if self.steered else None

    def _weighed(self, pop: Population, view: View) -> Population:
        """The population with the guides' weights and memos, and what is known of rewards."""
        log_w, memos = pop.log_w, []
        for guide, name, counts, memo in zip(self.guides, self.names, self._counts, pop.memos, strict=True):
            increment, memo = guide.log_weight(view.own(name, memo), memo)
            log_w = log_w + increment if counts else log_w
            memos.append(memo)
        if view.step.last and self.judge is not None:
            view.score(self.judge)
        scored = view.scored(self.judge)
        rewards = pop.rewards if scored is None else _cut(scored)
        return replace(pop, log_w=_cut(log_w), memos=tree.map(_cut, tuple(memos)), rewards=rewards)

    def _predicted(self, pop: Population, view: View, proposal: Tensor | None) -> Population:
        """The population with its predictions, free of graphs."""
        predictions, proposals = pop.predictions, pop.proposals
        if view.prediction is not None:
            self._verify(view, pop, view.prediction if proposal is None else proposal)
            predictions = (_cut(view.prediction), *predictions[: self.order - 1])
            if proposal is not None:
                proposals = (_cut(proposal), *proposals[: self.order - 1])
        return replace(pop, predictions=predictions, proposals=proposals)

    def _verify(self, view: View, pop: Population, prediction: Tensor) -> None:
        """No NaN or infinity in the prediction: at once on the host, at the end of the run on a device."""
        total = prediction.detach().reshape(len(prediction), -1).sum(1)
        fault = Fault(view.step.index, total, pop.group, pop.slot, pop.branch * self.rows)
        if total.device.type != "cpu":
            self._faults.append(fault)
        elif not math.isfinite(total.sum().item()):
            fault.raise_if_any(self.moves, view)

    def settle(self) -> None:
        """Read what was left on the device: faults of the network and counts."""
        for fault in self._faults:
            fault.raise_if_any(self.moves)
        self._faults.clear()
        self.score.settle()

    # rows and their noise ----------------------------------------------------------------------------------------

    def _chunks(self, rows: int) -> Iterator[slice]:
        """Micro-batches such that one forward has at most batch_size rows."""
        size = rows if self.batch_size is None else max(1, self.batch_size // self._evaluations)
        return (slice(i, min(i + size, rows)) for i in range(0, rows, size))

    @property
    def _evaluations(self) -> int:
        """Most rows that one particle takes in one forward."""
        needs = dict.fromkeys([Cond(), *(need for g in self.guides for need in g.needs)])
        return max(Counter(id(need.model(self.model)) for need in needs).values())

    def _born(self, rows: slice | Tensor) -> Population:
        """The particles of these rows, which have an address and no state yet."""
        row, size = self._ids[rows], self.step(0).n
        return Population(
            x=row,
            log_w=torch.zeros(len(row), dtype=torch.float64, device=row.device),
            group=row // size,
            slot=row % size,
            parent=row,
            root=row,
            predictions=(),
            proposals=(),
            memos=(None,) * len(self.guides),
            rewards=torch.full((len(row),), torch.nan, dtype=torch.float64, device=row.device),
            groups=self.groups,
        )

    def _begun(self, pop: Population) -> Population:
        """The particles in the states from which the run starts."""
        noise = self._noise(pop, 0)
        pop = replace(pop, x=self.model.process.prior(noise, self.moves[0].t))
        for place, (guide, name) in enumerate(zip(self.guides, self.names, strict=True)):
            pop = replace(pop, x=guide.begin(self.model, pop, noise, self.step(0).own(name, place)))
        return pop

    def _noise(self, pop: Population, index: int) -> Tensor:
        """Noise of the start (index 0) or of move index - 1, by address or as the user gave it."""
        shape = self.model.process.noise_shape(self.model.shape)
        if self.noise is not None:
            row = pop.group * self.step(0).n + pop.slot
            if self.noise.dim() == len(shape) + 2:
                if pop.branch > 1:
                    raise ValueError("noise= for the whole chain has one row per particle, but a guide branches")
                return self.noise[index][row]
            if index == 0:
                return self.noise[row]
        if pop.branch == 1:
            return self._ahead(index, shape, pop.group * self.rows + pop.slot)
        keys = self._address(pop.group, random.address(pop.slot, self.step(index).parents))
        return self.model.process.noise(random.fold(keys, index), shape, self.model.dtype)

    def _ahead(self, index: int, shape: tuple[int, ...], rows: Tensor) -> Tensor:
        """Noise by address, where it is small for several steps at a time: calls then cost more than their work."""
        steps = _BLOCK // (len(self._keys) * math.prod(shape))
        if steps < 2:
            return self.model.process.noise(random.fold(self._keys[rows], index), shape, self.model.dtype)
        if index // steps != self._block[0]:
            first = index - index % steps
            keys = random.fold(self._keys, torch.arange(first, first + steps, device=rows.device)[:, None])
            self._block = (index // steps, self.model.process.noise(keys, shape, self.model.dtype))
        return self._block[1][index % steps][rows]  # a copy: moves use their noise up

    def _address(self, group: Tensor, slot: Tensor) -> Tensor:
        """The key of each row's noise, which is the same for a row of the same slot in any group with this seed."""
        return random.fold(random.fold(self.keys, "noise")[group], slot)

    def chain_noise(self) -> Tensor:
        """The noise of the whole chain, (moves + 1, rows, ...), where no guide branches: as `noise=` takes it."""
        born = self._born(slice(None))
        return torch.stack([self._noise(born, index) for index in range(len(self.moves) + 1)])

    def start_noise(self, root: Tensor) -> Tensor:
        """The noise from which the particles with these roots started."""
        if self.noise is not None and self.noise.dim() == len(self.model.process.noise_shape(self.model.shape)) + 2:
            return self.noise[0][root]
        return self._noise(self._born(root), 0)


def _cut(v: Tensor) -> Tensor:
    """Free of its graph."""
    return v.detach() if v.requires_grad else v


def _names(guides: Sequence[Guide]) -> list[str]:
    """Addresses of the guides' randomness, which do not depend on the order of different ones."""
    seen: Counter[str] = Counter()
    names = []
    for guide in guides:
        name = type(guide).__name__
        names.append(f"{name}.{seen[name]}")
        seen[name] += 1
    return names

"""One run of a sampler: the steps that `gk.sample` loops over, each of which can be called by hand.

    branch -> move -> look -> select,     population to population, for each move of the solver's table

`look` is the only place that calls the network: one forward per micro-batch serves the prediction, the clean estimate,
the look-ahead and every guide. The prediction stays with its particle, so survivors are not evaluated again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial, reduce
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import random
from ..models.base import Mixed, Model
from ..models.compiled import Compiler, compiling
from ..models.evaluations import Cond, Memory, Spread, evaluate, evaluate_at, rows_of
from ..models.networks import lent, networks_in
from ..process import Masked
from ..solvers import Move, Solver
from . import checks, tree
from .ahead import MOVES, POSITIONS, Ahead, Part, ahead
from .cost import Cost
from .describe import describe, weights
from .guide import Guide
from .islands import Islands
from .noise import Noise
from .population import Population
from .result import Result
from .row_clock import row_clock
from .scoring import Scorer, same
from .seats import Seat, acting, seated
from .strength import check_auto, unset
from .tilts import tilted
from .trace import Fault, Record, ancestors, trace
from .view import Step, View, grid
from .world import world_of


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
        islands: Islands | None = None,
        world: Any = None,
        compile: bool | str | Callable = False,
    ):
        checks.check_call(model, n, solver, batch_size, guides, reward, holdout)
        checks.check_compile(compile, model)
        self.compiler = Compiler("inductor" if compile is True else compile) if compile else None
        self.islands = Islands(1) if islands is None else islands
        self.model, self.n, self.guides = model, n, checks.bound(guides, model)
        self.solver = model.solver if solver is None else solver
        self.reward, self.seed, self.batch_size, self.holdout = reward, seed, batch_size, holdout
        moves = model.moves(steps, self.solver)
        self.conditions = checks.conditions(model, cond)
        self.groups = len(self.conditions)
        self.keys = checks.keys(seed, self.groups, model.device)
        self._plan(moves)
        checks.check_noise(noise, model, self.groups * self.steps[0].n, self.moves)
        self.given = noise
        self.noise: Callable[[Population, int], Any] = Noise(model, self.keys, [s.n for s in self.steps], noise)
        self._empty()
        self.world = world_of(world, model.device)
        checks.check_world(self.world, self.groups, self.steps)
        if self.world.size > 1 and self.world is not world:
            self.world.agree(self.describe() | {"weights": weights(self.modules())})
        self._clock = time.perf_counter()

    def _plan(self, moves: list[Move]) -> None:
        """What happens when: the moves that the guides leave, the steps between them, and who acts at each of these."""
        checks.check_guides(self.guides, self.model, self.solver, len(moves))
        check_auto(self.guides, self.groups)
        self.moves = reduce(lambda moves, guide: guide.moves(self.model, moves), self.guides, moves)
        if not self.moves:
            raise ValueError(f"the guides leave none of the {len(moves)} steps")
        self.seats = seated(self.guides)
        self.steps = self._all_steps()
        checks.check_together(self.guides, self.steps)
        checks.check_islands(self.islands, self.steps)
        self.acts = [acting(self.seats, s, self.steps[s.index - 1] if s.index else None) for s in self.steps]
        self.widths = [self._children(step) for step in self.steps[:-1]]
        self.rows = max(step.n for step in self.steps)  # of one group, at the widest
        self.order = max(1, *(len(m.b) for m in self.moves))
        self.paste = self.pasted if any("paste" in seat.hooks for seat in self.seats) else None
        self.steered = any(g.steer for g in self.guides)
        self.clock = row_clock(self.moves, self.models)
        self.blind = not any(g.sees_prediction for g in self.guides if g.has("log_weight") or g.has("select"))
        self.judge = next((r for g in self.guides if (r := g.judge) is not None), None)

    def _empty(self) -> None:
        """What a run remembers and counts on its way, with nothing in it."""
        device = self.model.device
        self._ids = torch.arange(self.groups * self.rows, device=device)
        self._encoded = self.model.encode_all(self.conditions)
        self.memory = Memory()
        self.watched = True  # whether somebody reads the predictions of populations, who steps by hand or calls back
        self.overlaps = device.type != "cpu"  # whether the next rows are asked for before these are scored
        self._apart = [self._is_apart(step) for step in self.steps]
        self._ahead: dict[int, Ahead] = {}  # what is known of the next moves, by the first row of a part
        self._left: Tensor | None = None  # the states from which that is
        self.cost = Cost()
        self.score = Scorer(self.cost, device, stepwise=True)
        self.records: list[Record] = []
        self._faults: list[Fault] = []

    @property
    def seconds(self) -> float:
        """Time spent, that before an interruption included."""
        return self.cost.seconds + time.perf_counter() - self._clock

    def step(self, index: int) -> Step:
        """The point of the grid at which a population stands after `index` moves."""
        return self.steps[index]

    def _all_steps(self) -> list[Step]:
        points = grid(self.moves, self.keys)
        asked = dict.fromkeys((seat for seat in self.seats if "plan" in seat.hooks), points[0])
        alive = [self._alive(point, asked) for point in points]
        return [replace(p, n=n, parents=before) for p, n, before in zip(points, alive, alive[:1] + alive, strict=False)]

    def _alive(self, step: Step, asked: dict[Seat, Step]) -> int:
        """Rows of each group that are to live at this step: as the guides plan where they act, and where they do not
        as they did before (`asked`)."""
        n = self.n
        for seat in () if step.last else asked:
            if seat.guide.active(step):
                asked[seat] = step
            n = seat.guide.plan(n, asked[seat])[0]
        return n

    def _children(self, step: Step) -> int:
        """Children of each particle in the move that starts here: of the guides that act where it leads."""
        if not self.model.process.draws(self.moves[step.index]):
            return 1
        there = self.steps[step.index + 1]
        plans = (s.guide.plan(self.n, step) for s in self.seats if "plan" in s.hooks and s.guide.active(there))
        return math.prod(children for _, children in plans)

    # networks ----------------------------------------------------------------------------------------------------

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Context in which the networks are in evaluation mode, and compiled if the run says so; afterwards they are as
        they were. No graph is kept but where a guide asks for it."""
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
            for model in self.models:
                stack.enter_context(model.lent())
            stack.enter_context(lent(self.modules()))
            stack.enter_context(compiling(self.compiler))
            yield

    @property
    def models(self) -> list[Model]:
        """The base model and those of the guides."""
        needed = [need.model(self.model) for g in self.guides for need in g.needs]
        own = [v for g in self.guides for v in vars(g).values() if isinstance(v, Model)]
        return list(dict.fromkeys([self.model, *needed, *own]))

    def modules(self) -> list[nn.Module]:
        """All networks of the run: of its models, of what its guides hold (classifiers, values), of its rewards."""
        held = [v for g in self.guides for v in vars(g).values() if callable(v) and not isinstance(v, Model)]
        found = networks_in(*held, self.reward, self.holdout)
        return list(dict.fromkeys([*(m for model in self.models for m in model.modules()), *found]))

    # the four parts of a step ------------------------------------------------------------------------------------

    def start(self) -> Population:
        """Particles at the first time."""
        with self.world.together():
            parts = (self.begun(rows) for rows in self._chunks(self.share(0), 0))
            return Population.cat(list(self._looks(parts, 0)))

    def advance(self, pop: Population, index: int) -> Population:
        """The whole step: move number `index`, in micro-batches, then the selection.

        Where no selection needs a prediction, the network sees only the children that live.
        """
        if self._alone(index):
            return self.select(self._glided(pop, index), index + 1)
        if not pop.predictions:  # which another sitting may have left out
            with self.world.together():
                pop = self.look(pop, index)
        width, after = self.widths[index], index + 1
        late = width > 1 and self.blind
        with self.world.together(self.score):
            chunks = self._chunks(slice(0, len(pop) * width), after)
            parts = (self.move(self.branch(pop, index, rows), index) for rows in chunks)
            pop = Population.cat(
                [self._look_blind(p, after) for p in parts] if late else list(self._looks(parts, after))
            )
            self.score.let_go()
        pop = self._survivors(pop, after)
        if not late:
            return pop
        with self.world.together():
            rows = self._chunks(slice(0, len(pop)), after)
            return Population.cat([self._look_again(pop.take(some), after) for some in rows])

    def branch(self, pop: Population, index: int, rows: slice = slice(None)) -> Population:
        """Copy each particle once per child (restricted to `rows`); no move is made yet."""
        k = self.widths[index]
        if k == 1:
            return replace(pop.take(rows), parent=self._ids[self.share(index)][rows], branch=1)
        child = torch.arange(len(pop) * k, device=pop.x.device)[rows]
        parent = child // k
        pop = replace(pop, parent=self._ids[self.share(index)]).take(parent)
        # the first child has its parent's address, and so the noise of an only child
        return replace(pop, slot=pop.slot + child % k * self.steps[index].n, branch=k)

    def move(self, pop: Population, index: int) -> Population:
        """x_s = q.push(noise); where q is not the target's own kernel p, the weights take the ratio p/q."""
        p, q = self.kernels(pop, index)
        noise, memos = self._chosen(pop, index) if q.random else (None, pop.memos)
        x = q.push(noise)
        log_w = pop.log_w if q is p else pop.log_w + q.correction(p, x)
        proposals, came = q.history if pop.proposals else (), p.history or pop.predictions[:1]
        moved = replace(pop, x=x, log_w=log_w, memos=memos, predictions=came, proposals=proposals, shown=())
        return moved if self.clock is None else self.clock.moved(pop, moved, noise, self.moves[index])

    def look(self, pop: Population, index: int) -> Population:
        """Evaluate the network, apply the tilts, update the weights and memos."""
        if self._alone(index):
            return replace(pop, predictions=(), proposals=(), shown=())
        return self._judged(pop, *self._told(pop, index))

    def select(self, pop: Population, index: int) -> Population:
        """The guides' selections, in the order of the list, and a line of the trace."""
        with self.world.together(self.score):
            self.score.let_go()
        return self._survivors(pop, index)

    def share(self, index: int) -> slice:
        """The particles of this process at a step, among all of them."""
        return self.world.share(self.groups * self.steps[index].n)

    def _survivors(self, pop: Population, index: int) -> Population:
        """The particles that are here after the selections of all."""
        parents = self.groups * self.steps[index].parents
        return self.world.selected(lambda whole: self._selected(whole, index), pop, self.acts[index].read, parents)

    def _selected(self, pop: Population, index: int) -> Population:
        """The same for the whole population."""
        step, acts, size = self.steps[index], self.acts[index], len(pop)
        for seat in acts.weigh:
            weighed = seat.guide.weigh(pop, step.own(seat.name, seat.place))
            pop = weighed if seat.counts else replace(weighed, log_w=pop.log_w)
        log_w = pop.log_w
        for seat in acts.select:
            pop = self.islands.select(seat.guide, pop, step.own(seat.name, seat.place))
        if len(pop) != self.groups * step.n:
            raise ValueError(
                f"step {index}: {len(pop) // self.groups} of {size // self.groups} rows per group are left where "
                f"{step.n} were asked for; a guide that branches needs one that selects"
            )
        traced = [seat.guide.traced(pop, step.own(seat.name, seat.place)) for seat in acts.traced]
        more = {k: pop.by_group(v).nanmean(1) for found in traced for k, v in found.items()}
        self.records.append(Record(step.t, self.seconds, log_w, pop.log_w, pop.parent, pop.rewards, more))
        return pop

    def kernels(self, pop: Population, index: int) -> tuple[Any, Any]:
        """The kernel p of the target in move number `index`, and q, by which particles move."""
        move, process = self.moves[index], self.model.process
        more = () if pop.spread is None else (pop.spread,)
        p = process.kernel(pop.x, pop.predictions, move, *more)
        q = process.kernel(pop.x, pop.proposals, move, *more) if pop.proposals and p.random else p
        for seat in self.acts[index].propose:
            q = seat.guide.propose(self.model, pop, q, self.steps[index].own(seat.name, seat.place))
        return p, q

    # moves of tokens that nothing but the network takes part in ---------------------------------------------------

    def _is_apart(self, step: Step) -> bool:
        """Whether no guide acts at this step, and the noise of the move from here says alone what it reveals."""
        if step.last or not (self.model.timed and isinstance(self.noise, Noise) and self.noise.late):
            return False
        kept = self.widths[step.index] == self.order == 1 and self.steps[step.index + 1].n == step.n
        quiet = kept and not self.noise.chain_given and self.acts[step.index].quiet
        return quiet and self.model.process.apart(self.moves[step.index])

    def _alone(self, index: int) -> bool:
        """Whether the look at this step is left out, as nobody reads a prediction but the move that follows, and that
        of the rows in which it reveals something. A network that reads no time is asked all the same, for it says once
        what holds until the row changes."""
        return self._apart[index] and not self.watched and isinstance(self.noise, Noise)

    def _glided(self, pop: Population, index: int) -> Population:
        """Such a move, and the look after it if that is not left out."""
        with self.world.together():
            if pop.x is not self._left:
                self._ahead.clear()
            self._left = None
            size = max(1, POSITIONS // pop.x.shape[1])
            moved = [self._glided_part(pop, index, slice(i, i + size)) for i in range(0, len(pop), size)]
            self._left = x = torch.cat(moved) if len(moved) > 1 else moved[0]
            pop = replace(pop, x=x, parent=self._ids[self.share(index)])
            if self._alone(index + 1):
                return pop
            rows = self._chunks(slice(0, len(pop)), index + 1)
            return Population.cat([self.look(pop.take(some), index + 1) for some in rows])

    def _glided_part(self, pop: Population, index: int, rows: slice) -> Tensor:
        """The states of these rows after such a move."""
        assert isinstance(self.noise, Noise) and isinstance(self.model.process, Masked)
        pop, known = pop.take(rows), self._ahead.get(rows.start)
        if known is None or not known.has(index):
            apart = takewhile(lambda i: self._apart[i], range(index, min(index + MOVES, len(self.moves))))
            of = pop, index, self.noise, self.batch_size or len(pop)
            known = self._ahead[rows.start] = ahead(self.model.process, [self.moves[i] for i in apart], *of)
        return known.moved(index, partial(self._asked, pop, index))

    def _asked(self, pop: Population, index: int, x: Tensor, part: Part) -> Tensor:
        """The predictions by which its letters are drawn."""
        cond = None if self._encoded is None else rows_of(self._encoded, pop.group[part.rows])
        found = evaluate_at(self.model, x, self.steps[index].t, cond, part.which, part.place, self._count)
        if not _sound(found):
            each = found.new_zeros(len(x)).index_add(0, part.which, found.sum(1))
            self.verify(each, index, pop.group[part.rows], pop.slot[part.rows])
        return found

    # parts of a move and of a look -------------------------------------------------------------------------------

    def born(self, rows: slice | Tensor = slice(None)) -> Population:
        """The particles of these rows of the start, which have an address and no state yet."""
        for guide in unset(self.guides):
            float(guide.alpha)  # type: ignore[attr-defined]  # which raises
        size = self.steps[0].n
        row = self._ids[: self.groups * size][rows]
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

    def begun(self, rows: slice | Tensor = slice(None)) -> Population:
        """The particles of these rows in the states from which the run starts."""
        pop = self.born(rows)
        noise = self.noise(pop, 0)
        second = self.noise.second(pop) if isinstance(self.noise, Noise) else ()
        pop = replace(pop, x=self.model.process.prior(noise, self.moves[0].t), predictions=second)
        for seat in self.seats:
            if "begin" in seat.hooks:
                noise = random.drawn(noise)
                pop = self._started(seat, pop, noise)
        return pop if self.clock is None else self.clock.started(pop, noise, self.moves[0].t)

    def _started(self, seat: Seat, pop: Population, noise: Tensor) -> Population:
        """The population in the states that a guide has it start from."""
        view = replace(self.view(pop, 0, seen=False).own(seat.name, None), x=pop.x)
        begun = seat.guide.begin(view, noise)
        if isinstance(begun, Tensor):
            return replace(pop, x=begun)
        x, log_w, memo = begun
        return replace(pop.weighed(seat.place, log_w, memo), x=x)

    def _chosen(self, pop: Population, index: int) -> tuple[Any, tuple]:
        """The noise of a move, drawn or as a guide chooses it, and the memos."""
        noise, memos = self.noise(pop, index + 1), list(pop.memos)
        for seat in self.acts[index].noise:
            own = self.steps[index].own(seat.name, seat.place)
            noise = random.drawn(noise)
            noise, memos[seat.place] = seat.guide.noise(pop, own, noise)
        return noise, tuple(memos)

    def view(self, pop: Population, index: int, seen: bool = True) -> View:
        """The rows with their evaluations (unless not `seen`); where a guide needs gradients, x carries them."""
        step, acts, x = self.steps[index], self.acts[index], pop.x
        if acts.grad and step.t > 0 and x.is_floating_point():
            x = x.detach().requires_grad_()
        cond = rows_of(self._encoded, pop.group)
        of = pop.group, pop.slot, {}, None, self.score, self.batch_size
        before = pop.predictions[0] if index and pop.predictions else None
        view = View(self.model, step, x, cond, *of, paste=self.paste, before=before, times=pop.times)
        if step.t == 0 or not seen:
            return view
        for seat in acts.condition:
            view = replace(view, cond=seat.guide.condition(view.own(seat.name, None), view.cond))
        with torch.set_grad_enabled(x.requires_grad):
            at = step.t if pop.times is None else Mixed.of(pop.times)
            of = x, at, view.cond, self._count, self.batch_size, self.memory
            evals = evaluate(self.model, acts.needs, *of)
        return replace(view, evals=evals, prediction=evals[Cond()])

    def _looks(self, parts: Iterable[Population], index: int) -> Iterator[Population]:
        """Looks at micro-batches. On a device the next one is asked for before this one is scored, so that rewards on
        the host are computed meanwhile; not where two graphs would be held for gradients."""
        if not self.overlaps or self.acts[index].grad or self._alone(index):
            yield from (self.look(pop, index) for pop in parts)
            return
        before = None
        for pop in parts:
            told = pop, *self._told(pop, index)
            if before is not None:
                yield self._judged(*before)
            before = told
        if before is not None:
            yield self._judged(*before)

    def _told(self, pop: Population, index: int) -> tuple[View, Tensor | None]:
        """What the networks and the tilts say of these rows: with the target's prediction, and the proposal's."""
        view = self.view(pop, index)
        with torch.set_grad_enabled(view.x.requires_grad):
            return tilted(view, self.acts[index], pop.memos, self.steered)

    def _judged(self, pop: Population, view: View, proposal: Tensor | None) -> Population:
        """The population with what has been told, and with weights."""
        with torch.set_grad_enabled(view.x.requires_grad):
            return self._predicted(self._weighed(pop, view), view, proposal)

    def _look_blind(self, pop: Population, index: int) -> Population:
        """The weights of a look, where they need no network."""
        return self._weighed(pop, self.view(pop, index, seen=False))

    def _look_again(self, pop: Population, index: int) -> Population:
        """The predictions of that look, for those who live."""
        return self._predicted(pop, *self._told(pop, index))

    def _weighed(self, pop: Population, view: View) -> Population:
        """The population with the guides' weights and memos, and what is known of rewards."""
        log_w, memos = pop.log_w, list(pop.memos)
        for seat in self.acts[view.step.index].log_weight:
            memo = memos[seat.place]
            increment, memos[seat.place] = seat.guide.log_weight(view.own(seat.name, memo), memo)
            log_w = log_w + increment if seat.counts else log_w
        if view.step.last and self.judge is not None:
            view.score(self.judge)
        scored = view.scored(self.judge)
        if scored is None and not self.acts[view.step.index].log_weight:
            return pop
        rewards = pop.rewards if scored is None else _cut(scored)
        return replace(pop, log_w=_cut(log_w), memos=tree.map(_cut, tuple(memos)), rewards=rewards)

    def _predicted(self, pop: Population, view: View, proposal: Tensor | None) -> Population:
        """The population with its predictions, free of graphs."""
        predictions, proposals = pop.predictions, pop.proposals
        if view.prediction is not None:
            of = view.step.index, pop.group, pop.slot, pop.branch, view
            self.verify(view.prediction if proposal is None else proposal, *of)
            predictions = (_cut(view.prediction), *predictions[: self.order - 1])
            if proposal is not None:
                proposals = (_cut(proposal), *proposals[: self.order - 1])
        shown = () if view.shown is None else (_cut(view.shown),)
        spread = None if (found := view.evals.get(Spread())) is None else _cut(found)
        return replace(pop, predictions=predictions, proposals=proposals, shown=shown, spread=spread)

    def verify(
        self, prediction: Tensor, index: int, group: Tensor, slot: Tensor, branch: int = 1, view: View | None = None
    ) -> None:
        """No NaN or infinity in the prediction: at once on the host, at the end of the run on a device."""
        if _sound(prediction):
            return
        total = prediction.detach().reshape(len(prediction), -1).sum(1)
        fault = Fault(index, total, group, slot, branch * self.rows)
        if prediction.device.type == "cpu":
            fault.raise_if_any(self.moves, view)
        else:
            self._faults.append(fault)

    def _chunks(self, rows: slice, index: int) -> Iterator[slice]:
        """Micro-batches of these rows such that one forward at this step has at most batch_size rows."""
        size = rows.stop if self.batch_size is None else max(1, self.batch_size // self.acts[index].rows(self.model))
        return (slice(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size))

    # the end, and what is kept of a run --------------------------------------------------------------------------

    def settle(self) -> None:
        """Read what was left on the device: faults of the network and counts."""
        with self.world.together(self.score):
            self._read()

    def _read(self) -> None:
        for fault in self._faults:
            fault.raise_if_any(self.moves)
        self._faults.clear()
        self.score.add_up()

    def _count(self, rows: int) -> None:
        self.cost.network(rows)

    def resume(self, records: Sequence[Record], cost: Cost) -> None:
        """Go on from where another sitting has been interrupted."""
        self.records[:] = records
        vars(self.cost).update(vars(cost))

    def pasted(self, samples: Any, group: Tensor) -> Any:
        """Decoded samples with what the guides put into them."""
        return reduce(lambda samples, guide: guide.paste(samples, group), self.guides, samples)

    def decode(self, x: Tensor, group: Tensor) -> Any:
        """Samples of states of rows of these groups, in micro-batches."""
        return self.pasted(self._decoded(x.split(self.batch_size) if self.batch_size else [x]), group)

    def _decoded(self, split: Sequence[Tensor]) -> Any:
        parts = [self.model.decode(part) for part in split]
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [s for part in parts for s in part]

    def result(self, pop: Population) -> Result:
        """The result, from the population after the last move."""
        apart = Scorer(Cost(), pop.x.device, stepwise=True)
        with self.world.together(self.score, apart):
            samples = self.decode(pop.x, pop.group)
            rewards = pop.rewards if self.judge is not None else None
            if self.reward is not None and same(self.reward) != same(self.judge):
                rewards = self.score(self.reward, samples, pop.group)
            self._read()
            holdout = None if self.holdout is None else apart(self.holdout, samples, pop.group)
            self.cost.seconds = self.seconds
        noise = self.world.rows(self.start_noise(pop.root))
        pop, samples = self.world.whole(pop), self.world.samples(samples)
        rewards, holdout = self.world.rows(rewards), self.world.rows(holdout)
        samples = self.decode(pop.x, pop.group) if samples is None else samples
        result = Result(
            x=pop.x,
            samples=samples,
            rewards=rewards,
            group=pop.group,
            log_weights=pop.log_w,
            ancestors=ancestors(self.records),
            trace=trace(self.records, self.groups, self.steps[0].n),
            cost=self.world.cost(self.cost),
            row=torch.arange(len(pop), device=pop.x.device),
            noise=noise,
            holdout=holdout,
            memos=pop.memos,
            config=self.describe(),
        )
        checks.check_result(result, self.n, self.judge if self.reward is None else self.reward, max(self.widths) > 1)
        return result

    def chain_noise(self) -> Tensor:
        """The noise of the whole chain, (moves + 1, rows, ...), where no guide branches: as `noise=` takes it."""
        assert isinstance(self.noise, Noise)
        return self.noise.chain(len(self.moves))

    def start_noise(self, root: Tensor) -> Tensor | None:
        """The noise from which the particles with these roots started."""
        return self.noise.start(root) if isinstance(self.noise, Noise) else None

    def describe(self) -> dict[str, Any]:
        """What decides the bytes of the run, as plain values."""
        return {
            "model": describe(self.model),
            "n": self.n,
            "moves": describe([list(m) for m in self.moves]),
            "guides": describe(self.guides),
            "cond": describe(self.conditions),
            "reward": describe(self.reward),
            "solver": describe(self.solver),
            "noise": describe(self.given),
            "seed": describe(self.seed),
        } | ({} if self.islands.count == 1 else {"islands": describe(self.islands)})


def _sound(v: Tensor) -> bool:
    """Whether it is known without waiting for a device that there is neither NaN nor infinity."""
    return v.device.type == "cpu" and math.isfinite(v.detach().sum().item())


def _cut(v: Tensor) -> Tensor:
    """Free of its graph."""
    return v.detach() if v.requires_grad else v

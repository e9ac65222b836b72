r"""One driver for all searches: ask for noise, sample from it, tell the rewards, until the budget is spent.

    strategy.begin(space);      while the budget lasts:   z = strategy.ask();   strategy.tell(z, R(sample(z)))

This is the convention of Optuna, nevergrad and cma; optimisers like these are wrapped by `Each`. The best candidate
seen so far is kept for every sample, so rewards never decrease as the budget grows. In the end the winners are sampled
once more in one run: the result equals that of `gk.sample` with noise=result.noise, bit for bit. If a strategy can
propose a round without knowing the rewards of the last one, one round is scored while the next is sampled; see
`background`.

Each distinct text or row of tokens is scored once per search, and every candidate is recorded.

Reference: Ma et al. (2025), Inference-time scaling beyond denoising steps, https://arxiv.org/abs/2501.09732.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rewards import as_reward

from ..engine.cost import Cost
from ..engine.describe import describe, weights
from ..engine.guide import Guide
from ..engine.result import Result, Trace
from ..engine.run import Run
from ..engine.sample import sample
from ..engine.world import world_of
from ..errors import RewardError
from ..models.base import Model
from ..models.networks import networks_in
from ..solvers import Solver
from .background import Task
from .budget import Budget
from .record import Evaluations, Record
from .space import Space
from .verify import Verifier

if TYPE_CHECKING:
    from typing_extensions import Unpack


ROUNDING = 0.01  # of the root mean square of samples; a larger difference is more than floating-point rounding


STALE = 10  # rounds without a new sample that end a search limited by reward calls alone


class Strategy(Protocol):
    """Proposes noise and receives rewards. A resumed search replays its past rounds, so the same rewards must lead to
    the same proposals: draw random numbers from the space.

    A strategy whose proposals do not depend on rewards may set `independent = True`. It is then asked for the next
    round while the last one is being scored in the background.
    """

    def begin(self, space: Space) -> None:
        """Start afresh, for the samples of this space."""
        ...

    def ask(self) -> Tensor | None:
        """Candidates in standard normal coordinates, (cells, k, *space.shape), or None to end the search."""
        ...

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        """Receive the rewards of the candidates, float64 (cells, k), -inf where one could not be scored."""
        ...


class Options(TypedDict, total=False):
    """Options of every search, besides its own.

    budget       a `Budget`, in addition to rounds or instead of them
    over         "start" or "chain": which noise is searched. None is the starting noise if the solver is deterministic,
                 and otherwise that of the whole chain
    folder       every evaluation is logged there; the same call resumes from it and ends in the same result
    world        as in gk.sample: several processes share the candidates of every round, and the first writes the folder
    holdout, steps, guides, cond, solver, seed, batch_size, compile   as in gk.sample; progress shows a bar
    """

    budget: Budget | None
    over: str | None
    steps: int | Sequence[float]
    guides: Iterable[Guide]
    cond: Any
    solver: Solver | None
    seed: int | Sequence[int]
    batch_size: int | None
    holdout: Any
    progress: bool
    folder: str | Path | None
    world: Any
    compile: bool | str | Callable


@dataclass(frozen=True, repr=False)
class Found(Result):
    """The result of a search: a run of the winners, with their rewards in the search as rewards.

    noise    as gk.sample takes it: (rows, *shape), or (moves + 1, rows, *shape) for the whole chain
    rounds   one dict per round, with for every condition best_reward (the mean over its samples of the best so far),
             max_reward, and mean_reward (of the round's candidates; NaN if there were none); and with network_rows and
             reward_calls so far
    asked    every candidate of every round: a dict with round, condition, sample, candidate, worth, scores and, if text
             or tokens were scored, text or tokens. It is not part of a saved result, but of the folder of the search
    times    of the run that gives these samples, as steps= takes them
    ended    why the search ended, in words
    """

    record: Record | None = field(default=None, repr=False, compare=False)

    @property
    def asked(self) -> Trace:
        return Trace([] if self.record is None else self.record.lines())

    @property
    def ended(self) -> str:
        return self.config["search"]["ended"]

    @property
    def times(self) -> list[float]:
        return self.config["search"]["times"]

    @property
    def rounds(self) -> Trace:
        return Trace({k: _numbers(v) for k, v in row.items()} for row in self.config["search"]["rounds"])


@dataclass
class Best:
    """The best candidate of every cell so far; `seen` says where its x is known."""

    z: Tensor | None = None
    x: Tensor | None = None
    worth: Tensor | None = None
    seen: Tensor | None = None

    def update(self, z: Tensor, worth: Tensor, x: Tensor | None, cells: Tensor) -> None:
        """Take the best candidates of the cells that they improve; the first time, of all cells."""
        top, place = worth.max(1)
        row = torch.arange(len(z), device=z.device)
        if self.z is None or self.worth is None or self.seen is None:
            self.z, self.worth, self.seen = z[row, place], top, torch.full_like(top, x is not None, dtype=torch.bool)
            self.x = None if x is None else x[row, place]
            return
        better = top > self.worth[cells]
        taken = (cells[better],)
        self.worth = self.worth.index_put(taken, top[better])
        self.z = self.z.index_put(taken, z[row, place][better])
        self.seen = self.seen.index_put(taken, torch.tensor(x is not None, device=z.device))
        if x is not None:
            own = x.new_zeros(len(self.z), *x.shape[2:]) if self.x is None else self.x
            self.x = own.index_put(taken, x[row, place][better])

    def recall(self, x: Tensor, worth: Tensor) -> None:
        """Restore the x of the candidates that have this worth."""
        if self.worth is not None:
            self.x, self.seen = x, worth == self.worth

    def differs(self, x: Tensor) -> Tensor:
        """The cells whose x differs from this one by more than rounding."""
        if self.x is None or self.seen is None or self.worth is None:
            return torch.zeros(len(x), dtype=torch.bool, device=x.device)
        scored = self.seen & self.worth.isfinite()
        if not x.is_floating_point():
            return scored & (x != self.x).flatten(1).any(1)
        size = x.double().square().mean().sqrt()
        return scored & ((x - self.x).abs().flatten(1).amax(1) > ROUNDING * size)


class Search:
    """A prepared search: its arguments have been checked, and no network has been called yet."""

    def __init__(self, model: Model, n: int, reward: Any, options: Options, name: str, setting: Any):
        known = {"budget", "over", "folder", "progress", "world"}
        wrong = set(options) - set(Options.__annotations__)
        if wrong:
            raise TypeError(
                f"{name} got {', '.join(sorted(wrong))}; its options are {', '.join(Options.__annotations__)}"
            )
        self.name, self.model, self.n, self.options = name, model, n, options
        self.given: dict[str, Any] = {k: v for k, v in options.items() if k not in known}
        self.given["guides"] = tuple(options.get("guides", ()))
        self.holdout = self.given.pop("holdout", None)
        self.run = Run(model, n, **self.given, holdout=self.holdout)
        self.world = world_of(options.get("world"), model.device)
        self.verifier = Verifier.of(reward, self.world)
        self.given["guides"] = self.run.guides
        _check_guides(self.run.guides)
        self.space = Space.of(self.run, options.get("over"))
        self.alive = list(range(self.space.groups))  # conditions that are searched for
        self.cost, self.best, self.record = Cost(), Best(), Record(None)
        self.config = {
            "search": name,
            "setting": describe(setting),
            "model": describe(model),
            "n": n,
            "reward": describe(self.verifier.rewards),
        } | {k: describe(self.given.get(k)) for k in ("steps", "guides", "cond", "solver", "seed")}
        self.rounds: list[dict[str, Any]] = []
        self.ended = "the strategy has nothing more to ask"
        self.excess = 1.0  # the largest ratio so far of network rows used to those that the guides declare
        self.stale = 0  # consecutive rounds without a new sample
        self._met: set[Any] = set()
        self._regrouped: dict[Any, list[Guide]] = {}
        shown = options.get("progress", False) and self.world.rank == 0
        self.bar = tqdm(disable=not shown, desc=name, unit=" rounds", dynamic_ncols=True)
        self._before, self._began = 0.0, time.perf_counter()

    def open(self, budget: Budget) -> None:
        """Open the folder and set the budget."""
        if all(limit is None for limit in (budget.rounds, budget.rows, budget.calls, budget.seconds)):
            raise ValueError("the search might never end: give it rounds, or a Budget with rows, calls or seconds")
        self.budget = budget
        if self.world.size > 1:
            self.world.agree(self.config | {"budget": describe(budget), "weights": weights(self.run.modules())})
        folder, leads = self.options.get("folder"), self.world.rank == 0
        self.record = self.world.first(lambda: Record.open(folder, self.config, leads))
        self.world.agree(("rounds in the folder", len(self.record.rounds)))
        device = self.space.keys.device
        for found in self.record.rounds:
            if found.samples is not None:
                self.verifier.learn(found.samples, found.group.to(device), found.scores.flatten(0, 1).to(device))
        self.bar.total = budget.rounds
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent, including those before an interruption."""
        return self._before + time.perf_counter() - self._began

    @property
    def separable(self) -> bool:
        """Whether rewards may run beside the sampler: not if they share a network, since a run sets its mode."""
        own = {id(m) for model in self.run.models for m in model.modules()}
        return not any(id(m) in own for r in self.verifier.rewards for m in networks_in(r))

    # rows ------------------------------------------------------------------------------------------------------------

    @cached_property
    def looks(self) -> list[int]:
        """Network rows of one candidate at each point of the time grid but the last, as the guides declare them."""
        looks = []
        for acts, step in zip(self.run.acts[:-1], self.run.steps[:-1], strict=True):
            own = {seat.place: seat.guide for seat in (*acts.tilt, *acts.late, *acts.finish)}
            looks.append(len(acts.needs) + sum(guide.further(step) for guide in own.values()))
        return looks

    @property
    def per_row(self) -> int:
        """Network rows of one candidate, at most."""
        return math.ceil(sum(self.looks) * self.excess)

    def measured(self, rows: int, declared: int) -> None:
        """Note the network rows of a run. If guides use more than they declare, later estimates allow for it."""
        self.excess = max(self.excess, rows / max(declared, 1))

    @property
    def part(self) -> Space:
        """The space of the conditions that are alive; candidates and scores have its cells."""
        return replace(self.space, keys=self.space.keys[self.alive])

    @property
    def cells(self) -> Tensor:
        """Their indices among all cells."""
        alive = torch.tensor(self.alive, device=self.space.keys.device)
        return (alive[:, None] * self.n + torch.arange(self.n, device=alive.device)).flatten()

    def runs(self, k: int, noise: Tensor | None) -> Run:
        """A run of k candidates for each cell; candidate c of the g-th condition alive is group g k + c."""
        seed = self.given.get("seed", 0)
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * self.space.groups
        given = self.given | {
            "cond": [self.run.conditions[g] for g in self.alive for _ in range(k)],
            "seed": [seeds[g] for g in self.alive for _ in range(k)],
            "guides": self._guides(k),
        }
        world = self.world.over(self.part.cells * k)
        return Run(self.model, self.n, **given, noise=noise, world=world)

    def _guides(self, k: int) -> list[Guide]:
        """The guides for a run of k candidates, with what they hold per condition rearranged by group."""
        key = tuple(self.alive), k
        if key not in self._regrouped:
            groups = [g for g in self.alive for _ in range(k)]
            of = self.space.groups
            self._regrouped = {key: [guide.regrouped(self.model, groups, of) for guide in self.run.guides]}
        return self._regrouped[key]

    def sampled(self, z: Tensor, cost: Cost | None = None) -> Tensor:
        """Final states of candidates (cells, k, *shape), as rows of their run."""
        run = self.runs(z.shape[1], self.part.rows(z))
        with run.borrowed():
            pop = run.start()
            for index in range(len(run.moves)):
                pop = run.advance(pop, index)
            run.settle()
        x = run.world.rows(pop.x)
        self.spent(run, len(x) * sum(self.looks), self.cost if cost is None else cost)
        return x

    def spent(self, run: Run, declared: int, cost: Cost) -> None:
        """Book what a run has cost on all processes, for which the guides declare so many network rows."""
        own = run.world.cost(run.cost)
        self.measured(own.network_rows, declared)
        book(cost, own)

    def decoded(self, x: Tensor) -> Any:
        """Decoded samples of rows, with the networks in evaluation mode."""
        world, alive = self.world.over(len(x)), torch.tensor(self.alive, device=x.device)
        group, mine = alive.repeat_interleave(len(x) // len(alive)), world.share(len(x))
        with self.run.borrowed():
            with world.together():
                own = self.run.decode(x[mine], group[mine])
            samples = world.samples(own)
            return self.run.decode(x, group) if samples is None else samples

    def scored(self, x: Tensor, k: int) -> tuple[Tensor, Any]:
        """Scores (cells, k, V) of rows, and what was scored, cell by cell, if that is text or tokens."""
        return self.judged(self.decoded(x), k, self.cost)

    def judged(self, samples: Any, k: int, cost: Cost) -> tuple[Tensor, Any]:
        """The same for decoded samples."""
        alive = torch.tensor(self.alive, device=self.space.keys.device)
        scores = self.part.by_cell(self.verifier.score(samples, alive.repeat_interleave(k * self.n), cost))
        order = self.part.by_cell(torch.arange(len(samples))).flatten()
        if isinstance(samples, Tensor) and samples.dim() == 2 and not samples.is_floating_point():
            return scores, samples.cpu()[order]
        texts = isinstance(samples, list) and all(isinstance(s, str) for s in samples)
        return scores, [samples[i] for i in order.tolist()] if texts else None

    def known(self) -> Tensor | None:
        """The scores of this round, if the folder has them."""
        if len(self.rounds) >= len(self.record.rounds):
            return None
        found = self.record.rounds[len(self.rounds)]
        self.resume(found.cost)
        return found.scores.to(self.space.keys.device)

    def resume(self, cost: Cost) -> None:
        """Continue counting from the cost of an earlier, interrupted search."""
        vars(self.cost).update(vars(cost))
        self._before, self._began = cost.seconds, time.perf_counter()

    def fits(self, rows: int, calls: int, last: int) -> bool:
        """Whether the budget has room for a round, and for `last` rows for the final run of the winners."""
        self.cost.seconds = self.world.told(round(1e6 * self.seconds))[0] / 1e6  # on which all processes decide alike
        done, worth, target = len(self.rounds), self.best.worth, self.budget.target
        known = done < len(self.record.rounds)
        budget = replace(self.budget, seconds=None) if known and self.budget.seconds is not None else self.budget
        short = budget.short(done, self.cost, rows + last, calls)
        if short is not None and done == 0:
            raise ValueError(
                f"{self.budget} is smaller than one round of {self.name}: {rows} network rows and {calls} reward "
                f"calls, and {last} rows to sample the winners"
            )
        if short is None and target is not None and worth is not None and not bool((worth < target).any()):
            short = f"every sample has reached target={target:g}"
        if short is None and self.goes_stale(0):
            short = f"{STALE} rounds in a row have brought no new sample"
        self.ended = short or self.ended
        return short is None

    def goes_stale(self, more: int) -> bool:
        """Whether this many more rounds without a new sample would end the search."""
        return self.budget.by_calls_alone and self.stale + more >= STALE

    def _meet(self, samples: Any) -> None:
        """Count rounds without new samples, if samples can be compared."""
        if not self.budget.by_calls_alone:
            return
        before = len(self._met)
        self._met.update(map(tuple, samples.tolist()) if isinstance(samples, Tensor) else samples or ())
        self.stale = self.stale + 1 if samples is not None and len(self._met) == before else 0

    def told(
        self,
        z: Tensor,
        scores: Tensor,
        x: Tensor | None,
        samples: Any = None,
        final: bool = True,
        before: Callable[[Best, list[dict[str, Any]]], None] | None = None,
    ) -> Tensor:
        """Record a round and return what its candidates are worth. Rewards of clean estimates are not `final`; `before`
        is called before the round is written to the folder."""
        worth = self.verifier.worth(scores, self.space.group[self.cells])
        if final:
            self.best.update(z, worth, x, self.cells)
        self.cost.seconds = self.seconds
        self.rounds.append(self._row(worth, worth.amax(1) if self.best.worth is None else self.best.worth))
        if len(self.rounds) > len(self.record.rounds):
            with self.world.together():
                if before is not None:
                    before(self.best, self.rounds)
                self.keep(scores, worth, samples, range(scores.shape[1]))
                self.keep_best()
        elif len(self.rounds) == len(self.record.rounds):
            self._recall()
        self._meet(self.record.rounds[len(self.rounds) - 1].samples)
        return worth

    def keep(self, scores: Tensor, worth: Tensor, samples: Any, numbers: Sequence[int]) -> None:
        """Record the candidates of a round under these numbers, with their scores."""
        cost, alive = self.cost, list(self.alive)
        self.record.add(Evaluations(scores.cpu(), worth.cpu(), samples, cost, alive, list(numbers)))

    def _recall(self) -> None:
        """Restore the samples of the winners from the folder, once all its rounds have been replayed."""
        if self.best.x is None and self.record.has("best"):
            kept, device = self.record.kept("best")[0], self.space.keys.device
            if "x" in kept:
                self.best.recall(kept["x"].to(device), kept["rewards"].to(device))

    def _row(self, worth: Tensor, best: Tensor) -> dict[str, Any]:
        """A row of `Found.rounds`, and of the progress bar."""
        top, by = best.masked_fill(best.isinf(), torch.nan), worth.masked_fill(worth.isinf(), torch.nan)
        mean = best.new_full((self.space.groups,), torch.nan)
        mean[self.alive] = by.view(len(self.alive), -1).nanmean(1)
        self.bar.update()
        self.bar.set_postfix({"best": f"{float(best.max()):.4g}"} | self.budget.left(len(self.rounds) + 1, self.cost))
        return {
            "best_reward": _plain(top.view(self.space.groups, -1).nanmean(1)),
            "max_reward": _plain(best.view(self.space.groups, -1).amax(1)),
            "mean_reward": _plain(mean),
            "candidates": worth.shape[1],
            "network_rows": self.cost.network_rows,
            "reward_calls": self.cost.reward_calls,
            "seconds": self.cost.seconds,
        }

    def keep_best(self) -> None:
        best = self.best
        if best.z is not None and best.worth is not None:
            whole = best.x is not None and best.seen is not None and bool(best.seen.all())
            extra = {"x": best.x} if best.x is not None and whole else {}
            self.record.keep("best", {"noise": self.noise(), "rewards": best.worth} | extra)

    def noise(self) -> Tensor:
        """The noise of the winners, as gk.sample takes it."""
        assert self.best.z is not None
        return self.space.rows(self.best.z[:, None])

    # the end ---------------------------------------------------------------------------------------------------------

    def finish(self) -> Found:
        """The final run of the winners."""
        self.bar.close()
        best = self.best.worth
        if best is None:
            raise ValueError(f"{self.name} asked for no candidates")
        self._check_scored(best)
        noise = self.noise()
        result = sample(
            self.model,
            self.n,
            **self.given,
            noise=noise.clone(),
            holdout=self.holdout,
            world=self.world.over(self.space.cells),
        )
        self._check_winners(result)
        cost = self.cost + result.cost
        about = {"rounds": self.rounds, "times": _times(self.run), "ended": self.ended}
        given = {f.name: getattr(result, f.name) for f in fields(Result)}
        given |= {"noise": noise, "rewards": best.masked_fill(best.isinf(), torch.nan), "cost": cost}
        given |= {"config": result.config | {"search": self.config | about}, "record": self.record}
        return Found(**given)

    def _check_scored(self, best: Tensor) -> None:
        """Check that at least one condition has scores."""
        names = ", ".join(as_reward(r).name for r in self.verifier.rewards)
        lost = [g for g, worth in enumerate(best.view(self.space.groups, -1)) if worth.isinf().all()]
        told = f"reward {names!r} scored none of the candidates of condition {', '.join(map(str, lost))}"
        if len(lost) == self.space.groups:
            raise RewardError(told)
        if lost:
            warnings.warn(f"{told}; other conditions are not affected", stacklevel=5)
        single = int(best.isinf().sum()) - len(lost) * self.n
        if single:
            warnings.warn(f"{single} of {len(best)} samples have no candidate with a score", stacklevel=5)

    def _check_winners(self, result: Result) -> None:
        """Check that the final run made the samples that were scored, within the budget."""
        rows, most = self.cost.network_rows + result.cost.network_rows, self.budget.rows
        if most is not None and rows > most:
            warnings.warn(
                f"{self.budget}: {rows} network rows were taken, for a guide evaluates the network more often than its "
                "method `further` says",
                stacklevel=5,
            )
        other = int(self.best.differs(result.x).sum())
        if other:
            warnings.warn(
                f"{other} of {len(result)} samples are not those that were scored: from the same noise, the last run "
                "made others, and the rewards given here are not theirs. A network or guide may depend on other rows "
                "of its batch, draw random numbers of its own, or hold something for each row or condition (see "
                "`Guide.regrouped`)",
                stacklevel=5,
            )


def run(
    model: Model, n: int, reward: Any, strategy: Strategy, *, rounds: int | None = None, **options: Unpack[Options]
) -> Found:
    """Search for n samples of each condition with any strategy, including your own.

    reward     a Reward or function of samples, or a list of them that rank candidates jointly
    strategy   a `Strategy`: an object with begin, ask and tell
    rounds     number of rounds; `budget=` sets other limits
    options    see `Options`

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = run(base, 4, lambda x: x[:, 0], gk.search.Random(8), rounds=2, steps=10)
    >>> bool((gk.sample(base, 4, steps=10, noise=found.noise).x == found.x).all())
    True
    """
    return drive(model, n, reward, strategy, limits(rounds, options), options)


def drive(model: Model, n: int, reward: Any, strategy: Strategy, budget: Budget, options: Options) -> Found:
    """`run`, with the number of rounds in the budget too."""
    for hook in ("begin", "ask", "tell"):
        if not callable(getattr(strategy, hook, None)):
            raise TypeError(f"strategy={strategy!r}: an object with begin(space), ask() and tell(noises, rewards)")
    search = Search(model, n, reward, options, f"search.{type(strategy).__name__}", strategy)
    search.open(budget)
    strategy = copy.copy(strategy)  # the caller's stays as it was
    strategy.begin(search.space)
    with search.bar:
        rounds_of(search, strategy)
    return search.finish()


def limits(rounds: int | None, options: Options, usual: int | None = None) -> Budget:
    """The budget in the options with this number of rounds; the `usual` number if neither is given."""
    budget = options.get("budget")
    if budget is None:
        return Budget(rounds=usual if rounds is None else rounds)
    return budget if rounds is None else replace(budget, rounds=rounds)


def rounds_of(search: Search, strategy: Strategy) -> None:
    """All rounds. With an independent strategy, one is scored in the background while the next is sampled."""
    waiting: list[Round] = []  # at most one
    overlaps = getattr(strategy, "independent", False) and search.separable and search.world.size == 1
    try:
        while (z := strategy.ask()) is not None:
            k = _checked(z, search.space, strategy)
            if waiting and not waiting[0].leaves_room(k):
                waiting.pop().end()  # its cost decides whether another round fits
            if not waiting and not search.fits(*_needs(search, k), search.space.cells * search.per_row):
                return
            following = Round(search, strategy, z)
            if waiting:
                waiting.pop().end()
            if overlaps and following.scores is None:
                waiting.append(following.begin())
            else:
                following.end()
    except Exception:
        if waiting:
            waiting.pop().end()  # the earlier round: its rewards are kept, and its error takes precedence
        raise
    if waiting:
        waiting.pop().end()


class Round:
    """Candidates that have been sampled; `begin` scores them in the background, `end` tells their rewards."""

    def __init__(self, search: Search, strategy: Any, z: Tensor):
        self.search, self.strategy, self.z, self.cost = search, strategy, z, Cost()
        self.scores, self.rows, self.task = search.known(), None, None
        if self.scores is None:
            self.rows = search.sampled(z, self.cost)
            self.samples = search.decoded(self.rows)
        elif self.scores.shape[:2] != z.shape[:2]:
            raise ValueError(f"{strategy!r} asks for other candidates than it did: its ask() is not deterministic")

    def begin(self) -> Round:
        self.task = Task(self._judged)
        return self

    def _judged(self) -> tuple[Tensor, Any]:
        return self.search.judged(self.samples, self.z.shape[1], self.cost)

    def leaves_room(self, k: int) -> bool:
        """Whether another round fits into the budget, whatever the outcome of this one."""
        search, calls = self.search, _needs(self.search, self.z.shape[1])[1]
        rows, more = _needs(search, k)
        most = replace(search.cost + self.cost, seconds=search.seconds)
        most.reward_calls = search.cost.reward_calls + calls
        last, done = search.space.cells * search.per_row, len(search.rounds) + 1
        room = search.budget.allows(done, most, rows + last, more)
        return room and search.budget.target is None and not search.goes_stale(1)

    def end(self) -> None:
        search, scores, x, samples = self.search, self.scores, None, None
        if scores is None:
            assert self.rows is not None
            scores, samples = self._judged() if self.task is None else self.task.result()
            x = search.part.by_cell(self.rows)
        book(search.cost, self.cost)
        self.strategy.tell(self.z, search.told(self.z, scores, x, samples))


def book(cost: Cost, more: Cost) -> None:
    """Add a cost to another one in place."""
    vars(cost).update(vars(cost + more))


def _needs(search: Search, k: int) -> tuple[int, int]:
    """An upper bound of the network rows and reward calls of a round of k candidates."""
    cells = search.part.cells
    return cells * k * search.per_row, cells * k * len(search.verifier.rewards)


def _checked(z: Any, space: Space, strategy: Any) -> int:
    """The candidates of each cell."""
    fits = isinstance(z, Tensor) and z.dim() == 2 + len(space.shape) and len(z) == space.cells
    if not fits or z.shape[1] < 1 or tuple(z.shape[2:]) != space.shape or not z.is_floating_point():
        given = f"{tuple(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else repr(z)
        raise ValueError(
            f"{type(strategy).__name__}.ask() returned {given}; noises have shape (cells, candidates, *noise) = "
            f"({space.cells}, k, {', '.join(map(str, space.shape))})"
        )
    if not bool(z.isfinite().all()):
        raise ValueError(f"{type(strategy).__name__}.ask() returned noises with NaN or infinity")
    return z.shape[1]


def _check_guides(guides: Sequence[Guide]) -> None:
    for guide in guides:
        if not guide.independent:
            raise ValueError(
                f"guides holds {type(guide).__name__}, which weighs, branches or selects particles; a search goes "
                "over the noise of independent samples. Take guides that bend the prediction"
            )


def _times(run: Run) -> list[float]:
    """The time grid; a move from a time to itself is a corrector step."""
    return [move.t for move in run.moves if move.t != move.s] + [0.0]


def _plain(v: Tensor) -> list[float | None]:
    return [x if abs(x) < float("inf") else None for x in v.tolist()]


def _numbers(value: Any) -> Any:
    """Numbers with NaN for missing values."""
    return [float("nan") if v is None else v for v in value] if isinstance(value, list) else value


class Each:
    """One optimiser per sample: make(size, seed) -> an object with `ask` and `tell`, as in the package cma.

    ask() returns a list of k vectors of `size` numbers (standard normal coordinates), with the same k for all samples;
    tell(vectors, losses) receives losses to minimise, inf where a candidate could not be scored.
    """

    def __init__(self, make: Callable[[int, int], Any]):
        self.make = make

    def begin(self, space: Space) -> None:
        self.space, size = space, torch.Size(space.shape).numel()
        self.own = [self.make(size, int(key) % (1 << 31)) for key in space.key("each", 0)]

    def ask(self) -> Tensor:
        asked = np.asarray([np.asarray(own.ask(), dtype=float) for own in self.own])
        return self.space.shaped(torch.as_tensor(asked, device=self.space.keys.device))

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        vectors, losses = self.space.flat(noises).cpu().numpy(), (-rewards).cpu().numpy()
        for own, v, loss in zip(self.own, vectors, losses, strict=True):
            own.tell(list(v), loss.tolist())

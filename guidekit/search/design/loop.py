r"""The design loop: propose many samples, let a surrogate choose among them, ask the reward of a batch, remember all.

    repeat    candidates ~ proposals, shared among them by a bandit
              batch = the candidates of highest mean + kappa sd of a Gaussian process of all rewards so far
              memory += (batch, reward(batch))

Every distinct sample is asked once, and the budget counts these calls. A batch is a twentieth of what is known, within
`BATCH`: small while a call teaches much, and larger later. Nothing of what a round does depends on the budget, so a
loop can be extended: the result is that of one that had the larger budget from the start. Over several processes all
have the same memory and choose the same batch; they share the runs of the model and the calls.

Random numbers are addressed by seed, round and proposal. With a folder, the same call resumes after the last complete
round, with the same result, and asks nothing twice.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ... import random
from ...engine.cost import Cost
from ...engine.describe import describe, weights
from ...engine.result import Result, Trace
from ...engine.scoring import Scorer
from ...engine.world import world_of
from ...errors import is_count
from ...guides import Guide, StartFrom
from ...models import Model
from ...models.networks import lent, networks_in
from ...solvers import Solver
from ..budget import Budget
from . import bandit
from .domain import Domain
from .memory import GIVEN, Call, Log, Memory, line, measured
from .pool import Pool, Scaffolds
from .proposals import USUAL, Candidates, Fresh, Proposal
from .study import Study
from .surrogate import Posterior, Surrogate, chosen

BATCH = (10, 50)  # the smallest and the largest number of calls in a round
SHARE = 20  # a batch is this part of what is known
POPULATION = 50  # samples before the first round
TRIES = 4  # how often a round asks its proposals for more, where they repeat themselves
STALE = 10  # rounds without a new sample that end a loop
TOP = 0.1  # a call succeeds if it is among this share of the best


@dataclass
class Design:
    """The arguments of a loop, checked; see `gk.evolve`."""

    model: Model
    start: Any
    reward: Any
    budget: Budget
    n: int | None = None
    guides: tuple[Guide, ...] = ()
    cond: Any = None
    solver: Solver | None = None
    steps: int | None = None
    seed: int = 0
    batch_size: int | None = None
    progress: bool = False
    folder: str | Path | None = None
    proposals: Iterable[Proposal] | None = None
    surrogate: Surrogate | bool = True
    population: int | None = None
    batch: int | None = None
    require: Callable[[Any], Any] | None = None
    known: Any = None
    diversity: int | None = None
    distinct: int | None = None
    content: str | None = None
    world: Any = None
    began: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        self._check()
        self.world = world_of(self.world, self.model.device)
        self.learner = (
            self.surrogate if isinstance(self.surrogate, Surrogate) else Surrogate() if self.surrogate else None
        )
        domain = Domain.of(self.model, self.content, self.learner.features if self.learner else None)
        self.memory = Memory(domain, self.model, apart=self.distinct)
        of = (self.model, self.memory, self.guides, self.cond, self.solver, self.steps, self.batch_size)
        self.study = Study(*of, reward=self.reward, world=self.world)
        self.own = Cost()  # of the reward, apart from what the runs of the model cost
        self.scorer = Scorer(self.own, self.model.device, world=self.world)
        self.trace, self.scaffolds = Trace(), None if self.diversity is None else Scaffolds(self.diversity)
        self.before, self.stale, self.ended = 0.0, 0, ""
        self.slots: dict[str, int] = {}  # of this round, by proposal
        self.sources = self._sources()
        self.given = self._given()
        self._check_budget()

    # before the first call ---------------------------------------------------------------------------------------

    def _check(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward={self.reward!r}: a Reward or a function of samples is needed")
        if isinstance(self.cond, list):
            raise ValueError("cond is a list: a loop of calls has one condition; give one, or rounds= for several")
        if any(isinstance(g, StartFrom) for g in self.guides):
            raise ValueError("guides holds a StartFrom: give the samples to start from as start")
        counts = {"n": self.n, "population": self.population, "batch": self.batch, "diversity": self.diversity}
        counts["distinct"] = self.distinct
        for name, value in (counts | {"steps": self.steps}).items():
            if value is not None and not is_count(value):
                raise ValueError(f"{name}={value!r}: an int of at least 1 is needed, or None")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed={self.seed!r}: an int is needed")
        if self.start is None or (isinstance(self.start, (bool, int, float, dict)) and not is_count(self.start)):
            raise TypeError(
                f"start={self.start!r}: a number of samples, at least 1, or samples to start from are needed"
            )
        if self.require is not None and not callable(self.require):
            raise TypeError(f"require={self.require!r}: a function of samples, true for those that may be asked")
        if not isinstance(self.surrogate, Surrogate | bool):
            raise TypeError(f"surrogate={self.surrogate!r}: True, False or a gk.search.Surrogate is needed")
        limits = (self.budget.calls, self.budget.rounds, self.budget.rows, self.budget.seconds)
        if all(limit is None for limit in limits):
            raise ValueError("the loop might never end: give it a Budget with calls, rounds, rows or seconds")

    def _sources(self) -> list[Proposal]:
        if self.proposals is None:
            return [p for p in USUAL if p.refuses(self.study) is None]
        own: list[Any] = list(self.proposals) if isinstance(self.proposals, Iterable) else [self.proposals]
        if not own or not all(isinstance(p, Proposal) for p in own):
            raise TypeError(f"proposals={own!r}: a list of gk.search.Proposal is needed")
        if len({p.name for p in own}) < len(own):
            raise ValueError(f"proposals: two are called alike, of {', '.join(p.name for p in own)}; give one a `name`")
        for refusal in (p.refuses(self.study) for p in own if self.require is None):
            if refusal is not None:
                raise ValueError(f"proposals: {refusal}")
        return own

    def _given(self) -> Candidates | None:
        """The samples to start from, or None where the model draws them all."""
        if is_count(self.start):
            return None
        if isinstance(self.start, Result):
            return Candidates(self.start.samples, self.start.x.cpu())
        if self.memory.domain.content == "smiles" and not isinstance(self.start, Tensor):
            found = list(self.start) if not isinstance(self.start, str) else [self.start]
            wrong = [i for i, name in enumerate(self.memory.domain.names(found)) if name is None]
            if wrong or not found:
                first = f"sample {wrong[0]} of {len(found)} ({str(found[wrong[0]])[:60]!r}) is no" if wrong else "no"
                raise ValueError(f"start: {first} molecule that rdkit reads")
            return Candidates(found)
        try:
            x = self.model.as_states(self.start)
        except (ValueError, TypeError) as error:
            raise ValueError(f"start: {error}") from error
        x = x[None] if x.shape == self.model.shape else x
        if x.shape[1:] != self.model.shape or not len(x):
            raise ValueError(f"start of shape {tuple(x.shape)}: samples of shape {self.model.shape} are needed")
        with torch.no_grad(), lent(self.model.modules()):
            return Candidates(self.model.decode(x.to(self.model.device)), x.cpu())

    def _check_budget(self) -> None:
        calls, content = self.budget.calls, self.memory.domain.content
        if self.diversity is not None and content != "smiles":
            raise ValueError(
                f"diversity={self.diversity} counts scaffolds of molecules, and these samples are {content}"
            )
        if self.distinct is not None and (content == "smiles" or not hasattr(self.model, "vocab_size")):
            raise ValueError(
                f"distinct={self.distinct} counts places at which tokens differ, and these samples are {content}; "
                "diversity= counts scaffolds of molecules"
            )
        known = len(measured(self.known)[0]) if self.known is not None else 0
        first = max(self.size - known, 0)
        if calls is not None and calls < first:
            given = 0 if self.given is None else len(self.given.samples)
            other = f"population={calls // 2 or 1} or so" if given <= calls else f"at most {calls} of the samples"
            raise ValueError(
                f"Budget(calls={calls}) is below the population of {first} samples that are asked first: raise it, or "
                f"give {other}"
            )
        self._check_asking(first)
        if calls is not None and self.wanted > calls + known:
            raise ValueError(f"{self.wanted} samples are wanted of Budget(calls={calls}): ask for fewer, or raise it")

    def _check_asking(self, first: int) -> None:
        """Raise where guides might spend the budget on the way to the first samples."""
        calls, steps = self.budget.calls, self.study.chain
        asks = lambda g: getattr(g, "reward", None) is not None and getattr(g, "value", None) is None  # noqa: E731
        asking = [type(g).__name__ for g in self.guides if asks(g)]
        if calls is not None and asking and calls < first * steps:
            raise ValueError(
                f"Budget(calls={calls}): {' and '.join(asking)} asks the reward on the way too, at up to {steps} steps "
                f"of each of {first} samples, so that the budget would be spent before the loop begins. Raise it, or "
                "leave the guide away: the loop follows the reward by itself"
            )

    @property
    def wanted(self) -> int:
        """How many samples are returned."""
        return self.n or (self.start if self.given is None else len(self.given.samples))

    @cached_property
    def size(self) -> int:
        """Samples before the first round, those that were known included."""
        return max(self.population or POPULATION, 0 if self.given is None else len(self.given.samples))

    @cached_property
    def key(self) -> Tensor:
        return random.fold(random.key(self.seed), "design")

    def described(self) -> dict[str, Any]:
        """What decides the outcome, apart from the budget and the number of samples that are returned."""
        start = None if self.given is None else self.given.samples
        names = ("model", "reward", "guides", "cond", "solver", "steps", "seed", "learner", "batch", "require")
        own = {name: describe(getattr(self, name)) for name in (*names, "diversity")}
        known = None if self.known is None else describe(measured(self.known))
        own |= {} if self.distinct is None else {"distinct": describe(self.distinct)}
        return own | {
            "search": "design", "bandit": "slots", "start": describe(start), "known": known, "population": self.size,
            "proposals": describe(self.sources), "content": self.memory.domain.content,
        }  # fmt: skip

    # the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Rounds until the budget is spent."""
        config, shown = json.loads(json.dumps(self.described())), self.progress and self.world.rank == 0
        if self.world.size > 1:
            networks = [*self.model.modules(), *networks_in(self.reward)]
            self.world.agree(config | {"budget": describe(self.budget), "weights": weights(networks)})
        self.log = self.world.first(lambda: Log.open(self.folder, config, self.world.rank == 0))
        with self.world.together():
            self._remember()
        self.world.agree(("rounds in the folder", len(self.log.rounds)))
        if not self.log.rounds:
            self._begin()
        with tqdm(total=self.budget.calls, disable=not shown, desc="evolve", unit=" calls") as bar:
            while (reason := self._over()) is None:
                bar.update(self.memory.asked - bar.n)
                self._round(len(self.log.rounds))
            bar.update(self.memory.asked - bar.n)
        self.ended = reason
        self._tell()
        return self._result(config)

    @property
    def first(self) -> int:
        """Samples that were known before."""
        return len(self.memory) - self.memory.asked

    @property
    def spent(self) -> int:
        """Calls so far: distinct samples, and what guides asked on the way."""
        return self.memory.asked + self.study.cost.reward_calls

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    @property
    def left(self) -> float:
        return math.inf if self.budget.calls is None else self.budget.calls - self.spent

    def _best(self) -> list[int]:
        """The rows that are returned."""
        if self.distinct is None:
            return self.memory.best(self.wanted)
        return self.memory.distinct(self.wanted, self.distinct)

    def _over(self) -> str | None:
        """Why the loop ends here, or None."""
        budget, best = self.budget, self._best() if self.budget.target is not None else []
        if self.left <= 0:
            return f"calls={budget.calls} are spent"
        if budget.rounds is not None and len(self.log.rounds) > budget.rounds:
            return f"rounds={budget.rounds} are done"
        if budget.rows is not None and self.study.cost.network_rows >= budget.rows:
            return f"rows={budget.rows} are spent"
        if budget.seconds is not None and self.world.told(round(1e6 * self.seconds))[0] >= 1e6 * budget.seconds:
            return f"seconds={budget.seconds:g} have passed"
        if budget.target is not None and len(best) == self.wanted:
            worst = self.memory.calls[best[-1]].value
            return f"every sample has reached target={budget.target:g}" if worst >= budget.target else None
        return f"{STALE} rounds brought no new sample" if self.stale >= STALE else None

    def _remember(self) -> None:
        """Fill the memory: with what was known before, and with the complete rounds of the log."""
        if self.known is not None:
            samples, values = measured(self.known)
            self._know(samples, values)
        known, most, rounds = len(self.memory), self.budget.calls or math.inf, self.log.rounds
        while rounds and (rounds[-1]["calls"] > most or (rounds[-1]["cut"] and rounds[-1]["calls"] < most)):
            self.log.back()
        self.log.restore(self.memory, known)
        if rounds:
            self.study.cost, self.own = Cost(**rounds[-1]["cost"][0]), Cost(**rounds[-1]["cost"][1])
            self.scorer.cost, self.before = self.own, rounds[-1]["seconds"]
        self.trace = Trace(row["trace"] for row in rounds)
        ends = [0, *(row["calls"] for row in rounds)]
        self.stale = len(ends) - 1 - ends.index(ends[-1])

    def _know(self, samples: Any, values: list[float]) -> None:
        """Remember what was measured before, the first of equal samples."""
        domain = self.memory.domain
        names = domain.names(samples)
        first = {name: i for i, name in reversed(list(enumerate(names))) if name is not None}
        rows = sorted(first.values())
        if not rows:
            raise ValueError(f"known: none of its {len(names)} samples can be read as {domain.content}")
        calls = [Call(-1, GIVEN, values[i], math.nan) for i in rows]
        self.memory.add(domain.kept(samples, rows, names), [None] * len(rows), calls)

    def _begin(self) -> None:
        """The population: the samples that were given, and new ones of the model. They are asked in one call, since a
        reward that raises on all of a call, as on a single lead, would be taken for a broken one."""
        before, pool = len(self.memory), self._pool()
        if self.given is not None:
            pool.add("start", self.given)
            names = set(self.memory.domain.names(self.given.samples))
            if (lost := len(names - self.memory.names.keys()) - len(pool)) or not len(pool):
                told = "they do not fulfil require, or diversity leaves no room" if lost else "all are known already"
                warnings.warn(f"of {len(names)} samples of start {len(pool)} are asked: {told}", stacklevel=4)
        given, room = len(pool), 0
        fresh = next((p for p in self.sources if isinstance(p, Fresh)), Fresh())
        for i in range(STALE):
            room = max(given, int(min(self.size - before, self.left)))
            if len(pool) >= room:
                break
            key = _address(self.key, "population", i)
            pool.add(fresh.name, fresh.propose(self.study, room - len(pool), key))
        self._ask(pool, range(min(len(pool), room)), None)
        if not len(self.memory):
            raise ValueError("none of the samples fulfils require: there is nothing to begin with")
        self._end(before, math.nan, False, False, len(self.memory) - before)

    def _round(self, number: int) -> None:
        before, key = len(self.memory), random.fold(self.key, number)
        self.study.left, self.study.short = self.left + self.study.cost.reward_calls, False
        own = self.learner
        posterior = own.fitted(self.memory) if own else None
        correlation = own.correlation(self.memory, posterior) if own else math.nan
        trusted = own is not None and posterior is not None and own.trusted(correlation)
        size = self.batch or min(max(before // SHARE, BATCH[0]), BATCH[1])
        pool = self._proposed(size, trusted, key)
        rows, predicted = self._picked(pool, size, posterior, trusted, key)
        asked = rows[: int(min(len(rows), max(self.left, 0)))]
        self._ask(pool, asked, predicted)
        self.stale = 0 if asked else self.stale + 1
        self._end(before, correlation, trusted, len(asked) < len(rows) or self.study.short, len(pool))

    def _pool(self) -> Pool:
        return Pool(self.memory, self.require, self.scaffolds)

    def _proposed(self, size: int, trusted: bool, key: Tensor) -> Pool:
        """Candidates of a round: as many as the surrogate is to screen, or as there are calls."""
        parts = bandit.shares(*self._record(), seed=int(random.fold(key, "shares")) % 2**32)
        pool, self.slots = self._pool(), dict.fromkeys((p.name for p in self.sources), 0)
        for attempt in range(TRIES):
            u = float(random.uniform(_address(key, "divided", attempt), (1,)))
            for source, slots in zip(self.sources, bandit.divided(size, parts, u), strict=True):
                self.slots[source.name] += slots
                count = slots * (source.screen if trusted else 1)
                if count:
                    pool.add(source.name, source.propose(self.study, count, _address(key, source.name, attempt)))
            if len(pool) >= size:
                break
        return pool

    def _picked(
        self, pool: Pool, size: int, posterior: Posterior | None, trusted: bool, key: Tensor
    ) -> tuple[list[int], list[float] | None]:
        """The candidates to ask, in order, and what the surrogate says of all."""
        order = random.uniform(random.fold(random.fold(key, "order"), torch.arange(len(pool)))).argsort().tolist()
        if posterior is None or self.learner is None or not len(pool):
            return order[:size], None
        mean, covariance = posterior.at(self.memory.domain.features(pool.batch()))
        if trusted:
            order = chosen(mean, covariance, size, self.learner.kappa, self.learner.noise * posterior.scale**2)
        return order[:size], mean.tolist()

    def _ask(self, pool: Pool, rows: Sequence[int], predicted: list[float] | None) -> None:
        """Ask the reward of these candidates, but for calls that the log knows, and remember them."""
        if not len(rows):
            return
        first, number, domain = self.memory.asked, len(self.log.rounds), self.memory.domain
        texts = [domain.text(pool.samples[i], first + place) for place, i in enumerate(rows)]
        self.world.agree(("the samples to be asked", texts))
        known = [self.log.known(first + place, text) for place, text in enumerate(texts)]
        new = [i for i, value in zip(rows, known, strict=True) if value is None]
        found = iter(self._scored(pool.batch(new)) if new else [])
        values = [next(found) if value is None else value for value in known]
        self.own.reward_calls += len(rows) - len(new)
        self.own.unscored += sum(value is not None and math.isnan(value) for value in known)
        said = [math.nan if predicted is None else predicted[i] for i in rows]
        calls = [Call(number, pool.sources[i], v, p) for i, v, p in zip(rows, values, said, strict=True)]
        numbered = zip(rows, calls, strict=True)
        lines = [line(domain, first + place, pool.samples[i], call) for place, (i, call) in enumerate(numbered)]
        with self.world.together():
            self.log.append(lines, first)
        self.memory.add(pool.batch(rows), [pool.x[i] for i in rows], calls)

    def _scored(self, samples: Any) -> list[float]:
        with lent([*self.model.modules(), *networks_in(self.reward)]):
            scores = self.scorer(self.reward, samples.to(self.model.device) if isinstance(samples, Tensor) else samples)
        self.scorer.settle()
        return scores.tolist()

    def _record(self) -> tuple[list[float], list[float]]:
        """Successes and failures of every proposal, of which the last rounds count most. A slot that brought no call is
        a failure: else one whose candidates the surrogate never chooses would look untried, and get most of a round."""
        wins = {p.name: [0] * len(self.log.rounds) for p in self.sources}
        for call, won in zip(self.memory.calls, self._successes(), strict=True):
            if call.proposal in wins and call.round > 0:
                wins[call.proposal][call.round] += won
        slots = {name: [row["trace"]["slots"][name] for row in self.log.rounds[1:]] for name in wins}
        found = [bandit.discounted(list(zip(wins[name][1:], slots[name], strict=True))) for name in wins]
        return [s for s, _ in found], [f for _, f in found]

    def _successes(self) -> list[bool]:
        """Whether each call was among the best `TOP` of all that were known before its round."""
        rounds, values = [call.round for call in self.memory.calls], self.memory.values.nan_to_num(-math.inf)
        starts = [i for i, r in enumerate(rounds) if i == 0 or r != rounds[i - 1]]
        found: list[bool] = []
        for start, end in zip(starts, [*starts[1:], len(rounds)], strict=True):
            earlier = values[:start].sort(descending=True).values
            bar = earlier[int(len(earlier) * TOP)] if len(earlier) else -math.inf
            found += (values[start:end] > bar).tolist()
        return found

    # what is left behind -----------------------------------------------------------------------------------------

    def _end(self, before: int, correlation: float, trusted: bool, cut: bool, candidates: int) -> None:
        """The round is over: its row in the trace and in the log."""
        self.trace.append(self._row(before, correlation, trusted, candidates))
        row = {"calls": self.memory.asked, "cut": cut, "seconds": self.seconds, "trace": self.trace[-1]}
        with self.world.together():
            self.log.end(self.memory, before, row | {"cost": [vars(self.study.cost) | {}, vars(self.own) | {}]})

    def _row(self, before: int, correlation: float, trusted: bool, candidates: int) -> dict[str, Any]:
        calls, best = self.memory.calls, self.memory.best(10)
        new, top = calls[before:], [calls[i].value for i in best]
        own = [call.value for call in new if math.isfinite(call.value)]
        sources = dict.fromkeys([*(p.name for p in self.sources), *(call.proposal for call in new)])
        return {
            "t": 0.0,
            "ess": [float(len(calls))],
            "entropy": [math.log(len(calls))],
            "resampled": [False],
            "distinct": [len(calls)],
            "mean_reward": [sum(own) / len(own) if own else math.nan],
            "max_reward": [top[0] if top else math.nan],
            "seconds": self.seconds,
            "calls": self.memory.asked,
            "best": top[0] if top else math.nan,
            "top10": sum(top) / len(top) if top else math.nan,
            "candidates": candidates,
            "correlation": correlation,
            "trusted": trusted,
            "slots": self.slots,
            "shares": {name: sum(c.proposal == name for c in new) / max(len(new), 1) for name in sources},
        }

    def _tell(self) -> None:
        """Warn of what the result should not hide."""
        lost = int(self.memory.values.isnan().sum())
        if 2 * lost > len(self.memory):
            warnings.warn(f"the reward scored {len(self.memory) - lost} of {len(self.memory)} samples only")
        if self.distinct is not None and (found := len(self._best())) < self.wanted:
            wanted = f"{self.wanted} were wanted: {self.ended}"
            warnings.warn(f"only {found} samples differ at {self.distinct} places or more, {wanted}")
        elif len(self.memory) < self.wanted:
            warnings.warn(
                f"only {len(self.memory)} distinct samples were found, {self.wanted} were wanted: {self.ended}"
            )

    def _result(self, config: dict[str, Any]) -> Result:
        """The best samples, with what the loop knows of them."""
        rows = self._best()
        if self.distinct is None:
            rows += [i for i in range(len(self.memory)) if i not in set(rows)][: self.wanted - len(rows)]
        with lent(self.model.modules()):
            x, written = self.memory.state(rows)
        x, device = x.to(self.model.device), self.model.device
        cost = Cost(**{k: v + getattr(self.own, k) for k, v in vars(self.study.cost).items()})
        cost.seconds = self.seconds
        row = torch.arange(len(rows), device=device)
        about = {"ended": self.ended, "proposals": [self.memory.calls[i].proposal for i in rows]}
        samples = self.memory.batch(rows)
        return Result(
            x=x,
            samples=samples.to(device) if isinstance(samples, Tensor) else samples,
            rewards=self.memory.values[rows].to(device),
            group=torch.zeros_like(row),
            log_weights=torch.zeros(len(rows), dtype=torch.float64, device=device),
            ancestors=row.new_empty(0, len(rows)),
            trace=self.trace,
            cost=cost,
            row=row,
            config=config | {"design": about | {"written": written.tolist()}},
        )


def _address(key: Tensor, name: str, number: int) -> Tensor:
    return random.fold(random.fold(key, name), number)

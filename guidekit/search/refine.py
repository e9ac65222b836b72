r"""Refinement of finished samples: noise them part of the way back, denoise them again under the same guides, and keep
what is better (Uehara et al., 2025, Reward-guided iterative refinement, https://arxiv.org/abs/2502.14944).

    x_t ~ q(x_t | x_0) for t = level,      x_0' ~ the guided sampler from t to 0,

    refine   row by row: x_0' replaces the sample it descends from if its reward is higher (keep="better"), or always.
             Samples never replace each other.
    evolve, with rounds:
             group by group: the n best distinct ones among the n old samples and offspring n new ones survive, so good
             ones take over. Noising is the mutation, and selection is elitist.

Both are greedy. No reward falls with keep="better", nor does the best one in `evolve` (copies give way to others). Any
guides may steer the denoising, for any process: `gk.SVDD`, `gk.FKSteering`, `gk.TDS`... Random numbers are addressed by
seed and round; with a folder as checkpoint, an interrupted search resumes after its last complete round and ends in the
same result. Without `rounds`, `evolve` is the design loop of `guidekit.search.design`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import random
from ..engine.checks import bound
from ..engine.describe import describe, difference
from ..engine.result import Result, Trace, load_result, picked
from ..engine.sample import sample
from ..engine.scoring import Cost, Scorer
from ..errors import CheckpointError, is_count
from ..guides import Guide, StartFrom
from ..guides.start_from import from_level
from ..models import Model
from ..models.networks import lent, networks_in
from ..solvers import Solver
from .budget import Budget
from .design import Design, Proposal, Surrogate

CALLS = 2000  # of a design loop without a budget

Merge = Callable[[Result, Result], tuple[Tensor, Tensor]]  # chosen rows of old and new, and the old row each is from


def refine(
    model: Model,
    start: Any,
    reward: Any,
    *,
    rounds: int = 5,
    level: float = 0.5,
    steps: int = 25,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    keep: str = "better",
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Result:
    """Refine samples, each on its own: noise it part of the way, denoise it, and keep what is better.

    start    a result, samples as `model.read` takes them, final states (groups*n, *shape), or n: then n samples per
             condition are drawn first
    level    the time in (0, 1) up to which samples are noised
    steps    number of steps from there to 0
    keep     "better" keeps only what raises the reward; or "always"

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> first = gk.sample(base, 16, steps=20, reward=lambda x: x[:, 0])
    >>> better = gk.refine(base, first, lambda x: x[:, 0], rounds=3)
    >>> bool((better.rewards >= first.rewards).all()) and bool(better.rewards.mean() > first.rewards.mean() + 0.5)
    True
    """
    if keep not in ("better", "always"):
        raise ValueError(f"keep={keep!r}: there is 'better' and 'always'")
    search = _Search(model, reward, rounds, level, steps, tuple(guides), cond, solver, seed, batch_size, progress)
    return search.run(start, checkpoint, ("refine", keep), lambda old, new: _replaced(old, new, keep == "always"))


def evolve(
    model: Model,
    start: Any,
    reward: Any,
    *,
    budget: Budget | None = None,
    n: int | None = None,
    proposals: Iterable[Proposal] | None = None,
    surrogate: Surrogate | bool = True,
    population: int | None = None,
    batch: int | None = None,
    require: Callable[[Any], Any] | None = None,
    known: Any = None,
    diversity: int | None = None,
    content: str | None = None,
    rounds: int | None = None,
    level: float | None = None,
    steps: int | None = None,
    offspring: int | None = None,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> Result:
    """The best samples that a budget of reward calls finds, by the design loop; or rounds of noising, if asked for.

    start       n: so many samples are returned, and the model draws the population; or samples to begin with (those
                that `model.read` takes, states or a result; of molecules any SMILES)
    budget      ends the loop, Budget(calls=2000) if nothing is said. `calls` counts distinct samples, exactly; guides
                that ask a reward of their own spend it too
    n           number of samples returned, if other than the start says
    proposals   a list of `gk.search.Proposal`; by default those of `GraphOperators`, `Crossover`, `Regrow` and `Fresh`
                that serve the model
    surrogate   a `gk.search.Surrogate`, True for the usual one, or False for none
    population  samples before the first round, 50; those that are missing the model draws
    batch       calls of a round; None is a twentieth of what is known, from 10 to 50
    require     a function of samples, true for those that may be asked: a constraint on all proposals
    known       what was measured before: a CSV file with columns sample and value, or a pair (samples, values)
    diversity   of molecules: no Bemis-Murcko scaffold is asked more often than this
    content     what the model's texts are, if it does not say so: "smiles", "sequence" or "text"
    steps       of a run of the model; None is one for each place of a row of tokens, at most 50
    checkpoint  a folder: every call is written to `calls.csv`, and the same call resumes, or goes on with a larger
                budget, to the same result
    guides, cond, solver and batch_size   of the model's runs, as in `gk.sample`

    The result has the best distinct samples of all calls and of what was known, best first; its trace has a row for
    each round, with calls, best, top10 (the mean of the best ten), shares of the proposals, and the rank correlation of
    the surrogate. Samples that the model cannot write, as graph operators make some, have a state of masks in x;
    `config["design"]` says which, which proposal each sample is from, and why the loop ended.

    With `rounds`, `level` or `offspring`, and no budget, rounds of noising and selection run instead, 10 if no number
    is given: each sample has `offspring` children per round, 1 if nothing is said, and the n best of a group survive;
    the other arguments are as in `refine`. Equal samples count once, so no sample can fill a group with its copies
    unless there are fewer than n distinct ones.

    >>> import guidekit as gk
    >>> base = gk.MaskedModel(lambda x, t, cond: torch.zeros(*x.shape, 4), vocab_size=4, length=12)
    >>> match = lambda x: (x == torch.tensor([0, 1, 2, 3] * 3)).double().sum(1)
    >>> found = gk.evolve(base, 4, match, budget=gk.search.Budget(calls=150))
    >>> found.cost.reward_calls, bool(found.rewards.min() >= 9)  # of 12; drawn at random, 3 are right
    (150, True)
    """
    by_rounds = budget is None and not (rounds is None and level is None and offspring is None)
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget={budget!r}: a gk.search.Budget is needed, like gk.search.Budget(calls=2000)")
    design = {"n": n, "proposals": proposals, "population": population, "batch": batch, "require": require}
    design |= {"known": known, "diversity": diversity, "content": content}
    given = design if by_rounds else {"rounds": rounds, "level": level, "offspring": offspring}
    if wrong := [name for name, value in given.items() if value is not None]:
        if by_rounds:
            raise ValueError(
                f"{', '.join(wrong)} belong to the design loop: give a budget, and neither rounds nor level"
            )
        raise ValueError(f"{', '.join(wrong)} go without a budget: Budget(rounds=...) limits the design loop")
    if by_rounds:
        offspring = 1 if offspring is None else offspring
        if not is_count(offspring):
            raise ValueError(f"offspring={offspring!r}: children of each sample in a round, at least 1")
        times = (10 if rounds is None else rounds, 0.5 if level is None else level, 25 if steps is None else steps)
        search = _Search(model, reward, *times, tuple(guides), cond, solver, seed, batch_size, progress, offspring)
        return search.run(start, checkpoint, ("evolve", offspring), _fittest)
    return Design(
        model,
        start,
        reward,
        Budget(calls=CALLS) if budget is None else budget,
        guides=tuple(guides),
        cond=cond,
        solver=solver,
        steps=steps,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        folder=checkpoint,
        surrogate=surrogate,
        **design,
    ).run()


@dataclass
class _Search:
    model: Model
    reward: Any
    rounds: int
    level: float
    steps: int
    guides: tuple[Guide, ...]
    cond: Any
    solver: Solver | None
    seed: int
    batch_size: int | None
    progress: bool
    offspring: int = 1

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward={self.reward!r}: a Reward or a function of samples is needed")
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 0:
            raise ValueError(f"rounds={self.rounds!r}: a number of rounds")
        if not 0 < self.level < 1:
            raise ValueError(f"level={self.level}: samples are noised up to a time within (0, 1)")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps={self.steps!r}: at least one step down from the level")
        if any(isinstance(g, StartFrom) for g in self.guides):
            raise ValueError("guides holds a StartFrom: refinement sets where its rounds start")

    def run(self, start: Any, checkpoint: str | Path | None, kind: tuple[str, Any], merge: Merge) -> Result:
        """Rounds of noising, denoising and selection."""
        folder, start = None if checkpoint is None else Path(checkpoint), self.given(start)
        config = json.loads(json.dumps(self.described(start, kind)))
        state = _resumed(folder, config) if folder and folder.exists() else self.first(start, config)
        done = len(state.trace)
        for number in tqdm(
            range(done + 1, self.rounds + 1), initial=done, total=self.rounds, disable=not self.progress
        ):
            began = time.perf_counter()
            new = self.round(state, number)
            state = _merged(state, new, *merge(state, new), time.perf_counter() - began, self.level)
            if folder is not None:
                _save(state, folder)
        self.tell_if_idle(state)
        return state

    def tell_if_idle(self, state: Result) -> None:
        """Warn where no round has changed a sample."""
        if len(state.trace) and not state.trace["changed"].any():
            warnings.warn(
                f"none of the {len(state)} samples changed in {len(state.trace)} rounds at level={self.level}: what "
                "was noised came back as it was. Take a higher level",
                stacklevel=3,
            )

    def round(self, state: Result, number: int) -> Result:
        """The samples noised and denoised again."""
        x = state.x.view(state.groups, -1, *self.model.shape).repeat_interleave(self.offspring, 1).flatten(0, 1)
        start, times = from_level(self.model, x, self.level, self.steps)
        return self.sample(len(x) // state.groups, times, (start, *self.guides), number)

    def sample(self, n: int, steps: int | Sequence[float], guides: Sequence[Guide], number: int) -> Result:
        options = {"cond": self.cond, "reward": self.reward, "solver": self.solver, "batch_size": self.batch_size}
        key = random.fold(random.fold(random.key(self.seed), "refine"), number)
        return sample(self.model, n, steps=steps, guides=guides, seed=int(key), **options)

    def given(self, start: Any) -> Tensor | int:
        """The initial states, or how many are to be drawn."""
        if isinstance(start, int) and not isinstance(start, bool):
            return start
        x = start.x if isinstance(start, Result) else start
        if not isinstance(x, Tensor) or (self.model.decodes and x.shape[1:] != self.model.shape):
            try:
                x = self.model.as_states(x)
            except ValueError as error:
                raise ValueError(f"start: {error}") from error
        groups = len(self.cond) if isinstance(self.cond, list) else 1
        if x.shape[1:] != self.model.shape or len(x) == 0 or len(x) % groups:
            raise ValueError(
                f"start of shape {tuple(x.shape)}: a result, samples or states of shape (groups*n, "
                f"*{self.model.shape}) for {groups} conditions, or a number of samples is needed"
            )
        return x

    def first(self, start: Tensor | int, config: dict[str, Any]) -> Result:
        """The initial samples, scored."""
        if isinstance(start, int):
            drawn = self.sample(start, round(self.steps / self.level), self.guides, 0)
            return _state(drawn.x, drawn.samples, _scores(drawn), drawn.groups, drawn.cost, config)
        groups = len(self.cond) if isinstance(self.cond, list) else 1
        cost, x = Cost(), start.to(self.model.device)
        with lent([*self.model.modules(), *networks_in(self.reward)]):
            samples, scorer = self.pasted(self.model.decode(x), groups), Scorer(cost, x.device)
            rewards = scorer(self.reward, samples)
        scorer.settle()
        return _state(x, samples, rewards, groups, cost, config)

    def pasted(self, samples: Any, groups: int) -> Any:
        """Samples with what the guides put into them."""
        group = torch.arange(len(samples), device=self.model.device) // (len(samples) // groups)
        return reduce(lambda samples, guide: guide.paste(samples, group), bound(self.guides, self.model), samples)

    def described(self, start: Tensor | int, kind: tuple[str, Any]) -> dict[str, Any]:
        """What decides the outcome, apart from the number of rounds."""
        names = ("model", "reward", "level", "steps", "guides", "cond", "solver", "seed")
        return {"search": list(kind), "start": describe(start)} | {
            name: describe(getattr(self, name)) for name in names
        }


def _state(x: Tensor, samples: Any, rewards: Tensor, groups: int, cost: Cost, config: dict[str, Any]) -> Result:
    """Samples as a result without rounds."""
    row = torch.arange(len(x), device=x.device)
    return Result(
        x=x,
        samples=samples,
        rewards=rewards,
        group=row // (len(x) // groups),
        log_weights=torch.zeros(len(x), dtype=torch.float64, device=x.device),
        ancestors=row.new_empty(0, len(x)),
        trace=Trace(),
        cost=cost,
        row=row,
        config=config,
    )


def _scores(result: Result) -> Tensor:
    assert result.rewards is not None
    return result.rewards


def _merged(old: Result, new: Result, chosen: Tensor, parent: Tensor, seconds: float, level: float) -> Result:
    """The chosen rows of old and new together, (rows,); parent is the old row from which each of them descends."""
    x, rewards = (torch.cat([getattr(r, k) for r in (old, new)])[chosen] for k in ("x", "rewards"))
    changed = (new.x != old.x[_parents(old, new)]).flatten(1).any(1)
    samples = picked(_joined(old.samples, new.samples), chosen)
    cost = Cost(**{k: v + getattr(new.cost, k) for k, v in vars(old.cost).items()})
    ancestors = torch.cat([old.ancestors, parent[None]])
    by_group, n = rewards.view(old.groups, -1), len(old) // old.groups
    roots = parent
    for before in reversed(old.ancestors.unbind(0)):
        roots = before[roots]
    row = {
        "t": level,
        "ess": [float(n)] * old.groups,
        "entropy": [math.log(n)] * old.groups,
        "resampled": (parent != old.row).view(old.groups, -1).any(1).tolist(),
        "distinct": [len(r.unique()) for r in roots.view(old.groups, -1)],
        "mean_reward": by_group.nanmean(1).tolist(),
        "max_reward": by_group.nan_to_num(-torch.inf).amax(1).tolist(),
        "accepted": (chosen >= len(old)).view(old.groups, -1).double().mean(1).tolist(),
        "changed": changed.view(old.groups, -1).double().mean(1).tolist(),
        "seconds": seconds + (old.trace[-1]["seconds"] if old.trace else 0.0),
    }
    return replace(
        old, x=x, rewards=rewards, samples=samples, cost=cost, ancestors=ancestors, trace=Trace([*old.trace, row])
    )


def _parents(old: Result, new: Result) -> Tensor:
    """The old row from which each new one started."""
    return new.memos[0] // (len(new) // len(old))


def _replaced(old: Result, new: Result, always: bool) -> tuple[Tensor, Tensor]:
    """Every row, or the best of its descendants if that is better."""
    root, was, now = new.memos[0], *(_scores(r).nan_to_num(-torch.inf) for r in (old, new))
    best = torch.full_like(was, -torch.inf).scatter_reduce(0, root, now, "amax")
    wins = (now == best[root]).nonzero()[:, 0]
    child = torch.full_like(old.row, -1).index_put((root[wins],), wins)
    takes = (child >= 0) & ((best > was) | always)
    return torch.where(takes, len(old) + child, old.row), old.row


def _fittest(old: Result, new: Result) -> tuple[Tensor, Tensor]:
    """The n best of every group, equal samples counting once as long as there are others."""
    rewards = torch.cat([_scores(old), _scores(new)]).nan_to_num(-torch.inf)
    group, parent = torch.cat([old.group, new.group]), torch.cat([old.row, _parents(old, new)])
    again = _repeated(_joined(old.samples, new.samples), torch.cat([old.x, new.x]), group)
    order = torch.arange(len(rewards), device=rewards.device)
    for key in (-rewards, again.to(rewards), group.to(rewards)):  # the last sort counts most
        order = order[key[order].sort(stable=True).indices]
    size, n = len(order) // old.groups, len(old) // old.groups
    chosen = order.view(old.groups, size)[:, :n].flatten()
    return chosen, parent[chosen]


def _repeated(samples: Any, x: Tensor, group: Tensor) -> Tensor:
    """Whether a row's sample has been met before in its group."""
    if isinstance(samples, list) and all(isinstance(s, str) for s in samples):
        names: dict[str, int] = {}
        code = torch.tensor([names.setdefault(s, len(names)) for s in samples], device=x.device)
    else:
        code = x.flatten(1).unique(dim=0, return_inverse=True)[1]
    code = code * (int(group.max()) + 1) + group
    order = code.sort(stable=True).indices
    same = torch.zeros_like(code, dtype=torch.bool)
    same[order[1:]] = code[order].diff() == 0
    return same


def _joined(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    return np.concatenate([a, b]) if isinstance(a, np.ndarray) else [*a, *b]


def _save(state: Result, folder: Path) -> None:
    """Save atomically: written next to the old folder and moved over it."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    state.save(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _resumed(folder: Path, config: dict[str, Any]) -> Result:
    state = load_result(folder)
    other = difference(state.config, config)
    if other:
        raise CheckpointError(
            f"{folder} is of another search: {other[0]} was {other[1]!r} and is {other[2]!r} now; give this one "
            "another folder, or delete that one"
        )
    return state

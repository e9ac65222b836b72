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

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.describe import describe
from ..engine.result import Result
from ..errors import is_count
from ..guides import Guide
from ..guides.start_from import from_level
from ..models import Model
from ..solvers import Solver
from .budget import Budget
from .design import Design, Proposal, Surrogate
from .rounds import Rounds, joined, merged, parents_of, scores_of

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
    world: Any = None,
) -> Result:
    """Refine samples, each on its own: noise it part of the way, denoise it, and keep what is better.

    start    a result, samples as `model.read` takes them, final states (groups*n, *shape), or n: then n samples per
             condition are drawn first
    level    the time in (0, 1) up to which samples are noised
    steps    number of steps from there to 0
    keep     "better" keeps only what raises the reward; or "always"
    world    as in `gk.sample`: several processes share the rows of every round, and the first writes the checkpoint

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> first = gk.sample(base, 16, steps=20, reward=lambda x: x[:, 0])
    >>> better = gk.refine(base, first, lambda x: x[:, 0], rounds=3)
    >>> bool((better.rewards >= first.rewards).all()) and bool(better.rewards.mean() > first.rewards.mean() + 0.5)
    True
    """
    if keep not in ("better", "always"):
        raise ValueError(f"keep={keep!r}: there is 'better' and 'always'")
    options = (tuple(guides), cond, solver, seed, batch_size, progress, world)
    common = (("refine", keep), model, reward, rounds, *options)
    return _Renoising(*common, level, steps, _replaced if keep == "better" else _always).run(start, checkpoint)


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
    distinct: int | None = None,
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
    world: Any = None,
) -> Result:
    """The best samples that a budget of reward calls finds, by the design loop; or rounds of noising, if asked for.

    start       n: so many samples are returned, and the model draws the population; or samples to begin with (those
                that `model.read` takes, states or a result; of molecules any SMILES)
    budget      ends the loop, Budget(calls=2000) if nothing is said. `calls` counts distinct samples, exactly; guides
                that ask a reward of their own spend it too
    n           number of samples returned, if other than the start says
    proposals   a list of `gk.search.Proposal`; by default those of `GraphOperators`, `Crossover`, `Informed`,
                `Regrow` and `Fresh` that serve the model and the reward
    surrogate   a `gk.search.Surrogate`, True for the usual one, or False for none
    population  samples before the first round, 50; those that are missing the model draws
    batch       calls of a round; None is a twentieth of what is known, from 10 to 50
    require     a function of samples, true for those that may be asked: a constraint on all proposals
    known       what was measured before: a CSV file with columns sample and value, or a pair (samples, values)
    diversity   of molecules: no Bemis-Murcko scaffold is asked more often than this
    distinct    of tokens: samples that are returned differ from each other at so many places at least, and parents are
                the best ones that do
    content     what the model's texts are, if it does not say so: "smiles", "sequence" or "text"
    steps       of a run of the model; None is one for each place of a row of tokens, at most 50
    checkpoint  a folder: every call is written to `calls.csv`, and the same call resumes, or goes on with a larger
                budget, to the same result
    guides, cond, solver and batch_size   of the model's runs, as in `gk.sample`
    world       as in `gk.sample`: several processes share the runs of the model and the calls of the reward, and the
                first writes the checkpoint

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
    design |= {"known": known, "diversity": diversity, "distinct": distinct, "content": content}
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
        rounds, level = 10 if rounds is None else rounds, 0.5 if level is None else level
        steps = 25 if steps is None else steps
        options = (tuple(guides), cond, solver, seed, batch_size, progress, world)
        common = (("evolve", offspring), model, reward, rounds, *options)
        return _Renoising(*common, level, steps, _fittest, offspring).run(start, checkpoint)
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
        world=world,
        **design,
    ).run()


@dataclass
class _Renoising(Rounds):
    """Rounds of noising and denoising, after which `merge` says what is kept."""

    level: float
    steps: int
    merge: Merge
    offspring: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < 1:
            raise ValueError(f"level={self.level}: samples are noised up to a time within (0, 1)")
        if not is_count(self.steps):
            raise ValueError(f"steps={self.steps!r}: at least one step down from the level")

    @property
    def still(self) -> str:
        return f"at level={self.level}: what was noised came back as it was. Take a higher level"

    def described(self, start: Tensor | int) -> dict[str, Any]:
        return super().described(start) | {"level": describe(self.level), "steps": describe(self.steps)}

    def chain(self) -> int:
        return round(self.steps / self.level)

    def following(self, state: Result, number: int) -> Result:
        began = time.perf_counter()
        new = self.round(state, number)
        return merged(state, new, *self.merge(state, new), time.perf_counter() - began, self.level)

    def round(self, state: Result, number: int) -> Result:
        """The samples noised and denoised again."""
        x = state.x.view(state.groups, -1, *self.model.shape).repeat_interleave(self.offspring, 1).flatten(0, 1)
        start, times = from_level(self.model, x, self.level, self.steps)
        return self.sample(len(x) // state.groups, times, (start, *self.guides), number)


def _always(old: Result, new: Result) -> tuple[Tensor, Tensor]:
    """Every row by the best of its descendants, if it has one."""
    return _replaced(old, new, True)


def _replaced(old: Result, new: Result, always: bool = False) -> tuple[Tensor, Tensor]:
    """Every row, or the best of its descendants if that is better."""
    root, was, now = new.memos[0], *(scores_of(r).nan_to_num(-torch.inf) for r in (old, new))
    best = torch.full_like(was, -torch.inf).scatter_reduce(0, root, now, "amax")
    wins = (now == best[root]).nonzero()[:, 0]
    child = torch.full_like(old.row, -1).index_put((root[wins],), wins)
    takes = (child >= 0) & ((best > was) | always)
    return torch.where(takes, len(old) + child, old.row), old.row


def _fittest(old: Result, new: Result) -> tuple[Tensor, Tensor]:
    """The n best of every group, equal samples counting once as long as there are others."""
    rewards = torch.cat([scores_of(old), scores_of(new)]).nan_to_num(-torch.inf)
    group, parent = torch.cat([old.group, new.group]), torch.cat([old.row, parents_of(old, new)])
    again = _repeated(joined(old.samples, new.samples), torch.cat([old.x, new.x]), group)
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

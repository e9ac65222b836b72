"""Rounds over finished samples: each makes new samples of the old ones, and one of both is kept, row by row or group
by group. What refinement, evolution by rounds and informed moves share: the samples to start from, the folder that a
search resumes from, and the result with its trace."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from .. import random
from ..engine.checks import bound
from ..engine.cost import Cost
from ..engine.describe import describe, difference
from ..engine.result import Result, Trace, load_result, picked
from ..engine.sample import sample
from ..engine.scoring import Scorer
from ..engine.whole import check_writable, unwritten
from ..engine.world import world_of
from ..errors import CheckpointError, is_count
from ..guides import Guide, StartFrom
from ..models import Model
from ..models.networks import lent, networks_in
from ..solvers import Solver


@dataclass
class Rounds:
    """A search that keeps as many samples as it starts from. A subclass says what a round is and how samples are
    drawn where only their number is given.

    kind   which search it is, and its own setting, as the folder remembers them
    """

    kind: tuple[Any, ...]
    model: Model
    reward: Any
    rounds: int
    guides: tuple[Guide, ...]
    cond: Any
    solver: Solver | None
    seed: int
    batch_size: int | None
    progress: bool
    world: Any

    def __post_init__(self) -> None:
        if not callable(self.reward):
            raise TypeError(f"reward={self.reward!r}: a Reward or a function of samples is needed")
        if not is_count(self.rounds, 0):
            raise ValueError(f"rounds={self.rounds!r}: a number of rounds")
        if any(isinstance(g, StartFrom) for g in self.guides):
            raise ValueError("guides holds a StartFrom: refinement sets where its rounds start")
        self.world = world_of(self.world, self.model.device)

    def run(self, start: Any, checkpoint: str | Path | None) -> Result:
        """All rounds, or those that the folder does not have yet."""
        folder, start = None if checkpoint is None else Path(checkpoint), self.given(start)
        config = json.loads(json.dumps(self.described(start)))
        there = self.world.first(lambda: _found(folder))
        self.world.agree(("a folder to resume from", there))
        state = _resumed(folder, config) if folder and there else self.first(start, config)
        done = len(state.trace)
        self.world.agree((config, done))
        for number in tqdm(
            range(done + 1, self.rounds + 1),
            initial=done,
            total=self.rounds,
            disable=not self.progress or self.world.rank > 0,
        ):
            state = self.following(state, number)
            with self.world.together():
                if folder is not None and self.world.rank == 0:
                    _save(state, folder)
        self.tell_if_idle(state)
        return state

    def following(self, state: Result, number: int) -> Result:
        """The samples after this round."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a round is")

    def chain(self) -> int:
        """Steps of the run that draws the first samples."""
        raise NotImplementedError(f"{type(self).__name__} does not say how samples are drawn")

    @property
    def still(self) -> str:
        """What to do where no round has changed a sample."""
        raise NotImplementedError(f"{type(self).__name__} does not say what to do")

    def tell_if_idle(self, state: Result) -> None:
        """Warn where no round has changed a sample."""
        if len(state.trace) and not state.trace["changed"].any():
            warnings.warn(
                f"none of the {len(state)} samples changed in {len(state.trace)} rounds {self.still}", stacklevel=4
            )

    def sample(self, n: int, steps: int | Sequence[float], guides: Sequence[Guide], number: int) -> Result:
        options = {"cond": self.cond, "reward": self.reward, "solver": self.solver, "batch_size": self.batch_size}
        options["world"] = self.world.over(n * (len(self.cond) if isinstance(self.cond, list) else 1))
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
            drawn = self.sample(start, self.chain(), self.guides, 0)
            return as_result(drawn.x, drawn.samples, scores_of(drawn), drawn.groups, drawn.cost, config)
        groups = len(self.cond) if isinstance(self.cond, list) else 1
        cost, x = Cost(), start.to(self.model.device)
        with lent([*self.model.modules(), *networks_in(self.reward)]):
            samples, scorer = self.pasted(self.model.decode(x), groups), Scorer(cost, x.device, world=self.world)
            rewards = scorer(self.reward, samples)
        scorer.settle()
        return as_result(x, samples, rewards, groups, cost, config)

    def pasted(self, samples: Any, groups: int) -> Any:
        """Samples with what the guides put into them."""
        group = torch.arange(len(samples), device=self.model.device) // (len(samples) // groups)
        return reduce(lambda samples, guide: guide.paste(samples, group), bound(self.guides, self.model), samples)

    def described(self, start: Tensor | int) -> dict[str, Any]:
        """What decides the outcome, apart from the number of rounds."""
        names = ("model", "reward", "guides", "cond", "solver", "seed")
        return {"search": list(self.kind), "start": describe(start)} | {
            name: describe(getattr(self, name)) for name in names
        }


def as_result(x: Tensor, samples: Any, rewards: Tensor, groups: int, cost: Cost, config: dict[str, Any]) -> Result:
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


def scores_of(result: Result) -> Tensor:
    assert result.rewards is not None
    return result.rewards


def merged(old: Result, new: Result, chosen: Tensor, parent: Tensor, seconds: float, level: float) -> Result:
    """The chosen rows of old and new together, (rows,); parent is the old row from which each of them descends."""
    x, rewards = (torch.cat([getattr(r, k) for r in (old, new)])[chosen] for k in ("x", "rewards"))
    changed = (new.x != old.x[parents_of(old, new)]).flatten(1).any(1)
    samples = picked(joined(old.samples, new.samples), chosen)
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


def parents_of(old: Result, new: Result) -> Tensor:
    """The old row from which each new one started."""
    return new.memos[0] // (len(new) // len(old))


def joined(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return torch.cat([a, b])
    return np.concatenate([a, b]) if isinstance(a, np.ndarray) else [*a, *b]


def _save(state: Result, folder: Path) -> None:
    """Save beside the old folder, whose place it takes: in between, the old one has another name."""
    part, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("part", "old"))
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        state.save(part)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise unwritten(folder, error) from error
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _found(folder: Path | None) -> bool:
    """Whether there is a folder to resume from; one that a kill has left under its other name gets its own again."""
    if folder is None:
        return False
    old = folder.with_name(f"{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    if not folder.exists():
        check_writable(folder)
    return folder.exists()


def _resumed(folder: Path, config: dict[str, Any]) -> Result:
    state = load_result(folder)
    other = difference(state.config, config)
    if other:
        raise CheckpointError(
            f"{folder} is of another search: {other[0]} was {other[1]!r} and is {other[2]!r} now; give this one "
            "another folder, or delete that one"
        )
    return state

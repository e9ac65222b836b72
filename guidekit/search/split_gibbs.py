r"""Split Gibbs sampling for tokens: SG-DPS, or SGDD (Chu et al., 2025), https://arxiv.org/abs/2503.01161.

The likelihood and the prior have a copy of the sample each, z and x, tied by uniform noise of level t, which replaces
each token with probability t by a random one:

    pi_t(x, z)  ~  p(x) prod_i K_t(z_i | x_i) p(y | z)^(1/alpha),        K_t(v | u) = (1 - t) [u = v] + t/V.

A round draws each of them given the other:

    z | x    by `moves` Metropolis steps: at a random place a letter from K_t(. | x_i), which is accepted with the
             probability min(1, [p(y | z')/p(y | z)]^(1/alpha))
    x | z    p(x) prod_i K_t(z_i | x_i), which is the model's own posterior of x_0 given x_t = z.

Under uniform noise the second is a run of the model from z at time t. A masked model draws from it as well, and
exactly: given both copies, place i was replaced by the noise with probability

    1 where z_i differs from x_i,        (t/V)/(1 - t + t/V) where it does not,

and given z and the replaced places, x is z with these masked and filled in by the model, one after the other.

No gradient is asked, so that any measurement and any reward will do. At one level the pairs converge to pi_t, whose x
follows p(x) sum_z K_t(z | x) p(y | z)^(1/alpha), which is p(x | y) as t -> 0, where the copies can hardly move. So the
level goes down from round to round, and stays at its last value. The paper writes t = 1 - exp(-eta).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.cost import Cost
from ..engine.describe import describe
from ..engine.result import Result
from ..engine.sample import sample
from ..engine.scoring import Scorer
from ..engine.view import View
from ..errors import is_count
from ..guides import StartFrom
from ..models import Model
from ..models.base import stack
from ..models.evaluations import Cond, evaluate, rows_of
from ..models.networks import lent, networks_in
from ..process import Masked, Uniform
from .core import book
from .rounds import Rounds, as_result, merged

CHAIN = 50  # steps of the run that draws the first samples, at most


def split_gibbs(
    model: Model,
    start: Any,
    measurement: Any,
    *,
    alpha: float = 1.0,
    rounds: int = 100,
    levels: tuple[float, float] = (0.7, 0.05),
    anneal: int = 50,
    moves: int | None = None,
    steps: int = 20,
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    world: Any = None,
) -> Result:
    """Samples of the posterior p(x) p(y | x)^(1/alpha) of a model of tokens, each by a chain of its own; no gradients.

    start        n for each condition, or a result, samples or states to start from
    measurement  a `gk.Measurement`, or any reward, of decoded samples
    alpha        1 for the posterior
    levels       of the noise that ties the two copies, in the first round and from round `anneal` on
    moves        Metropolis steps of a round; None is the length
    steps        of a run from z, under uniform noise alone
    checkpoint   a folder, from which the same call resumes, or goes on with more rounds, to the same result
    world        as in `gk.sample`: several processes share the samples of every round, and the first writes the folder

    Cost of a round: `moves` + 1 measurements of samples that changed, and as many network evaluations as places were
    replaced, about t times the length (under uniform noise, `steps`). result.memos[0] are the copies z.

    >>> import guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.zeros(3, 3, 3))
    >>> total = gk.Measurement(lambda x: x.float().sum(1, keepdim=True), [5.0], noise=0.3)
    >>> found = split_gibbs(table, 50, total, rounds=20, anneal=10)
    >>> bool((found.x.sum(1) - 5).abs().double().mean() < 0.5)
    True
    """
    common = (("split_gibbs",), model, measurement, rounds, (), cond, None, seed, batch_size, progress, world)
    return _SplitGibbs(*common, alpha, levels, anneal, moves, steps).run(start, checkpoint)


@dataclass
class _SplitGibbs(Rounds):
    """The search: its state is a result of the copies x, whose memo is z."""

    alpha: float
    levels: tuple[float, float]
    anneal: int
    moves: int | None
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        process = self.model.process
        if not isinstance(process, Uniform) and not (isinstance(process, Masked) and not process.places):
            raise ValueError(
                f"split_gibbs needs a model of tokens with uniform noise, or a masked one that fills its places in any "
                f"order, and {self.model!r} is none"
            )
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha!r}: a positive temperature; 1 samples the posterior")
        if len(self.levels) != 2 or not 0 < self.levels[1] <= self.levels[0] < 1:
            raise ValueError(f"levels={self.levels!r}: the first and the last, falling, between 0 and 1")
        for name, value in (("anneal", self.anneal), ("moves", self.length), ("steps", self.steps)):
            if not is_count(value):
                raise ValueError(f"{name}={value!r}: an int of at least 1")
        if getattr(self.reward, "exact", False):
            raise ValueError("split_gibbs(Measurement(noise=0)): there is no density p(y | x); give the noise a value")

    @property
    def length(self) -> int:
        return self.model.shape[0] if self.moves is None else self.moves

    def level(self, number: int) -> float:
        """t of a round, counted from 1."""
        high, low = self.levels
        part = 1.0 if self.anneal == 1 else min(1.0, (number - 1) / (self.anneal - 1))
        return high * (low / high) ** part

    def chain(self) -> int:
        return min(self.model.shape[0], CHAIN)

    @property
    def still(self) -> str:
        return "of the split Gibbs sampler: raise the levels, or give more moves"

    def described(self, start: Tensor | int) -> dict[str, Any]:
        names = ("alpha", "levels", "anneal", "moves", "steps")
        return super().described(start) | {name: describe(getattr(self, name)) for name in names}

    def first(self, start: Tensor | int, config: dict[str, Any]) -> Result:
        state = super().first(start, config)
        return replace(state, memos=(state.x,))

    def following(self, state: Result, number: int) -> Result:
        began, cost, t = time.perf_counter(), Cost(), self.level(number)
        key = random.fold(random.fold(random.key(self.seed, state.x.device), "split gibbs"), number)
        keys = random.fold(key, state.row % (len(state) // state.groups))
        scorer = Scorer(cost, state.x.device, world=self.world)
        with torch.no_grad(), self.model.lent(), lent([*self.model.modules(), *networks_in(self.reward)]):
            z = self._fitted(state.memos[0], state.x, t, state.group, random.fold(keys, "z"), scorer)
            x = self._drawn(z, state.x, t, state.group, random.fold(keys, "x"), cost, number)
            samples = self.model.decode(x)
            rewards = scorer(self.reward, samples, state.group)
        scorer.settle()
        new = replace(as_result(x, samples, rewards, state.groups, cost, {}), memos=(state.row,))
        state = merged(state, new, len(state) + state.row, state.row, time.perf_counter() - began, t)
        return replace(state, memos=(z,))

    # z given x -------------------------------------------------------------------------------------------------------

    def _fitted(self, z: Tensor, x: Tensor, t: float, group: Tensor, keys: Tensor, scorer: Scorer) -> Tensor:
        """z after the Metropolis steps."""
        score = lambda z: scorer(self.reward, self.model.decode(z), group).nan_to_num(-torch.inf) / self.alpha  # noqa: E731
        own = score(z)
        for number in range(self.length):
            at = random.fold(keys, number)
            other = self._proposed(z, x, t, at)
            found = score(other)
            better = random.uniform(random.fold(at, "accepted")).log() < found - own
            z, own = torch.where(better[:, None], other, z), torch.where(better, found, own)
        return z

    def _proposed(self, z: Tensor, x: Tensor, t: float, keys: Tensor) -> Tensor:
        """z with a letter from K_t(. | x_i) at one random place."""
        place, letter, noise = (random.uniform(random.fold(keys, name)) for name in ("place", "letter", "noise"))
        i = (place * z.shape[1]).long().clamp(max=z.shape[1] - 1)[:, None]
        drawn = (letter * self._V).long().clamp(max=self._V - 1)[:, None]
        return z.scatter(1, i, torch.where((noise < t)[:, None], drawn, x.gather(1, i)))

    @property
    def _V(self) -> int:
        return self.model.process.V  # type: ignore[attr-defined]

    # x given z -------------------------------------------------------------------------------------------------------

    def _drawn(self, z: Tensor, x: Tensor, t: float, group: Tensor, keys: Tensor, cost: Cost, number: int) -> Tensor:
        if isinstance(self.model.process, Masked):
            same = t / self._V / (1 - t + t / self._V)
            replaced = random.uniform(random.fold(keys, "replaced"), z.shape[1:]) < torch.where(z == x, same, 1.0)
            y, world, own = torch.where(replaced, self._V, z), self.world.over(len(z)), Cost()
            mine = world.share(len(z))
            with world.together():
                x = self._filled(y[mine], group[mine], keys[mine], own)
            book(cost, world.cost(own))
            return world.rows(x)
        own = int(random.fold(random.fold(random.key(self.seed), "from z"), number))
        times = [t * (1 - j / self.steps) for j in range(self.steps)] + [0.0]
        given = {"cond": self.cond, "batch_size": self.batch_size, "seed": own}
        given["world"] = self.world.over(len(z))
        run = sample(self.model, len(z) // self._groups, steps=times, guides=[_At(z)], **given)
        cost.network_rows += run.cost.network_rows
        cost.network_calls += run.cost.network_calls
        return run.x

    @property
    def _groups(self) -> int:
        return len(self.cond) if isinstance(self.cond, list) else 1

    def _filled(self, y: Tensor, group: Tensor, keys: Tensor, cost: Cost) -> Tensor:
        """The masks of y filled in by the model, one after the other in random order, rows with the most masks
        first."""
        V, order = self._V, random.uniform(random.fold(keys, "order"), y.shape[1:])
        noise = random.gumbel(random.fold(keys, "letters"), (*y.shape[1:], V))
        for count in range(int((y == V).sum(1).max()), 0, -1):
            rows = ((y == V).sum(1) == count).nonzero()[:, 0]
            place = order[rows].masked_fill(y[rows] != V, torch.inf).argmin(1)
            log_p = self._predicted(y[rows], group[rows], count / y.shape[1], cost)
            here = torch.arange(len(rows), device=y.device)
            y = y.index_put((rows, place), (log_p[here, place] + noise[rows, place]).argmax(-1))
        return y

    def _predicted(self, y: Tensor, group: Tensor, t: float, cost: Cost) -> Tensor:
        """log p_i(v | what is not masked), float64 (rows, L, V)."""
        size = self.batch_size or len(y)
        cond = stack([self.model.encode(c) for c in (self.cond if isinstance(self.cond, list) else [self.cond])])
        found = [
            evaluate(self.model, [Cond()], part, t, rows_of(cond, own), cost.network)[Cond()]
            for part, own in zip(y.split(size), group.split(size), strict=True)
        ]
        return torch.cat(found).double().log_softmax(-1)


class _At(StartFrom):
    """Begin at these states, which are noised already."""

    def begin(self, view: View, noise: Tensor) -> Tensor:
        return self.x.to(view.x)

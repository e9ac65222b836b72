r"""Informed moves: samples of tokens are changed at a few places at a time, towards p exp(r/alpha).

A round masks a random set S of places in every sample and draws new letters there, from what the model says of them and
from the gradient g(x) of the reward at the one-hot sample,

    q(x' | x, S)  =  prod_{i in S} p_i(x'_i | x_-S) exp(g_i(x)[x'_i] / (2 alpha)) / Z_i,

and moves there with the probability of Metropolis and Hastings, min(1, A), in which the way back masks the same places
and takes the gradient at x':

    A  =  p(x'_S | x_-S)/p(x_S | x_-S)  exp((r(x') - r(x))/alpha)  q(x | x', S)/q(x' | x, S).

So p exp(r/alpha)/Z stays as it is, for any model whose predictions are the conditionals of one p. The ratio of p is
that of one place after the other, in a random order, over the c places that change (`exact`), which takes 2c - 1
further rows of the network; or the product of the predictions at once, which is the same for one place and leaves out
how the letters of a round depend on each other. Half of the gradient is the balance of a proposal that sees its target
to first order: Gibbs with gradients (Grathwohl et al., 2021, https://arxiv.org/abs/2102.04509), after the locally
informed proposals of Zanella (2020, https://arxiv.org/abs/1711.07424), here with a masked model as the prior.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from .. import random
from ..engine import tree
from ..engine.cost import Cost
from ..engine.describe import describe
from ..engine.result import Result
from ..engine.scoring import Scorer
from ..errors import is_count
from ..guides import Guide
from ..models import Model
from ..models.networks import lent, networks_in
from .core import book
from .moves import Moves
from .rounds import Rounds, as_result, merged, scores_of

CHAIN = 50  # steps of the run that draws samples to start from, at most


def informed(
    model: Model,
    start: Any,
    reward: Any,
    *,
    alpha: float,
    rounds: int = 100,
    share: float = 0.06,
    exact: bool = False,
    gradient: bool | None = None,
    max_edits: int | None = None,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    world: Any = None,
) -> Result:
    """Samples of a masked model moved towards p exp(reward/alpha), each on its own, a few tokens a round.

    start       a result, samples as `model.read` takes them, states, or n: then n samples per condition are drawn first
    alpha       the temperature, in units of the reward: the higher it is, the nearer samples stay to the model
    share       of the places that a round draws again; at least one
    exact       weigh the places of a round by the model one after the other, and not at once; the same for one place
    gradient    whether the reward's gradient proposes letters; None asks the reward whether it is differentiable. It is
                then asked of one-hot rows (rows, length, V) in the order of the model's tokens
    max_edits   at most so many places of a sample differ from where it started
    guides      constraints alone: `gk.Keep`, `gk.Sites`, `gk.MaxEdits`, which hold in every round
    checkpoint  a folder, from which the same call resumes, or goes on with more rounds, to the same result
    world       as in `gk.sample`: several processes share the samples of every round, and the first writes the folder

    One row of the network and one call of the reward (with its gradient) a round and sample. The trace has the share of
    accepted moves. Rewards go up and down, as samples of a law do; the rounds may end whenever they no longer rise.

    >>> import guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> ones = lambda x: (x == 1).double().sum(1)
    >>> first = gk.sample(table, 100, steps=3, reward=ones)
    >>> better = gk.search.informed(table, first, ones, alpha=0.5, rounds=20)
    >>> bool(better.rewards.mean() > first.rewards.mean() + 0.5)
    True
    """
    common = (("informed",), model, reward, rounds, tuple(guides), cond, None, seed, batch_size, progress, world)
    return _Informed(*common, alpha, share, exact, gradient, max_edits).run(start, checkpoint)


@dataclass
class _Informed(Rounds):
    """The search: its state is a result whose memos are the gradients at its samples, and where they started."""

    alpha: float
    share: float
    exact: bool
    gradient: bool | None
    max_edits: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.alpha, (int, float)) or not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha!r}: a positive temperature, in units of the reward")
        if not isinstance(self.share, (int, float)) or not 0 < self.share <= 1:
            raise ValueError(f"share={self.share!r}: the part of the places that a round draws again, in (0, 1]")
        if self.max_edits is not None and not is_count(self.max_edits):
            raise ValueError(f"max_edits={self.max_edits!r}: a number of places, at least 1, or None")
        options = (self.guides, self.cond, self.max_edits, self.batch_size)
        self.moves = Moves(self.model, self.alpha, self.share, *options)
        self.moves.check()
        if self.gradient is None:
            self.gradient = as_reward(self.reward).differentiable is True

    # the first samples -------------------------------------------------------------------------------------------

    @property
    def still(self) -> str:
        return f"at alpha={self.alpha}: every proposal was refused. Take a higher alpha, or a smaller share"

    def chain(self) -> int:
        return min(self.model.shape[0], CHAIN)

    def described(self, start: Tensor | int) -> dict[str, Any]:
        names = ("alpha", "share", "exact", "gradient", "max_edits")
        return super().described(start) | {name: describe(getattr(self, name)) for name in names}

    def first(self, start: Tensor | int, config: dict[str, Any]) -> Result:
        state = super().first(start, config)
        lost = ~self.moves.holds(state.x, state.group)
        if bool(lost.any()):
            raise ValueError(f"start: sample {int(lost.nonzero()[0])} does not satisfy the constraints of guides")
        if not self.gradient:
            return replace(state, memos=(None, state.x))
        cost = Cost(**vars(state.cost))
        rewards, slope = self.scored(state.x, state.samples, state.group, cost)
        self._check_order(rewards, scores_of(state))
        return replace(state, memos=(slope, state.x), cost=cost)

    def _check_order(self, hot: Tensor, known: Tensor) -> None:
        if not torch.allclose(hot, known, rtol=1e-3, atol=1e-3, equal_nan=True):
            worst = int((hot - known).abs().nan_to_num(torch.inf).argmax())
            of_rows, of_sample = float(hot[worst]), float(known[worst])
            raise ValueError(
                f"the reward says {of_rows:.4g} of the one-hot rows of a sample, and {of_sample:.4g} of the sample: "
                "are its letters in another order than the model's tokens? gradient=False does without"
            )

    def scored(self, x: Tensor, samples: Any, group: Tensor, cost: Cost) -> tuple[Tensor, Tensor | None]:
        """Rewards (rows,), and their gradients at one-hot rows (rows, L, V)."""
        networks = [*self.model.modules(), *networks_in(self.reward)]
        if not self.gradient:
            scorer = Scorer(cost, x.device, world=self.world)
            with lent(networks):
                rewards = scorer(self.reward, samples, group)
            scorer.settle()
            return rewards, None
        world, own = self.world.over(len(x)), Cost()
        mine, scorer = world.share(len(x)), Scorer(own, x.device, stepwise=True)
        with lent(networks), world.together(scorer):
            rewards, slope = self.moves.sloped(scorer, self.reward, x[mine], group[mine])
            scorer.add_up()
        book(cost, world.cost(own))
        return world.rows(rewards), world.rows(slope)

    # a round -----------------------------------------------------------------------------------------------------

    def following(self, state: Result, number: int) -> Result:
        began, cost, own, device = time.perf_counter(), Cost(), Cost(), state.x.device
        world = self.world.over(len(state))
        mine = world.share(len(state))
        key = random.fold(random.fold(random.key(self.seed, device), "informed"), number)
        keys = random.fold(key, state.row % (len(state) // state.groups))
        (slope, origin), x, group = tree.take(state.memos, mine), state.x[mine], state.group[mine]
        with torch.no_grad(), self.model.lent(), lent(self.model.modules()):
            with world.together():
                y, order = self.moves.masked(x, group, keys[mine])
                log_p = self.moves.predicted(y, group, own.network)
                there = self.moves.kernel(y, log_p, x, slope, origin, group)
                drawn = random.fold(keys[mine], "letters")
                here = there.push(random.gumbel(drawn, self.model.process.noise_shape(self.model.shape)))
            moved = world.rows(here)
            rewards, slopes, samples = self._looked(state, moved, cost)
            with world.together():
                back = self.moves.kernel(y, log_p, here, tree.take(slopes, mine), origin, group)
                ratio = self._prior(y, log_p, x, here, order, group, own) + back.log_prob(x) - there.log_prob(here)
        ratio = world.rows(ratio) + _rise(scores_of(state), rewards) / self.alpha
        accepted = (moved != state.x).any(1) & (random.uniform(random.fold(keys, "accepted")).log() < ratio)
        book(cost, world.cost(own))
        new = replace(as_result(moved, samples, rewards, state.groups, cost, {}), memos=(state.row,))
        chosen = torch.where(accepted, len(state) + state.row, state.row)
        state = merged(state, new, chosen, state.row, time.perf_counter() - began, self.moves.level)
        slope, origin = state.memos
        kept = None if slope is None or slopes is None else torch.where(accepted[:, None, None], slopes, slope)
        return replace(state, memos=(kept, origin))

    def _looked(self, state: Result, moved: Tensor, cost: Cost) -> tuple[Tensor, Tensor | None, Any]:
        """Rewards and gradients of the new samples, of which those that are as before are not asked again."""
        new = (moved != state.x).any(1).nonzero()[:, 0]
        samples = self.pasted(self.model.decode(moved), state.groups)
        rewards, slope = scores_of(state), state.memos[0]
        if len(new):
            own = samples[new] if isinstance(samples, Tensor) else [samples[i] for i in new.tolist()]
            r, g = self.scored(moved[new], own, state.group[new], cost)
            rewards = rewards.index_put((new,), r)
            slope = None if g is None else slope.index_put((new,), g)  # type: ignore[union-attr]
        return rewards, slope, samples

    def _prior(
        self, y: Tensor, log_p: Tensor, x: Tensor, moved: Tensor, order: Tensor, group: Tensor, cost: Cost
    ) -> Tensor:
        """log p(moved_S | x_-S)/p(x_S | x_-S), float64 (rows,)."""
        if not self.exact:
            return _of(log_p, moved).sub(_of(log_p, x)).where(y != x, 0.0).sum(1)
        V, changed, total = self.moves.V, moved != x, log_p.new_zeros(len(x))
        rank = order.masked_fill(~changed, torch.inf).argsort(1).argsort(1)
        for j in range(int(changed.sum(1).max())):
            rows = (changed.sum(1) > j).nonzero()[:, 0]
            left, now = (changed & (rank >= j))[rows], (changed & (rank == j))[rows]
            ends = [v[rows].masked_fill(left, V) for v in (moved, x)]
            there, back = self.moves.predicted(torch.cat(ends), group[rows].repeat(2), cost.network).chunk(2)
            step = (_of(there, moved[rows]) - _of(back, x[rows])).where(now, 0.0).sum(1)
            total = total.index_add(0, rows, step)
        return total


def _of(log_p: Tensor, x: Tensor) -> Tensor:
    """log p_i(x_i), (rows, L)."""
    return log_p.gather(-1, x[..., None])[..., 0]


def _rise(before: Tensor, after: Tensor) -> Tensor:
    """r(x') - r(x): samples without a score are never moved to, and always left."""
    return after.nan_to_num(-torch.inf) - before.nan_to_num(-torch.inf)

r"""Rollover budget forcing (Kim, Yoon, Hwang and Sung, 2025), https://arxiv.org/abs/2503.19385: candidates for the next
state of a particle are drawn until one is better, and what that saves is spent where it is harder to find one.

Let r(x_t) be the reward of the clean estimate at x_t, and r* the highest of the states that the particle has had. A
move that draws gives it `quota` candidates x_s ~ p(x_s | x_t), more by what it has left, and draws them one after the
other:

    r(x_s) > r*             the particle moves there at once, and keeps what is left for the next move
    no candidate is left    it moves to the best of them, the first one of equals, and r* stays as it is

In the last move that draws nothing could be kept, so all candidates that are left are drawn there, and the best is
taken. Hence in a run with D moves that draw, every particle has

    quota D     candidates,

neither more nor fewer, whatever the rewards are. A candidate costs what a particle costs in a step: a network
evaluation (two with CFG; none at t = 0) and a reward call. Moves that draw nothing have one candidate.

It is a greedy search for high rewards: samples have equal weights and follow no tilted distribution. If all candidates
have equal rewards the first one is taken, which has the noise of `gk.sample`, so that the samples are those of the
model. Equal is not better: with rewards that rise in jumps, a particle uses its candidates up at each level. If no
candidate is ever better than the start, this is greedy `SVDD` with `quota` candidates. A candidate without a score
(NaN) is the worst, and costs nothing else.

The authors' code also draws 25 starts and begins with the best one. Here a particle starts where it does in
`gk.sample`.

**Flows on a variance-preserving path.** The paper has a flow, x_t = (1 - t) x_0 + t z, draw on the way as a diffusion
does, and moves it to the path y_u = cos(pi u/2) x_0 + sin(pi u/2) z. The first is what the default solver does here,
`gk.solvers.DDPM`. The second is a choice of times: with

    t = sin(pi u/2) / (sin(pi u/2) + cos(pi u/2)),      y_u = (sin(pi u/2) + cos(pi u/2)) x_t,

both have one signal-to-noise ratio, so that one is the other in another unit, and the law of x_s given x_t and x_0,
from which that solver draws, is the same. So `steps=[t(1), ..., t(0)]`, with equal distances between the times u, makes
the samples that the model on the other path makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..engine.describe import describe
from ..engine.noise import Noise
from ..engine.population import Population
from ..engine.result import Result
from ..engine.run import Run
from ..engine.trace import Record
from ..engine.tree import Tree
from ..engine.view import View
from ..engine.world import world_of
from ..errors import is_count
from ..guides import Guide
from ..models import Model


def rbf(
    model: Model,
    n: int,
    reward: Any,
    *,
    quota: int = 8,
    steps: int | Sequence[float] = 50,
    guides: Iterable[Guide] = (),
    **options: Any,
) -> Result:
    """n samples for every condition, each by the candidates of its own path.

    quota     candidates of a particle for each move that draws; what one move leaves goes to the next
    guides    that bend the prediction (CFG)
    options   cond, solver, noise (of the start), seed, batch_size and holdout, as in `gk.sample`

    The trace has the mean number of candidates in each step (`candidates`) and the share of the particles that have
    found a better state than all before (`improved`).

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> found = gk.search.rbf(base, 8, lambda x: x[:, 0], quota=4, steps=5)
    >>> found.cost.network_rows == 8 * (1 + 4 * 4), bool(found.x.mean() > 2)
    (True, True)
    """
    if not callable(reward):
        raise TypeError(f"reward={reward!r}: a Reward or a function of samples is needed")
    if not is_count(quota):
        raise ValueError(f"quota={quota!r}: a number of candidates for each move, at least 1")
    if world_of(options.get("world"), model.device).size > 1:
        raise ValueError("particles end their search one by one: leave out world=, and give each rank another seed")
    run = Run(model, n, steps=steps, guides=[_Asked(reward), *guides], reward=reward, **options)
    _check(run)
    with run.borrowed():
        found = run.result(_Walk(run, quota).walked())
    setting = {"search": "rbf", "quota": quota, "guides": describe(run.guides[1:])}
    return replace(found, config=found.config | setting)


@dataclass(frozen=True)
class _Asked(Guide):
    """Asks for the reward of every clean estimate, and does nothing else."""

    reward: Any

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        view.score(self.reward)
        return 0.0, memo


class _Walk:
    """All particles, side by side. Each round of a move draws a candidate for those who still search.

    record   r*, the highest reward that each particle has had
    left     candidates that earlier moves have left to it
    """

    def __init__(self, run: Run, quota: int):
        self.run, self.quota = run, quota
        self.draws = [run.model.process.draws(move) for move in run.moves]
        self.last = max(index for index, draws in enumerate(self.draws) if draws)

    def walked(self) -> Population:
        """The particles after the last move."""
        pop = self.run.start()
        self.row = torch.arange(len(pop), device=pop.x.device)
        self.record, self.left = _scores(pop), torch.zeros_like(self.row)
        for index in range(len(self.run.moves)):
            pop = self._moved(replace(pop, parent=self.row), index)
            self.run.score.forget()
        return pop

    def _moved(self, pop: Population, index: int) -> Population:
        """Particles after one move, and a line of the trace."""
        most = self.left + self.quota if self.draws[index] else torch.ones_like(self.left)
        goal = torch.full_like(self.record, math.inf) if index == self.last else self.record
        best = self._candidates(pop, index, 0)
        score, tried = _scores(best), torch.ones_like(most)
        while bool((searching := (score <= goal) & (tried < most)).any()):
            rows, number = searching.nonzero()[:, 0], int(tried[searching][0])
            more = self._candidates(pop.take(rows), index, number)
            found = _scores(more)
            better = found > score[rows]
            at = self.row.clone()
            at[rows[better]] = len(at) + better.nonzero()[:, 0]
            best, score = Population.cat([best, more]).take(at), torch.cat([score, found])[at]
            tried[rows] += 1
        self._note(best, index, tried, score > self.record)
        self.record = torch.maximum(self.record, score)
        self.left = most - tried if self.draws[index] else self.left
        return best

    def _candidates(self, pop: Population, index: int, number: int) -> Population:
        """The candidate of this number of each particle, looked at, in micro-batches. Its noise is that of a child of
        this number, of which the first has that of an only child."""
        size = self.run.batch_size or len(pop)
        own = replace(pop, slot=pop.slot + number * self.run.steps[index].n, branch=number + 1)
        parts = [own.take(slice(i, min(i + size, len(pop)))) for i in range(0, len(pop), size)]
        looked = [self.run.look(self.run.move(part, index), index + 1) for part in parts]
        return replace(Population.cat(looked), slot=pop.slot, branch=1)

    def _note(self, pop: Population, index: int, tried: Tensor, improved: Tensor) -> None:
        more = {"candidates": tried, "improved": improved}
        means = {name: pop.by_group(v.double()).mean(1) for name, v in more.items()}
        of = pop.log_w, pop.log_w, pop.parent, pop.rewards
        self.run.records.append(Record(self.run.steps[index + 1].t, self.run.seconds, *of, means))


def _scores(pop: Population) -> Tensor:
    """Rewards of clean estimates, -inf where one could not be scored."""
    return pop.rewards.nan_to_num(-math.inf)


def _check(run: Run) -> None:
    """Raise unless there is something to search for, and every particle lives on its own."""
    for guide in run.guides:
        if not guide.independent:
            raise ValueError(
                f"guides holds {type(guide).__name__}, which weighs, branches or selects particles, and each particle "
                "searches for itself here. Take guides that bend the prediction"
            )
    if not any(map(run.model.process.draws, run.moves)):
        advice = run.solver.advice if run.solver is not None else ""
        raise ValueError(f"{run.solver!r} draws nothing on the way, so that all candidates are equal: {advice}")
    if isinstance(run.noise, Noise) and run.noise.chain_given:
        raise ValueError("noise= of the whole chain leaves one candidate for each move: give that of the start")

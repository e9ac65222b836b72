r"""The clock of the Timestep Aligner, fitted to a model and a solver: which time a network is told at each step.

Reference: Xia et al. (2023), https://arxiv.org/abs/2310.09469. n noises are followed in many steps once, as the truth.
Then the solver makes its steps, and for each of them the time is sought, of `count` evenly spaced ones between the
middles of the steps before and after, with which the next state comes nearest to the truth,

    t'_i = argmin E |a x_i + b d(x_i, t'; t_i) + ... - x_true(t_{i+1})|^2,

x_i being what the steps before have made. The paper descends by gradients through the network, and this by trying.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..engine.population import Population
from ..engine.run import Run
from ..engine.sample import sample
from ..engine.view import Step
from ..errors import is_count
from ..models.evaluations import rows_of
from ..models.gaussian import GaussianModel
from ..models.retimed import Clock, Retimed
from ..solvers import Solver, UniPC


def align(
    model: GaussianModel,
    solver: Solver,
    steps: int,
    *,
    cond: Any = None,
    n: int = 64,
    inside: int = 8,
    count: int = 9,
    seed: int = 0,
) -> Retimed:
    """The model with a clock for so many steps of a deterministic solver, for unguided runs.

    n        noises for each condition, of each of which the network evaluates at most steps (inside + count) rows
    inside   steps of the truth in each step
    count    of times that are tried for each step, the time itself among them; an odd number

    >>> import guidekit as gk
    >>> model = gk.GaussianModel(lambda x, t, cond: x * (1 - t[:, None]), (1,), gk.schedules.Flow(), "clean")
    >>> len(align(model, gk.solvers.DDIM(), 4, n=8).clock.times)
    4
    """
    for name, value, least in (("n", n, 1), ("inside", inside, 2), ("count", count, 3)):
        if not is_count(value, least):
            raise ValueError(f"align({name}={value!r}): an int of at least {least} is needed")
    run = Run(model, n, steps=steps, cond=cond, solver=solver, seed=seed)
    if solver.stochastic or any(move.s >= move.t for move in run.moves):
        raise ValueError(f"align(solver={solver!r}): a deterministic solver with one evaluation per step is needed")
    own = [move.t for move in run.moves] + [0.0]
    truth = _truth(model, own, n, cond, inside, seed)
    pop, told = run.begun(), []
    encoded = rows_of(model.encode_all(run.conditions), pop.group)
    with run.borrowed():
        for i, move in enumerate(run.moves):
            found = []
            for t in _tried(own, i, count):
                prediction = Retimed(model, Clock((own[i],), (t,)))(pop.x, own[i], encoded)
                after = run.move(replace(pop, predictions=(prediction, *pop.predictions[: run.order - 1])), i)
                found.append((float((after.x - truth[move.s]).double().square().mean()), t, after))
            _, t, pop = min(found, key=lambda each: each[0])
            told.append(t)
    return Retimed(model, Clock(tuple(reversed(own[:-1])), tuple(reversed(told))))


def _tried(own: list[float], i: int, count: int) -> list[float]:
    """Times around that of step i, itself among them, to the middles of the steps before and after."""
    half, t = count // 2, own[i]
    down, up = (t - own[i + 1]) / 2, (own[i - 1] - t) / 2 if i else 0.0
    return (
        [t] + [t - down * j / half for j in range(1, half + 1)] + [t + up * j / half for j in range(1, half + 1) if up]
    )


def _truth(model: GaussianModel, own: list[float], n: int, cond: Any, inside: int, seed: int) -> dict[float, Tensor]:
    """The probability flow at these times."""
    fine = [t + (s - t) * j / inside for t, s in pairwise(own) for j in range(inside)] + [0.0]
    found: dict[float, Tensor] = {}

    def keep(pop: Population, step: Step) -> None:
        if step.t in own:
            found[step.t] = pop.x

    sample(model, n, steps=fine, solver=UniPC(3), cond=cond, seed=seed, callbacks=[keep])
    return found

r"""Name of the method (Authors, year), https://arxiv.org/abs/....

Copy this file to guidekit/guides/<paper>.py and delete the hooks that the method does not need. State here the formula
that the code implements, in the symbols of the paper:

    d      <- d + k(t) (c - d)                     tilt: pull the clean mean d = E[x_0 | x_t] towards c
    d      <- clamp(d, -b, b)                      finish
    log w  <- log w + (r(d_s) - r(d_before))/alpha    weights; the last r is that of x_0, so the sum is r(x_0)/alpha

and which law the weighted samples follow. Here: that of the pulled and clamped model, times exp(r(x_0)/alpha)/Z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from guidekit.engine.guide import Guide, Scale, at  # within the library: from .base import ...
from guidekit.engine.resampling import resample
from guidekit.process import Gaussian


@dataclass(frozen=True)  # a guide keeps nothing in itself: it may serve several runs at once
class Pull(Guide):  # Guide adds steer=False, start=0., stop=1. as keywords
    """One line on what it does and what it costs: no extra network rows, one reward call per row and step.

    centre   what each hook does not need to say again is said here, with shapes
    scale    a number or a function of t; 0 does nothing
    """

    centre: float
    scale: Scale = 0.1
    bound: float = float("inf")
    reward: Callable[[Any], Any] | None = None  # a field of this name also fills Result.rewards
    alpha: float = 1.0
    k: int = 1

    grad = False  # True: view.x carries gradients and the evaluations keep their graph
    sees_prediction = True  # False: log_weight reads x_t alone, and the network then sees only those who live

    @property
    def needs(self):  # network evaluations besides Cond(), e.g. (Null(),); read them as view.evals[Null()]
        return ()

    def check(self, model, steps):  # before the first network call: raise ValueError, saying what to do instead
        if not isinstance(model.process, Gaussian):
            raise ValueError("Pull moves a clean mean, and tokens have none; use it with a Gaussian process")

    def plan(self, n, step):  # rows of each group that live at this step (n at the end), and their children
        return n, self.k

    def moves(self, model, moves):  # the solver's table of (t, s, ...), perhaps cut
        return moves

    def condition(self, view, cond):  # the encoded condition of the rows that the network is to see
        return cond

    def begin(self, model, population, noise, step):  # the states from which the run starts; population.x the prior's
        return population.x

    def noise(self, population, step, noise):  # the noise of the move that starts here, and the new memo
        return noise, population.memos[step.place]

    def tilt(self, view):  # what to ADD to the prediction; called at t > 0 while start <= fraction < stop
        return at(self.scale, view.t) * (self.centre - view.prediction)

    def finish(self, view, prediction):  # what cannot be added; after all tilts, in the order of the list
        return prediction.clamp(-self.bound, self.bound)

    def log_weight(self, view, memo):  # while start <= fraction < stop, and at the last step (t = 0)
        if self.reward is None or view.step.index == 0:
            return 0.0, memo
        value = view.score(self.reward) / self.alpha  # float64 (rows,), NaN where the sample could not be scored
        before = view.zeros() if memo is None else memo  # None at the first look
        now = torch.where(value.isfinite(), value, -torch.inf if view.step.last else before)
        return now - before, now  # the memo follows its particle: None, a tensor with the row axis first, or a tuple

    def weigh(self, population, step):  # weights that need the whole population, before anything is selected
        return population

    def select(self, population, step):  # step.n rows of each group are to live; step.key is for random numbers
        return resample(population, step, ess=0.5, resampler="systematic")

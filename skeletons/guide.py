r"""Name of the method (Authors, year), https://arxiv.org/abs/....

State here the formula that the code implements, in the symbols of the paper:

    d      <- d + k(t) (c - d)                     tilt: pull the clean mean d = E[x_0 | x_t] towards c
    d      <- clamp(d, -b, b)                      finish
    log w  <- log w + (r(d_s) - r(d_before))/alpha    weights; the last r is that of x_0, so they sum to r(x_0)/alpha

and say which distribution the weighted samples follow. Here: that of the pulled and clamped model, times
exp(r(x_0)/alpha)/Z. Where the authors' code differs from the paper, implement the paper and name the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from guidekit.engine.card import Card, Paper
from guidekit.engine.guide import Guide, Scale, at
from guidekit.engine.resampling import resample
from guidekit.process import Gaussian


@dataclass(frozen=True)  # a guide keeps no state: one object may serve several runs at once
class Pull(Guide):  # Guide adds the keywords steer=False, start=0., stop=1.
    """Say in one line what it does and what it costs: no extra NFE, one reward call per particle and step.

    centre   c; every option has a line, with its shape if it is a tensor
    scale    k, a number or a function of t; 0 does nothing
    bound    b; infinity does nothing
    reward   a function of decoded samples, or None. A field of this name also fills Result.rewards
    alpha    the temperature of the weights
    ess      resample a group when its effective sample size falls below this fraction of its particles
    k        children of every particle
    """

    centre: float
    scale: Scale = 0.1
    bound: float = float("inf")
    reward: Callable[[Any], Any] | None = None
    alpha: float = 1.0
    ess: float = 0.5
    k: int = 1

    # What the class says of itself; delete what is the default. See guidekit/engine/card.py for the fields.
    card = Card(
        "pulls samples towards a point",  # what it does, in a few words
        section="Composition",  # of docs/guides.md; the sections are in guidekit/guides/catalog.py
        processes=(Gaussian,),  # the engine refuses others, with this reason:
        refusal="moves a clean mean, and tokens have none: use it with a Gaussian process",
        rows="0",  # NFE beyond the model's own
        exact="",  # the distribution that the samples provably have, if there is one
        changes="target",  # or "weights", "selection", "start", "noise", "condition", "nothing"
        paper=Paper("key2026pull", "Last, First and Other, Author", "Title of the Paper", 2026, "2601.00000"),
        example="gk.Pull(1.0, 0.2)",  # how it is drawn in docs/guides.png; names are those of benchmarks/gallery.py
    )

    neutral = None  # the value of `scale` at which it does nothing at all, and is not asked: 1. for CFG, 0. for others
    grad = False  # True: view.x carries gradients, through the network; "clean": the tilt differentiates at view.clean
    sees_prediction = True  # False: log_weight reads x_t alone, and the network then only sees the survivors

    @property
    def needs(self):  # network evaluations besides Cond(), such as (Null(),); read them as view.evals[Null()]
        return ()

    @property
    def twist(self):  # what the log-weights stand for, as (reward, alpha); equal ones of two guides count once
        return None

    def bind(self, model):  # the guide in runs of this model, as with the states of samples that it was given
        return self

    def check(self, model, steps):  # before the first network call: raise ValueError, and say what to do instead
        if not self.alpha > 0:
            raise ValueError(f"Pull(alpha={self.alpha}): the temperature must be positive")

    def clashes(self, other, after):  # why it cannot share a list with another guide, and what to do; or None
        return None

    def moves(self, model, moves):  # the moves (t, s, ...) of the solver, perhaps without some of them
        return moves

    def plan(self, n, step):  # particles of each group at this step, and children of each in the move from here
        return n, self.k

    def begin(self, view, noise):  # the states from which the run starts, or (states, log-weights, memo)
        return view.x

    def condition(self, view, cond):  # the encoded condition of each row, as the network is to see it
        return cond

    def propose(self, model, population, kernel, step):  # the kernel to move by; weights take kernel.correction(p, x)
        return kernel

    def noise(self, population, step, noise):  # the noise of the move that starts here, and the new memo
        return noise, population.memos[step.place]

    def tilt(self, view):  # what to add to the prediction, at t > 0
        return at(self.scale, view.t) * (self.centre - view.prediction)

    def finish(self, view, prediction):  # what cannot be added; after all tilts, in the order of the list
        return prediction.clamp(-self.bound, self.bound)

    def log_weight(self, view, memo):  # the increment and the new memo; also at the last step, where t = 0
        if self.reward is None or view.step.index == 0:
            return 0.0, memo
        value = view.score(self.reward) / self.alpha  # float64 (rows,), NaN where a sample could not be scored
        before = view.zeros() if memo is None else memo  # None at the first step
        now = torch.where(value.isfinite(), value, -torch.inf if view.step.last else before)
        return now - before, now  # a memo follows its particle: None, a tensor with rows first, or a tuple of memos

    def weigh(self, population, step):  # weights that need the whole population, before anything is selected
        return population

    def select(self, population, step):  # the survivors, step.n in each group; step.key is for random numbers
        return resample(population, step, self.ess, resampler="systematic")

    def paste(self, samples, group):  # what is put into decoded samples, before rewards see them
        return samples

    def traced(self, population, step):  # columns of the trace: means of these numbers, float64 (rows,)
        return {}

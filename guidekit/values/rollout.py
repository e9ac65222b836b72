r"""The reward of k samples that the model itself draws from x_t, x_0^j ~ p(x_0 | x_t):

    V(x_t) = alpha log 1/k sum_j exp(r(x_0^j)/alpha)        at temperature alpha,
    V(x_t) = 1/k sum_j r(x_0^j)                             at alpha = 0, the value of the SVDD paper.

For tokens, a single step already draws x_0 from prod_i p(x_0^i | x_t), given by the prediction, without a further
network evaluation, as in the text experiments of Feynman-Kac steering. For a Gaussian process the last step is
deterministic, so a single step returns the clean mean; more steps cost k (steps - 1) network evaluations per particle.

Particles finish with noise of their own. With `shared` all particles of a group that stand at one time finish with the
same noise, j by j, so that V is a fixed function of x_t there: children of one parent, which share almost all of their
state, then differ by what they hold and hardly by luck. Every sample follows p(x_0 | x_t) as before, and weights stay
exact, as they are for any function V.

With `parent` masked tokens are finished in one step from prod_i p(x_0^i | x_t') with x_t' the parent's state, which the
network has seen already, as `Resubstitution` does it with the mode: children then cost no network evaluation.

References: Singhal et al. (2025), https://arxiv.org/abs/2501.06848; Li et al. (2024), https://arxiv.org/abs/2408.08252.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..engine.population import log_mean_exp
from ..engine.view import View
from ..process import Masked


@dataclass(frozen=True)
class Rollout:
    """The soft mean of the reward over k samples drawn in `steps` steps each, evenly spaced from t to 0.

    alpha   the temperature; None takes that of the guide
    shared  finish all particles of a group with the same noise
    parent  finish masked tokens by what the network said of the parent; nothing is known of the start, which has none

    The first step uses the guided prediction, the others the model at the user's condition. A sample that cannot be
    scored counts as exp(r/alpha) = 0, the weight that it would have at the end; the plain mean leaves it out.
    """

    reward: Any
    steps: int = 1
    k: int = 4
    alpha: float | None = None
    shared: bool = False
    parent: bool = False

    @property
    def sees_prediction(self) -> bool:
        return not self.parent

    def __post_init__(self) -> None:
        if self.steps < 1 or self.k < 1:
            raise ValueError(f"Rollout(steps={self.steps}, k={self.k}): both are at least 1")
        if self.parent and self.steps > 1:
            raise ValueError(f"Rollout(steps={self.steps}, parent=True): a parent's prediction is for one step")

    def at(self, alpha: float) -> Rollout:
        return replace(self, alpha=alpha) if self.alpha is None else self

    def __call__(self, view: View) -> Tensor:
        if view.t == 0:
            return view.score(self.reward)
        if self.parent and not isinstance(view.model.process, Masked):
            raise ValueError(f"Rollout(parent=True) fills in masks, and {view.model.process} has none")
        if self.parent and view.before is None:
            return torch.full_like(view.zeros(), torch.nan)
        row = torch.arange(len(view.x) * self.k, device=view.x.device)
        parts = row.split(view.limit or len(row))
        scores = torch.cat([self._scores(view.take(p // self.k), p % self.k) for p in parts]).view(-1, self.k)
        if not self.alpha:
            return scores.nanmean(-1)
        known = scores.isfinite()
        soft = log_mean_exp(torch.where(known, scores / self.alpha, -torch.inf))
        return (self.alpha * soft).where(known.any(-1), torch.nan)

    def _scores(self, view: View, copy: Tensor) -> Tensor:
        """The rewards of one sample for each row of the view."""
        process, model = view.model.process, view.model
        x, prediction = view.x, view.before if self.parent else view.prediction
        assert prediction is not None
        times = [view.t * (1 - i / self.steps) for i in range(self.steps)] + [0.0]
        key = view.step.key[view.group] if self.shared else view.key
        keys = random.fold(random.fold(key, "rollout"), copy)
        for i, (t, _) in enumerate(pairwise(times)):
            move = process.moves(times[i:], None)[0]
            prediction = prediction if i == 0 else next(iter(view.evaluate(x, t).values()))
            kernel = process.kernel(x, (prediction,), move)
            noise = process.late_noise(random.fold(keys, i), process.noise_shape(model.shape), model.dtype)
            x = kernel.push(noise if kernel.random else None)
        return view.scorer(self.reward, view.decode(x), view.group)

r"""The reward at the end of the flow from x_t, after flow-map look-ahead (2025, https://arxiv.org/abs/2511.22688):

    V(x_t) = r(Phi(x_t, t)),        Phi the solution at time 0 of the probability-flow ODE through x_t.

The clean estimate E[x_0 | x_t] is a mean over all samples that x_t can still become, and blurred where they differ;
Phi(x_t, t) is one of them, a sample of the model. A student that was distilled to few steps (a consistency model, a
flow map) has it in one evaluation or few, and the base model itself has it in several deterministic steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.view import View
from ..errors import is_count
from ..models.base import Model
from ..models.evaluations import Cond, Other
from ..process import Gaussian
from ..solvers import DDIM


@dataclass(frozen=True, eq=False)
class FlowMap:
    """The reward at the end of the flow. NFE: `steps` of the student for each scored particle.

    student   a Model with the same noising process, a function (x_t, t) -> x_0, or None for the base model itself,
              whose first step uses the guided prediction and costs nothing
    steps     of DDIM from t to 0, evenly spaced; a function makes one

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> right = lambda x: (x[:, 0] > 0).float()
    >>> value = gk.values.FlowMap(right, steps=4)
    >>> result = gk.sample(base, 500, steps=20, guides=[gk.FKSteering(right, 0.3, value=value)])
    >>> float(result.weights @ (result.x[:, 0] > 0).double()) > 0.9
    True
    """

    reward: Any
    student: Model | Callable[[Tensor, float], Tensor] | None = None
    steps: int = 1

    def __post_init__(self) -> None:
        if not is_count(self.steps):
            raise ValueError(f"FlowMap(steps={self.steps!r}): steps of the student, an int of at least 1")
        if isinstance(self.student, Model) and not isinstance(self.student.process, Gaussian):
            raise ValueError(
                f"FlowMap(student={self.student!r}): a flow needs a Gaussian process; take gk.values.Rollout"
            )
        if self.steps > 1 and self.student is not None and not isinstance(self.student, Model):
            raise ValueError(f"FlowMap(steps={self.steps}): a function goes from t to 0 in one step")

    def __call__(self, view: View) -> Tensor:
        if view.t == 0:
            return view.score(self.reward)
        return view.scorer(self.reward, view.decode(self.end(view)), view.group)

    def end(self, view: View) -> Tensor:
        """Phi(x_t, t)."""
        process = view.model.process
        if not isinstance(process, Gaussian):
            raise ValueError(f"FlowMap: {process} has no flow; gk.values.Rollout finishes samples of tokens")
        if self.student is not None and not isinstance(self.student, Model):
            view.scorer.cost.network(len(view.x))
            return self.student(view.x, view.t)
        need = Cond() if self.student is None else Other(self.student)
        need.check(view.model)
        x, times = view.x, torch.linspace(view.t, 0.0, self.steps + 1).tolist()
        for i, move in enumerate(process.moves(times, DDIM())):
            known = i == 0 and self.student is None
            prediction = view.prediction if known else view.evaluate(x, move.t, (need,))[need]
            assert prediction is not None
            x = process.kernel(x, (prediction,), move).push(None)
        return x

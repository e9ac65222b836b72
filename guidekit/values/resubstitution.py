r"""Children scored with what was said of their parent, after TReASURe (2025, https://arxiv.org/abs/2509.23146).

    V(x_s) = r(x_s, with every position that is still masked filled in by the mode of p(x_0 | x_t))

where x_t is the parent, which the network has seen already. So a parent with M children costs one evaluation instead of
M, and the reward is asked of complete sequences as before. The estimate is that of `Tweedie` without what the tokens
drawn in this move say of the others: nothing, if one is drawn and the network takes positions to be independent.

The paper branches where a token is unmasked, which is `solver=gk.solvers.FirstHitting()`:

    branch = gk.SVDD(reward, 0.5, 8, value=gk.values.Resubstitution(reward))
    gk.sample(model, 8, solver=gk.solvers.FirstHitting(), guides=[branch])

`gk.BeamSearch` with this value keeps the best of all children instead of one of each parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.view import View
from ..process import Masked


@dataclass(frozen=True)
class Resubstitution:
    """The reward of a masked sequence that its parent's prediction completes: children cost no network evaluation."""

    reward: Any

    sees_prediction = False

    def __call__(self, view: View) -> Tensor:
        process = view.model.process
        if not isinstance(process, Masked):
            raise ValueError(f"Resubstitution fills in masks, and {process} has none; take gk.values.Tweedie")
        if view.t == 0 or view.before is None:
            return view.score(self.reward) if view.t == 0 else torch.full_like(view.zeros(), torch.nan)
        return view.scorer(self.reward, view.decode(process.clean(view.before, view.x)), view.group)

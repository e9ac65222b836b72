r"""The reward of the clean estimate: V(x_t) = r(E[x_0 | x_t]), for tokens r(mode of p(x_0 | x_t)).

It works with any reward, without training. It is not the optimal twist alpha log E[exp(r(x_0)/alpha) | x_t]: methods
that correct with the true reward at the end remain exact, others inherit its error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.view import View


@dataclass(frozen=True)
class Tweedie:
    """The reward of the clean estimate: the default look-ahead of all guides."""

    reward: Any

    def __call__(self, view: View) -> Tensor:
        return view.score(self.reward)

r"""A few letters of good parents drawn anew, from the model's prediction tilted by the gradient of the reward at them:
the proposal of `gk.search.informed`, of which the design loop keeps the good ones in place of a Metropolis step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rewards import as_reward

from .... import random
from ....engine.scoring import Scorer
from ....guides.shared.constrained import Within
from ....models.networks import lent, networks_in
from ...moves import Moves, unfit
from ..study import Study
from .base import Candidates, Proposal

PART = 20  # the temperature is the spread of all rewards over this, where none is given


@dataclass(frozen=True)
class Informed(Proposal):
    """Children of parents along the gradient of the reward, for rewards that are differentiable at one-hot rows and
    masked models that fill their places in any order.

    The gradient at a parent is a call of the reward, which the budget counts; it serves `children` children.

    alpha      the temperature; None is a 20th of the standard deviation of all rewards so far, which is greedy
    share      of the places that a child has drawn anew
    children   of each parent
    """

    alpha: float | None = None
    share: float = 0.1
    children: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"Informed(alpha={self.alpha!r}): a positive temperature, or None")
        if not 0 < self.share <= 1:
            raise ValueError(f"Informed(share={self.share!r}): a part of the places, in (0, 1]")
        if isinstance(self.children, bool) or not isinstance(self.children, int) or self.children < 1:
            raise ValueError(f"Informed(children={self.children!r}): an int of at least 1 is needed")

    def refuses(self, study: Study) -> str | None:
        if (why := unfit(study.model)) is not None:
            return why
        if as_reward(study.reward).differentiable is not True:
            return f"Informed takes gradients, and {as_reward(study.reward).name!r} does not say it is differentiable"
        other = [type(g).__name__ for g in study.guides if not isinstance(g, Within)]
        return f"Informed knows constraints alone, and the guides have {', '.join(other)}" if other else None

    def propose(self, study: Study, count: int, key: Tensor) -> Candidates:
        rows = study.memory.parents(study.allowed(math.ceil(count / self.children)), random.fold(key, "parents"))
        x, known = study.memory.state(list(dict.fromkeys(rows)))
        x = x[known].to(study.model.device)
        if not len(x):
            return Candidates([])
        moves = Moves(study.model, self._temperature(study), self.share, study.guides, study.cond)
        found = self._children(moves, study, x, random.fold(key, "children"))
        return Candidates(study.model.decode(found), found)

    def _children(self, moves: Moves, study: Study, x: Tensor, key: Tensor) -> Tensor:
        group, scorer = x[:, 0] * 0, Scorer(study.cost, x.device)
        with torch.no_grad(), lent([*study.model.modules(), *networks_in(study.reward)]):
            slope = moves.sloped(scorer, study.reward, x, group)[1]
            x, slope, group = (v.repeat_interleave(self.children, 0) for v in (x, slope, group))
            keys = random.fold(key.to(x.device), torch.arange(len(x), device=x.device))
            y = moves.masked(x, group, keys)[0]
            log_p = moves.predicted(y, group, study.cost.network)
            kernel = moves.kernel(y, log_p, x, slope, x, group)
            return kernel.push(random.gumbel(random.fold(keys, "letters"), (*study.model.shape, moves.V + 1)))

    def _temperature(self, study: Study) -> float:
        values = study.memory.values
        spread = float(values[values.isfinite()].std(correction=0))
        return self.alpha or (spread / PART if spread > 0 else 1.0)

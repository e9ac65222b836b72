r"""One budget for many conditions: more candidates go to conditions in which best-of-N still improves.

Best-of-N gains little once N is large, and more where rewards are widely spread. A random subset of m of N rewards
r_(1) <= ... <= r_(N) has the expected maximum

    E[max of m] = sum_i r_(i) C(i - 1, m - 1) / C(N, m),

because r_(i) is the largest of the m if the others are among the i - 1 below. So the gain of the last doubling of N is
estimated from the N rewards seen, without further noise, by max - E[max of N/2]; its mean over the samples of a
condition stands for the gain of the next doubling. The better half of the conditions continues after each of log2 C
rounds, and each round has an equal part of the budget: sequential halving (Karnin et al., 2013,
https://proceedings.mlr.press/v28/karnin13.html), except that all conditions keep their candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.base import Model
from .budget import Budget
from .core import Found, Options, Round, Search
from .random_search import at_least

if TYPE_CHECKING:
    from typing_extensions import Unpack


def share(
    model: Model,
    n: int,
    reward: Any,
    conds: list[Any],
    *,
    candidates: int = 16,
    allocation: str = "halving",
    **options: Unpack[Options],
) -> Found:
    """Best-of-N for n samples of every condition, with larger N for conditions that gain from it.

    conds        a list of conditions, in place of `cond`
    candidates   mean number per sample: the budget is n * candidates * len(conds) runs, and n * len(conds) for the
                 winners. A remainder of less than one candidate per condition of the last round is not used
    allocation   "halving", or "equal" for the same number each, which is `gk.search.random`

    The candidates of a condition are those of its own `gk.search.random`, so they do not depend on the other
    conditions; only their number does. Each row of `rounds` has the `conditions` that took part.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-1.0, 1.0], [0.2, 2.0], labels=[0, 1])
    >>> found = gk.search.share(base, 3, lambda x: x[:, 0], [0, 1], candidates=8, steps=10)
    >>> [(row["conditions"], row["candidates"]) for row in found.rounds]
    [([0, 1], 4), ([1], 8)]
    """
    if not isinstance(conds, list) or not conds:
        raise ValueError(f"conds={conds!r}: a list of conditions that share the budget is needed")
    if allocation not in ("halving", "equal"):
        raise ValueError(f"allocation={allocation!r}: there is 'halving' and 'equal'")
    wrong = sorted({"cond", "budget"} & {k for k, v in options.items() if v is not None})
    if wrong:
        raise ValueError(f"share takes no {' and no '.join(wrong)}: give conds and candidates")
    at_least(candidates, 1, "candidates", "of each sample in the mean")
    parts = plan(len(conds), candidates, allocation == "halving")
    setting = {"candidates": candidates, "allocation": allocation}
    search = Search(model, n, reward, {**options, "cond": conds}, "search.share", setting)
    search.open(Budget(rounds=len(parts)))
    shared = _Shared(search)
    with search.bar:
        for alive, k in parts:
            shared.keep(alive)
            shared.round(k)
    return search.finish()


def plan(conditions: int, candidates: int, halving: bool) -> list[tuple[int, int]]:
    """For each round, the number of conditions, and of candidates per sample."""
    rounds = min(conditions, max(2, math.ceil(math.log2(conditions))))
    if candidates < 2 * rounds:
        raise ValueError(
            f"candidates={candidates}: {conditions} conditions in {rounds} rounds need at least {2 * rounds} each"
        )
    left, parts = conditions * candidates, []
    for number in range(rounds):
        alive = -(-conditions >> number) if halving else conditions
        parts.append((alive, left // ((rounds - number) * alive)))
        left -= math.prod(parts[-1])
    return parts


def expected_max(rewards: Tensor, m: int) -> Tensor:
    """E[max of m rewards drawn without replacement]: (..., N) -> (...)."""
    count = rewards.shape[-1]
    share = [math.comb(i, m - 1) / math.comb(count, m) for i in range(count)]
    return rewards.sort(-1).values @ torch.tensor(share, dtype=rewards.dtype, device=rewards.device)


def gain(rewards: Tensor) -> Tensor:
    """The mean gain of the last doubling over samples: (conditions, n, N) -> (conditions,).

    A candidate that could not be scored counts as the worst of its sample.
    """
    finite = rewards.isfinite()
    worst = rewards.masked_fill(~finite, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0.0)
    known = torch.where(finite, rewards, worst)
    return (known.amax(-1) - expected_max(known, max(1, known.shape[-1] // 2))).mean(-1)


@dataclass
class _Shared:
    """The conditions that are alive, and the rewards of all their candidates (conditions, n, N)."""

    search: Search
    seen: Tensor | None = None

    def keep(self, alive: int) -> None:
        """Keep this many conditions, those with the largest gain, in their order."""
        if self.seen is not None and alive < len(self.seen):
            best = gain(self.seen).sort(descending=True, stable=True).indices[:alive].sort().values
            self.search.alive, self.seen = [self.search.alive[i] for i in best.tolist()], self.seen[best]

    def round(self, k: int) -> None:
        """Evaluate the next k candidates of the conditions that are alive."""
        asked = 0 if self.seen is None else self.seen.shape[-1]
        Round(self.search, self, self.search.part.draw(range(asked, asked + k))).end()
        self.search.rounds[-1]["conditions"] = list(self.search.alive)

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        worth = rewards.view(len(self.search.alive), self.search.n, -1)
        self.seen = worth if self.seen is None else torch.cat([self.seen, worth], -1)

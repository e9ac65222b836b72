r"""A bank of seeds: noise that scores well under several conditions tends to score well under others too, so keep it.

Seed s has the value q_s = E_c[r(x(z_s), c)], the mean over conditions c, and evaluating one pair (s, c), a "look", is a
noisy measurement of it. To find the best of S seeds with B looks:

    equal      every seed under B/S conditions;
    halving    log2 S rounds with B / log2 S looks each; the better half continues, under conditions not yet used
               (sequential halving, Karnin et al., 2013, https://proceedings.mlr.press/v28/karnin13.html).

All seeds that are compared have seen the same conditions, so a hard condition is hard for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engine.cost import Cost
from ..engine.result import Trace
from ..models.base import Model
from .budget import Budget
from .core import Options, Search
from .random_search import at_least
from .verify import Verifier

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Bank:
    """Ranked seeds, best first.

    seeds    numbers: seed s is row s of gk.sample(model, n, ...) with the same seed
    values   mean reward over the conditions that each seed has seen
    looks    the number of these conditions
    holdout  mean of the held-out reward over all conditions that the best seed has seen, or None
    asked    every look, as in `gk.search.Found`: `condition` is the place in conds and `candidate` the seed
    noise    (seeds, *shape), or (moves + 1, seeds, *shape), as gk.sample(model, len(bank), noise=...) takes it for one
             condition; `rows` has it for several
    """

    seeds: list[int]
    values: list[float]
    looks: list[int]
    noise: Tensor
    cost: Cost
    chain: bool
    holdout: list[float] | None = None
    asked: Trace = field(default_factory=Trace, repr=False)

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, n: int, groups: int = 1) -> Tensor:
        """The noise of the n best seeds, repeated for each of the groups."""
        at_least(n, 1, "n", "seeds")
        if n > len(self):
            raise ValueError(f"rows({n}): the bank has {len(self)} seeds")
        places = torch.arange(n, device=self.noise.device).repeat(groups)
        return self.noise[:, places] if self.chain else self.noise[places]


def bank(
    model: Model,
    seeds: int,
    reward: Any,
    conds: list[Any],
    *,
    looks: int,
    keep: int | None = None,
    allocation: str = "halving",
    **options: Unpack[Options],
) -> Bank:
    """Rank the first `seeds` rows of noise of one seed by their mean reward over several conditions.

    conds        conditions to try them under
    looks        the largest number of pairs of a seed and a condition to evaluate
    keep         number of seeds to return; None returns all, ordered by the rounds they survived and then by value
    allocation   of the looks, "halving" or "equal"
    folder       every round's scores are logged there (`condition` is the place in conds and `candidate` the seed), and
                 the same call resumes from it
    holdout      a second reward, for the seeds that are returned; they are sampled again for it, under all conditions
                 that the best one has seen

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5], labels=[0, 1])
    >>> found = gk.search.bank(base, 8, lambda x: x[:, 0], [0, 1] * 4, looks=32, keep=2, steps=8)
    >>> len(found), found.noise.shape
    (2, torch.Size([9, 2, 1]))
    """
    at_least(seeds, 2, "seeds", "to be ranked")
    keep = seeds if keep is None else keep
    at_least(keep, 1, "keep", "seeds to return")
    if not isinstance(conds, list) or not conds:
        raise ValueError(f"conds={conds!r}: a list of conditions to try the seeds under")
    if allocation not in ("halving", "equal"):
        raise ValueError(f"allocation={allocation!r}: there is 'halving' and 'equal'")
    wrong = {"cond", "budget", "progress"} & {k for k, v in options.items() if v}
    if wrong or not isinstance(options.get("seed", 0), int):
        raise ValueError(f"bank takes no {', '.join(sorted(wrong)) or 'list of seeds'}")
    rounds = max(1, math.ceil(math.log2(seeds))) if allocation == "halving" else 1
    if looks < seeds * rounds:
        raise ValueError(f"looks={looks}: {seeds} seeds in {rounds} rounds need at least {seeds * rounds}")
    setting = {"seeds": seeds, "looks": looks, "rounds": rounds}
    search = Search(model, 1, reward, {**options, "cond": conds}, "search.bank", setting)
    search.open(Budget(rounds=rounds))
    return _ranked(search, seeds, looks, keep, rounds)


def _ranked(search: Search, seeds: int, looks: int, keep: int, rounds: int) -> Bank:
    alive, order, seen, conds = list(range(seeds)), list[int](), 0, search.space.groups
    totals, counts = torch.zeros(seeds, dtype=torch.float64), [0] * seeds
    for number in range(rounds):
        now = range(seen, min(conds, seen + max(1, looks // (rounds * len(alive)))))
        if now:
            totals[alive] += _known(_looked(search, now, alive)).sum(0).cpu()
        seen += len(now)
        for s in alive:
            counts[s] = seen
        alive.sort(key=lambda s: -float(totals[s]))
        if number + 1 < rounds:
            half = (len(alive) + 1) // 2
            order, alive = [*alive[half:], *order], alive[:half]
    order = [*alive, *order][:keep]
    search.alive = [0]
    noise, values = search.part.rows(search.part.draw(order)), [float(totals[s]) / counts[s] for s in order]
    judged, asked = _judged(search, range(seen), order), Trace(search.record.lines())
    chain = search.space.moves is not None
    return Bank(order, values, [counts[s] for s in order], noise, search.cost, chain, judged, asked)


def _looked(search: Search, places: Sequence[int], seeds: list[int]) -> Tensor:
    """The rewards of seeds under the conditions at these places, (conditions, seeds), read from the folder if known."""
    search.alive = list(places)
    scores, samples = search.known(), None
    if new := scores is None:
        scores, samples = search.scored(search.sampled(search.part.draw(seeds)), len(seeds))
        search.cost.seconds = search.seconds
    worth = search.verifier.worth(scores, search.space.group[search.cells])
    search.rounds.append({})
    if new:
        search.keep(scores, worth, samples, seeds)
    return worth


def _judged(search: Search, places: Sequence[int], seeds: list[int]) -> list[float] | None:
    """Mean held-out reward of the seeds over these conditions."""
    if search.holdout is None:
        return None
    search.alive = list(places)
    samples = search.decoded(search.sampled(search.part.draw(seeds)))
    search.verifier = Verifier.of(search.holdout, search.world)
    return search.judged(samples, len(seeds), Cost())[0][..., 0].nanmean(0).tolist()


def _known(worth: Tensor) -> Tensor:
    """The rewards, where a seed that could not be scored counts as the worst under that condition."""
    finite = worth.masked_fill(worth.isinf(), torch.inf)
    worst = finite.amin(1, keepdim=True).nan_to_num(posinf=0.0)
    return torch.where(worth.isinf(), worst, worth)

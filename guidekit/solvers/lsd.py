r"""Learned steps (LSD, LSD+: Fu et al., 2025), https://arxiv.org/abs/2509.19962: how many positions each of a few steps
reveals is fitted to the model.

The paper multiplies the rates of each step, and in LSD+ chooses the times, so that a few steps follow the trajectory
of many. Of masked tokens both say what share of the masks a step reveals. Here it reveals a number, and the numbers
of all steps are not distilled but computed. Let h(m) be the mean entropy of the prediction at a masked position where
m positions, chosen uniformly, are masked. To reveal k of m masks at once, in place of one by one, loses

    k h(m) - h(m) - h(m - 1) - ... - h(m - k + 1)     nats.

Summed over the steps, this is KL(p || q) of a sample with the order in which it was revealed, p revealing one by one,
if the network's conditionals fit together. For samples alone it is a bound. The numbers that make it least follow
from h by dynamic programming, for any number of steps; `gk.search.lsd` measures h on a model. Positions are chosen
uniformly, as by `FirstHitting`, and moves have a log-probability.

LSD+ also learns the times, which only a network that reads t notices. One by one is then revealed at the drawn times of
`FirstHitting`, and h(m) is the entropy at these. Let

    c(m, t) = E[-log p_i(x_0^i | x with m masks, t)],      c(m) = min_t c(m, t),

with x and x_0 of such samples, and i any of the masks. A step that reveals k of m masks, asked at the time t_m of that
minimum, loses k c(m) in place of h(m) + ... + h(m - k + 1), if the law of x_0^i given x does not depend on how soon i
is revealed, and at any rate if k = m. The numbers of the steps are those that make the sum least. It bounds KL(p || q)
of samples with their order: it is the mean of log p - log q with p given the drawn times, which without them is less
likely on average. With `asked` empty the times are drawn, as those of `FirstHitting` are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .base import Move
from .token_solver import Order


@dataclass(frozen=True)
class LSD(Order):
    """Reveals in each step as many positions, chosen at random, as loses least in so many steps; `times` is not used.

    entropies   h(1), ..., h(length), in nats: of the prediction at a mask, on average, where so many are masked
    asked       t_1, ..., t_length, at which a network that reads t is asked where so many are masked; empty: drawn
    crossed     c(1), ..., c(length), in nats: the cross-entropies at these times

    >>> LSD((0.1, 0.5, 0.6, 0.6)).counts(2, 4), round(LSD((0.1, 0.5, 0.6, 0.6)).loss(2), 3)
    ([4, 1, 0], 0.1)
    """

    entropies: tuple[float, ...]
    asked: tuple[float, ...] = ()
    crossed: tuple[float, ...] = ()

    clocked = True

    def __post_init__(self) -> None:
        for name in ("entropies", "asked", "crossed"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        if not self.entropies or not all(math.isfinite(h) and h >= 0 for h in (*self.entropies, *self.crossed)):
            raise ValueError(
                f"LSD(entropies={self.entropies}): the mean entropy of a mask for each number of them, at least 0; "
                "gk.search.lsd(model) measures them"
            )
        if self.asked or self.crossed:
            self._check_asked()

    def _check_asked(self) -> None:
        sizes = {len(self.entropies), len(self.asked), len(self.crossed)}
        if len(sizes) > 1 or not all(0 < t <= 1 for t in self.asked):
            raise ValueError(
                f"LSD(asked={self.asked}, crossed={self.crossed}): a time in (0, 1] and its cross-entropy for each of "
                f"the {len(self.entropies)} numbers of masks, as gk.search.lsd(model, times=16) finds them"
            )

    def counts(self, steps: int, length: int) -> list[int]:
        if length != len(self.entropies):
            raise ValueError(
                f"LSD has entropies for {len(self.entropies)} positions, and the model has {length}: "
                "fit it to this model, gk.search.lsd(model)"
            )
        return list(_planned(self._lost, min(steps, length)))

    @property
    def _lost(self) -> tuple[float, ...]:
        """What a position costs that is revealed where so many are masked."""
        return self.crossed or self.entropies

    def loss(self, steps: int) -> float:
        """By how many nats at most samples of so many steps differ in law from those that are revealed one by one."""
        left = self.counts(steps, len(self.entropies))
        revealed = sum((m - n) * self._lost[m - 1] for m, n in pairwise(left))
        return revealed - sum(self.entropies)

    def asked_at(self, t: float | Tensor, gumbel: Tensor, before: Tensor | None, left: Tensor) -> Tensor:
        if not self.asked:
            return super().asked_at(t, gumbel, before, left)
        return torch.tensor((0.0, *self.asked), dtype=torch.float64, device=left.device)[left.sum(-1)]

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        return gumbel

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        return self.uniform_chance(masked, shown)


@lru_cache(maxsize=64)
def _planned(entropies: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """The numbers of masks, from all to none in so many steps, that lose least."""
    masks = np.arange(len(entropies) + 1)
    count = masks[:, None] - masks
    cost = np.where(count > 0, count * np.array([0.0, *entropies])[:, None], np.inf)  # of the step from m masks to n
    least, choices = np.where(masks == 0, 0.0, np.inf), []  # from m masks to none, in so many steps
    for _ in range(steps):
        choices.append((cost + least).argmin(1))
        least = (cost + least).min(1)
    left = [len(entropies)]
    for choice in reversed(choices):
        left.append(int(choice[left[-1]]))
    return tuple(left)

r"""Random search: draw fresh noise and keep the best sample.

With m independent candidates in all, the density of a sample is m p(x) F(r(x))^(m-1) for rewards without ties, as for
`gk.BestOfN`. It is the baseline of Ma et al. (2025), https://arxiv.org/abs/2501.09732; the implementation tt-scale-flux
keeps only the best of each round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..models.base import Model
from .core import Found, Options, drive, limits
from .space import Space

if TYPE_CHECKING:
    from typing_extensions import Unpack


def at_least(value: Any, least: int, name: str, what: str) -> None:
    """Check that the value is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: {what}, an int of at least {least}")


class Random:
    """Draws `candidates` fresh noise vectors per sample and round. They do not depend on rewards, so a round is scored
    while the next is sampled; a subclass that learns from rewards sets `independent = False`."""

    independent = True

    def __init__(self, candidates: int = 8):
        at_least(candidates, 1, "candidates", "noises in a round")
        self.candidates = candidates

    def begin(self, space: Space) -> None:
        self.space, self.asked = space, 0

    def ask(self) -> Tensor:
        self.asked += self.candidates
        return self.space.draw(range(self.asked - self.candidates, self.asked))

    def tell(self, noises: Tensor, rewards: Tensor) -> None:
        pass


def random(
    model: Model, n: int, reward: Any, *, rounds: int | None = None, candidates: int = 8, **options: Unpack[Options]
) -> Found:
    """Best of rounds * candidates, for each of n samples; 4 rounds unless rounds or a budget are given.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> gk.search.random(base, 3, lambda x: x[:, 0], rounds=2, candidates=4, steps=10).cost.reward_calls
    24
    """
    return drive(model, n, reward, Random(candidates), limits(rounds, options, 4), options)

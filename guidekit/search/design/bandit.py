r"""Which proposals get a round's slots: Thompson sampling on how often a slot brought one of the best.

A slot is worth as many candidates as its proposal makes for a call, and brings a call if the surrogate chooses one of
them. A call succeeds if its reward is among the best `top` when it is made. With s successes of a proposal in n slots,
f = max(n - s, 0) failures, both forgotten at the rate `memory` a round,

    theta_i ~ Beta(1 + s_i, 1 + f_i),      share_i = (1 - floor m) P(theta_i is the largest) + floor,

of m proposals, by the same draws for all (Chapelle and Li, 2011, https://proceedings.neurips.cc/paper/2011/hash/
e53a0a2978c28872a4505bdb51db06dc-Abstract.html). No proposal ever has less than `floor`, so that one that is of use only
later is found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 400
PORTION = 5


def shares(successes: Sequence[float], failures: Sequence[float], seed: int, floor: float = 0.05) -> np.ndarray:
    """The share of each proposal, (proposals,), adding up to 1.

    >>> shares([9, 1, 0], [41, 49, 50], seed=0).round(2)
    array([0.89, 0.06, 0.05])
    """
    rng = np.random.default_rng(seed)
    a, b = 1 + np.asarray(successes, float), 1 + np.asarray(failures, float)
    won = rng.beta(a, b, (DRAWS, len(a))).argmax(1)
    floor = min(floor, 1 / len(a))
    return (1 - floor * len(a)) * np.bincount(won, minlength=len(a)) / DRAWS + floor


def divided(total: int, parts: np.ndarray, u: float = 0.5) -> list[int]:
    """Whole numbers that add up to the total, each with its share as mean over u uniform in [0, 1), up to rounding.
    They come in portions of about `PORTION`: of a small share a few at a time, and seldom, as runs of a model are dear.

    >>> divided(20, np.array([0.55, 0.39, 0.06]))
    [10, 10, 0]
    >>> divided(20, np.array([0.55, 0.39, 0.06]), u=0.1)
    [10, 5, 5]
    """
    portions = -(-total // PORTION)
    ends = np.floor(portions * np.cumsum(parts) / parts.sum() + u).clip(max=portions)
    ends[-1] = portions
    return np.diff(np.round(ends * total / portions), prepend=0).astype(int).tolist()


def discounted(rounds: Sequence[tuple[int, int]], memory: float = 0.9) -> tuple[float, float]:
    """Successes and failures of rounds (successes, slots), of which the last counts most."""
    weights = [memory**i for i in range(len(rounds))][::-1]
    wins = sum(w * s for w, (s, _) in zip(weights, rounds, strict=True))
    return wins, sum(w * max(n - s, 0) for w, (s, n) in zip(weights, rounds, strict=True))

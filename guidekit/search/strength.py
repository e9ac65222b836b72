r"""How strong? The temperature that a budget allows, from unguided samples of the model.

With weights w_i ~ exp(r(x_i)/alpha) of n unguided samples, normalised,

    KL(p_alpha || p) ~ sum_i w_i log(n w_i),        ESS/n = 1/(n sum_i w_i^2),        E[r] ~ sum_i w_i r(x_i),

where p_alpha = p exp(r/alpha)/Z. Both fall or rise with 1/alpha without turning, so bisection finds the temperature at
which the one or the other is what the user allows. The first is a cost in nats: by so much p_alpha differs from the
model. It cannot be measured beyond log n, nor reliably near it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from ..engine.result import Result
from ..engine.sample import sample
from ..errors import RewardError
from ..models import Model

NEAR = math.log(10)  # nats below log n, beyond which an estimate rests on fewer than about ten samples


@dataclass(frozen=True)
class Strength:
    """A temperature, and what it means for samples of p exp(r/alpha)/Z.

    alpha    to be given to guides, in units of the reward
    kl       KL(p_alpha || p), in nats
    ess      the effective sample size of unguided samples, as a share of them
    reward   the mean reward under p_alpha; `before` is that of the model
    pilot    the unguided samples with their rewards and cost
    """

    alpha: float
    kl: float
    ess: float
    reward: float
    before: float
    pilot: Result


def strength(
    model: Model, reward: Any, *, kl: float | None = None, ess: float | None = None, n: int = 256, **options: Any
) -> Strength:
    """The smallest temperature at which the tilted distribution is no further from the model than is allowed.

    kl        the most nats by which p exp(r/alpha)/Z may differ from the model; or
    ess       the least effective sample size of unguided samples, as a share of them, between 0 and 1
    n         unguided samples of the pilot run, whose reward calls are its cost
    options   of the pilot run, as in `gk.sample`: steps, cond, solver, guides that belong to the model (CFG), seed,
              batch_size, checkpoint, ...

    Give `.alpha` to a guide, as in `gk.SVDD(reward, found.alpha)`; the result's config says it too.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [0.0], [2.0])
    >>> found = gk.search.strength(base.exact(), lambda x: x[:, 0], kl=0.5, n=2000, steps=2)
    >>> abs(found.alpha - 2.0) < 0.3  # KL = (std/alpha)^2/2
    True
    """
    _check(kl, ess, n)
    pilot = sample(model, n, reward=reward, **options)
    if pilot.groups > 1:
        raise ValueError("cond is a list: ask for the temperature of one condition at a time")
    if float(pilot.log_weights.max() - pilot.log_weights.min()) > 0:
        raise ValueError("the pilot run has weights: leave out guides that steer, and keep those of the model (CFG)")
    assert pilot.rewards is not None
    r = pilot.rewards[pilot.rewards.isfinite()]
    spread = float(r.max() - r.min())
    if spread == 0:
        raise RewardError(f"reward {as_reward(reward).name!r} is the same for all {n} unguided samples")
    beta = _bisected(r, kl, ess, spread)
    w = (beta * r).softmax(0)
    return Strength(1 / beta, _kl(w), _share(w), float(w @ r), float(r.mean()), pilot)


def _check(kl: float | None, ess: float | None, n: int) -> None:
    if (kl is None) == (ess is None):
        raise ValueError("give either kl=..., in nats, or ess=..., a share between 0 and 1")
    if kl is not None and not 0 < kl < math.inf:
        raise ValueError(f"kl={kl!r}: a positive number of nats")
    if ess is not None and not 0 < ess < 1:
        raise ValueError(f"ess={ess!r}: a share between 0 and 1")
    least = math.exp(NEAR + kl) if kl is not None else 10 / float(ess)  # type: ignore[arg-type]
    if n < least:
        said = f"kl={kl}" if kl is not None else f"ess={ess}"
        raise ValueError(f"{said} cannot be told from n={n} unguided samples: at least {math.ceil(least)} are needed")


def _bisected(r: Tensor, kl: float | None, ess: float | None, spread: float) -> float:
    """The largest 1/alpha within the limit."""

    def fine(beta: float) -> bool:
        w = (beta * r).softmax(0)
        return _kl(w) <= kl if kl is not None else _share(w) >= float(ess)  # type: ignore[arg-type]

    low, high = 0.0, 1 / spread
    while fine(high):
        low, high = high, 2 * high
        if high * spread > 1e6:
            raise ValueError(
                "no temperature reaches this limit: so many unguided samples share the best reward that even argmax is "
                "nearer to the model. Allow less, or take alpha=0 where a guide knows it"
            )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fine(middle) else (low, middle)
    return low


def _kl(w: Tensor) -> float:
    """sum w log(n w)."""
    return float(torch.special.xlogy(w, w * len(w)).sum())


def _share(w: Tensor) -> float:
    return float(1 / (len(w) * w.square().sum()))

"""The temperature that a budget allows, found before anything is steered; see `guidekit.engine.strength`."""

from __future__ import annotations

from typing import Any

from ..engine.sample import sample
from ..engine.strength import Strength, check_budget, strength_of
from ..models import Model


def strength(
    model: Model, reward: Any, *, kl: float | None = None, ess: float | None = None, n: int = 256, **options: Any
) -> Strength:
    """The smallest temperature at which the tilted distribution is no further from the model than is allowed.

    kl        the most nats by which p exp(r/alpha)/Z may differ from the model; or
    ess       the least effective sample size of unguided samples, as a share of them, between 0 and 1
    n         unguided samples of the pilot run, whose reward calls are its cost
    options   of the pilot run, as in `gk.sample`: steps, cond, solver, guides that belong to the model (CFG), seed,
              batch_size, checkpoint, ...

    Give `.alpha` to a guide, as in `gk.SVDD(reward, found.alpha)`. A guide with `alpha="auto"`, or `gk.Auto(...)`, asks
    for the same inside of `gk.sample`.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([1.0], [0.0], [2.0])
    >>> found = gk.search.strength(base.exact(), lambda x: x[:, 0], kl=0.5, n=2000, steps=2)
    >>> abs(found.alpha - 2.0) < 0.3  # KL = (std/alpha)^2/2
    True
    """
    check_budget(kl, ess, n)
    pilot = sample(model, n, reward=reward, **options)
    if pilot.groups > 1:
        raise ValueError("cond is a list: ask for the temperature of one condition at a time")
    if float(pilot.log_weights.max() - pilot.log_weights.min()) > 0:
        raise ValueError("the pilot run has weights: leave out guides that steer, and keep those of the model (CFG)")
    return strength_of(pilot, reward, kl, ess)

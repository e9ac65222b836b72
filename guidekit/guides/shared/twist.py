r"""Shared by guides that weigh particles by a reward: checks, the twist V/alpha, and its gradient."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from ...engine.card import Card
from ...engine.guide import Guide
from ...engine.population import Population
from ...engine.resampling import check_resampling, resample
from ...engine.scoring import same
from ...engine.strength import Auto
from ...engine.view import Step, View
from ...errors import NetworkError, RewardError
from ...models.base import Model
from ...process import Gaussian
from ...values import Value, lookahead, named

TILTED = "p exp(r/alpha)/Z, for the weighted samples"
NO_GRADIENT = "takes gradients in x, and tokens have none: use FKSteering or SVDD with them"


class Twisted(Guide):
    """A guide that weighs by exp(reward/alpha) and bends its proposal along the gradient: a dataclass with these fields
    and with steer=True."""

    grad = True
    reward: Any
    alpha: float | str | Auto
    ess: float
    resampler: Any
    value: Value | str | None

    card = Card(
        section="Steering with rewards",
        processes=(Gaussian,),
        refusal=NO_GRADIENT,
        rows="0, and a backward pass",
        exact=TILTED,
        changes="weights",
    )

    def __post_init__(self) -> None:
        check_reward(self)
        check_resampling(self.ess, self.resampler)

    @property
    def twist(self) -> Hashable:
        return same(self.reward), self.alpha

    def check(self, model: Model, steps: int) -> None:
        check_differentiable(self)
        if not self.steer:
            name = type(self).__name__
            raise ValueError(f"{name}(steer=False): its weights correct for its tilt, so it always steers")

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, self.resampler)


def check_reward(guide: Any, positive: bool = True) -> None:
    """Raise unless the reward is callable, and alpha positive (or 0, where the limit of argmax is allowed), or a
    budget, which a text may stand for."""
    name = type(guide).__name__
    if not callable(guide.reward):
        raise TypeError(f"{name}(reward=...) takes a function of samples, not {type(guide.reward).__name__}")
    alpha = getattr(guide, "alpha", 1.0)
    if isinstance(alpha, str):
        object.__setattr__(guide, "alpha", alpha := Auto.of(alpha, name))
    if not hasattr(alpha, "__float__"):
        raise TypeError(f"{name}(alpha={alpha!r}): the temperature is a number, in units of the reward")
    if not isinstance(alpha, Auto) and not alpha > 0 and (positive or alpha != 0):
        raise ValueError(
            f"{name}(alpha={alpha}): the temperature must be positive{'' if positive else ', or 0 for argmax'}"
        )
    value = getattr(guide, "value", None)
    if isinstance(value, str):
        object.__setattr__(guide, "value", value := named(value, guide.reward, name))
    if value is not None and not callable(value):
        raise TypeError(
            f"{name}(value={value!r}) takes a value, like gk.values.Tweedie(reward), its name, or a function of views"
        )


def check_differentiable(guide: Any) -> None:
    """Raise if what a look-ahead scores is declared not to be differentiable; a network of its own is."""
    name, value = type(guide).__name__, getattr(guide, "value", None)
    reward = guide.reward if value is None else getattr(value, "reward", None)
    if reward is not None and as_reward(reward).differentiable is False:
        raise ValueError(
            f"{name} takes the gradient of its reward, and {as_reward(reward).name!r} is not differentiable: use "
            "FKSteering or SVDD, which need none, or value=gk.values.proxy(model, reward)"
        )


def value_of(guide: Any, view: View) -> Tensor:
    """The look-ahead of the reward at each row: the guide's value, and at the last step the reward itself."""
    value: Value = lookahead(guide.value, guide.reward, guide.alpha)
    return view.score(guide.reward) if view.step.last else value(view)


def twist(guide: Any, view: View, before: Tensor) -> Tensor:
    """V/alpha; `before` where V is unknown, and -infinity where the final sample could not be scored."""
    value = value_of(guide, view)
    return torch.where(value.isfinite(), value / guide.alpha, -torch.inf if view.step.last else before)


def ascent(view: View, value: Tensor) -> Tensor:
    """(sigma_t^2/alpha_t) grad_x value of each row: how far exp(value) as a factor of p_t moves the clean mean.

    Zero where x_t is almost pure noise (alpha_t < 0.001), and in rows whose value is unknown.
    """
    alpha, sigma = view.model.process.scales(view.t)
    if alpha < 1e-3:
        return torch.zeros_like(view.x)
    return sigma**2 / alpha * gradient(value, view.x)


def gradient(value: Tensor, x: Tensor) -> Tensor:
    """grad_x of each row's value; zero where the value is unknown. The graph is kept."""
    slope = None
    if value.requires_grad:
        try:
            (slope,) = torch.autograd.grad(value.nan_to_num(0.0).sum(), x, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise NetworkError(
                "a gradient in x_t is needed, and the network (or the reward) is checkpointed with use_reentrant=True, "
                "through which torch gives none: set use_reentrant=False, or switch gradient checkpointing off"
            ) from error
    if slope is None:
        raise RewardError(
            "no gradient reaches x_t: the reward, the decoder or the network cuts it (numpy, .item(), detach(), "
            "torch.no_grad()). Use a differentiable reward, or FKSteering or SVDD, which need none"
        )
    known = value.isfinite().view(-1, *[1] * (x.dim() - 1))
    return torch.where(known, slope, 0.0)

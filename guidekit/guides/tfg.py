r"""TFG, and what are settings of it; the formulas stand in training_free.py.

| | rho | mu | sigma | recur | |
|---|---|---|---|---|---|
| DPS | x | 0 | 0 | 1 | Chung et al., 2022, https://arxiv.org/abs/2209.14687 |
| LGD | x | 0 | x | 1 | Song et al., 2023, Loss-guided diffusion models, ICML |
| MPGD | 0 | x | 0 | 1 | He et al., 2023, https://arxiv.org/abs/2311.16424 |
| FreeDoM | x | 0 | 0 | x | Yu et al., 2023, https://arxiv.org/abs/2303.09833 |
| UGD | x | x | 0 | x | Bansal et al., 2023, https://arxiv.org/abs/2302.07121 |

What was published with TFG for these differs by constants: DPS divides by |f|, LGD by n once more, FreeDoM leaves out
alpha_s/alpha_t, UGD moves the noise estimate too. Here they are the settings of TFG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..engine.guide import Scale
from .shared.training_free import TrainingFree


@dataclass(frozen=True)
class TFG(TrainingFree):
    """Training-free guidance by f = reward. Strengths are numbers or functions of t; those of the paper's code are the
    defaults. rho = mu = 0 does nothing at all, recurrences included. Network rows: `recur` a particle and step. Reward
    calls there: with sigma = 0 `iters` (one if mu = 0), else `draws` for D_t and `iters` times `draws` for D_0.

    rho, mu     strength of the gradient through the network, and of that in the space of samples
    sigma       how far f is smoothed, in standard deviations of unit data; `draws` samples do it
    recur       an int, or a function of t
    normalise   divide gradients by sqrt|f|, for f = -|y - A x|^2 the norm of the residual (DPS, Algorithm 1)

    >>> TFG(lambda x: -x[:, 0] ** 2, rho=1.0, mu=0.25, sigma=0.0, iters=4).recur
    1
    """

    reward: Any
    rho: Scale = 1.0
    mu: Scale = 1.0
    sigma: Scale = 0.01
    recur: Scale = 1
    iters: int = 1
    draws: int = 4
    schedule: str = "increase"
    normalise: bool = False


class _Scaled(TrainingFree):
    """Settings with one strength, that of the gradient through the network."""

    scale: Scale

    @property
    def rho(self) -> Scale:  # type: ignore[override]
        return self.scale


@dataclass(frozen=True)
class DPS(_Scaled):
    """Diffusion posterior sampling: TFG with rho alone. scale = 1/alpha aims at p exp(reward/alpha).

    The paper's own step, zeta grad |y - A d|^2 over the norm of the residual, is the reward -|y - A x|^2 with
    schedule="constant", normalise=True.
    """

    reward: Any
    scale: Scale = 1.0
    schedule: str = "score"
    normalise: bool = False


@dataclass(frozen=True)
class LGD(_Scaled):
    """Loss-guided diffusion: DPS with a smoothed reward. sigma = 1 takes the posterior's variance as that of unit data;
    then a quadratic reward is followed right, for many draws. One temperature: give reward/alpha, scale=1."""

    reward: Any
    scale: Scale = 1.0
    sigma: Scale = 1.0
    draws: int = 10
    schedule: str = "score"


@dataclass(frozen=True)
class FreeDoM(_Scaled):
    """DPS with recurrences: each step is taken `recur` times, with noise in between."""

    reward: Any
    scale: Scale = 1.0
    recur: Scale = 2
    schedule: str = "score"
    normalise: bool = False


@dataclass(frozen=True)
class MPGD(TrainingFree):
    """Manifold preserving guided diffusion (without an autoencoder): TFG with mu alone; no backward pass through the
    network."""

    reward: Any
    scale: Scale = 1.0
    schedule: str = "increase"
    normalise: bool = False

    @property
    def mu(self) -> Scale:  # type: ignore[override]
        return self.scale


@dataclass(frozen=True)
class UGD(TrainingFree):
    """Universal guidance: forward (rho) and `iters` steps of backward guidance (mu), with recurrences."""

    reward: Any
    rho: Scale = 1.0
    mu: Scale = 1.0
    recur: Scale = 1
    iters: int = 1
    schedule: str = "increase"

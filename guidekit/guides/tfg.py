r"""TFG and the methods that are settings of it; the formulas are in shared/training_free.py.

| | rho | mu | sigma | recur | |
|---|---|---|---|---|---|
| DPS | x | 0 | 0 | 1 | Chung et al., 2022, https://arxiv.org/abs/2209.14687 |
| LGD | x | 0 | x | 1 | Song et al., 2023, Loss-guided diffusion models, ICML |
| MPGD | 0 | x | 0 | 1 | He et al., 2023, https://arxiv.org/abs/2311.16424 |
| FreeDoM | x | 0 | 0 | x | Yu et al., 2023, https://arxiv.org/abs/2303.09833 |
| UGD | x | x | 0 | x | Bansal et al., 2023, https://arxiv.org/abs/2302.07121 |

Published versions differ from these settings of TFG by constants: DPS divides by |f|, LGD divides by n once more,
FreeDoM leaves out alpha_s/alpha_t, UGD also shifts the noise estimate, and the code of MPGD has no schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..engine.card import Paper
from ..engine.guide import Scale
from .shared.training_free import TrainingFree


@dataclass(frozen=True)
class TFG(TrainingFree):
    """Training-free guidance by f = reward. NFE: `recur` per particle and step. Reward calls per particle and look:
    `iters` (one if mu = 0) with sigma = 0, otherwise `draws` for D_t and `iters` times `draws` for D_0.

    rho, mu     the strength of the gradient through the network, and of the gradient at the clean estimate: numbers or
                functions of t. The defaults are those of the paper's code; rho = mu = 0 does nothing, recurrences
                included
    sigma       how far f is smoothed, in standard deviations of unit data, by averaging over `draws` samples
    recur       the number of times that each step is taken, an int or a function of t
    iters       the number of gradient steps for D_0
    schedule    "increase" | "decrease" | "constant" | "score", of rho and mu alike
    normalise   divide gradients by sqrt|f|, which for f = -|y - A x|^2 is the norm of the residual (DPS, Algorithm 1)

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

    card = replace(
        TrainingFree.card,
        about="follows gradients of a reward at x_t and at the clean estimate",
        rows="recur - 1, and a backward pass",
        paper=Paper(
            "ye2024tfg",
            "Ye, Haotian and Lin, Haowei and Han, Jiaqi and Xu, Minkai and Liu, Sheng and Liang, Yitao and "
            "Ma, Jianzhu and Zou, James and Ermon, Stefano",
            "TFG: Unified Training-Free Guidance for Diffusion Models",
            2024,
            "2409.15761",
        ),
        example="gk.TFG(reward, 0.05, 0.02, 0.3, recur=2)",
    )


class _Scaled(TrainingFree):
    """Settings with one strength, that of the gradient through the network."""

    scale: Scale

    @property
    def rho(self) -> Scale:  # type: ignore[override]
        return self.scale


@dataclass(frozen=True)
class DPS(_Scaled):
    """Diffusion posterior sampling: TFG with rho alone. scale = 1/alpha aims at p exp(reward/alpha).

    The paper's step, x_s <- x_s - zeta grad |y - A d|^2 / |y - A d|, is the reward -|y - A x|^2 with scale=zeta,
    schedule="constant", normalise=True, except that here it is multiplied by alpha_s/alpha_t. That factor is close to 1
    but for the first steps of a run (with the Cosine schedule, 11 in the first of 100 steps). To start later, give
    start=...
    """

    reward: Any
    scale: Scale = 1.0
    schedule: str = "score"
    normalise: bool = False

    card = replace(
        TrainingFree.card,
        about="follows the gradient of a reward through the network",
        paper=Paper(
            "chung2022dps",
            "Chung, Hyungjin and Kim, Jeongsol and McCann, Michael T. and Klasky, Marc L. and Ye, Jong Chul",
            "Diffusion Posterior Sampling for General Noisy Inverse Problems",
            2022,
            "2209.14687",
        ),
        example="gk.DPS(reward, 2.0)",
    )


@dataclass(frozen=True)
class LGD(_Scaled):
    """Loss-guided diffusion: DPS with a smoothed reward. sigma = 1 smooths with the posterior variance of unit data,
    for which the gradient of a quadratic reward is right in the limit of many draws. For a temperature alpha pass
    reward/alpha and keep scale=1: the smoothing is not linear in the reward."""

    reward: Any
    scale: Scale = 1.0
    sigma: Scale = 1.0
    draws: int = 10
    schedule: str = "score"

    card = replace(
        TrainingFree.card,
        about="follows the gradient of a smoothed reward through the network",
        paper=Paper(
            "song2023lgd",
            "Song, Jiaming and Zhang, Qinsheng and Yin, Hongxu and Mardani, Morteza and Liu, Ming-Yu and "
            "Kautz, Jan and Chen, Yongxin and Vahdat, Arash",
            "Loss-Guided Diffusion Models for Plug-and-Play Controllable Generation",
            2023,
            "International Conference on Machine Learning",
        ),
        example="gk.LGD(reward, 2.0)",
    )


@dataclass(frozen=True)
class FreeDoM(_Scaled):
    """DPS with recurrences: each step is taken `recur` times, with renoising in between."""

    reward: Any
    scale: Scale = 1.0
    recur: Scale = 2
    schedule: str = "score"
    normalise: bool = False

    card = replace(
        TrainingFree.card,
        about="DPS with recurrences",
        rows="recur - 1, and a backward pass",
        paper=Paper(
            "yu2023freedom",
            "Yu, Jiwen and Wang, Yinhuai and Zhao, Chen and Ghanem, Bernard and Zhang, Jian",
            "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model",
            2023,
            "2303.09833",
        ),
        example="gk.FreeDoM(reward, 2.0)",
    )


@dataclass(frozen=True)
class MPGD(TrainingFree):
    """Manifold preserving guided diffusion, without an autoencoder: TFG with mu alone. No backward pass through the
    network. The authors' code has no schedule: that is schedule="constant"."""

    reward: Any
    scale: Scale = 1.0
    schedule: str = "increase"
    normalise: bool = False

    card = replace(
        TrainingFree.card,
        about="follows the gradient of a reward at the clean estimate",
        rows="0",
        paper=Paper(
            "he2023mpgd",
            "He, Yutong and Murata, Naoki and Lai, Chieh-Hsin and Takida, Yuhta and Uesaka, Toshimitsu and "
            "Kim, Dongjun and Liao, Wei-Hsiang and Mitsufuji, Yuki and Kolter, J. Zico and Salakhutdinov, Ruslan and "
            "Ermon, Stefano",
            "Manifold Preserving Guided Diffusion",
            2023,
            "2311.16424",
        ),
        example="gk.MPGD(reward, 0.05)",
    )

    @property
    def mu(self) -> Scale:  # type: ignore[override]
        return self.scale


@dataclass(frozen=True)
class UGD(TrainingFree):
    """Universal guidance: forward guidance (rho) and `iters` steps of backward guidance (mu), with recurrences."""

    reward: Any
    rho: Scale = 1.0
    mu: Scale = 1.0
    recur: Scale = 1
    iters: int = 1
    schedule: str = "increase"

    card = replace(
        TrainingFree.card,
        about="follows gradients through the network and at the clean estimate, with recurrences",
        rows="recur - 1, and a backward pass",
        paper=Paper(
            "bansal2023ugd",
            "Bansal, Arpit and Chu, Hong-Min and Schwarzschild, Avi and Sengupta, Soumyadip and Goldblum, Micah and "
            "Geiping, Jonas and Goldstein, Tom",
            "Universal Guidance for Diffusion Models",
            2023,
            "2302.07121",
        ),
        example="gk.UGD(reward, 0.05, 0.02, recur=2)",
    )

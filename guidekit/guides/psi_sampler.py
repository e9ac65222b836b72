r"""Psi-sampler (Yoon et al., 2025), https://arxiv.org/abs/2506.01320: the particles of a steered run start from noise
that is tilted by the reward.

With phi(z) = r(D(z))/alpha, where D is the end of a few deterministic steps from the noise z, the start is drawn from

    pi(z) ~ N(z; 0, I) exp(phi(z))

by preconditioned Crank-Nicolson Langevin moves (Cotter et al., 2013, https://arxiv.org/abs/1202.0709), which keep
N(0, I) whatever the dimension: at the temper lambda, with g = lambda grad phi,

    z' = rho z + (1 - rho) g(z) + sqrt(1 - rho^2) xi,                    xi ~ N(0, I),
    log a = lambda (phi(z') - phi(z)) + b(z', z) - b(z, z'),
    b(z, z') = (<g(z), z' - rho z> - (1 - rho) |g(z)|^2/2)/(1 + rho),

accepted with probability min(1, a). Without a gradient, g = 0 and the move is pCN.

The paper runs a long chain at lambda = 1 and takes its states as they are. Here lambda rises in `levels` steps from 0
to 1, and states carry the weights of annealed importance sampling (Neal, 2001),

    log w = sum_k (lambda_k - lambda_(k-1)) phi(z_(k-1)),

which correct for chains of any length. As exp(phi) is counted already, the potentials of Feynman-Kac steering
(`FKSteering`, whose options it has) go on from there: the one after it is exp(v_1 - phi(z)) in place of exp(v_1), and
over a run their product is exp(r(x_0)/alpha) as before. So the weighted samples follow p exp(r/alpha)/Z, and log Z is
unbiased for any number of levels, moves and steps of D.

Whether it pays depends on how much the noise says of the sample: much with deterministic solvers and models of few
steps, nothing with ancestral sampling in many. So by default only the start and the samples are scored, and no
particle is resampled.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewards import as_reward

from .. import random
from ..engine.card import Paper
from ..engine.view import Step, View
from ..errors import is_count
from ..models.base import Model
from ..models.evaluations import Cond
from ..process import Gaussian
from ..values import FlowMap
from .fk_steering import FKSteering
from .shared.tilted_start import TiltedStart
from .shared.twist import gradient


@dataclass(frozen=True)
class PsiSampler(TiltedStart):
    """Feynman-Kac steering towards p exp(reward/alpha) from tilted noise. NFE: for each particle at the start
    `flow` (1 + levels moves_each), with 1 + levels moves_each reward calls, and later those of `FKSteering`.

    levels     K, tempers from 0 to 1; 0 starts from the noise itself
    moves_each Metropolis moves at each
    rho        of a move, in (0, 1): the smaller, the larger the move, and the fewer are accepted
    gradient   False: gradient-free moves, for rewards that torch cannot differentiate
    flow       deterministic steps of D
    """

    _: KW_ONLY
    levels: int = 10
    moves_each: int = 1
    rho: float = 0.8
    gradient: bool = True
    flow: int = 4

    card = replace(
        FKSteering.card,
        about="starts from noise tilted by the reward, drawn by Metropolis moves",
        processes=(Gaussian,),
        refusal="moves Gaussian noise, and tokens start from none: use FKSteering",
        rows="0, and at the start `flow` for each move, and one",
        paper=Paper(
            "yoon2025psi",
            "Yoon, Taehoon and Min, Yunhong and Yeo, Kyeongmin and Sung, Minhyuk",
            "Psi-Sampler: Initial Particle Sampling for SMC-Based Inference-Time Reward Alignment in Score Models",
            2025,
            "2506.01320",
        ),
        example="gk.PsiSampler(reward, 0.5)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("levels", 0), ("moves_each", 1), ("flow", 1)):
            if not is_count(getattr(self, name), least):
                raise ValueError(f"PsiSampler({name}={getattr(self, name)!r}): an int of at least {least}")
        if not 0 < self.rho < 1:
            raise ValueError(f"PsiSampler(rho={self.rho!r}): how much of the noise a move keeps, between 0 and 1")

    def check(self, model: Model, steps: int) -> None:
        if self.gradient and as_reward(self.reward).differentiable is False:
            raise ValueError(
                f"PsiSampler moves along the gradient of its reward, and {as_reward(self.reward).name!r} is not "
                "differentiable: give gradient=False"
            )

    def further(self, step: Step) -> int:
        return self.flow * (1 + self.levels * self.moves_each) if step.index == 0 and self.levels else 0

    def begin(self, view: View, noise: Tensor) -> Any:
        if not self.levels:
            return view.x, view.zeros(), None
        z, (phi, g) = noise, self._phi(view, noise)
        log_w = view.zeros()
        for k in range(1, self.levels + 1):
            log_w = log_w + phi / self.levels
            for m in range(self.moves_each):
                key = random.fold(random.fold(view.key, k), m)
                z, phi, g = self._moved(view, z, phi, g, k / self.levels, key)
        return view.model.process.prior(z, view.t), log_w, (phi, phi)

    def _moved(
        self, view: View, z: Tensor, phi: Tensor, g: Tensor, temper: float, key: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One Metropolis move, which keeps N(z; 0, I) exp(temper phi)."""
        rho = self.rho
        xi = random.normal(random.fold(key, 0), view.model.shape, z.dtype)
        new = rho * z + (1 - rho) * temper * g + (1 - rho**2) ** 0.5 * xi
        there, slope = self._phi(view, new)

        def bent(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
            """log of the proposal from a to b over that of pCN."""
            lean = (temper * g * (b - rho * a)).double().flatten(1).sum(1)
            return (lean - (1 - rho) * (temper * g).double().square().flatten(1).sum(1) / 2) / (1 + rho)

        log_a = temper * (there - phi) + bent(new, z, slope) - bent(z, new, g)
        taken = random.uniform(random.fold(key, 1)).log() < log_a
        rows = taken.view(-1, *[1] * (z.dim() - 1))
        return torch.where(rows, new, z), torch.where(taken, there, phi), torch.where(rows, slope, g)

    def _phi(self, view: View, z: Tensor) -> tuple[Tensor, Tensor]:
        """phi, float64 (rows,), and its gradient, or 0. Where a sample cannot be scored both are 0."""
        with torch.set_grad_enabled(self.gradient):
            z = z.detach().requires_grad_(self.gradient)
            r = of_noise(view, self.reward, self.flow, z)
            phi = torch.where(r.isfinite(), r / float(self.alpha), 0.0)
            slope = gradient(torch.where(r.isfinite(), r / float(self.alpha), torch.nan), z) if self.gradient else z * 0
        return phi.detach().double(), slope.detach()


def of_noise(view: View, reward: Any, flow: int, z: Tensor) -> Tensor:
    """r(D(z)), (rows,), of other noise in the rows of a view at the start."""
    x = view.model.process.prior(z, view.t)
    evals = view.evaluate(x, view.t)
    return FlowMap(reward, steps=flow)(replace(view, x=x, evals=evals, prediction=evals[Cond()], _cache={}, _kept={}))

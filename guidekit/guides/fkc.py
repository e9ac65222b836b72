r"""Feynman-Kac correctors (Skreta et al., 2025), https://arxiv.org/abs/2503.02819: importance weights that make a
heuristic path of distributions exact.

The target at every time is a product of powers of noised models, optionally tilted by a reward of the noisy state,

    p_t ~ prod_i q_i,t^(c_i) exp(phi_t),       phi_t = beta_t r(x_t),     beta_0 = 1/alpha,

of which classifier-free guidance (q_null^(1-w) q_cond^w), annealing (q^beta) and products are special cases. Let C =
sum c_i, y = x_t/alpha_t, u = (sigma_t/alpha_t)^2, s_i = grad_y log q_i = (d_i - y)/u and S = sum_i c_i s_i. In the
coordinate y every Gaussian process is a pure diffusion, d log q_i/du = (Delta log q_i + |s_i|^2)/2. The paper's rule,
for any drift v and noise level a,

    dy = (v + a^2/2 grad log p) dtau + a dW,     dlog w = (d log p/dtau + div v + <v, grad log p>) dtau,     dtau = -du,

becomes with v = S/2 + lambda y, for which the divergences of the scores cancel,

    dlog w = ( (|S|^2 - sum_i c_i |s_i|^2)/2 + lambda (dim + <y, S>) + dphi/dtau + <S/2 + lambda y, grad phi> ) dtau

for every noise level a, which is that of the solver: a = 1 for DDPM, a = eta for DDIM(eta). The choice lambda = (C -
1)/(2 (1 + u)) keeps the particles distributed as the target while they are noise, N(0, u/C), so that their weights stay
equal there. The clean mean of the proposal is y + u (S + (2 lambda y + a^2 grad phi)/(1 + a^2)). Integrals over a step
use the trapezoidal rule in w = 1/(1 + u), and their mean in pure noise, (C - 1) dim/(2 (1 + u)), is integrated exactly.
So the distribution is exact up to a discretisation error. Powers with C != 1 start at alpha > 0 from N(0, sigma^2/C):
steps from pure noise are left out. log Z estimates the logarithm of the integral of prod_i q_i^(c_i) exp(r/alpha).

Masked tokens: the order in which positions are unmasked does not depend on the models. Position i becomes v with
probability prod_k p_k(v)^(c_k)/Z_i, and log w += log Z_i for every position that is unmasked. This is exact if one
position is unmasked at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import resampling
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.population import Population
from ..engine.resampling import check_resampling, resample
from ..engine.scoring import same
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..models.evaluations import Cond, Null, Other
from ..process import Gaussian, Masked
from ..solvers import Move, starting_at
from .boost_and_skip import BoostAndSkip
from .keep import Keep
from .shared.twist import Twisted, check_differentiable, check_reward, gradient
from .start_from import StartFrom

_TRACE = 1e-3  # the smallest alpha at which a state still carries information on the data
_DOWN = "FKC follows a path down in time: times that go up, and recurrences, are not for it"


class FKC:
    """Weighted samples of a product of powers of models, in four forms. All accept ess=0.5 and resampler="systematic".

    >>> import guidekit as gk
    >>> gk.FKC.cfg(2.0).powers
    ((Cond(), 2.0), (Null(), -1.0))
    """

    card = Card(
        "samples products and powers of models, corrected by weights",
        section="Steering with rewards",
        processes=(Gaussian, Masked),
        refusal="has weights for Gaussian and masked processes; uniform noise has none that are exact",
        rows="1 for each factor but the first",
        exact="the product, for small steps; for tokens, if one is unmasked at a time",
        changes="target",
        paper=Paper(
            "skreta2025fkc",
            "Skreta, Marta and others",
            "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts",
            2025,
            "2503.02819",
        ),
        example="gk.FKC.cfg(2.0)",
    )

    @staticmethod
    def cfg(scale: float, **options: Any) -> Corrector:
        """q_null^(1 - scale) q_cond^scale: the distribution that classifier-free guidance aims at. One extra NFE."""
        return Corrector(((Cond(), float(scale)), (Null(), 1.0 - scale)), **options)

    @staticmethod
    def anneal(beta: float, **options: Any) -> Corrector:
        """q^beta: the model at the temperature 1/beta."""
        return Corrector(((Cond(), float(beta)),), **options)

    @staticmethod
    def product(other: Model, power: float = 1.0, **options: Any) -> Corrector:
        """q q_other^power: two models with the same noising process, which see the same condition."""
        return Corrector(((Cond(), 1.0), (Other(other), float(power))), **options)

    @staticmethod
    def tilt(
        reward: Any, alpha: float | str | Auto, schedule: Callable[[float], float] | None = None, **options: Any
    ) -> Corrector:
        """q exp(reward/alpha), with the reward of x_t itself; `schedule` maps t to alpha beta_t, 1 at t = 0 and 0 in
        pure noise."""
        return Corrector(((Cond(), 1.0),), reward, alpha, schedule, **options)


@dataclass(frozen=True)
class Corrector(Guide):
    """The guide that the forms of FKC make: weighted particles of prod_i q_i^(c_i) exp(reward/alpha).

    powers      ((evaluation, c_i), ...), of which the first is Cond()
    schedule    t -> alpha beta_t; None: (alpha_t^2/(alpha_t^2 + sigma_t^2))^2
    """

    powers: tuple[tuple[Cond, float], ...]
    reward: Any = None
    alpha: float | str | Auto = math.inf
    schedule: Callable[[float], float] | None = None
    ess: float = 0.5
    resampler: str | resampling.Resampler = "systematic"

    isotropic = True
    card = FKC.card

    def __post_init__(self) -> None:
        check_resampling(self.ess, self.resampler)
        if self.powers[0][0] != Cond() or not all(math.isfinite(c) for _, c in self.powers) or self.total <= 0:
            raise ValueError(f"powers={self.powers}: Cond() first, and numbers with a positive sum")
        if self.reward is not None:
            check_reward(self)

    @property
    def total(self) -> float:
        return sum(c for _, c in self.powers)

    @property
    def needs(self) -> tuple[Cond, ...]:
        return tuple(need for need, _ in self.powers[1:])

    def check(self, model: Model, steps: int) -> None:
        if self.reward is not None:
            Twisted.card.refuse("FKC.tilt", model.process)
            check_differentiable(self)
        if self.steer or self.start > 0 or self.stop < 1:
            raise ValueError("FKC is a path from noise to data: it takes no steer, start or stop")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, Corrector):
            return (
                "each weighs a path of its own; give one of them all of it, like gk.FKC.anneal(2., reward=r, alpha=1.)"
            )
        if (other.tilts and not other.steer) or other.has("condition"):
            return (
                f"{type(other).__name__} changes the target that the weights are for: give it steer=True, or make it "
                "part of the product, like gk.FKC.cfg(scale)"
            )
        if other.twist is not None and other.twist == (same(self.reward), self.alpha):
            return "both weigh by the same reward; take one of them"
        if isinstance(other, Keep) and other.method == "repaint":
            return _DOWN
        if isinstance(other, BoostAndSkip) or (isinstance(other, StartFrom) and self.total != 1):
            return "the path has a start of its own"
        return None

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if any(move.s >= move.t for move in moves):
            raise ValueError(_DOWN)
        if self._from_noise(model):
            return moves
        traces = [i for i, move in enumerate(moves) if move.s != move.t and model.process.scales(move.t)[0] >= _TRACE]
        if not traces:
            raise ValueError(
                f"powers that add up to {self.total:g} start where a trace of the data is left, and the {len(moves)} "
                "steps have no such time but their last: give more steps"
            )
        return starting_at(moves, traces[0])

    def begin(self, view: View, noise: Tensor) -> Tensor:
        return view.x if self._from_noise(view.model) else view.x / self.total**0.5

    def _from_noise(self, model: Model) -> bool:
        """Whether the path starts from the model's own noise."""
        return self.total == 1 or isinstance(model.process, Masked)

    def tilt(self, view: View) -> Tensor:
        mean = sum(c * view.evals[need] for need, c in self.powers) - view.evals[Cond()]
        if isinstance(view.model.process, Masked):
            return mean
        alpha, sigma = view.model.process.scales(view.t)
        a2 = _noise_level(view) ** 2
        if self.total != 1:  # y + u S - d, and the drift lambda y
            v = sigma**2 / (alpha**2 + sigma**2)
            mean = mean + (1 - self.total) * (1 - v / (1 + a2)) / alpha * view.x
        if self.reward is None or alpha == 0:
            return mean
        return mean + a2 / (1 + a2) * self._beta(view.t, view) * sigma**2 / alpha * self._slope(view)[1]

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor, Tree]:
        return (self._tokens if isinstance(view.model.process, Masked) else self._path)(view, memo)

    def _tokens(self, view: View, memo: Tree) -> tuple[Tensor, Tree]:
        new, mask = view.zeros(), view.model.process.states - 1  # type: ignore[attr-defined]
        if memo is not None:
            new = (memo[1] * ((memo[0] == mask) & (view.x != mask))).sum(1)
        if view.step.last:
            return new, memo
        return new, (view.x, sum(c * view.evals[need].double() for need, c in self.powers).logsumexp(-1))  # type: ignore

    def _path(self, view: View, memo: Tree) -> tuple[Tensor, Tree]:
        rate, r, pull = self._rates(view)
        if memo is None:
            return self._start(view) + self._beta(view.t, view) * r, (rate, r, pull)
        came = view.step.came
        assert came is not None
        if came.s >= came.t:
            raise ValueError(_DOWN)
        (a_t, s_t), (a_s, s_s) = (view.model.process.scales(t) for t in (came.t, came.s))
        w_t, w_s = (a * a / (a * a + s * s) for a, s in ((a_t, s_t), (a_s, s_s)))
        rate_s, pull_s = (memo[0], memo[2]) if view.step.last else (rate, pull)
        excess = (self.total - 1) / 2 * math.prod(view.model.shape)
        log_w = (memo[0] + rate_s) / 2 * (w_s - w_t) + (excess * math.log(w_s / w_t) if excess else 0.0)
        if self.reward is not None:
            rise = self._beta(came.s, view) - self._beta(came.t, view)
            log_w = log_w + (memo[1] + r) / 2 * rise + (memo[2] + pull_s) / 2 * (a_s - a_t)
        return log_w, (rate, r, pull)

    def _start(self, view: View) -> Tensor:
        """log of the integral of N(y; 0, u)^C over y."""
        if self.total == 1:
            return view.zeros()
        alpha, sigma = view.model.process.scales(view.t)
        log_u = math.log(2 * math.pi * (sigma / alpha) ** 2)
        d = math.prod(view.model.shape)
        return view.zeros() + d / 2 * ((1 - self.total) * log_u - math.log(self.total))

    def _rates(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """The integrand over w minus its mean in pure noise; r(x_t); and beta <x, grad r>/alpha."""
        zero = view.zeros()
        alpha, sigma = view.model.process.scales(view.t)
        if view.step.last:
            return zero, zero if self.reward is None else _known(view.score(self.reward), -torch.inf), zero
        w, v = alpha**2 / (alpha**2 + sigma**2), sigma**2 / (alpha**2 + sigma**2)
        clean = [(view.evals[need].flatten(1).double(), c) for need, c in self.powers]
        rate = zero
        for i, (d, c) in enumerate(clean):
            for e, f in clean[:i]:
                rate = rate - c * f * (d - e).square().sum(1) / (2 * v**2)
        mean = sum(c * d for d, c in clean)
        if self.total != 1:
            y = view.x.flatten(1).double() / alpha
            square = sum(c * (d - y).square() for d, c in clean) / v**2
            rate = rate + (self.total - 1) / 2 * (square + y * (mean - self.total * y) / v).sum(1)
        if self.reward is None or alpha == 0:
            return rate, zero, zero
        r, slope = self._slope(view)
        beta, x, slope = self._beta(view.t, view), view.x.flatten(1).double(), slope.flatten(1).double()
        lean, radial = (((alpha * mean - self.total * x) * slope).sum(1), (x * slope).sum(1))
        rate = rate + beta / (2 * w) * (lean / v + (self.total - 1) * radial)
        return rate, r, beta / alpha * radial

    def _beta(self, t: float, view: View) -> float:
        alpha, sigma = view.model.process.scales(t)
        share = (alpha**2 / (alpha**2 + sigma**2)) ** 2 if self.schedule is None or t == 0 else self.schedule(t)
        return share / float(self.alpha)

    def _slope(self, view: View) -> tuple[Tensor, Tensor]:
        """r(x_t), 0 where it is unknown, and its gradient."""

        def make() -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                x = view.x.detach().requires_grad_()
                r = view.scorer(self.reward, view.decode(x), view.group)
                return _known(r.detach(), 0.0), gradient(r, x)

        return view.once(("slope", same(self.reward)), make)

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, self.resampler)


def _known(r: Tensor, otherwise: float) -> Tensor:
    return torch.where(r.isfinite(), r, otherwise)


def _noise_level(view: View) -> float:
    """a of the coming move: its noise relative to that of the posterior of the forward process."""
    move, scales = view.step.move, view.model.process.scales
    assert move is not None
    (a_t, s_t), (a_s, s_s) = scales(move.t), scales(move.s)
    most = s_s * max(1 - (a_t * s_s / (a_s * s_t)) ** 2, 0.0) ** 0.5
    return move.c / most if most > 0 else 1.0

r"""Base models in closed form: the ground truth of the test suite, and good first models on which to try a method.

**GaussianMixture**: p(x_0) = sum_k pi_k N(m_k, s_k^2 I) in d dimensions. With x_t = alpha x_0 + sigma z,

    rho_k   ~ pi_k N(x_t; alpha m_k, alpha^2 s_k^2 + sigma^2)                  posterior of the component
    E[x_0 | x_t] = sum_k rho_k (m_k + alpha s_k^2 (x_t - alpha m_k)/(alpha^2 s_k^2 + sigma^2))
    linear tilt      exp(b.x/a):           pi_k exp(b.m_k/a + |b|^2 s_k^2/(2a^2)),  m_k + b s_k^2/a,  s_k
    quadratic tilt   exp(-k|x - c|^2/2a):  pi_k N(c; m_k, s_k^2 + a/k) (2 pi a/k)^(d/2),
                                           variance v = 1/(1/s_k^2 + k/a), mean v (m_k/s_k^2 + c k/a)

Z is the sum of the new weights. `exact()` is the same mixture with its true reverse kernels, which have no
discretisation error for any number of steps: given component k, x_s | x_t is Gaussian, and k is drawn from rho.

**TokenTable**: any distribution over V^L as a table, with the exact posterior marginals under masked or uniform noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..process import Gaussian, Masked, Uniform
from ..solvers import Move
from ..solvers.schedules import Cosine, Schedule
from .base import Encoded, Mixed, Model
from .tokens import LOG_ZERO


class GaussianMixture(Model):
    """A mixture of isotropic Gaussians as a base model, with the exact denoiser.

    weights   (K,), positive; normalised here
    means     (K, d), or (K,) in one dimension
    stds      (K,), one for each component
    labels    (K,) ints: cond=c is then the mixture of the components with label c, and the null condition all of them

    >>> base = GaussianMixture([0.5, 0.3, 0.2], [-2.0, 0.5, 2.5], [0.5, 0.4, 0.6])
    >>> round(float(base.log_z(linear=1.0, alpha=0.5)), 4)
    4.1291
    >>> target = base.tilted(linear=1.0, alpha=0.5)
    >>> round(float((target.weights * target.means[:, 0]).sum()), 4)
    3.1755
    """

    compiles = False

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        means: Sequence[Any] | Tensor,
        stds: Sequence[float] | Tensor,
        schedule: Schedule | None = None,
        labels: Sequence[int] | Tensor | None = None,
    ):
        means = torch.as_tensor(means)
        means = means if means.is_floating_point() else means.to(torch.get_default_dtype())
        weights, stds = (torch.as_tensor(v).to(means) for v in (weights, stds))
        self.means = means[:, None] if means.dim() == 1 else means
        if (
            self.means.dim() != 2
            or not weights.shape == stds.shape == (len(means),)
            or (weights <= 0).any()
            or (stds <= 0).any()
        ):
            raise ValueError(
                f"a mixture needs K positive weights, K means and K positive stds; given {tuple(weights.shape)}, "
                f"{tuple(means.shape)}, {tuple(stds.shape)}"
            )
        self.weights, self.stds = weights / weights.sum(), stds
        self.labels = None if labels is None else torch.as_tensor(labels, device=means.device)
        self.schedule = Cosine() if schedule is None else schedule
        null = None if labels is None else torch.tensor(-1)
        super().__init__(
            _denoise,
            Gaussian(self.schedule),
            self.means.shape[1:],
            null=null,
            dtype=means.dtype,
            device=means.device,
        )

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return _denoise(self, x, t, cond)

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        own = ((x[rows], t, None if cond is None else cond[rows]) for t, rows in times.parts())
        return torch.cat([_denoise(self, *each) for each in own])

    def encode(self, cond: Any) -> Encoded:
        known = [] if self.labels is None else self.labels.tolist()
        if cond is not None and cond not in known:
            raise ValueError(f"cond={cond!r}: the labels of this mixture are {sorted(set(known))}")
        return super().encode(cond)

    def responsibilities(self, x: Tensor, t: float, cond: Encoded = None) -> Tensor:
        """p(k | x_t), shape (rows, K)."""
        alpha, sigma = self.process.scales(t)
        log_p = self.weights.log() + _log_normal(x, alpha * self.means, (alpha * self.stds) ** 2 + sigma**2)
        if cond is not None and self.labels is not None:
            own = self.labels == cond[:, None]
            log_p = torch.where(own | (cond < 0)[:, None], log_p, -torch.inf)
        p = (log_p.T - log_p.T.amax(0).detach()).exp()
        return (p / _sum(p)).T

    def exact(self) -> GaussianMixture:
        """The same mixture with its true reverse kernels. Guidance has no effect on it, since no prediction is used."""
        if self.labels is not None:
            raise ValueError(
                "exact() kernels see no condition: build the mixture of one label instead of giving labels"
            )
        other = GaussianMixture(self.weights, self.means, self.stds, self.schedule)
        other.process = ExactReverse(self.schedule, mixture=self)
        return other

    def log_prob(self, samples: Any, cond: Any = None, **settings: Any) -> Any:
        """log p(x), shape (rows,), in closed form; settings are those of other models, and `errors` are 0."""
        x = samples.view(len(samples), -1).to(self.means)
        log_w = self.weights.log()
        if cond is not None:
            self.encode(cond)
            log_w = torch.where(self.labels == cond, log_w, -torch.inf).log_softmax(-1)
        value = (log_w + _log_normal(x, self.means, self.stds**2)).logsumexp(-1)
        return (value, torch.zeros_like(value)) if settings.get("errors") else value

    def exact_sample(self, n: int, seed: int = 0) -> Tensor:
        """n independent samples, (n, d)."""
        keys = random.fold(random.fold(random.key(seed, self.device), "exact"), torch.arange(n, device=self.device))
        k = _component(self.weights.expand(n, -1), random.uniform(random.fold(keys, 0)))
        z = random.normal(random.fold(keys, 1), self.shape, self.dtype)
        return self.means[k] + self.stds[k, None] * z

    def tilted(self, *, linear: Any = None, quadratic: Any = None, alpha: float = 1.0) -> GaussianMixture:
        """The tilted distribution p exp(r/alpha)/Z for r = linear.x, or r = -kappa/2 |x - center|^2 with
        quadratic=(center, kappa)."""
        log_w, means, stds = self._tilt(linear, quadratic, alpha)
        weights = log_w.softmax(-1).clamp(min=torch.finfo(self.dtype).tiny)
        return GaussianMixture(weights, means, stds, self.schedule, self.labels)

    def log_z(self, *, linear: Any = None, quadratic: Any = None, alpha: float = 1.0) -> Tensor:
        """log E[exp(r/alpha)]."""
        return self._tilt(linear, quadratic, alpha)[0].logsumexp(-1)

    def _tilt(self, linear: Any, quadratic: Any, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        if (linear is None) == (quadratic is None):
            raise ValueError("give one tilt: linear=b, or quadratic=(center, kappa)")
        if not alpha > 0:
            raise ValueError(f"alpha={alpha}: the temperature must be positive")
        pi, m, v = self.weights.double().log(), self.means.double(), self.stds.double()[:, None] ** 2
        if linear is not None:
            b = torch.as_tensor(linear, dtype=m.dtype, device=m.device).expand(self.shape) / alpha
            log_w, means, var = pi + m @ b + 0.5 * (b @ b) * v[:, 0], m + b * v, v
        else:
            center = torch.as_tensor(quadratic[0], dtype=m.dtype, device=m.device).expand(self.shape)
            kappa = float(quadratic[1]) / alpha
            if not kappa > 0:
                raise ValueError(f"quadratic=(center, {quadratic[1]}): kappa must be positive")
            norm = 0.5 * len(center) * math.log(2 * math.pi / kappa)
            log_w = pi + _log_normal(center[None], m, v[:, 0] + 1 / kappa)[0] + norm
            var = 1 / (1 / v + kappa)
            means = var * (m / v + kappa * center)
        return log_w, means.to(self.means), var[:, 0].sqrt().to(self.stds)


def _denoise(mixture: GaussianMixture, x: Tensor, t: float, cond: Encoded) -> Tensor:
    """E[x_0 | x_t] = sum_k rho_k ((1 - alpha g_k) m_k + g_k x_t)."""
    alpha, sigma = mixture.process.scales(t)
    rho = mixture.responsibilities(x, t, cond).T[..., None]
    gain = (alpha * mixture.stds**2 / ((alpha * mixture.stds) ** 2 + sigma**2))[:, None, None]
    return _sum(rho * (1 - alpha * gain) * mixture.means[:, None]) + _sum(rho * gain) * x


def _log_normal(x: Tensor, means: Tensor, var: Tensor) -> Tensor:
    """log N(x; means_k, var_k I), shape (rows, K)."""
    d = x.shape[-1]
    square = _sum((x.T[:, None] - means.T[..., None]).square()).T
    return -0.5 * (square / var + d * var.log() + d * math.log(2 * math.pi))


def _sum(v: Tensor) -> Tensor:
    """The sum over the first axis, in an order that does not depend on the number of rows, as that of torch may. A few
    rows of memory are added much faster than a short last axis."""
    return reduce(torch.add, v.unbind()) if len(v) <= 16 else v.movedim(0, -1).contiguous().sum(-1)


def _component(p: Tensor, u: Tensor) -> Tensor:
    """The component at which the cumulative probability exceeds u."""
    return (p.double().cumsum(-1) < u[:, None]).sum(-1).clamp(max=p.shape[-1] - 1)


@dataclass(frozen=True)
class MixtureKernel:
    """q(x_s | x_t) = sum_k rho_k N(mean_k, var_k I); noise is (rows, d + 1), its last column choosing the component."""

    rho: Tensor
    means: Tensor
    var: Tensor
    random = True
    history = ()

    def push(self, noise: Tensor) -> Tensor:
        u = torch.special.ndtr(noise[:, -1].double())
        k = _component(self.rho, u)
        return self.means[torch.arange(len(k), device=k.device), k] + self.var[k].sqrt()[:, None] * noise[:, :-1]

    def log_prob(self, x: Tensor) -> Tensor:
        d, square = x.shape[-1], (x[:, None] - self.means).square().sum(-1)
        log_n = -0.5 * (square / self.var + d * self.var.log() + d * math.log(2 * math.pi))
        return (self.rho.log() + log_n).double().logsumexp(-1)

    def correction(self, p: MixtureKernel, x: Tensor) -> Tensor:
        return p.log_prob(x) - self.log_prob(x)


@dataclass(frozen=True)
class ExactReverse(Gaussian):
    """The true reverse process of a mixture. It uses x_t and not the prediction, so tilts have no effect on it."""

    mixture: GaussianMixture | None = None

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] + 1,)

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        return super().noised(clean, noise[:, :-1], t)

    def draws(self, move: Move) -> bool:
        return True

    def prior(self, noise: Tensor, t: float) -> Tensor:
        m = self._mixture
        alpha, sigma = self.scales(t)
        var = (alpha * m.stds) ** 2 + sigma**2
        rho = m.weights.expand(len(noise), -1)
        return MixtureKernel(rho, (alpha * m.means).expand(len(noise), -1, -1), var).push(noise)

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> MixtureKernel:
        m = self._mixture
        (a_t, s_t), (a_s, s_s) = self.scales(move.t), self.scales(move.s)
        if move.s > move.t:  # the forward process: one component
            one, var = x.new_ones(len(x), 1), s_s**2 - (a_s / a_t * s_t) ** 2
            return MixtureKernel(one, a_s / a_t * x[:, None], one.new_full((1,), var))
        c = a_t / a_s
        tau = s_t**2 - (c * s_s) ** 2
        prior = (a_s * m.stds) ** 2 + s_s**2
        var = 1 / (1 / prior + c**2 / tau)
        means = var[:, None] * (a_s * m.means / prior[:, None] + c * x[:, None] / tau)
        return MixtureKernel(m.responsibilities(x, move.t), means, var)

    @property
    def _mixture(self) -> GaussianMixture:
        assert self.mixture is not None
        return self.mixture


class TokenTable(Model):
    """A distribution over V^L, given as a table, as a base model with the exact posterior marginals.

    log_probs   shape (V,)*L; normalised here
    noising     "masked", "ordered" (masked, one position after the other) or "uniform"
    classes     (C, V, ..., V): log-probabilities given each class; cond=c samples class c, the null condition log_probs

    >>> import torch, guidekit as gk
    >>> table = TokenTable(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> x = gk.sample(table, 4, steps=8).x
    >>> x.shape, table.log_probs(x).shape
    (torch.Size([4, 3]), torch.Size([4]))
    """

    compiles = False

    def __init__(self, log_probs: Any, noising: str = "masked", classes: Any = None):
        table = torch.as_tensor(log_probs)
        self.vocab_size, self.length = table.shape[0], table.dim()
        if set(table.shape) != {self.vocab_size} or not table.is_floating_point():
            raise ValueError(f"log_probs is a float tensor of shape (V,)*L, not {tuple(table.shape)} of {table.dtype}")
        if noising not in ("masked", "ordered", "uniform"):
            raise ValueError(f"noising={noising!r}: there is 'masked', 'ordered' and 'uniform'")
        rows = [table] if classes is None else [table, *torch.as_tensor(classes)]
        self.table = torch.stack([r.flatten().double().log_softmax(0) for r in rows])  # (1 + C, V^L)
        grid = torch.cartesian_prod(*[torch.arange(self.vocab_size)] * self.length)
        self.states = grid.view(-1, self.length).to(table.device)
        null = None if classes is None else torch.tensor(0)
        V = self.vocab_size
        process = Uniform(V) if noising == "uniform" else Masked(V, self.length * (noising == "ordered"))
        super().__init__(
            self._marginals, process, (self.length,), null=null, dtype=table.dtype, device=table.device
        )  # fmt: skip

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self._marginals(x, t, cond)

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        if isinstance(self.process, Masked):  # whose posterior does not depend on t
            return self(x, 1.0, cond)
        return torch.cat([self(x[rows], t, None if cond is None else cond[rows]) for t, rows in times.parts()])

    def encode(self, cond: Any) -> Encoded:
        if cond is not None and cond not in range(len(self.table) - 1):
            raise ValueError(f"cond={cond!r}: this table has {len(self.table) - 1} classes, counted from 0")
        return self.null if cond is None else torch.tensor(cond + 1, device=self.device)

    def log_probs(self, x: Tensor, cond: int | None = None) -> Tensor:
        """log p(x) of whole sequences (rows, L)."""
        place = self.vocab_size ** torch.arange(self.length - 1, -1, -1, device=x.device)
        return self.table[0 if cond is None else cond + 1][(x * place).sum(-1)]

    def posterior(self, x: Tensor, t: float, cond: Encoded = None) -> Tensor:
        """log p(x_0 | x_t) over all states, (rows, V^L), in the order of `states`."""
        same = x[:, None] == self.states
        if isinstance(self.process, Masked):
            fits = torch.where(same | (x == self.vocab_size)[:, None], 0.0, -torch.inf).sum(-1)
        else:
            other = t / self.vocab_size
            fits = same.double().mul_(math.log(1 - t + other) - math.log(other)).sum(-1)
        prior = self.table[:1] if cond is None else self.table[cond]
        return (prior + fits.double()).log_softmax(-1)

    def _marginals(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        """log p(x_0^i = v | x_t); uniform where x_t has probability zero."""
        p = self.posterior(x, t, cond).exp().nan_to_num(1.0)
        hot = torch.nn.functional.one_hot(self.states, self.vocab_size).to(p)
        marginal = (p @ hot.flatten(1)).view(len(x), self.length, self.vocab_size)
        return (marginal / marginal.sum(-1, keepdim=True)).log().clamp(min=LOG_ZERO).to(self.dtype)

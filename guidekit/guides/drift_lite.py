r"""DriftLite (Ren et al., 2025), https://arxiv.org/abs/2509.21655: Feynman-Kac correctors with the drift that makes
their weights vary least.

A Feynman-Kac path p_t (`FKC`, whose symbols these are) leaves its drift free: for any vector field b the particles
follow p_t as before if, in y = x_t/alpha_t and dtau = -d(sigma_t/alpha_t)^2,

    dy += theta b dtau,     dlog w += theta h dtau,     h = div b + <b, grad log p_t>,     E_p[h] = 0.

With g the rate of FKC's own log-weights, and for fields b_k with their h_k, the variance of the rate g + sum_k theta_k
h_k over the particles is least (VCG, variance-controlling guidance) at

    theta = -Cov_W(h, h)^-1 Cov_W(h, g),

a system of K equations, solved in each group at each step with its weights W. The fields are

    state     y/(1 + u), u = (sigma_t/alpha_t)^2     stretches; div b = dim/(1 + u)
    score     s_i of each factor q_i                 as if its power were another; div b by Hutchinson's estimate
    reward    grad phi                               as if the tilt were another; div b by the same, through grad r

For a Gaussian model with a linear reward, `reward` alone leaves no variance but that of the steps.

theta depends on the particles before the move, and on nothing that is drawn later. Given those it is a number, and the
expectation of every weighted mean is that of a drift that was fixed beforehand: to estimate theta from a finite
population costs efficiency, and no bias but in the error of the steps, which all of this shares with FKC. A ridge of
(K/ESS)^2 of a field's variance keeps the drift small where few particles would decide it. With fewer `probes` than
dimensions, weights take exp of a noisy integral, an error of the same order. The first move has no drift, as its
particles are noise. The paper's other variant, which controls an energy (ECG), is not made here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import random
from ..engine.card import Paper
from ..engine.population import Population
from ..engine.scoring import same
from ..engine.strength import Auto
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..errors import NetworkError, is_count
from ..models.base import Model
from ..process import Gaussian
from .fkc import FKC, Corrector
from .shared.twist import gradient

BASIS = ("state", "score", "reward")
_RIDGE = 1e-4  # of the variance of a field: fields may be copies of each other while the state is noise


class DriftLite:
    """FKC with the drift of least variance, in the same forms, which take the same options and

    basis    the fields: some of "state", "score" and "reward"; None is all that there are
    probes   random directions by which divergences are estimated; as many as there are dimensions make them exact

    NFE as FKC's. "score" takes a backward pass through the network for each factor and probe, and "reward" second
    derivatives of the reward.

    >>> import guidekit as gk
    >>> gk.DriftLite.anneal(2.0).fields
    ('state', 'score')
    """

    card = replace(
        FKC.card,
        about="FKC with the drift that makes its weights vary least",
        processes=(Gaussian,),
        refusal="adds a drift to Gaussian noise, and tokens have none: use FKC",
        rows="1 for each factor but the first, and backward passes",
        exact="the product, for small steps",
        paper=Paper(
            "ren2025driftlite",
            "Ren, Yinuo and Gao, Wenhao and Ying, Lexing and Rotskoff, Grant M. and Han, Jiequn",
            "DriftLite: Lightweight Drift Control for Inference-Time Scaling of Diffusion Models",
            2025,
            "2509.21655",
        ),
        example="gk.DriftLite.cfg(2.0)",
    )

    @staticmethod
    def cfg(scale: float, **options: Any) -> Controlled:
        """q_null^(1 - scale) q_cond^scale; see `FKC.cfg`."""
        return _controlled(FKC.cfg, scale, **options)

    @staticmethod
    def anneal(beta: float, **options: Any) -> Controlled:
        """q^beta; see `FKC.anneal`."""
        return _controlled(FKC.anneal, beta, **options)

    @staticmethod
    def product(other: Model, power: float = 1.0, **options: Any) -> Controlled:
        """q q_other^power; see `FKC.product`."""
        return _controlled(FKC.product, other, power, **options)

    @staticmethod
    def tilt(
        reward: Any, alpha: float | str | Auto, schedule: Callable[[float], float] | None = None, **options: Any
    ) -> Controlled:
        """q exp(reward/alpha); see `FKC.tilt`."""
        return _controlled(FKC.tilt, reward, alpha, schedule, **options)


def _controlled(form: Callable[..., Corrector], *given: Any, **options: Any) -> Controlled:
    own = {k: options.pop(k) for k in ("basis", "probes") if k in options}
    return Controlled(**vars(form(*given, **options)), **own)


@dataclass(frozen=True)
class Controlled(Corrector):
    """The guide that the forms of DriftLite make."""

    basis: tuple[str, ...] | None = None
    probes: int = 1

    card = DriftLite.card

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.basis is not None and (not self.basis or not set(self.basis) <= set(self._possible)):
            raise ValueError(f"DriftLite(basis={self.basis!r}): here there is {', '.join(self._possible)}")
        if not is_count(self.probes):
            raise ValueError(f"DriftLite(probes={self.probes!r}): a number of random directions, at least 1")

    @property
    def _possible(self) -> tuple[str, ...]:
        return BASIS if self.reward is not None else BASIS[:2]

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are used, in the order of their names here."""
        return tuple(name for name in self._possible if self.basis is None or name in self.basis)

    @property
    def grad(self) -> bool:  # type: ignore[override]
        return "score" in self.fields

    def check(self, model: Model, steps: int) -> None:
        DriftLite.card.refuse("DriftLite", model.process)
        super().check(model, steps)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor, Tree]:
        path, before = (None, None) if memo is None else (memo[0], memo[1:])  # type: ignore[index]
        log_w, path = self._path(view, path)
        if view.step.last:
            h, b, g = before[:3]  # type: ignore[index]
        else:
            h, b = self._fields(view)
            g = self._rate_ahead(view, path)
        theta = torch.zeros_like(h)
        if before is not None:
            w_t, w_s = (_signal(view, t) for t in (view.step.came.t, view.step.came.s))  # type: ignore[union-attr]
            log_w = log_w + (before[3] * (before[0] + h)).sum(1) / 2 * (w_s - w_t)  # type: ignore[operator, index]
        return log_w, (path, h, b, g, theta)

    def weigh(self, population: Population, step: Step) -> Population:
        """theta of each group, for the move from here."""
        path, h, b, g, _ = population.memos[step.place]  # type: ignore[misc]
        if step.last:
            return population
        W, g, h = (population.by_group(v) for v in (population.log_w, g, h))  # type: ignore[arg-type]
        theta = least_variance(W.softmax(1), g, h)
        memo = path, h.flatten(0, 1), b, g.flatten(), theta[:, None].expand_as(h).flatten(0, 1)
        return population.weighed(step.place, torch.zeros_like(population.log_w), memo)

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        assert step.move is not None
        (a_t, s_t), (a_s, s_s) = (model.process.scales(t) for t in (step.move.t, step.move.s))
        if population.memos[step.place] is None or a_t == 0:
            return kernel
        *_, b, _, theta = population.memos[step.place]  # type: ignore[misc]
        drift = torch.einsum("nk,nk...->n...", theta, b)  # type: ignore[arg-type]
        return Drifted(kernel, (a_s * ((s_t / a_t) ** 2 - (s_s / a_s) ** 2) * drift).to(population.x))

    # g, h_k and b_k ----------------------------------------------------------------------------------------------

    def _rate_ahead(self, view: View, path: Tree) -> Tensor:
        """What FKC is about to add to the log-weights in the move from here, over the change of w = 1/(1 + u)."""
        rate, r, pull = path  # type: ignore[misc]
        move = view.step.move
        assert move is not None
        (a_t, _), (a_s, _) = (view.model.process.scales(t) for t in (move.t, move.s))
        rise = self._beta(move.s, view) - self._beta(move.t, view) if self.reward is not None else 0.0
        return rate + (r * rise + pull * (a_s - a_t)) / (_signal(view, move.s) - _signal(view, move.t))  # type: ignore

    def _fields(self, view: View) -> tuple[Tensor, Tensor]:
        """h_k dtau/dw, float64 (rows, K), and b_k, float64 (rows, K, *shape)."""
        alpha, sigma = view.model.process.scales(view.t)
        dim = view.x[0].numel()
        x = view.x.detach().double()
        scores = [alpha * view.evals[need].detach().double() - x for need, _ in self.powers]
        count = sum(len(scores) if name == "score" else 1 for name in self.fields)
        if alpha == 0:
            return view.zeros()[:, None].repeat(1, count), torch.stack([0 * x] * count, 1)
        w, to_y = alpha**2 / (alpha**2 + sigma**2), alpha / sigma**2
        fields: list[tuple[Tensor | float, Tensor]] = []
        grad_log_p = sum(c * to_y * s for s, (_, c) in zip(scores, self.powers, strict=True))
        if self.reward is not None:
            slope = self._slope(view)[1].double() * (alpha * self._beta(view.t, view))
            grad_log_p = grad_log_p + slope
        if "state" in self.fields:
            fields.append((w * dim, w / alpha * x))
        if "score" in self.fields:
            divs = (alpha * self._divergence(view, view.evals[need]) - dim for need, _ in self.powers)
            fields += [(alpha * to_y * div, to_y * s) for div, s in zip(divs, scores, strict=True)]
        if "reward" in self.fields:
            fields.append((alpha**2 * self._beta(view.t, view) * self._laplacian(view), slope))
        h = [div + (b * grad_log_p).flatten(1).sum(1) for div, b in fields]
        return torch.stack(h, 1) / w**2, torch.stack([b for _, b in fields], 1)

    def _divergence(self, view: View, field: Tensor) -> Tensor:
        """div_x of a prediction."""
        if not field.requires_grad:
            raise NetworkError(
                "DriftLite takes the divergence of the network's prediction, and no gradient reaches x_t: leave "
                '"score" out of basis, or let the network be differentiated'
            )
        return self._traced(view, lambda v: torch.autograd.grad(field, view.x, v.to(field), retain_graph=True)[0])

    def _slope(self, view: View) -> tuple[Tensor, Tensor]:
        return self._sloped(view)[:2]

    def _sloped(self, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """r(x_t), 0 where it is unknown; its gradient; and the same with its graph, and the state that it starts at."""

        def make() -> tuple[Tensor, Tensor, Tensor, Tensor]:
            twice = "reward" in self.fields
            plain = sdpa_kernel(SDPBackend.MATH) if twice else nullcontext()  # others have no second derivative
            with torch.enable_grad(), plain:
                x = view.x.detach().requires_grad_()
                r = view.scorer(self.reward, view.decode(x), view.group)
                known = r.isfinite()
                slope = _gradient(torch.where(known, r, 0.0), x, twice)
                slope = torch.where(known.view(-1, *[1] * (x.dim() - 1)), slope, 0.0)
            return torch.where(known, r.detach(), 0.0), slope.detach(), slope, x

        return view.once(("curved", same(self.reward)), make)

    def _laplacian(self, view: View) -> Tensor:
        """Delta r; 0 where the gradient does not depend on x."""
        slope, x = self._sloped(view)[2:]
        if not slope.requires_grad:
            return view.zeros()

        def along(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(slope, x, v.to(slope), retain_graph=True, allow_unused=True)
            return torch.zeros_like(x) if found is None else found

        return self._traced(view, along)

    def _traced(self, view: View, along: Callable[[Tensor], Tensor]) -> Tensor:
        """The trace of a Jacobian J, given v -> v J, by random signs v; exact if there are as many as dimensions."""
        x, total = view.x.detach(), view.zeros()
        dim = x[0].numel()
        exact = self.probes >= dim
        for i in range(min(self.probes, dim)):
            if exact:
                v = (torch.arange(dim, device=x.device) == i).to(x).expand(len(x), dim).view_as(x)
            else:
                v = random.normal(random.fold(view.key, i), view.model.shape, x.dtype).sign()
            total = total + (v * along(v)).flatten(1).sum(1).double()
        return total if exact else total / self.probes


def _gradient(r: Tensor, x: Tensor, twice: bool) -> Tensor:
    """grad_x of each row, which can be differentiated again if `twice`."""
    if not (twice and r.requires_grad):
        return gradient(r, x)
    (slope,) = torch.autograd.grad(r.sum(), x, create_graph=True, allow_unused=True)
    return gradient(r, x) if slope is None else slope


def least_variance(W: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """The theta (groups, K) at which g + sum_k theta_k h_k varies least under the weights W: W, g (groups, n), h
    (groups, n, K). Of fields that are copies of each other, all have a share.

    >>> import torch
    >>> h = torch.tensor([[[1.0], [2.0], [4.0]]], dtype=torch.float64)
    >>> theta = least_variance(torch.full((1, 3), 1 / 3), 1 - 0.5 * h[..., 0], h)
    >>> round(float(theta) * (1 + 1 / 9), 3)
    0.5
    """
    g, h = (v - (W.view(*W.shape, *[1] * (v.dim() - 2)) * v).sum(1, keepdim=True) for v in (g, h))
    scale = (W[..., None] * h.square()).sum(1, keepdim=True).sqrt().clamp(min=1e-30)
    h = h / scale
    held = (W[..., None] * h).mT
    K, ess = h.shape[-1], W.square().sum(1).reciprocal()
    ridge = (_RIDGE + (K / ess) ** 2)[:, None, None] * torch.eye(K, dtype=h.dtype, device=h.device)
    root = torch.linalg.cholesky_ex(held @ h + ridge)[0]
    return -torch.cholesky_solve(held @ g[..., None], root)[..., 0] / scale[:, 0]


@dataclass(frozen=True)
class Drifted:
    """A kernel whose samples are then moved by a drift, of which the weights are counted elsewhere."""

    kernel: Any
    drift: Tensor

    @property
    def random(self) -> bool:
        return self.kernel.random

    @property
    def history(self) -> tuple[Tensor, ...]:
        return self.kernel.history

    @property
    def mean(self) -> Tensor:
        return self.kernel.mean + self.drift

    def push(self, noise: Tensor | None) -> Tensor:
        return self.kernel.push(noise) + self.drift

    def log_prob(self, x: Tensor) -> Tensor:
        return self.kernel.log_prob(x - self.drift)

    def correction(self, p: Any, x: Tensor) -> Tensor:
        """log p/q of both kernels, moved alike."""
        if self.kernel is p:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return self.kernel.correction(p, x - self.drift)


def _signal(view: View, t: float) -> float:
    """w = 1/(1 + u)."""
    alpha, sigma = view.model.process.scales(t)
    return alpha**2 / (alpha**2 + sigma**2)

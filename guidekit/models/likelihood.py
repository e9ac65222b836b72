r"""log p(x) of samples under a base model: `Model.log_prob`.

**Gaussian**: the density of the probability-flow ODE (Song et al., 2021, https://arxiv.org/abs/2011.13456). With
y = x/alpha and rho = sigma/alpha it is dy/dlog(rho) = y - d, and so

    log p(x_0) = log N(y_T; 0, rho_T^2) + int (D - tr dd/dy) dlog(rho),      y = x_0 where rho = rho_0,

by Runge and Kutta's method of fourth order between rho_0 = 0.002 (or the least of the schedule) and rho_T = 200 (or its
largest). Noise of size rho_0 is thus in the data. The trace is exact, or v' (dd/dy) v with random signs v (Hutchinson).

**Ordered tokens**: sum_i log p(x_i | x_<i), exactly; what follows the end of a text counts nothing.

**Masked tokens**: the bound of all orders (Ou et al., 2024, https://arxiv.org/abs/2406.03736), for k of the L positions
masked at random, M the set of them,

    log p(x) >= E_k E_M [ L/k sum_{i in M} log p_i(x_i | x without M) ],      the network at t = k/L.

It is log p(x) where the network's conditionals are those of one distribution.

**Uniform tokens**: the bound of the chain with N moves (Ho et al., 2020, https://arxiv.org/abs/2006.11239),

    log p(x) >= -sum_j E KL( q(x_s | x_t, x_0) || p(x_s | x_t) ),             x_t ~ q(x_t | x_0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..process import LOG_ZERO, Gaussian, Masked, Uniform
from ..solvers import times
from .networks import lent

EXACT = 64  # numbers in a sample up to which traces are exact by default

Predict = Callable[[Tensor, float], Tensor]  # predictions in states x at time t


@dataclass(frozen=True)
class Asked:
    """How some samples are evaluated: with which random keys of theirs, and with how many steps and draws."""

    predict: Predict
    keys: Tensor
    seed: int
    steps: int | None
    draws: int | None

    def shares(self, usual: int) -> Iterator[tuple[Tensor, float]]:
        """For every draw, keys of its own, and a place in [0, 1): one in each of as many equal parts."""
        count = self.draws or usual
        for draw in range(count):
            place = random.uniform(random.fold(random.fold(random.key(self.seed), "log_prob"), draw), (1,))
            yield random.fold(self.keys, draw), (draw + float(place)) / count


def log_prob(
    model: Any, samples: Any, cond: Any, steps: int | None, draws: int | None, seed: int, batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """log p and standard errors, float64 (rows,), as `Model.log_prob` says."""
    for name, value in (("steps", steps), ("draws", draws), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: a number of at least 1, or None")
    if getattr(model, "lengths", None) is not None:
        raise ValueError("log_prob knows no model with lengths=, whose texts have a length that is drawn first")
    x = model.state(model.as_states(samples).view(-1, *model.shape))
    conds = cond if isinstance(cond, list) else [cond]
    if not conds or len(x) % len(conds):
        raise ValueError(f"{len(x)} samples for {len(conds)} conditions: as many for each of them are needed")
    encoded, index = model.encode_all(conds), torch.arange(len(x), device=x.device)
    keys = random.fold(random.fold(random.key(seed, x.device), "log_prob"), index)
    found = []
    with torch.inference_mode(False), torch.no_grad(), model.lent(), lent(model.modules()):
        for rows in index.split(batch_size or len(x)):
            own = _of(encoded, rows // (len(x) // len(conds)))
            asked = Asked(partial(_predicted, model, own), keys[rows], seed, steps, draws)
            found.append(_kind(model)(model, x[rows], asked))
    values, errors = (torch.cat(v) for v in zip(*found, strict=True))
    return values, errors


def _predicted(model: Any, cond: Any, x: Tensor, t: float) -> Tensor:
    return model(x, t, cond)


def _kind(model: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    process = model.process
    if isinstance(process, Gaussian):
        return _flow
    if not isinstance(process, (Masked, Uniform)):
        raise ValueError(f"log_prob is for Gaussian, masked and uniform models, not for {type(process).__name__}")
    return _uniform if not isinstance(process, Masked) else _ordered if process.places else _masked


def _of(encoded: Any, group: Tensor) -> Any:
    """The conditions of rows of these groups."""
    if isinstance(encoded, dict):
        return {k: _of(v, group) for k, v in encoded.items()}
    return None if encoded is None else encoded[group]


def _averaged(terms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Means of independent estimates, and their standard errors."""
    found = torch.stack(terms).double()
    error = found.std(0) / math.sqrt(len(terms)) if len(terms) > 1 else torch.full_like(found[0], torch.nan)
    return found.mean(0), error


# Gaussian ------------------------------------------------------------------------------------------------------------


def _flow(model: Any, x: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """The density of the flow, by steps of two intervals of the grid."""
    grid, h = times.levels(model.process.schedule, 2 * (asked.steps or 50), model.process.t_max)
    exact = asked.draws is None and x[0].numel() <= EXACT
    probes = _units(x) if exact else [_signs(asked.keys, i, x) for i in range(asked.draws or 8)]
    slope = _slope(model, asked.predict, grid, probes)
    y, gain = x, torch.zeros(len(probes), len(x), dtype=torch.float64, device=x.device)
    for i in range(0, len(grid) - 1, 2):
        k1, a1 = slope(y, i)
        k2, a2 = slope(y + h * k1, i + 1)
        k3, a3 = slope(y + h * k2, i + 1)
        k4, a4 = slope(y + 2 * h * k3, i + 2)
        y, gain = y + h / 3 * (k1 + 2 * k2 + 2 * k3 + k4), gain + h / 3 * (a1 + 2 * a2 + 2 * a3 + a4)
    alpha, sigma = model.process.scales(grid[-1])
    z = (y * (alpha / sigma)).flatten(1).double()
    prior = -0.5 * z.square().sum(1) - z.shape[1] * (math.log(sigma / alpha) + 0.5 * math.log(2 * math.pi))
    if exact:
        return prior + gain.sum(0), torch.zeros_like(prior)
    mean, error = _averaged(list(gain))
    return prior + mean, error


def _slope(
    model: Any, predict: Predict, grid: Sequence[float], probes: list[Tensor]
) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
    """(y, i) -> y - d, and v' (1 - dd/dy) v for each probe v, (probes, rows)."""

    def slope(y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        alpha = model.process.scales(grid[i])[0]
        with torch.enable_grad():
            state = (alpha * y).requires_grad_()
            d = predict(state, grid[i])
            if not d.requires_grad:
                raise ValueError("no gradient passes through the network, which the density of its flow needs")
        pulled = [v - alpha * torch.autograd.grad(d, state, v, retain_graph=True)[0] for v in probes]
        found = [(v * g).flatten(1).sum(1, dtype=torch.float64) for v, g in zip(probes, pulled, strict=True)]
        return y - d.detach(), torch.stack(found)

    return slope


def _units(x: Tensor) -> list[Tensor]:
    """The unit vectors, each for all rows."""
    return [v.view(1, *x.shape[1:]).expand_as(x) for v in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)]


def _signs(keys: Tensor, draw: int, x: Tensor) -> Tensor:
    """Random signs of every row."""
    u = random.uniform(random.fold(keys, draw), tuple(x.shape[1:]))
    return torch.where(u < 0.5, -1.0, 1.0).to(x)


# tokens --------------------------------------------------------------------------------------------------------------


def _ordered(model: Any, x: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """The probability of each token given those before it, until the end of the text."""
    process, L = model.process, x.shape[1]
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i in range(L):
        seen = x.clone()
        seen[:, i:] = process.V
        open = ~process.decided(seen)
        told = process.told(seen)[:, i].double()
        if bool(open.any()):
            told = torch.where(open[:, None], asked.predict(seen, (L - i) / L)[:, i].double(), told)
        total = total + _certain(told.gather(-1, x[:, i, None])[:, 0])
    return total, torch.zeros_like(total)


def _masked(model: Any, x: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """The bound of all orders."""
    L, terms = x.shape[1], []
    for keys, share in asked.shares(64):
        k = 1 + int(L * share)
        hidden = random.uniform(keys, (L,)).argsort(-1).argsort(-1) < k
        told = asked.predict(torch.where(hidden, model.process.V, x), k / L).double()
        own = _certain(told.gather(-1, x[..., None])[..., 0])
        terms.append(L / k * torch.where(hidden, own, 0.0).sum(-1))
    return _averaged(terms)


def _uniform(model: Any, x: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """The bound of a chain of so many moves."""
    process, terms = model.process, []
    moves = process.moves(asked.steps or 1000, None)
    for keys, share in asked.shares(64):
        move = moves[int(len(moves) * share)]
        x_t = process.noised(x, process.noise(keys, process.noise_shape(model.shape), model.dtype), move.t)
        p = process.kernel(x_t, (asked.predict(x_t, move.t),), move).log_probs
        q = process.kernel(x_t, (process.told(x),), move).log_probs
        divergence = torch.where(q == -torch.inf, 0.0, q.exp() * (q - p)).flatten(1).sum(-1)
        terms.append(-len(moves) * divergence)
    return _averaged(terms)


def _certain(log_p: Tensor) -> Tensor:
    """Log-probabilities without the floor that those of tokens have."""
    return torch.where(log_p < LOG_ZERO / 2, -torch.inf, log_p)

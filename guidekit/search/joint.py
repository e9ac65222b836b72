r"""The fit of `gk.solvers.Joint`: a light layer on top of a model, by which tokens of a move know of each other.

n samples are revealed one position at a time, and what the network says on the way is kept. Then, of random times of
these paths, the layer is to say from the prediction at x_t and the r < tokens tokens that came next what the network
said with them in place, at the masked positions to the right of these tokens:

    minimise  E KL(p(. | x_t and the tokens) || q),        q_i(v) ~ p_i(v | x_t) exp(U_{i,v} . sum_j E_{j, x_j})
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import random
from ..engine.run import Run
from ..errors import is_count
from ..models.base import Condition, Model
from ..process import Masked
from ..solvers import FirstHitting
from ..solvers.joint import Joint


class Paths(NamedTuple):
    """x and log p at every time of n samples, (times, n, length) and (times, n, length, V); the last x has no mask."""

    x: Tensor
    log_p: Tensor


def joint(
    model: Model,
    tokens: int = 4,
    n: int = 256,
    *,
    rank: int = 16,
    updates: int = 500,
    rate: float = 0.03,
    cond: Condition = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Joint:
    """The solver `Joint` for a masked model, from n samples (of each condition) that are revealed one at a time.

    The samples cost n rows of the network for each position, once, and their predictions are kept: n length^2 V
    numbers. The fit itself evaluates no network.

    tokens    positions that one evaluation reveals
    rank      of the layer
    updates   of Adam with this `rate`, each of all n paths at a time of their own

    >>> import torch, guidekit as gk
    >>> table = gk.analytic.TokenTable(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
    >>> solver = joint(table, 2, 100, rank=2, updates=50)
    >>> gk.sample(table, 100, steps=1, solver=solver).cost.network_calls
    1
    """
    if type(model.process) is not Masked or model.process.places:
        raise ValueError(f"joint: a masked model with one mask, that draws in any order, is needed, not {model!r}")
    if not is_count(tokens, 2) or tokens > model.shape[0]:
        raise ValueError(f"joint(tokens={tokens!r}): an int of 2 to {model.shape[0]}, the positions of this model")
    for name, value in {"n": n, "rank": rank, "updates": updates}.items():
        if not is_count(value):
            raise ValueError(f"joint({name}={value!r}): an int of at least 1")
    paths = _paths(
        Run(model, n, steps=model.shape[0], solver=FirstHitting(), cond=cond, seed=seed, batch_size=batch_size)
    )
    with torch.enable_grad(), torch.inference_mode(False):
        return _fitted(paths, tokens, rank, updates, rate, random.fold(random.key(seed), "joint"))


def _paths(run: Run) -> Paths:
    x, log_p = [], []
    with run.borrowed():
        population = run.start()
        for index in range(len(run.moves)):
            x.append(population.x)
            log_p.append(population.predictions[0].float().log_softmax(-1))
            population = run.advance(population, index)
    return Paths(torch.stack([*x, population.x]), torch.stack(log_p))


def _fitted(paths: Paths, tokens: int, rank: int, updates: int, rate: float, key: Tensor) -> Joint:
    times, n, length, V = paths.log_p.shape
    said = random.normal(random.fold(key, "said"), (length, V, rank)).to(paths.x.device).requires_grad_()
    heard = torch.zeros_like(said).requires_grad_()
    adam = torch.optim.Adam([said, heard], rate)
    rows = random.fold(key, torch.arange(n)).to(paths.x.device)
    for update in range(updates):
        u, v = random.uniform(random.fold(rows, update), (2,)).unbind(-1)
        r = 1 + ((tokens - 1) * u).long()
        k = ((times - r) * v).long()
        adam.zero_grad()
        _loss(paths, k, r, said, heard).backward()
        adam.step()
    return Joint(said.detach(), heard.detach(), tokens)


def _loss(paths: Paths, k: Tensor, r: Tensor, said: Tensor, heard: Tensor) -> Tensor:
    """Mean divergence, at positions to the right, of what the layer makes of time k with the next r tokens."""
    row, mask = torch.arange(len(k), device=k.device), paths.log_p.shape[-1]
    old, new, log_p, truth = paths.x[k, row], paths.x[k + r, row], paths.log_p[k, row], paths.log_p[k + r, row]
    drawn, place = old != new, torch.arange(old.shape[1], device=k.device)
    h = torch.where(drawn[..., None], said[place, new.clamp(max=mask - 1)], 0.0).sum(1)
    log_q = (log_p + torch.einsum("ivr,nr->niv", heard, h)).log_softmax(-1)
    right = (new == mask) & (drawn.flip(1).cumsum(1).flip(1) == 0)
    divergence = (truth.exp() * (truth - log_q)).sum(-1)
    return torch.where(right, divergence, 0.0).sum() / right.sum().clamp(min=1)

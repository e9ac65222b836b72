r"""The Gumbel noise of a chain of tokens that comes to a given sample (DICE: He et al., 2025,
https://arxiv.org/abs/2410.08207).

Tokens move by x_s = argmax_v (log p_v + g_v) with Gumbel noise g. States between the sample and noise are drawn by the
forward process. Given that v* is the largest, the maximum G is a Gumbel variable and independent of v*, and the others
are Gumbel variables cut off at G (Maddison et al., 2014, https://arxiv.org/abs/1411.0030), log p being normalised:

    g_v* = G - log p_v*,      g_v = -log(exp(-G) + exp(-(log p_v + g'_v))) - log p_v,      g' fresh noise.

Where there is a mask, it is decided first whether that is drawn, by U = exp(-exp(-g)) < m with the mask's own g. Given
that it is, U is m U', and given that it is not, 1 - U is (1 - m)(1 - U'), with U' fresh.

So every state, and the sample, is met again exactly, and the noise has the law that it has given the sample.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ..process import Categorical
from ..solvers import Move
from ..solvers.token_solver import chosen
from .walk import Walk


def check(walk: Walk) -> None:
    """The chain is an ancestral one and begins in pure noise."""
    if walk.moves[0].t < walk.run.model.process.t_max:
        raise ValueError(f"the times of a chain of tokens begin at 1, in pure noise, and not at {walk.moves[0].t}")
    solver = chosen(walk.moves)
    if solver is not None:
        raise ValueError(f"gk.invert knows the noise of ancestral chains, and not of {solver!r}: leave solver=None")


def noise(walk: Walk, x_0: Tensor) -> Tensor:
    """The noise of the whole chain, (moves + 1, rows, length, states)."""
    run, process = walk.run, walk.run.model.process
    path = _path(walk, x_0)
    fresh = walk.noise(0)
    chain = [given(torch.full_like(fresh, 1.0).log_softmax(-1), path[0], fresh)]
    pop = walk.seen(run.born(), process.prior(chain[0].clone(), walk.moves[0].t), 0)
    for index, (_, x) in enumerate(pairwise(path)):
        kernel = run.kernels(pop, index)[1]
        _check_possible(kernel.table, x)
        chain.append(met(kernel.table, x, walk.noise(index + 1)))
        pop = walk.seen(pop, kernel.push(chain[-1].clone()), index + 1)
    return torch.stack(chain)


def met(kernel: Categorical, x: Tensor, fresh: Tensor) -> Tensor:
    """The noise of a move, given that it leads to x."""
    V, log_p = kernel.mask, kernel.log_probs
    if V is None:
        return given(log_p, x, fresh)
    hidden, log_m = x == V, log_p[..., V]
    own = torch.where(hidden, below(log_m, fresh[..., V]), above(log_m, fresh[..., V]))
    letters = given(log_p[..., :V].log_softmax(-1), x.clamp(max=V - 1), fresh[..., :V])
    return torch.cat([torch.where(hidden[..., None], fresh[..., :V], letters), own[..., None]], -1)


def below(log_m: Tensor, fresh: Tensor) -> Tensor:
    """Gumbel noise given that its uniform number is below m."""
    return -torch.logaddexp(log_m.neg().log(), -fresh)


def above(log_m: Tensor, fresh: Tensor) -> Tensor:
    """Gumbel noise given that it is not."""
    left = log_m.expm1() * fresh.neg().exp().neg().expm1()  # (1 - m)(1 - U)
    return -(-torch.log1p(-left)).log()


def given(log_p: Tensor, x: Tensor, fresh: Tensor) -> Tensor:
    """Gumbel noise given that x is the argmax of log_p + noise."""
    place = x[..., None]
    top = fresh.gather(-1, place)
    others = -torch.logaddexp(-top, -(log_p + fresh)) - log_p
    others = torch.where(log_p == -torch.inf, fresh, others)
    return others.scatter(-1, place, top - log_p.gather(-1, place))


def _path(walk: Walk, x: Tensor) -> list[Tensor]:
    """States from noise to the sample, by the forward process."""
    path = [x]
    for index, move in reversed(list(enumerate(walk.moves))):
        up = walk.run.model.process.kernel(path[0], (), Move(move.s, move.t))
        path.insert(0, up.push(walk.noise(index, "path")))
    return path


def _check_possible(kernel: Categorical, x: Tensor) -> None:
    impossible = kernel.log_probs.gather(-1, x[..., None])[..., 0] == -torch.inf
    if impossible.any():
        row, place = impossible.nonzero()[0].tolist()
        raise ValueError(f"sample {row}: its token at position {place} has probability zero on the way there")

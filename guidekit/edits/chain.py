r"""The noise of a stochastic chain that comes to a given sample: replays are exact, and edits keep what it holds.

States x_T, ..., x_0 are drawn around the sample, and the noise is what leads from each to the next,

    z = (x_s - m(x_t)) / c,      x_s = m(x_t) + c z        m the sampler's mean

    chain           x_s ~ q(x_s | x_t, x_0), the forward process (CycleDiffusion: Wu and De la Torre, 2022,
                    https://arxiv.org/abs/2210.05559)
    edit_friendly   x_s = alpha_s x_0 + sigma_s z_s, with an independent z_s at every time (DDPM inversion:
                    Huberman-Spiegelglas et al., 2023, https://arxiv.org/abs/2304.06140): larger noise that says more
    a shift         of `edit_friendly`: x_s has the noise of the time s - shift, and the network is told s (TurboEdit:
                    Deutch et al., 2024, https://arxiv.org/abs/2408.00735). Noise that is too large for a model of a
                    few steps becomes as large as that which the model was trained with

TurboEdit makes an edit from c to c' stronger by pseudo-guidance, d <- d_c + w (d_c' - d_c) on the way down: that is
gk.Compose(c, 1 - w, own=w) in a run at the condition c'.

The last move has no noise and goes to the clean mean. So the last noisy state is moved to where the clean mean is the
sample, by the fixed-point iteration of `deterministic`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..process import Normal
from ..solvers.base import Point
from ..solvers.ddim import posterior
from .deterministic import solved
from .walk import Walk


def check(walk: Walk) -> None:
    """All moves but the last draw noise."""
    if len(walk.moves) < 2 or any(move.c == 0 for move in walk.moves[:-1]) or walk.moves[-1].c > 0:
        raise ValueError(
            f"solver={walk.run.solver!r} with {len(walk.moves)} moves: method='chain' needs a stochastic solver, like "
            "gk.solvers.DDPM(), and at least two steps; for a deterministic one there is method='fixed_point'"
        )


def noise(walk: Walk, x_0: Tensor, iterations: int, independent: bool, shift: float = 0.0) -> Tensor:
    """The noise of the whole chain, (moves + 1, rows, ...)."""
    run, process = walk.run, walk.run.model.process
    x = process.noised(x_0, walk.noise(0), max(walk.moves[0].t - shift, 0.0))
    chain = [first(walk, x)]
    pop = walk.seen(run.born(), process.prior(chain[0].clone(), walk.moves[0].t), 0)
    for index, move in enumerate(walk.moves[:-1]):
        kernel = process.kernel(pop.x, pop.predictions, move)
        if not isinstance(kernel, Normal):
            raise ValueError(f"{run.solver!r} steps by its own arithmetic: give solver=gk.solvers.DDPM()")
        z, aim = walk.noise(index + 1), max(run.steps[index + 1].t - shift, 0.0)
        wanted = process.noised(x_0, z, aim) if independent else _between(walk, pop.x, x_0, z, index)
        if index == len(walk.moves) - 2:
            wanted = solved(walk, wanted, x_0, index + 1, iterations)
        chain.append((wanted - kernel.mean) / move.c)
        pop = walk.seen(pop, kernel.push(chain[-1].clone()), index + 1)  # as the sampler will reach it, to the last bit
    return torch.stack([*chain, torch.zeros_like(x_0)])


def first(walk: Walk, x: Tensor) -> Tensor:
    """The starting noise of the state at the first time."""
    return x / walk.run.model.process.prior(torch.ones_like(x), walk.moves[0].t)


def _between(walk: Walk, x: Tensor, x_0: Tensor, z: Tensor, index: int) -> Tensor:
    """A draw of q(x_s | x_t, x_0)."""
    t, s = (Point(v, *walk.run.model.process.scales(v)) for v in (walk.moves[index].t, walk.moves[index].s))
    move = posterior(t, s, 1.0)
    return move.a * x + move.b[0] * x_0 + move.c * z

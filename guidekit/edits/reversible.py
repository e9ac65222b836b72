r"""Inversion of reversible samplers: BELM (Wang et al., 2024, https://arxiv.org/abs/2410.07273) and BDIA run backwards.

A move of theirs is linear in m, the slope of the straight line from x_t to the state x_b before it, and is solved for m
with the prediction at x_t alone. In its coordinates y = x/r and w,

    m = (x_s - a x_t - b_0 d(x_t)) / b_1,      y_b = y_t + (w_b - w_t) m.

The recursion goes up from two states: the sample, and a state from which DDIM comes to it. Whatever is taken for that
one, the sample comes back up to rounding. At the first times there is x_T, and in the place of m what the first step
adds to that of DDIM: the two parts of the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers import BDIA, BELM, Point
from ..solvers.heun import straight
from . import chain, deterministic
from .walk import Walk


def check(walk: Walk) -> None:
    """The sampler is a reversible one."""
    if not isinstance(walk.run.solver, BELM | BDIA):
        raise ValueError(f"solver={walk.run.solver!r}: method='reversible' needs gk.solvers.BELM() or BDIA()")
    walk.check_no_memory()


def noise(walk: Walk, x_0: Tensor, iterations: int) -> Tensor:
    """The two parts of the starting noise, (2, rows, ...)."""
    top = len(walk.moves) - 1
    after, x = x_0, deterministic.up(walk, x_0, top, iterations, average=False)
    for index in range(top, 0, -1):
        after, x = x, _before(walk, x, _memory(walk, after, x, index), index)
    return torch.stack([chain.first(walk, x), _memory(walk, after, x, 0)])


def _memory(walk: Walk, after: Tensor, x: Tensor, index: int) -> Tensor:
    """What the move to `after` took beside x and its prediction."""
    move = walk.moves[index]
    return (after - move.a * x - move.b[0] * walk.prediction(x, index)) / move.b[1]


def _before(walk: Walk, x: Tensor, m: Tensor, index: int) -> Tensor:
    """The state before x."""
    t, b = (Point(v, *walk.run.model.process.scales(v)) for v in (walk.moves[index].t, walk.moves[index - 1].t))
    (w, r), (w_b, r_b) = (straight(p, t.alpha == b.alpha) for p in (t, b))
    return r_b / r * x + r_b * (w_b - w) * m

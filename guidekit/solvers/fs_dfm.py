r"""The step of few-step discrete flow matching (FS-DFM: Monsefi et al., 2025), https://arxiv.org/abs/2509.20624.

The velocity of a mixture path with kappa = 1 - t moves probability to the prediction p at the rate kappa'/(1 - kappa):

    R_i(v) = (1/t) p_i(v),      v other than x_t^i.

Euler's step multiplies it with t - s; but 1/t grows during the step. The paper's cumulative scalar is its integral,

    int_s^t 1/u du = log(t/s),

so that a position jumps with probability 1 - (s/t)^(1 - p_i(x_t^i)), to a token in proportion to p_i. The last move
draws all positions from p. The paper also trains networks for large steps; only its step is here.

For masked noise this is `Ancestral` itself, which reveals a position with probability 1 - s/t. For uniform noise tokens
jump less often: one that the prediction is sure of is left alone, whereas `Ancestral` may replace it by noise and
correct it later. Samples follow p in the limit of many steps; every move has a log-probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Move
from .token_solver import Leaping


@dataclass(frozen=True)
class FSDFM(Leaping):
    """Lets positions jump to the prediction at rates that are integrated over the step, and to it alone."""

    def rates(self, p: Tensor, own: Tensor | None, move: Move) -> Tensor:
        return math.log(move.t / move.s) * p

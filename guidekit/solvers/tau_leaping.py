r"""Tau-leaping of tokens (Campbell et al., 2022), https://arxiv.org/abs/2205.14987.

Noising is a Markov jump process; its reverse jumps from x_t to the sequence with token v at position i with the rate

    R_i(v) = beta_t/V' sum_w p_i(w) q_t(v | w)/q_t(x_t^i | w),      beta_t = 1/(1 - t),

with p the prediction. A leap from t to s holds all rates at their values at (x_t, t), so that positions jump
independently of each other, with (t - s) R_i(v) jumps to v on average:

    masked noise     (t - s) p_i(v)/t,  at masked positions
    uniform noise    (t - s) (1/(V (1 - t)) + p_i(v)/t - p_i(x_t^i)/(V (1 - t) + t)),  v other than x_t^i

A position jumps with probability 1 - exp(-sum_v (t - s) R_i(v)), to a token in proportion to the rates: of several
jumps in one leap the first one is made (the authors' code makes none of them). So a leap has an exact log-probability.
Rates are infinite at t = 0, and for uniform noise at t = 1: there a move is that of `Ancestral`, which draws all
tokens from the prediction in the last one.

Samples follow p in the limit of many steps. For masked noise the ancestral kernel is the same leap with rates that are
integrated over the step, int p_i(v)/u du = p_i(v) log(t/s), and so comes nearer to p with the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Move
from .token_solver import Leaping


@dataclass(frozen=True)
class TauLeaping(Leaping):
    """Lets positions jump at the rates of the beginning of each step; exact in the limit of many steps."""

    def rates(self, p: Tensor, own: Tensor | None, move: Move) -> Tensor:
        rates = p / move.t
        if own is not None:
            other = p.shape[-1] * (1 - move.t)
            rates = rates + 1 / other - own / (other + move.t)
        return (move.t - move.s) * rates

    def leaps(self, move: Move, noising: str) -> bool:
        return super().leaps(move, noising) and (noising == "masked" or move.t < 1)

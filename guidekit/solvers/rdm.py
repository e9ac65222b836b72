r"""RDM, reparameterised discrete diffusion (Zheng, Yuan, Yu and Kong, 2023), https://arxiv.org/abs/2302.05737.

A move of masked noise can be written as a choice v_i in {0, 1} at each position,

    x_s^i = v_i y_i + (1 - v_i) [MASK],        y_i = x_t^i where that is a token, and else drawn from p_i.

The ancestral chain has v_i = 1 at tokens, and with probability (alpha_s - alpha_t)/(1 - alpha_t) at masks. RDM routes
instead: v_i = 1 at the k positions with the largest scores log max_v p_i(v), of all of them, with k the number of
tokens that the grid leaves at s. So a token whose position is no longer among the k surest is masked again. With a
temperature tau, tau s times a Gumbel number is added to the scores.

This asks for a network that judges its own tokens, as BERT, LLaDA and DPLM do. Of one that repeats them, with
probability 1, tokens have the score 0, which no other exceeds, and without a temperature RDM is `Confidence`. So it is
for every network if v_i = 1 at tokens, as the process itself has it.

The authors take the score of the token that was drawn for max_v p_i(v), which is the same where the most probable token
is taken (`gk.Temperature` near 0); here tokens keep their probabilities, and positions are chosen by the prediction
alone. Their further condition "cond", by which a token is only masked again if its score has fallen, is not here:
`Saber` has one like it. Which positions hold tokens follows from the prediction, so that moves have no log-probability.
"""

from __future__ import annotations

from dataclasses import dataclass

from .confidence import Confidence


@dataclass(frozen=True)
class RDM(Confidence):
    """Keeps tokens at the surest of all positions, so that tokens that have become unsure are masked again.

    temperature   how random the choice is at the beginning; 0: not at all
    """

    routes = True

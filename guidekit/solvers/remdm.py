r"""Remasking (ReMDM: Wang et al., 2025), https://arxiv.org/abs/2503.00307: tokens may be masked again and so corrected.

In a move from t to s, with alpha = 1 - t the fraction kept and p the prediction,

    a token            is masked with probability sigma
    a masked position  becomes v with probability (alpha_s - (1 - sigma) alpha_t)/(1 - alpha_t) p_i(v)

which leaves the marginals of the process as they are, for every sigma up to sigma_max = min(1, (1 - alpha_s)/alpha_t):

    schedule = "cap"       sigma = min(eta, sigma_max)
               "rescale"   sigma = eta sigma_max

Positions move independently, and every move has a log-probability. The last move masks nothing, and tokens that a
process keeps from the beginning are never masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from .token_solver import TokenSolver


@dataclass(frozen=True)
class ReMDM(TokenSolver):
    """Ancestral sampling that masks tokens again; eta = 0 is `Ancestral`.

    eta        how much, in [0, 1]
    schedule   "cap" (a bound on the probability) or "rescale" (a fraction of the largest possible one)
    """

    eta: float
    schedule: str = "cap"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"ReMDM(eta={self.eta}): the probability of masking again lies in [0, 1]")
        if self.schedule not in ("cap", "rescale"):
            raise ValueError(f"ReMDM(schedule={self.schedule!r}): there is 'cap' and 'rescale'")

    def remasked(self, t: float, s: float) -> float:
        most = min(1.0, s / (1 - t)) if t < 1 else 1.0
        return min(self.eta, most) if self.schedule == "cap" else self.eta * most

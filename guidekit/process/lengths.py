r"""Masked tokens whose length is drawn first.

    l ~ p(l),        x_T = l masks and then the end, L - l times,        x_s | x_t as of masked noise

The ends are never masked, and masks never become ends. So the length stays, and a sample has the law p(l) p(x | l), of
which p(x | l) is what the network makes of l masks before the end. The length is a part of the sample: rewards see it,
log-weights act on it, and log Z is the mean over all lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tokens import Masked


@dataclass(frozen=True)
class Lengths(Masked):
    """Masked noise with a length drawn first; `end` is the token behind a text, and `lengths` the probabilities of 1, 2
    ... L tokens. The mask's Gumbel numbers of the first noise choose the length."""

    lengths: tuple[float, ...] = ()

    def prior(self, noise: Any, t: float) -> Tensor:
        first = torch.zeros(1, dtype=torch.long, device=noise.device)
        return self.within(noise, first + 1, first + len(self.lengths))

    def within(self, noise: Any, low: Tensor, high: Tensor) -> Tensor:
        """The first states of rows whose lengths lie from `low` to `high`, (1 or rows,)."""
        assert self.end is not None
        place = torch.arange(len(self.lengths), device=noise.device)
        length = 1 + (self.chances(low, high) + noise[..., self.V]).argmax(-1, keepdim=True)
        return torch.where(place < length, self.V, self.end)  # type: ignore[arg-type, call-overload]

    def chances(self, low: Tensor, high: Tensor) -> Tensor:
        """log p(l) for l = 1 ... L, -inf outside of `low` to `high`: (1 or rows, L), float64."""
        log_p = torch.tensor(self.lengths, dtype=torch.float64, device=low.device).log()
        length = torch.arange(1, len(log_p) + 1, device=low.device)
        return torch.where((length >= low[:, None]) & (length <= high[:, None]), log_p, -torch.inf)

    def still(self, x: Tensor) -> Tensor:
        return x == self.end

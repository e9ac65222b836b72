r"""Score networks of tokens, in the style of SEDD (Lou et al., 2024), https://arxiv.org/abs/2310.16834, as base models.

Such a network estimates concrete scores, the ratios of probabilities of states that differ at one position,

    s_i(y) = p_t(x with y at i)/p_t(x),        s_i(x_i) = 1.

With alpha = 1 - t, the share of tokens that is kept, the prediction p(x_0^i = v | x_t) follows from them:

    absorbing    s_i(v) = alpha/(1 - alpha) p(x_0^i = v | x_t)  at masks, so that the prediction is s_i, normalised
    uniform      s_i(y) = sum_v a(v) q_t(y | v)  with a(v) = p(x_0^i = v, x_t but i)/p_t(x_t), hence

                 a(v) = (s_i(v) - (1 - alpha)/V sum_y s_i(y))/alpha,
                 p(x_0^i = v | x_t) = a(v) q_t(x_i | v),        q_t(y | v) = alpha [y = v] + (1 - alpha)/V

A learned score may give an a(v) below 0, which is taken to be 0. The ancestral kernel of these predictions is the
sampler that SEDD calls Tweedie tau-leaping, and so the default solver samples as it does; `gk.solvers.TauLeaping` is
their Euler sampler with the jumps of a step at its rates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..models import MaskedModel, UniformModel

LEAST = 1e-3  # the share of tokens kept, below which scores say nothing of the data


def total_noise(t: Tensor) -> Tensor:
    """What SEDD's networks are told of the time: sigma = -log alpha."""
    return -torch.log1p(-t)


class Scores:
    """A score network as one that returns logits of clean tokens, (tokens, t, cond) -> (rows, length, V).

    net        (tokens, time) -> logarithms of the scores, (rows, length, V), or with absorbing noise (rows, length, V +
               1), the mask last. Where there is a condition it is the third argument
    uniform    whether the noise is uniform, and not absorbing
    time       what the network is told of t. Times are at most 0.999
    """

    def __init__(self, net: Callable[..., Tensor], uniform: bool, time: Callable[[Tensor], Tensor] = total_noise):
        self.net, self.uniform, self.time = net, uniform, time

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        t = t.clamp(max=1 - LEAST)
        log_s = self.net(x, self.time(t), *(() if cond is None else (cond,)))
        return (
            self._of_uniform(x, t.double()[:, None, None], log_s.double()) if self.uniform else self._of_masks(x, log_s)
        )

    def _of_masks(self, x: Tensor, log_s: Tensor) -> Tensor:
        """At tokens, where scores say nothing and nothing is drawn, some finite numbers."""
        V = log_s.shape[-1] - 1
        return torch.where((x == V)[..., None], log_s[..., :V], 0.0)

    def _of_uniform(self, x: Tensor, t: Tensor, log_s: Tensor) -> Tensor:
        s = log_s.scatter(-1, x[..., None], 0.0).exp()
        other = t / s.shape[-1]
        a = ((s - other * s.sum(-1, keepdim=True)) / (1 - t)).clamp(min=0)
        kept = torch.zeros_like(s).scatter(-1, x[..., None], 1.0) * (1 - t) + other
        return (a * kept).log()


def from_sedd(
    net: Callable[..., Tensor],
    vocab_size: int,
    length: int,
    noise: str = "absorbing",
    *,
    time: Callable[[Tensor], Tensor] = total_noise,
    **options: Any,
) -> MaskedModel | UniformModel:
    """A base model around a network of concrete scores.

    net          (tokens, time) -> logarithms of the scores, (rows, length, states): of the V tokens and, with absorbing
                 noise, of the mask with id V. A condition is its third argument
    vocab_size   V
    noise        "absorbing" or "uniform"
    time         what the network is told of t in [0, 1], where 1 - t is the share of tokens kept; for a network trained
                 with another schedule, the time at which this share is kept
    options      those of `MaskedModel` and `UniformModel`: decode, read, encode_cond, null

    >>> model = from_sedd(lambda x, sigma: torch.zeros(*x.shape, 4), 4, 6, "uniform")
    >>> model
    UniformModel(vocab_size=4, length=6, no condition declared)
    """
    if noise not in ("absorbing", "uniform"):
        raise ValueError(f"noise={noise!r}: there is 'absorbing' and 'uniform'")
    kind = UniformModel if noise == "uniform" else MaskedModel
    return kind(Scores(net, noise == "uniform", time), vocab_size, length, **options)

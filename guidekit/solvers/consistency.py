r"""Multistep sampling from networks that predict samples: consistency models and latent consistency models (LCM).

    x_s = alpha_s d + sigma_s z

Each step jumps to the clean prediction and noises it anew. For a network that predicts the mean E[x_0 | x_t], as
diffusion models do, this loses variety at every step: it is for consistency models, whose prediction is a sample.

References: Song et al. (2023), https://arxiv.org/abs/2303.01469; Luo et al. (2023), https://arxiv.org/abs/2310.04378.
"""

from __future__ import annotations

from dataclasses import dataclass

from .base import Move, Point, Solver


@dataclass(frozen=True)
class Consistency(Solver):
    """Jump to the clean prediction and noise it anew, for consistency models: stochastic, 1 to 8 steps."""

    stochastic = True

    def step(self, t: Point, s: Point, last: Point | None) -> list[Move]:
        return [Move(t.t, s.t, 0.0, (s.alpha,), s.sigma)]

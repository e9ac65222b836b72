r"""Condition-annealed sampling (Sadat et al., 2023), https://arxiv.org/abs/2310.17347: diversity at high guidance.

The encoded condition y of every row is noised at the start of the run and clean at its end:

    g(t)  = 1 for t <= low,   (high - t)/(high - low) between,   0 for t >= high
    y'    = sqrt(g) y + s sqrt(1 - g) n,    n ~ N(0, 1) anew at every step
    y''   = (y' - mean y')/std y' std y + mean y              so that its size stays
    y     <- mix y'' + (1 - mix) y'

t is the time of the run, 1 in noise. It needs conditions that encode to real numbers, like embeddings; integer labels
and masks among the entries of a dict are left as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Encoded, Model


@dataclass(frozen=True)
class CADS(Guide):
    """Noise on the condition. No cost. Give it with CFG, whose null branch stays clean.

    low, high   times between which the noise fades; 1 > high > low: the paper takes .6 and .9
    noise_scale standard deviation s of the noise, .025 to .25 in the paper
    mix         psi, the share of the rescaled condition
    """

    low: float = 0.6
    high: float = 0.9
    noise_scale: float = 0.25
    mix: float = 1.0

    def check(self, model: Model, steps: int) -> None:
        if not 0 <= self.low < self.high <= 1 or not 0 <= self.mix <= 1 or not self.noise_scale >= 0:
            raise ValueError(
                f"CADS(low={self.low}, high={self.high}, noise_scale={self.noise_scale}, mix={self.mix}): "
                "0 <= low < high <= 1, noise_scale >= 0, mix in [0, 1]"
            )

    def strength(self, t: float) -> float:
        """g(t)."""
        return min(max((self.high - t) / (self.high - self.low), 0.0), 1.0)

    def clashes(self, other: Guide, after: bool) -> str | None:
        if after and other.has("condition") and not isinstance(other, CADS):
            return f"{type(other).__name__} would replace the noised condition: put CADS behind it"
        return None

    def condition(self, view: View, cond: Encoded) -> Encoded:
        entries = cond if isinstance(cond, dict) else {"": cond}
        if not any(isinstance(v, Tensor) and v.is_floating_point() for v in entries.values()):
            raise ValueError("CADS noises conditions of real numbers (embeddings); this model's encode to none")
        g = self.strength(view.t)
        if g == 1:
            return cond
        noised = {
            k: self._noised(view, k, y, g) if isinstance(y, Tensor) and y.is_floating_point() else y
            for k, y in entries.items()
        }
        return noised if isinstance(cond, dict) else noised[""]

    def _noised(self, view: View, name: str, y: Tensor, g: float) -> Tensor:
        n = random.normal(random.fold(view.key, name), y.shape[1:], torch.float64).to(y)
        noised = math.sqrt(g) * y + self.noise_scale * math.sqrt(1 - g) * n
        if self.mix == 0 or y[0].numel() < 2:
            return noised
        axes = tuple(range(1, y.dim()))
        (mean, std), (mean_, std_) = (
            (v.mean(axes, True), v.std(axes, correction=0, keepdim=True)) for v in (y, noised)
        )
        scaled = (noised - mean_) / std_.clamp(min=torch.finfo(y.dtype).tiny) * std + mean
        return self.mix * scaled + (1 - self.mix) * noised

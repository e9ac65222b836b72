r"""Condition-annealed sampling (Sadat et al., 2023), https://arxiv.org/abs/2310.17347: diversity at high guidance
scales.

The encoded condition y of every row is noised at the start of the run and clean at its end:

    g(t)  = 1 for t <= low,   (high - t)/(high - low) between,   0 for t >= high
    y'    = sqrt(g) y + s sqrt(1 - g) n,    n ~ N(0, 1), drawn at every step
    y''   = (y' - mean y')/std y' std y + mean y              which restores mean and scale
    y     <- mix y'' + (1 - mix) y'

t is the time of the run, 1 at pure noise. The condition must encode to real numbers, such as embeddings; integer labels
and masks among the entries of a dict are left unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random
from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.view import View
from ..models.base import Encoded, Model


@dataclass(frozen=True)
class CADS(Guide):
    """Noise on the condition. No extra NFE. Use it together with CFG, whose unconditional branch stays clean.

    low, high     times between which the noise fades out, low < high; the paper uses 0.6 and 0.9
    noise_scale   s, the standard deviation of the noise; 0.025 to 0.25 in the paper
    mix           psi, the weight of the rescaled condition
    """

    low: float = 0.6
    high: float = 0.9
    noise_scale: float = 0.25
    mix: float = 1.0

    card = Card(
        "anneals noise on the condition, for diversity",
        section="Classifier-free guidance and its relatives",
        changes="condition",
        paper=Paper(
            "sadat2023cads",
            "Sadat, Seyedmorteza and Buhmann, Jakob and Bradley, Derek and Hilliges, Otmar and Weber, Romann M.",
            "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling",
            2023,
            "2310.17347",
        ),
        example="gk.CADS(), gk.CFG(1.5)",
        picture="embedded conditions",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 <= self.low < self.high <= 1 or not 0 <= self.mix <= 1 or not self.noise_scale >= 0:
            raise ValueError(
                f"CADS(low={self.low}, high={self.high}, noise_scale={self.noise_scale}, mix={self.mix}): "
                "0 <= low < high <= 1, noise_scale >= 0, mix in [0, 1]"
            )

    def strength(self, t: float) -> float:
        """g(t), the weight of the clean condition."""
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

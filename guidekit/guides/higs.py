r"""History-guided sampling, HiGS (Sadat, Salehi and Weber, 2025), https://arxiv.org/abs/2509.22300: guidance away from
the model's earlier predictions, which take the place of the weak model of autoguidance.

    d     <- d + w(t) F(delta),      delta = d - h - (1 - eta) (d - h)_parallel
    h     <- alpha d + (1 - alpha) h,      h = 0 at first, and d before the change
    w(t)  =  w sqrt((t - t_min)/(t_max - t_min))  for t_min < t <= t_max, else 0
    F     =  DCT^-1 sigmoid(lambda (R - R_c)) DCT,      R^2 = (i/height)^2 + (j/width)^2

_parallel is the component of d - h along d, per sample. d is the prediction with the tilts of all guides (CFG...),
before any `finish`. The first step has no history and is left unchanged. h follows its particle through every
selection, and is reset where times go up again. F is applied to samples with at least three axes, of which the last two
are height and width; others are not filtered. t is the time of the process. This follows Algorithms 2 and 3 of the
paper, which are Python code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian
from .shared.contrast import along


@dataclass(frozen=True)
class HiGS(Guide):
    """Guidance away from each particle's own earlier predictions. No extra NFE; one more state of memory per particle.

    scale          w, a number (1.75 in the paper, at most 3) or a function of t; 0 does nothing
    alpha          the weight of the newest prediction in the history; the paper uses 0.5 or 0.75
    eta            the fraction of the component along d that is kept; smaller values reduce oversaturation
    t_min, t_max   the times between which it acts; the paper uses 0.3 to 0.5 and 0.9 to 1
    cutoff         R_c: lower frequencies (colours) are filtered out; None: no filter
    sharpness      lambda of the filter
    """

    scale: Scale = 1.75
    alpha: float = 0.75
    eta: float = 1.0
    t_min: float = 0.4
    t_max: float = 1.0
    cutoff: float | None = 0.05
    sharpness: float = 50.0

    card = Card(
        "extrapolates away from the model's earlier predictions",
        section="Weaker and stronger models",
        processes=(Gaussian,),
        refusal="averages clean means, and tokens have none: use it with a Gaussian process",
        changes="target",
        paper=Paper(
            "sadat2025higs",
            "Sadat, Seyedmorteza and Salehi, Farnood and Weber, Romann M.",
            "HiGS: History-Guided Sampling for Plug-and-Play Enhancement of Diffusion Models",
            2025,
            "2509.22300",
        ),
        example="gk.HiGS(1.75)",
        picture="trained",
    )

    def check(self, model: Model, steps: int) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"HiGS(alpha={self.alpha}): the weight of the newest prediction lies in (0, 1]")
        if not 0 <= self.t_min < self.t_max <= 1:
            raise ValueError(f"HiGS(t_min={self.t_min}, t_max={self.t_max}): times with 0 <= t_min < t_max <= 1")

    def finish(self, view: View, prediction: Tensor) -> Tensor:
        change = self._look(view)[1]
        return prediction if change is None else prediction + change

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if view.step.last:
            return 0.0, None
        past, d = self._past(view), self._look(view)[0]
        return 0.0, self.alpha * d if past is None else self.alpha * d + (1 - self.alpha) * past

    def _look(self, view: View) -> tuple[Tensor, Tensor | None]:
        """d and what to add to it; made at the first call in this look, when d has the tilts and nothing else."""

        def make() -> tuple[Tensor, Tensor | None]:
            d, past = view.prediction, self._past(view)
            assert d is not None
            inside = self.t_min < view.t <= self.t_max
            w = at(self.scale, view.t) * math.sqrt((view.t - self.t_min) / (self.t_max - self.t_min)) if inside else 0.0
            return d, None if w == 0 or past is None else w * self._delta(view, d, past)

        return view.once(("history", view.step.name), make)

    def _past(self, view: View) -> Tensor | None:
        came = view.step.came
        return None if came is not None and came.s > came.t else view.memo

    def _delta(self, view: View, d: Tensor, past: Tensor) -> Tensor:
        delta = d - past
        if self.eta != 1:
            delta = delta - (1 - self.eta) * along(view, delta, d)
        return delta if self.cutoff is None or d.dim() < 4 else high_pass(delta, self.cutoff, self.sharpness)


def high_pass(x: Tensor, cutoff: float, sharpness: float) -> Tensor:
    """F of the formula, over the last two axes."""
    (rows, i), (columns, j) = (_dct(n, x.dtype, x.device) for n in x.shape[-2:])
    gain = (sharpness * (torch.hypot(i[:, None], j) - cutoff)).sigmoid()
    return rows.T @ (gain * (rows @ x @ columns.T)) @ columns


@lru_cache(maxsize=32)
def _dct(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The orthonormal discrete cosine transform (n, n), with frequency k in row k, and the frequencies k/n."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(device, dtype), (i / n).to(device, dtype)

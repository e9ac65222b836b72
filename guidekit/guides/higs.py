r"""History-guided sampling, HiGS (Sadat, Salehi and Weber, 2025), https://arxiv.org/abs/2509.22300: away from what the
model predicted before, as if its own past were the weak model of autoguidance.

    d     <- d + w(t) F(delta),      delta = d - h - (1 - eta) (d - h)_parallel
    h     <- alpha d + (1 - alpha) h,      h = 0 at first, and d before the change
    w(t)  =  w sqrt((t - t_min)/(t_max - t_min))  for t_min < t <= t_max, else 0
    F     =  DCT^-1 sigmoid(lambda (R - R_c)) DCT,      R^2 = (i/height)^2 + (j/width)^2

_parallel is the part of d - h along d, by sample. d is the prediction with the tilts of all guides (CFG...) and before
what others do in `finish`. The first step has no history and is left as it is. h stays with its particle through every
selection, and begins anew where times go up. F works on samples of three axes and more, the last two being height and
width; others are not filtered. t is the process's own. Formulas and values are those on which descriptions of the paper
agree; the authors' code was not seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..engine.guide import Guide, Scale, at
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from ..process import Gaussian
from .shared.contrast import along


@dataclass(frozen=True)
class HiGS(Guide):
    """Guidance by the particle's own earlier predictions. No network rows; one state of memory per particle.

    scale         w, a number (1.75 in the paper, at most 3) or a function of t; 0 does nothing
    alpha         weight of the newest prediction in the history; the paper takes 0.5 or 0.75
    eta           share kept of the part along d: 1 all of it, 0 none, against over-saturation
    t_min, t_max  the paper takes 0.3 to 0.5 and 0.9 to 1
    cutoff        R_c, below which frequencies (colours) are kept out; None for no filter
    sharpness     lambda
    """

    scale: Scale = 1.75
    alpha: float = 0.75
    eta: float = 1.0
    t_min: float = 0.4
    t_max: float = 1.0
    cutoff: float | None = 0.05
    sharpness: float = 50.0

    def check(self, model: Model, steps: int) -> None:
        if not isinstance(model.process, Gaussian):
            raise ValueError("HiGS averages clean means, and tokens have none; use it with a Gaussian process")
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
        """d and what to add to it, from the first call in this look, in which d has the tilts alone."""

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
    """The orthonormal discrete cosine transform (n, n), whose row k is the k-th frequency, and the frequencies k/n."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(device, dtype), (i / n).to(device, dtype)

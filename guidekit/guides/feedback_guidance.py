r"""Feedback guidance, FBG (Koulischer et al., 2025), https://arxiv.org/abs/2506.06085: as much guidance as a sample
needs.

If a model that was trained on a condition has learnt pi p(x | c) + (1 - pi) p(x), a mixture with the unconditional law,
then p(x | c) ~ p_theta(x | c) - (1 - pi) p(x), whose score is that of CFG with a weight of its own for each state:

    d <- d_null + l (d_cond - d_null),      l = r/(r - (1 - pi)),      r = p_theta(x_t | c)/p(x_t)

Samples that belong to the condition, r large, need no guidance; those that do not are pushed. r is followed along the
path, as the ratio of the probabilities of its moves under both predictions:

    log r <- log r + tau (log q_cond(x_s | x_t) - log q_null(x_s | x_t)) + delta

with q the reverse kernel of DDPM, N(mu(d), c^2), whatever the solver, and log r = 0 in pure noise. tau = 1 and delta =
0 are the exact law for small steps of a stochastic solver; the authors choose both for each model, so that guidance
sets in and out at given times. log r is kept between the values at which l = max_scale, and 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..engine.card import Paper
from ..engine.guide import at
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from ..solvers import DDPM, Move, Point
from .shared.contrast import Contrast, both, dot

MOST = 3.0  # of log r


@dataclass(frozen=True)
class FeedbackGuidance(Contrast):
    """CFG with a weight that depends on the state. One extra NFE per particle and step.

    scale       a factor of l - 1, a number or a function of t; 0 does nothing, 1 is the paper
    pi          the share of the condition in what the conditional model has learnt, in (0, 1)
    tau         how much a move changes log r
    delta       what every move adds to log r
    max_scale   the largest l, above 1
    """

    scale: float = 1.0
    pi: float = 0.95
    tau: float = 1.0
    delta: float = 0.0
    max_scale: float = 10.0

    neutral = 0.0

    card = replace(
        Contrast.card,
        about="CFG with more weight for samples that are less likely under the condition",
        exact="p given the condition, where the model at it is a mixture with the unconditional one, for small steps",
        paper=Paper(
            "koulischer2025fbg",
            "Koulischer, Felix and Handke, Florian and Deleu, Johannes and Demeester, Thomas and Ambrogioni, Luca",
            "Feedback Guidance of Diffusion Models",
            2025,
            "2506.06085",
        ),
        example="gk.FeedbackGuidance(pi=0.7)",
    )

    def check(self, model: Model, steps: int) -> None:
        if not (0 < self.pi < 1 and self.max_scale > 1 and self.tau >= 0):
            raise ValueError(
                f"FeedbackGuidance(pi={self.pi}, tau={self.tau}, max_scale={self.max_scale}): pi lies in (0, 1), "
                "tau is at least 0, and max_scale is above 1"
            )

    def tilt(self, view: View) -> Tensor:
        cond, null = both(view)
        r = self._log_r(view, view.memo).exp()
        excess = (1 - self.pi) / (r - (1 - self.pi))  # l - 1
        return at(self.scale, view.t) * view.rows(excess) * (cond - null)

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if view.step.last or not self.active(view.step):
            return 0.0, memo
        return 0.0, (view.x, *both(view), self._log_r(view, memo))

    def _log_r(self, view: View, memo: Tree) -> Tensor:
        return view.zeros() if memo is None else view.once(("ratio", id(self)), lambda: self._followed(view, memo))

    def _followed(self, view: View, memo: Tree) -> Tensor:
        """log r after the move that led here."""
        x, cond, null, log_r = memo
        came = view.step.came
        assert came is not None
        kernel = _reverse(view.model.process, came)  # type: ignore[arg-type]  # the card says Gaussian
        if kernel.c == 0:
            return log_r
        square = [dot(e, e) for e in (view.x - kernel.a * x - kernel.b[0] * d for d in (null, cond))]
        gain = (square[0] - square[1]) / (2 * kernel.c**2)
        least = math.log((1 - self.pi) * self.max_scale / (self.max_scale - 1))
        return (log_r + self.tau * gain + self.delta).clamp(least, max(MOST, least))


def _reverse(process: Any, move: Move) -> Move:
    """The move of DDPM between the same times; where they rise there is none, and c = 0."""
    t, s = (Point(v, *process.scales(v)) for v in (move.t, move.s))
    return DDPM().step(t, s, None)[0] if move.s < move.t else Move(move.t, move.s, 1.0, (0.0,), 0.0)

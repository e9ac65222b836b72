r"""Training-free guidance, TFG (Ye et al., 2024), https://arxiv.org/abs/2409.15761, and the methods that are settings
of it.

f is a differentiable reward of decoded samples, read as a log-density. With x_t = alpha_t x_0 + sigma_t z,
r_t^2 = alpha_t^2 + sigma_t^2 and d = E[x_0 | x_t], a step from t to s is

    f~(x_0) = log 1/n sum_j exp f(x_0 + sigma (sigma_t/r_t) delta_j),     delta_j ~ N(0, 1)
    D_t = rho_t grad_{x_t} f~(d(x_t)),        D_0 <- D_0 + mu_t grad f~(d + D_0), `iters` times from 0
    x_s = Sample(x_t, d) + (alpha_s/alpha_t) r_t^2 D_t + alpha_s D_0,

repeated `recur` times, with x_t ~ q(x_t | x_s) in between. For variance-preserving schedules (r = 1) this is the
paper's Algorithm 1; other processes are guided in the coordinates x/r, in which they preserve variance. In a run of T
steps rho_t = rho T s_t/sum s, and likewise mu_t; with w = alpha^2/r^2:

    schedule = "increase"   s_t = w_t/w_s, the paper's alpha_t          "constant"   s_t = 1
               "decrease"   s_t = 1 - w_t/w_s
               "score"      d <- d + rho (sigma_t^2/alpha_t) grad_{x_t} f~(d(x_t)) + D_0,     mu_t = mu sigma_t^2/r_t^2

With the first three the shifts of all steps add up to a fixed total. "score" changes the score instead, so that the
result does not depend on the number of steps: it aims at p exp(rho f), with grad log E[exp(rho f(x_0)) | x_t]
approximated by rho grad f~(d). That is exact for Gaussian data and a linear f; the gradient of a quadratic one,
-kappa |x - c|^2/2, is 1 + rho kappa Var(x_0 | x_t) times too large.

A solver moves by x_s = a x_t + b d + c z, so a shift of x_s is a tilt of d by 1/b of it. A recurrence is one more move,
from t to t, which combines the step with the noising after it and costs one network evaluation. Where alpha_t < 0.001
there is no D_t, and no recurrence, since it would only draw new noise.

Differences from the authors' code: it allows rho and mu to have different schedules, where here one `schedule` serves
both; it uses the same draws delta_j in all inner iterations, where here every iteration has its own; and it clips the
clean estimate to the range of images, which here is left to the user.

The methods that are settings of this are in tfg.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ... import random
from ...engine.card import Card
from ...engine.guide import Guide, Scale, at
from ...engine.view import Step, View
from ...errors import is_count
from ...models.base import Model
from ...process import Gaussian
from ...solvers import Move, fractions
from .twist import NO_GRADIENT, check_differentiable, check_reward, gradient

SCHEDULES = ("increase", "decrease", "constant", "score")


class Row(Move):
    """A move with the solver's own one (`down`) and the strength s_t T/sum s of each schedule at it (`levels`)."""

    down: Move
    levels: dict[str, float]


class TrainingFree(Guide):
    """Base of TFG and its settings: a dataclass with a reward, and the others of these as fields or properties."""

    reward: Any
    rho: Scale = 0.0
    mu: Scale = 0.0
    sigma: Scale = 0.0
    recur: Scale = 1
    iters: int = 1
    draws: int = 1
    schedule: str = "increase"
    normalise: bool = False

    card = Card(
        section="Training-free guidance",
        processes=(Gaussian,),
        refusal=NO_GRADIENT,
        rows="0, and a backward pass",
        changes="target",
    )

    @property
    def grad(self) -> bool | str:  # type: ignore[override]
        return True if self.rho != 0 else "clean"

    def __post_init__(self) -> None:
        check_reward(self)
        name = type(self).__name__
        if self.schedule not in SCHEDULES:
            raise ValueError(f"{name}(schedule={self.schedule!r}): there is {', '.join(SCHEDULES)}")
        for field in ("rho", "mu", "sigma"):
            v = getattr(self, field)
            if hasattr(v, "__float__") and not (math.isfinite(v) and v >= 0):
                raise ValueError(f"{name}({field}={v}): a number of at least 0, or a function of t, is needed")
        for field in ("recur", "iters", "draws"):
            v = getattr(self, field)
            if not (callable(v) and field == "recur") and not is_count(v):
                raise ValueError(f"{name}({field}={v!r}): an int of at least 1 is needed")

    def check(self, model: Model, steps: int) -> None:
        check_differentiable(self)

    def active(self, step: Step) -> bool:
        up = step.move is not None and step.move.s > step.move.t
        return super().active(step) and not up and (step.last or at(self.rho, step.t) != 0 or at(self.mu, step.t) != 0)

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        if self.rho == self.mu == 0 or (self.recur == 1 and self.schedule == "score"):
            return moves
        downs = [getattr(m, "down", m) for m in moves]
        if any(len(m.b) != 1 for m in downs if m.s <= m.t):
            raise ValueError(
                f"{type(self).__name__} shifts x_s after a step of DDPM(), DDIM(eta), Euler() or SDEDPMpp(order=1); a "
                "solver with a memory or two evaluations a step would shift again: take one of these, or "
                'recur=1 and schedule="score"'
            )
        assert isinstance(model.process, Gaussian)
        levels = _levels([m for m in dict.fromkeys(downs) if m.s < m.t], model.process)
        table: list[Move] = []
        for move, down, fraction in zip(moves, downs, fractions(downs), strict=False):
            inside = self.start <= fraction < self.stop
            due = inside and move.s < move.t and model.process.scales(move.t)[0] >= 1e-3
            again = [_again(down, model.process)] * (int(at(self.recur, move.t)) - 1) if due else []
            table += [_row(m, down, levels[down]) if down in levels else m for m in (*again, move)]
        return table

    def tilt(self, view: View) -> Tensor | float:
        rho, mu = at(self.rho, view.t), at(self.mu, view.t)
        if rho == mu == 0:
            return 0.0
        alpha, sigma = view.model.process.scales(view.t)
        square, shift = alpha**2 + sigma**2, 0.0
        level, gain = self._placed(view)
        if rho and alpha >= 1e-3:
            shift = rho * level * square / alpha * self._slope(self._value(view, view.clean, 0), view.x)
        if mu:
            shift = shift + self._climb(view, mu * level)
        return gain * shift

    def _placed(self, view: View) -> tuple[float, float]:
        """s_t T/sum s, and the tilt of d that shifts x_s by alpha_s."""
        row, scales = view.step.move, view.model.process.scales
        if self.schedule == "score":
            alpha, sigma = scales(view.t)
            return sigma**2 / (alpha**2 + sigma**2), 1.0
        if not isinstance(row, Row):
            raise ValueError(f"{type(self).__name__} comes after guides that make rows of the table, in the list")
        return row.levels[self.schedule], scales(row.down.s)[0] / row.down.b[0]

    def _climb(self, view: View, step: float) -> Tensor:
        """D_0 of the formula."""
        start = x = view.clean if view.clean.requires_grad else view.clean.detach().requires_grad_()
        with torch.enable_grad():
            for i in range(self.iters):
                value = self._value(view, x, 1 + i)
                x = (x + step * self._slope(value, x)).detach().requires_grad_()
        return (x - start).detach()

    def _value(self, view: View, x: Tensor, place: int) -> Tensor:
        """f~ of each row, NaN where no draw could be scored; `place` is the address of the draws."""
        alpha, sigma = view.model.process.scales(view.t)
        std = at(self.sigma, view.t) * sigma / (alpha**2 + sigma**2) ** 0.5
        if std == 0 and x is view.clean:
            return view.score(self.reward)
        if std == 0:
            return view.scorer(self.reward, view.decode(x), view.group)
        noise = random.normal(random.fold(view.key, place), (self.draws, *x.shape[1:]), x.dtype)
        group = view.group.repeat_interleave(self.draws)
        scores = view.scorer(self.reward, view.decode((x[:, None] + std * noise).flatten(0, 1), group), group)
        scores = scores.view(len(x), self.draws)
        known = scores.isfinite()
        none = ~known.any(1)
        scores = torch.where(known, scores, -torch.inf).masked_fill(none[:, None], 0.0)
        return (scores.logsumexp(1) - known.sum(1).clamp(min=1).log()).masked_fill(none, torch.nan)

    def _slope(self, value: Tensor, x: Tensor) -> Tensor:
        slope = gradient(value, x)
        if not self.normalise:
            return slope
        size = value.detach().abs().nan_to_num(0.0).sqrt().view(-1, *[1] * (x.dim() - 1)).to(slope)
        return torch.where(size > 0, slope / size, 0.0)


def _row(move: Move, down: Move, levels: dict[str, float]) -> Row:
    row = Row(*move)
    row.down, row.levels = down, levels
    return row


def _again(down: Move, process: Gaussian) -> Move:
    """The move from t to s and the noising back to t, as one move."""
    (a_t, s_t), (a_s, s_s) = (process.scales(t) for t in (down.t, down.s))
    k = a_t / a_s
    noise = (k * down.c) ** 2 + max(s_t**2 - (k * s_s) ** 2, 0.0)
    return Move(down.t, down.t, k * down.a, (k * down.b[0],), noise**0.5)


def _levels(downs: list[Move], process: Gaussian) -> dict[Move, dict[str, float]]:
    """s_t T/sum s of every move, for each schedule."""
    share = {t: a * a / (a * a + s * s) for m in downs for t in (m.t, m.s) for a, s in (process.scales(t),)}
    kept = [share[m.t] / share[m.s] for m in downs]
    mean = sum(kept) / len(kept)
    return {
        m: {"increase": v / mean, "decrease": (1 - v) / (1 - mean), "constant": 1.0}
        for m, v in zip(downs, kept, strict=True)
    }

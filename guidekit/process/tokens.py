r"""Discrete diffusion over tokens: absorbing (masked) and uniform noise, with alpha(t) = 1 - t the fraction kept.

A prediction is log p(x_0^i = v | x_t), shape (rows, length, V), normalised over v. The reverse kernels factorise over
positions i; with p_i(v) the prediction, u = s/t and from t down to s:

    Masked    a masked position stays masked with probability u and becomes v with (1 - u) p_i(v); others stay.
              If ordered, position i of L is masked with probability m_i(t) = min(1, max(0, L t - (L - 1 - i))), so
              that positions are unmasked one after the other, from the left, and u_i = m_i(s)/m_i(t). Where texts have
              an `end`, a row may be behind with n > L t masks; it goes from n to ceil(n s/t), also from the left.
    Uniform   q(x_s = v | x_t) = q(x_t | x_s = v) sum_w p_i(w) q(x_s = v | x_0 = w) / q(x_t | x_0 = w),
              q(x_s | x_0) = alpha_s [x_s = x_0] + (1 - alpha_s)/V,
              q(x_t | x_s) = g [x_t = x_s] + (1 - g)/V,      g = alpha_t/alpha_s.

The uniform kernel is the posterior averaged over x_0, which is exact if p_i is the exact marginal. Solvers that leap
(`guidekit.solvers.token_solver.Leaping`) have kernels of jumps at rates instead. A move up in time is the forward
process. Sampling adds float64 Gumbel noise to float64 log-probabilities (`guidekit.process.independent`). The clean
estimate is the mode.

References: Austin et al. (2021), https://arxiv.org/abs/2107.03006; Sahoo et al. (2024), https://arxiv.org/abs/2406.07524;
Schiff et al. (2025), https://arxiv.org/abs/2412.10193; on float64, Zheng et al. (2025), https://arxiv.org/abs/2409.02908.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import random
from ..solvers import DDPM, Ancestral, Joint, Move, Solver, times
from ..solvers.token_solver import Leaping, Order, TokenSolver, solver_of
from .independent import Categorical, Masking
from .revealing import Joining, Revealing, Revising, Routing

LOG_ZERO = -1e3  # of a token that cannot be: its probability is 0 in float64, and differences of two stay finite


def _jumps(rates: Tensor) -> tuple[Tensor, Tensor]:
    """log-probabilities of the first jump of each kind, given their rates, and of no jump (..., 1)."""
    total = rates.sum(-1, keepdim=True)
    share = torch.where(total > 0, -total.neg().expm1() / total, 1.0)
    return rates.log() + share.log(), -total


@dataclass(frozen=True)
class _Tokens:
    """What both kinds of noise have in common. `states` is the number of values that a position of x_t can take."""

    V: int
    t_max = 1.0

    @property
    def states(self) -> int:
        return self.V

    @property
    def noising(self) -> str:
        """The kind of noise, as solvers name it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its noise is")

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        """Moves without coefficients, that know their solver."""
        if not isinstance(solver, DDPM | TokenSolver | None):
            raise ValueError(
                f"solver={solver!r} is for Gaussian processes; token processes move by their own "
                "kernels: leave solver=None, which is Ancestral(), or take FirstHitting() or another one of tokens"
            )
        own = solver if isinstance(solver, TokenSolver) else Ancestral(times=solver.times if solver else "uniform")
        if self.noising not in own.noises:
            raise ValueError(
                f"solver={solver!r} is for tokens with {' or '.join(own.noises)} noise, and this process is "
                f"{self.noising}: leave solver=None, which is Ancestral()"
            )
        if not isinstance(steps, (int, np.integer)):
            return own.table(times.make(steps, own.times, None, self.t_max))
        return own.table(self.fitted(own.grid(int(steps) if isinstance(steps, np.integer) else steps, self.t_max)))

    def fitted(self, grid: list[float]) -> list[float]:
        """A time grid made from a number of steps, adapted to the process."""
        return grid

    def scales(self, t: float) -> tuple[float, float]:
        return 1 - t, t

    def leaping(self, move: Move) -> Leaping | None:
        """The solver of a move whose positions jump at rates."""
        solver = solver_of(move)
        return solver if isinstance(solver, Leaping) and solver.leaps(move, self.noising) else None

    def noise_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.states)

    def noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return random.gumbel(keys, shape)

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        return self.noise(keys, shape, dtype)

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        return self.kernel(clean, (), Move(0.0, t)).push(noise)

    def begins(self, clean: Tensor, level: float) -> float:
        return level

    def decided(self, x: Tensor) -> Tensor | None:
        return None

    def apart(self, move: Move) -> bool:
        return False

    def told(self, x: Tensor) -> Tensor:
        """log of the point masses at the tokens."""
        return torch.full((*x.shape, self.V), LOG_ZERO, device=x.device).scatter_(-1, x[..., None], 0.0)

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Categorical | Masking | Revealing:
        raise NotImplementedError(f"{type(self).__name__} does not say how tokens move")

    def draws(self, move: Move) -> bool:
        return True


@dataclass(frozen=True)
class Masked(_Tokens):
    """Absorbing noise: a token is replaced by the mask (id V) with probability t.

    places   0, or the length L: then positions are masked in order, from the last to the first, and the model is
             autoregressive. In a grid of at least L steps, the times nearest to k/L are moved there, so that no step
             draws two tokens
    end      of ordered texts that are padded: the token behind the last one. `noised` then masks the share t of the u
             tokens that a row uses and all behind them, as an unpadded text is noised; that is what is masked at
             t' = 1 - (1 - t) u/L
    alone    of ordered texts that follow a grammar: every token is drawn by itself, given all before it. Then no move
             may be longer than 1/L, and a run that starts from samples begins early enough that no row is behind

    What `prior` leaves unmasked, as a process with a template does, is not masked on the way up either.
    """

    places: int = 0
    end: int | None = None
    alone: bool = False

    def moves(self, steps: int | Sequence[float], solver: Solver | None) -> list[Move]:
        moves = super().moves(steps, solver)
        if self.alone and any(move.t - move.s > 1 / self.places + 1e-9 for move in moves):
            raise ValueError(
                f"{len(moves)} steps: this model draws one token at a time, and has {self.places}; give steps="
                f"{self.places} or more (times of your own at most 1/{self.places} apart)"
            )
        return moves

    @property
    def states(self) -> int:
        return self.V + 1

    @property
    def noising(self) -> str:
        return "ordered" if self.places else "masked"

    def late_noise(self, keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> random.Gumbels:
        return random.Gumbels(keys, shape)

    def prior(self, noise: Any, t: float) -> Tensor:
        return torch.full(noise.shape[:-1], self.V, device=noise.device)

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return torch.where(x == self.V, prediction.argmax(-1), x)

    def decided(self, x: Tensor) -> Tensor:
        open = x == self.V
        if self.end is not None:
            open = open & (x == self.end).cumsum(-1).eq(0)  # what follows the end is the end
        return ~open.any(-1)

    def ends(self, x: Tensor) -> bool:
        """Whether such rows may have masks and yet be decided."""
        return self.places > 0 and self.end is not None and bool((x == self.end).any())

    def apart(self, move: Move) -> bool:
        return not isinstance(solver_of(move), Order) and self.leaping(move) is None

    def early(self, x: Tensor, move: Move) -> Masking:
        """The kernel of a move that is `apart`, before its prediction is known."""
        kernel = self.kernel(x, (torch.zeros((), device=x.device).expand(*x.shape, self.V),), move)
        assert isinstance(kernel, Masking)
        return kernel

    def steady(self, x: Tensor, moves: Sequence[Move]) -> Tensor | None:
        """Of the first of these moves, those in which tokens stay, and a mask with a probability that its place alone
        decides: these probabilities, float64 (moves, 1 or length); None where the first move is none of them."""
        ends = [move[:2] for move in takewhile(self._alike, moves)]
        t, s = torch.tensor(ends, dtype=torch.float64, device=x.device).view(-1, 2, 1).unbind(1)
        return self._stays(x, t, s) if ends else None

    def _alike(self, move: Move) -> bool:
        solver = solver_of(move)
        again = move.s > move.t or (solver is not None and solver.remasked(move.t, move.s) > 0)
        return not again and (not self.places or self.end is None or self.alone)

    def told(self, x: Tensor) -> Tensor:
        return super().told(x.masked_fill(x == self.V, self.end or 0))

    def fitted(self, grid: list[float]) -> list[float]:
        steps, L = len(grid) - 1, self.places
        if not 0 < L <= steps or self.t_max < 1:
            return grid
        for k in range(1, L):
            nearest = min(range(1, steps), key=lambda j: abs(grid[j] - k / L))
            grid[nearest] = k / L
        return grid

    def hidden(self, t: float | Tensor, x: Tensor) -> Tensor:
        """Probability that a position is masked at t, of shape () or (length,); of each row at its own t (rows, 1)."""
        if not self.places:
            if isinstance(t, Tensor):
                return t.to(x.device, torch.float64)
            return torch.full((), t, dtype=torch.float64, device=x.device)
        later = torch.arange(self.places - 1, -1, -1, dtype=torch.float64, device=x.device)
        return (self.places * t - later).clamp(0, 1)

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Masking | Revealing:
        if move.s > move.t:  # a kept token is masked with probability (m_s - m_t)/(1 - m_t)
            m_t, m_s = self.hidden(move.t, x), self.hidden(move.s, x)
            return self._masking(x, ((1 - m_s) / (1 - m_t)).nan_to_num(1.0))
        solver, prediction = solver_of(move), predictions[0]
        if isinstance(solver, Order):
            of = prediction, x, self.V, solver, move
            if isinstance(solver, Joint):
                return Joining(prediction, x, self.V, solver, move)
            if solver.routes:
                return Routing(*of, self.still(x))
            if not solver.revises:
                return Revealing(*of)
            nothing = torch.zeros((*x.shape, 2), dtype=torch.float64, device=x.device)
            return Revising(*of, predictions[1] if len(predictions) > 1 else nothing)
        if (leaping := self.leaping(move)) is not None:
            rates = leaping.rates(prediction.double().softmax(-1), None, move)
            return self._unmasking(x, rates.sum(-1).neg().exp(), rates.log())
        again = 0.0 if solver is None else solver.remasked(move.t, move.s)
        if not again:
            return self._unmasking(x, self.stays(x, move), prediction)
        stay = (move.s - again * (1 - move.t)) / move.t  # so many more are revealed as tokens are masked
        kept = self._masking(x, torch.full((), 1 - again, dtype=torch.float64, device=x.device))
        return replace(
            kept, hide=torch.where(x == self.V, stay if stay > 1e-15 else 0.0, kept.hide), prediction=prediction
        )

    def _unmasking(self, x: Tensor, stay: Tensor, prediction: Tensor) -> Masking:
        """Masked positions stay so with these probabilities, or become a token; tokens stay."""
        return Masking(x, torch.where(x == self.V, stay, 0.0), prediction, self.V)

    def stays(self, x: Tensor, move: Move) -> Tensor:
        """The probability u that a masked position stays masked in a move down, of shape (), (length,) or that of x."""
        u = self._stays(x, move.t, move.s)
        return u if self.end is None or self.alone else self._late(x, self.hidden(move.t, x), u, move)

    def _stays(self, x: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
        """That of rows that are not behind."""
        return (self.hidden(s, x) / self.hidden(t, x)).nan_to_num(0.0).clamp(max=1)

    def noised(self, clean: Tensor, noise: Tensor, t: float) -> Tensor:
        if not self.places or self.end is None:
            return super().noised(clean, noise, t)
        used = (clean == self.end).cumsum(-1).eq(0).sum(-1, keepdim=True)
        return self._masking(clean, 1 - self.hidden(1 - (1 - t) * used.double() / self.places, clean)).push(noise)

    def begins(self, clean: Tensor, level: float) -> float:
        if not self.alone or self.end is None:
            return level
        used = (clean == self.end).cumsum(-1).eq(0).sum(-1)
        return 1 - float((used * (1 - level)).floor().min()) / self.places

    def _masking(self, x: Tensor, kept: Tensor) -> Masking:
        """Masks each token that is not one of the template with probability 1 - kept."""
        hide = torch.where(x == self.V, 1.0, torch.where(self.still(x), 0.0, 1 - kept))
        nothing = torch.zeros((), device=x.device).expand(*x.shape, self.V)
        return Masking(x, hide, nothing, self.V)

    def still(self, x: Tensor) -> Tensor:
        """The tokens that are never masked, bool, of a shape that broadcasts to that of x."""
        return self.prior(torch.zeros(*x.shape, self.states, device=x.device), self.t_max) != self.V

    def _late(self, x: Tensor, m_t: Tensor, u: Tensor, move: Move) -> Tensor:
        """The probabilities of staying masked, also of rows that have more masks than time t says."""
        masked = x == self.V
        count, rank = masked.sum(-1, keepdim=True), masked.cumsum(-1)
        left = (count * (move.s / move.t) - 1e-9).ceil()
        late = (masked & (m_t == 0)).any(-1, keepdim=True)
        return torch.where(late, (rank > count - left).double(), u)


@dataclass(frozen=True)
class Uniform(_Tokens):
    """Uniform noise: with probability t, a token is replaced by one drawn uniformly from all V."""

    noising = "uniform"  # type: ignore[assignment]

    def prior(self, noise: Tensor, t: float) -> Tensor:
        return noise.argmax(-1)

    def clean(self, prediction: Tensor, x: Tensor) -> Tensor:
        return prediction.argmax(-1)

    def kernel(self, x: Tensor, predictions: tuple[Tensor, ...], move: Move) -> Categorical:
        kept_t, kept_s = 1 - move.t, 1 - move.s
        if move.s > move.t:
            return Categorical(self._keep(x, kept_s / kept_t).log())
        if (leaping := self.leaping(move)) is not None:
            return self._leap(x, predictions[0].double().softmax(-1), leaping, move)
        p = predictions[0].double().softmax(-1) / self._keep(x, kept_t)
        p = kept_s * p + (1 - kept_s) / self.V * p.sum(-1, keepdim=True)
        return Categorical((self._keep(x, kept_t / kept_s) * p).log().log_softmax(-1))

    def _leap(self, x: Tensor, p: Tensor, leaping: Leaping, move: Move) -> Categorical:
        """Positions jump to other tokens at rates, or stay."""
        rates = leaping.rates(p, p.gather(-1, x[..., None]), move).scatter(-1, x[..., None], 0.0)
        jumps, stay = _jumps(rates)
        return Categorical(jumps.scatter(-1, x[..., None], stay))

    def _keep(self, x: Tensor, kept: float) -> Tensor:
        """kept [x = v] + (1 - kept)/V over v."""
        p = torch.full((*x.shape, self.V), (1 - kept) / self.V, dtype=torch.float64, device=x.device)
        return p.scatter_(-1, x[..., None], kept + (1 - kept) / self.V)

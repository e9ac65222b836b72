"""Base of the solvers of token processes.

A token process moves by a kernel that is a product over positions, or that first chooses positions and then draws their
tokens. A solver says where the times lie, and how many tokens are masked again (`remasked`), at which rates positions
jump (`Leaping`) or which positions are revealed first (`Order`). The moves carry their solver, and the kernels
themselves are in `guidekit.process`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from . import times
from .base import Move, Solver
from .schedules import Schedule

S = TypeVar("S", bound=Solver)


class TokenMove(Move):
    """A move of tokens with the solver that decides how they move."""

    solver: TokenSolver

    def _replace(self, **fields: Any) -> TokenMove:
        return self.solver.move(*super()._replace(**fields)[:2])


@dataclass(frozen=True)
class TokenSolver(Solver):
    """A rule for moves of tokens. `length` is the number of positions, which a run takes from its model."""

    _: KW_ONLY
    length: int = field(default=0, repr=False)

    stochastic = True
    noises: ClassVar[tuple[str, ...]] = ("masked",)  # kinds of noise that it serves: "masked", "uniform", "ordered"

    def moves(self, schedule: Schedule, times: Sequence[float]) -> list[Move]:
        raise ValueError(
            f"solver={self!r} is for token processes; Gaussian ones take DDPM(), DDIM() and so on: leave solver=None"
        )

    def grid(self, steps: int, t_max: float) -> list[float]:
        """The times of a run of so many steps."""
        return times.make(steps, self.times, None, t_max)

    def table(self, grid: Sequence[float]) -> list[Move]:
        """The moves between these times."""
        return [self.move(t, s) for t, s in pairwise(grid)]

    def move(self, t: float, s: float) -> TokenMove:
        """One move, which carries this solver."""
        move = TokenMove(t, s)
        move.solver = self
        return move

    def remasked(self, t: float, s: float) -> float:
        """The probability that a token that is not masked is masked in a move down."""
        return 0.0


@dataclass(frozen=True)
class Leaping(TokenSolver):
    """Base of solvers whose positions jump independently of each other, at rates that are held during a move."""

    noises = ("masked", "uniform")

    def rates(self, p: Tensor, own: Tensor | None, move: Move) -> Tensor:
        """How often a position jumps to each token in this move on average, (rows, length, V), given the prediction p
        and under uniform noise `own`, its probability of the token that stands there (rows, length, 1). The rate of a
        jump to that token itself is not used."""
        raise NotImplementedError(f"{type(self).__name__} does not say at which rates tokens jump")

    def leaps(self, move: Move, noising: str) -> bool:
        """Whether this move is a leap, and not that of `Ancestral`."""
        return 0 < move.s < move.t


@dataclass(frozen=True)
class Order(TokenSolver):
    r"""Base of solvers that choose which masked positions are revealed; their tokens are then drawn independently.

    In a move from t to s, a row with m masks keeps ceil(m s/t) of them. In a grid whose times are the shares that are
    masked, n/L, a row thus has exactly n masks; one with fewer masks, of which a part was known, waits for its turn.

    A solver that is `clocked` says at which time a network that reads t is asked of each row. If it chooses positions
    uniformly, these are the times at which the rows of the process itself reveal their next positions; see
    `guidekit.solvers.first_hitting`.
    """

    clocked: ClassVar[bool] = False  # whether rows are asked at times of their own; others are at n/L
    factorised: ClassVar[bool] = True  # whether the tokens of a move are drawn independently of each other
    revises: ClassVar[bool] = False  # whether it reveals more than that, and takes tokens back
    routes: ClassVar[bool] = False  # whether tokens compete with the masks, and are masked again where they lose

    def grid(self, steps: int, t_max: float) -> list[float]:
        if steps < 1 or isinstance(steps, bool):
            return super().grid(steps, t_max)  # which refuses them
        return [t_max * n / self.length for n in self.counts(steps, self.length)]

    def counts(self, steps: int, length: int) -> list[int]:
        """How many of `length` positions are masked at each time: from all of them to none, in at most `steps` steps;
        the shares are those of the grid `times`, and every step reveals one at least."""
        steps = min(steps, length)
        shares, left = times.make(steps, self.times, None, 1.0), [length]
        for step, share in enumerate(shares[1:], 1):
            left.append(min(left[-1] - 1, max(round(length * share), steps - step)))
        return left

    def left(self, masks: Tensor, move: Move) -> Tensor:
        """How many of a row's masks are left after a move down."""
        return (masks * (move.s / move.t) - 1e-9).ceil().long()

    def asked_at(self, t: float | Tensor, gumbel: Tensor, before: Tensor | None, left: Tensor) -> Tensor:
        """The times at which the network is asked of rows with the masks `left`, bool (rows, length), float64 (rows,).

        Before the move that brought them there they had the masks `before` and were asked at t (rows,); None if they
        have just been noised up to t. `gumbel` (rows, length) are the numbers by which that move chose its positions,
        or fresh ones. The latest of the times t exp(-exp(-g)) is t' at the masks that are left; of the masks before it
        was t itself.
        """
        fall = _top(gumbel, left) if before is None else _top(gumbel, left) - _top(gumbel, before)
        return torch.where(left.any(-1), t * fall.neg().exp(), 0.0)

    def keys(self, log_p: Tensor, gumbel: Tensor, move: Move) -> Tensor:
        """What orders the positions, (rows, length): the largest are revealed first. log_p is the prediction, and
        `gumbel` one Gumbel number for each position."""
        raise NotImplementedError(f"{type(self).__name__} does not say which positions come first")

    def sure(self, log_p: Tensor, masked: Tensor, memory: Tensor) -> Tensor:
        """Where it `revises`: how many masked positions are sure enough to be revealed, whatever the grid says."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is sure")

    def taken_back(self, fall: Tensor, shown: Tensor, asked: Tensor) -> Tensor:
        """Where it `revises`: the tokens that are masked again."""
        raise NotImplementedError(f"{type(self).__name__} does not say what is taken back")

    def blocks(self, length: int) -> Tensor:
        """The block of every position: those of an earlier one are all revealed first."""
        return torch.zeros(length, dtype=torch.long)

    def first(self, log_p: Tensor, gumbel: Tensor, masked: Tensor, count: Tensor, move: Move) -> Tensor:
        """The `count` (rows, 1) masked positions that are revealed first, as a bool tensor (rows, length)."""
        by_key = self.keys(log_p, gumbel, move).argsort(dim=-1, descending=True, stable=True)
        block = self._block_of(masked).gather(-1, by_key)
        order = by_key.gather(-1, block.argsort(dim=-1, stable=True))
        return masked & (order.argsort(-1) < count)

    def log_chance(self, log_p: Tensor, masked: Tensor, shown: Tensor, move: Move) -> Tensor:
        """The log-probability that just the positions `shown` are revealed, float64 (rows,)."""
        raise ValueError(f"{self!r}: {self.unsteerable}")

    def uniform_chance(self, masked: Tensor, shown: Tensor) -> Tensor:
        """That log-probability where positions are chosen uniformly: sum over blocks of -log binom(m, k), with k of m
        masks revealed; -inf where a later block is begun before the end of an earlier one."""
        m, k = (self._per_block(v) for v in (masked, shown))
        left = (m - k).cumsum(-1)
        broken = ((k[:, 1:] > 0) & (left[:, :-1] > 0)).any(-1)
        chance = (k + 1).lgamma() + (m - k + 1).lgamma() - (m + 1).lgamma()
        return torch.where(broken, -torch.inf, chance.sum(-1))

    def _block_of(self, masked: Tensor) -> Tensor:
        """The block of every masked position; all others come last."""
        length = masked.shape[-1]
        return torch.where(masked, self.blocks(length).to(masked.device), length)

    def _per_block(self, marked: Tensor) -> Tensor:
        """How many positions of each block are marked, float64 (rows, blocks)."""
        block = self.blocks(marked.shape[-1]).to(marked.device)
        found = torch.zeros(len(marked), int(block[-1]) + 1, dtype=torch.float64, device=marked.device)
        return found.index_add_(1, block, marked.double())


def _top(gumbel: Tensor, where: Tensor) -> Tensor:
    """-log of the largest exp(-exp(-g)) there, (rows,)."""
    return gumbel.masked_fill(~where, -torch.inf).amax(-1).neg().exp()


def solver_of(move: Move) -> TokenSolver | None:
    """The solver that decides how tokens move; None is the ancestral one."""
    return move.solver if isinstance(move, TokenMove) else None


def chosen(moves: Sequence[Move]) -> TokenSolver | None:
    """The token solver of a table, where it is not the ancestral one."""
    return next((solver for move in moves if (solver := solver_of(move)) is not None), None)


def sized(solver: S | None, shape: tuple[int, ...]) -> S | TokenSolver | None:
    """The solver as it is in runs of a model with this shape."""
    return replace(solver, length=shape[0]) if isinstance(solver, TokenSolver) else solver

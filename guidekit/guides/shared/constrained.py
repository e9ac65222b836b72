r"""Kernels of token processes within a language: constraints that hold in every sample, exact under the weights.

Let p(x_s | x_t) be the kernel of a move, made of independent clean predictions p_i(v), and A the probability that a
sequence drawn from them is in the language (see `language`). A move draws

    x_0 from prod_i p_i, given that it is in the language,        x_s from q(x_s | x_t, x_0),

position by position: backwards the probabilities of acceptance, forwards the draws. So that

    q(x_s | x_t) = p(x_s | x_t) A(x_t, x_s)/A(x_t),

where A(x_t, x_s) is the probability of acceptance once x_s is known as well. Samples are always in the language, since
x_0 is x_s at the last move. The log-weights move by log p/q + log A(x_s) - log A(x_t), with A(x_s) by the predictions
at x_s: intermediate targets are p(x_t) A(x_t), and the mean weight at the end estimates the probability of the language
under the chain.

Random numbers are those of the kernel without the constraint: one Gumbel number for each value of a position. The value
is the place of the largest sum of log-weight and Gumbel number; the largest sum itself is independent of that place and
chooses between the letters that x_0 may have. Where the language excludes nothing, x_s is that of the plain kernel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ... import random
from ...engine.guide import Guide
from ...engine.population import Population
from ...engine.resampling import check_resampling, resample
from ...engine.tree import Tree
from ...engine.view import Step, View
from ...models.base import Model
from ...process import Kernel, Lengths, Masked, Uniform
from ...solvers import Move
from ...solvers.token_solver import Order, chosen
from .language import Language

LEAST = 1e-30  # probability of a token that the constraint may need and the model excludes


class Within(Guide):
    """Base of guides whose samples are in a language: a dataclass with these fields, whose `bind` sets `language`."""

    methods = ("weighted", "replace")
    language: Language | None = None  # of token processes
    advice = 'Or give method="replace", which has no weights and takes any solver'
    method: str
    ess: float

    def __post_init__(self) -> None:
        check_resampling(self.ess, "systematic")
        name = type(self).__name__
        if self.method not in self.methods:
            raise ValueError(f"{name}(method={self.method!r}): there is {', '.join(self.methods)}")
        if (self.start, self.stop) != (0.0, 1.0):
            raise ValueError(f"{name}(start, stop): a constraint holds throughout the run")

    @property
    def weighted(self) -> bool:
        return self.method == "weighted"

    @property
    def stochastic(self) -> bool:
        return self.weighted

    @property
    def independent(self) -> bool:
        return not self.weighted

    def check(self, model: Model, steps: int) -> None:
        if self.language is not None and not isinstance(model.process, (Masked, Uniform)):
            raise ValueError(
                f"{type(self).__name__} is for masked and uniform tokens, and the noise of this model is "
                f"{type(model.process).__name__}: steer by a reward for what the constraint asks"
            )
        if isinstance(model.process, Lengths) and self.language is not None and not self.language.free:
            raise ValueError(
                f"{type(self).__name__} is for texts of one length, and the lengths of this model's texts are drawn "
                "first: steer by a reward for what the constraint asks, or keep a part with Keep()"
            )
        if self.language is not None and not self.language.possible:
            raise ValueError(f"{type(self).__name__}: no sequence of {model.shape[0]} tokens satisfies all of it")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if not isinstance(other, Within) or self.language is None or other.language is None:
            return None
        if self.weighted != other.weighted:
            return 'one has method="weighted" and one has not; constraints of one list have weights or have none'
        return None if (self.language & other.language).possible else "no sequence satisfies both; relax one of them"

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        solver = chosen(moves)
        if solver is not None and (not isinstance(solver, Order) or solver.unsteerable or not solver.factorised):
            raise ValueError(
                f"{type(self).__name__} draws tokens within its constraint at positions that do not depend on them, "
                f"which {solver!r} does not choose: leave solver=None, or take FirstHitting()"
            )
        return moves

    def propose(self, model: Model, population: Population, kernel: Any, step: Step) -> Any:
        assert step.move is not None
        if step.move.s > step.move.t:
            return kernel
        assert self.language is not None
        if isinstance(kernel, Constrained):
            return kernel.within(self.language, population.group)
        p = (population.proposals or population.predictions)[0]
        of = model.process, population.x, p, step.move, self.language, population.group
        return constrained(*of, self.weighted)

    def log_weight(self, view: View, memo: Tree) -> tuple[Tensor | float, Tree]:
        before = 0.0 if memo is None else memo
        if not self.weighted or view.step.last:
            return -before, view.zeros()
        assert view.prediction is not None and view.step.move is not None and self.language is not None
        kernel = constrained(view.model.process, view.x, view.prediction, view.step.move, self.language, view.group)
        never = (kernel.given * kernel.allowed).sum(-1) <= 2 * LEAST * kernel.p.shape[-1]
        if memo is None and bool(never.any()):  # where no token that is allowed has any probability, at the start
            self.refuse(never.any(0).nonzero()[:, 0].tolist())
        return torch.where(never.any(1), -torch.inf, kernel.accepted - before), kernel.accepted

    def refuse(self, places: list[int]) -> None:
        """Raise the error for positions of which no allowed token has any probability."""
        raise ValueError(
            f"{type(self).__name__}: the model gives no probability to any token that is allowed at position "
            f"{', '.join(map(str, places[:5]))} (counted from 0); no sample of it satisfies the constraint"
        )

    def select(self, population: Population, step: Step) -> Population:
        return resample(population, step, self.ess, "systematic") if self.weighted else population


@dataclass(frozen=True, eq=False)
class Constrained(ABC):
    """The kernel q; `allowed` is bool (rows or 1, L, V), and `p` the clean probabilities, float64 (rows, L, V). `shown`
    are the masks that are revealed, bool (rows, L), once they are drawn."""

    process: Any
    x: Tensor
    p: Tensor
    move: Move
    language: Language
    allowed: Tensor
    weighted: bool = True
    shown: Tensor | None = None
    random = True
    history = ()

    def within(self, other: Language, group: Tensor) -> Constrained:
        """The kernel within a further language."""
        language = self.language & other
        if not language.possible:
            raise ValueError("the constraints of these guides contradict each other: no sequence satisfies them all")
        return replace(self, language=language, allowed=_rows_of(language, group))

    def push(self, noise: Any) -> Tensor:
        if self.language.free:
            return self._kernel(self.given * self.allowed).push(noise)
        noise = random.drawn(noise)
        f, betas = self.given * self.allowed, self._ahead[1]
        state, out, rows = torch.zeros_like(self.x[:, 0]), [], torch.arange(len(self.x), device=self.x.device)
        for i in range(self.language.length):
            after = self.language.next[i][state]  # (rows, V)
            w = f[:, i] * betas[i + 1][rows[:, None], after]
            w = w / w.sum(-1, keepdim=True)
            values = self.values(i, w).log()
            best, value = (values + noise[:, i]).max(-1)
            letter = _inverted(self.letters(i, value, w), (-(-(best - values.logsumexp(-1))).exp()).exp())
            state = after[rows, letter]
            out.append(value)
        return torch.stack(out, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        accepted = self.language.backward(self.seen(x) * self.allowed)[0]
        return self._kernel(self.given).log_prob(x) + accepted - self.accepted

    def correction(self, p: Any, x: Tensor) -> Tensor:
        if not self.weighted:
            return torch.zeros(len(x), dtype=torch.float64, device=x.device)
        return p.log_prob(x) - self.log_prob(x)

    @property
    def accepted(self) -> Tensor:
        """log A(x_t), float64 (rows,)."""
        return self._ahead[0]

    @cached_property
    def _ahead(self) -> tuple[Tensor, list[Tensor]]:
        return self.language.backward(self.given * self.allowed)

    def _kernel(self, p: Tensor) -> Kernel:
        return self.process.kernel(self.x, (p.log(),), self.move)

    @property
    @abstractmethod
    def given(self) -> Tensor:
        """P(x_0^i = v | x_t), (rows, L, V)."""

    @abstractmethod
    def seen(self, x: Tensor) -> Tensor:
        """P(x_0^i = v | x_t, x_s)."""

    @abstractmethod
    def values(self, i: int, w: Tensor) -> Tensor:
        """The probabilities of the values of x_s at position i, where those of its clean letters are w."""

    @abstractmethod
    def letters(self, i: int, value: Tensor, w: Tensor) -> Tensor:
        """The weights of the clean letters, (rows, V), given this value of x_s."""


class _Masked(Constrained):
    """Which masks are revealed depends on no letter. These positions are drawn first (`shown`)."""

    def push(self, noise: Any) -> Tensor:
        if self.language.free or self.shown is not None:
            return super().push(noise)
        shown, noise = self._kernel(self.given).shown(noise), random.drawn(noise)  # type: ignore[attr-defined]
        letters = noise[..., :-1]  # of the mask they have chosen positions; a maximum of others stands in for it
        other = letters.amax(-1, keepdim=True) - math.log(letters.shape[-1])
        return replace(self, shown=shown).push(torch.cat([letters, other], -1))

    @cached_property
    def given(self) -> Tensor:  # type: ignore[override]
        return self.seen(self.x)

    def seen(self, x: Tensor) -> Tensor:
        p = self.p
        if self.process.places:  # the network looks no further than the next position
            far = self.process.stays(self.x, self.move).expand(self.x.shape) == 1
            p = torch.where(far[..., None], 1 / p.shape[-1], p)
        letter = torch.nn.functional.one_hot(x.clamp(max=p.shape[-1] - 1), p.shape[-1]).to(p)
        return torch.where((x == self.process.V)[..., None], p, letter)

    def values(self, i: int, w: Tensor) -> Tensor:
        assert self.shown is not None
        stays = ((self.x[:, i] == self.process.V) & ~self.shown[:, i])[:, None].to(w)
        return torch.cat([(1 - stays) * w, stays], -1)

    def letters(self, i: int, value: Tensor, w: Tensor) -> Tensor:
        V = w.shape[-1]
        shown = torch.nn.functional.one_hot(value.clamp(max=V - 1), V).to(w)
        return torch.where((value == V)[:, None], w, shown)


class _Uniform(Constrained):
    """q(x_s = a | x_t = b, x_0 = v) is q(b | a) q(a | v)/q(b | v)."""

    @property
    def given(self) -> Tensor:  # type: ignore[override]
        return self.p

    def seen(self, x: Tensor) -> Tensor:
        f = self.p * self._law(x, 1 - self.move.s) / self._law(self.x, 1 - self.move.t)
        return f / f.sum(-1, keepdim=True)

    def values(self, i: int, w: Tensor) -> Tensor:
        return (self._pairs(i) * w[:, None]).sum(-1)

    def letters(self, i: int, value: Tensor, w: Tensor) -> Tensor:
        return self._pairs(i)[torch.arange(len(value), device=value.device), value] * w

    def _law(self, x: Tensor, kept: float) -> Tensor:
        """kept [x = v] + (1 - kept)/V over v."""
        V = self.p.shape[-1]
        return torch.nn.functional.one_hot(x, V).to(self.p) * kept + (1 - kept) / V

    def _pairs(self, i: int) -> Tensor:
        """q(x_s = a | x_t, x_0 = v) at position i, (rows, a, v)."""
        kept_t, kept_s = 1 - self.move.t, 1 - self.move.s
        b, V = self.x[:, i], self.p.shape[-1]
        every = torch.arange(V, device=b.device)
        return self._law(b, kept_t / kept_s)[:, :, None] * self._law(every, kept_s) / self._law(b, kept_t)[:, None]


def constrained(
    process: Any, x: Tensor, log_p: Tensor, move: Move, language: Language, group: Tensor, weighted: bool = True
) -> Constrained:
    """The kernel of a move within a language, from the prediction log p."""
    p = log_p.double().softmax(-1).clamp(min=LEAST)
    kind = _Uniform if isinstance(process, Uniform) else _Masked
    return kind(process, x, p / p.sum(-1, keepdim=True), move, language, _rows_of(language, group), weighted)


def _rows_of(language: Language, group: Tensor) -> Tensor:
    return language.allowed if len(language.allowed) == 1 else language.allowed[group]


def _inverted(weights: Tensor, u: Tensor) -> Tensor:
    """The letter at which the cumulative weights, (rows, V), pass the uniform number u."""
    total = weights.cumsum(-1)
    return (total <= (u * total[:, -1])[:, None]).sum(-1).clamp(max=weights.shape[-1] - 1)

r"""Superposition (Skreta et al., 2024), https://arxiv.org/abs/2412.17762: mixtures of conditions and models.

The noised mixture sum_i a_i p_i has the prediction

    d = sum_i rho_i d_i   (tokens: p = sum_i rho_i p_i),      rho_i ~ a_i p_i(x_t).

The responsibilities rho require densities, which a network does not provide. But its reverse kernels do: the
probability of a path from noise to x_t under the experts' true reverse processes differs by these densities alone, so

    rho_i  ~  a_i prod q_i(x_s | x_t)   over the moves made so far,

which is exact for small steps (the paper writes it as an Ito integral) and for masked tokens that are unmasked one at a
time. With adaptive=False rho_i = a_i is kept: for tokens that is a mixture at each position separately; for a Gaussian
process it is a geometric mean, the same as Compose with these weights, and not a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide, Scale, at, numbers
from ..engine.tree import Tree
from ..engine.view import View
from ..models.base import Model
from ..models.evaluations import Cond, evaluation, listed
from ..process import Gaussian
from ..solvers import Move
from ..solvers.token_solver import chosen


@dataclass(frozen=True)
class Mixture(Guide):
    """A mixture of the run's condition with experts. One extra NFE for each expert, in one forward pass per network.
    The final responsibilities, of the run's own condition first, are in `result.memos[place of the guide]`.

    experts    conditions, base models or evaluations, one or a list, as in Compose
    weights    a_i, of the run's own condition first: numbers of at least 0, or functions of t if adaptive=False. None:
               equal ones
    adaptive   rho follows the path of each particle, which needs a stochastic solver; False: rho_i = a_i
    """

    experts: Any
    weights: Sequence[Scale] | None = None
    adaptive: bool = True

    isotropic = True
    card = Card(
        "samples a mixture of conditions and models",
        section="Composition",
        rows="1 for each expert",
        exact="the mixture, for small steps; for tokens, if one is unmasked at a time",
        changes="target",
        paper=Paper(
            "skreta2024superdiff",
            "Skreta, Marta and others",
            "The Superposition of Diffusion Models Using the Itô Density Estimator",
            2024,
            "2412.17762",
        ),
        example="gk.Mixture(other)",
    )

    def __post_init__(self) -> None:
        count = len(listed(self.experts)) + 1
        weights = [1.0] * count if self.weights is None else self.weights
        fixed = [w for w in weights if not callable(w)]
        if len(weights) != count or min([*fixed, 0]) < 0 or not (len(fixed) < count or sum(fixed) > 0):
            raise ValueError(
                f"Mixture(weights={self.weights!r}): {count} shares are needed, the run's own first, none negative"
            )
        if self.adaptive and len(fixed) < count:
            raise ValueError("Mixture(weights=functions): shares change with t only where adaptive=False")

    @property
    def stochastic(self) -> bool:
        return self.steer or self.adaptive

    @property
    def needs(self) -> tuple[Cond, ...]:
        return tuple(evaluation(e) for e in listed(self.experts))

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        solver = chosen(moves)
        if self.adaptive and solver is not None and solver.unsteerable:
            raise ValueError(
                f"Mixture(adaptive=True) compares the probabilities of moves, and {solver!r} has none: "
                f"{solver.unsteerable}. Take Ancestral() or FirstHitting(), or adaptive=False"
            )
        return moves

    def tilt(self, view: View) -> Tensor:
        every, own = self.every(view), view.evals[Cond()]
        log_rho = self.log_rho(view, view.memo)
        if isinstance(view.model.process, Gaussian):
            return sum(view.rows(log_rho[:, i].exp()) * (d - own) for i, d in enumerate(every) if i)  # type: ignore
        shares = [view.rows(log_rho[:, i]) for i in range(len(every))]
        return torch.stack([d + share for d, share in zip(every, shares, strict=True)]).logsumexp(0) - own

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        if view.step.last:
            return 0.0, None if memo is None else memo[1].exp()
        if not self.adaptive:
            return 0.0, memo
        assert view.step.move is not None
        before = () if memo is None else memo[2]
        history = (torch.stack(self.every(view), 1), *before)[: max(1, len(view.step.move.b))]
        return 0.0, (view.x, self.log_rho(view, memo), history)

    def every(self, view: View) -> list[Tensor]:
        """The predictions of all experts, of the run's own condition first."""
        return [view.evals[need] for need in (Cond(), *self.needs)]

    def log_rho(self, view: View, memo: Tree) -> Tensor:
        """log rho, float64 (rows, 1 + experts)."""
        if memo is None:
            weights = [1.0] * (len(self.needs) + 1) if self.weights is None else self.weights
            a = numbers([at(w, view.t) for w in weights], view.x.device)
            return (a / a.sum()).log().expand(len(view.x), -1)
        return view.once(("rho", id(self)), lambda: self._followed(view, memo))

    def _followed(self, view: View, memo: Tree) -> Tensor:
        x, log_rho, history = memo
        assert view.step.came is not None
        for i in range(log_rho.shape[1]):
            kernel = view.model.process.kernel(x, tuple(d[:, i] for d in history), view.step.came)
            if not kernel.random:
                return log_rho
            gain = kernel.log_prob(view.x)[:, None]
            log_rho = log_rho + torch.nn.functional.pad(gain, (i, log_rho.shape[1] - 1 - i))
        return log_rho.log_softmax(-1)

r"""Moves that mask a few places of a sample and draw them again, from the model's prediction tilted by the gradient of
a reward: the proposal q of `informed`, within constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rewards import as_reward

from .. import random
from ..engine.checks import bound, conditions
from ..engine.scoring import Scorer
from ..errors import RewardError
from ..guides import Guide
from ..guides.shared.constrained import Constrained, Within, constrained
from ..guides.shared.language import Language, both, letters, near
from ..models import Model
from ..models.base import stack
from ..models.evaluations import Cond, evaluate, rows_of
from ..process import Kernel, Masked
from ..solvers import Move


def unfit(model: Model) -> str | None:
    """Why a model cannot say what a masked place holds, given all others; None if it can."""
    if isinstance(model.process, Masked) and not model.process.places:
        return None
    return (
        f"informed moves need a masked model that fills its places in any order, and {model!r} is none; gk.refine and "
        "gk.evolve serve all models"
    )


@dataclass
class Moves:
    """Which places may change, what the model says of them, and how new letters are drawn.

    alpha       the temperature
    share       of the places that a move draws again
    guides      constraints
    max_edits   at most so many places differ from where each sample started
    """

    model: Model
    alpha: float
    share: float
    guides: tuple[Guide, ...] = ()
    cond: Any = None
    max_edits: int | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Raise before the first network call where these moves cannot be made."""
        if (why := unfit(self.model)) is not None:
            raise ValueError(why)
        for guide in self.guides:
            if not isinstance(guide, Within):
                raise ValueError(
                    f"guides holds {type(guide).__name__}: informed moves take constraints alone (gk.Keep, gk.Sites, "
                    "gk.MaxEdits); the reward is an argument"
                )
        if not self.language.possible:
            raise ValueError("guides: no sequence satisfies these constraints together")
        if self.max_edits is not None and not self.language.free:
            raise ValueError("max_edits goes with gk.Keep alone: give gk.MaxEdits(reference, edits) beside gk.Sites")
        if not bool(self.open.any(-1).all()):
            raise ValueError("guides: these constraints leave no place that could change")

    @cached_property
    def language(self) -> Language:
        """The sequences that all constraints accept."""
        every = letters(torch.ones(*self.model.shape, self.V, dtype=torch.bool, device=self.model.device))
        found = (guide.language for guide in bound(self.guides, self.model) if isinstance(guide, Within))
        return both([every, *(own for own in found if own is not None)])

    @property
    def open(self) -> Tensor:
        """Places with more than one letter to choose from, bool (1 or groups, L)."""
        return self.language.allowed.sum(-1) > 1

    @property
    def count(self) -> int:
        """Places that a round draws again."""
        return min(max(1, round(self.share * self.model.shape[0])), int(self.open.sum(-1).min()))

    @property
    def level(self) -> float:
        return self.count / self.model.shape[0]

    @property
    def V(self) -> int:
        return self.model.process.V  # type: ignore[attr-defined]

    def masked(self, x: Tensor, group: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The samples with the places of this round masked, and the random order of all places."""
        u = random.uniform(random.fold(keys, "places"), self.model.shape)
        open = self.open[group] if len(self.open) > 1 else self.open
        last = u.masked_fill(~open, torch.inf).kthvalue(self.count, 1, keepdim=True).values
        return torch.where(open & (u <= last), self.V, x), u

    @cached_property
    def _cond(self) -> Any:
        return stack([self.model.encode(c) for c in conditions(self.model, self.cond)])

    def predicted(self, y: Tensor, group: Tensor, count: Callable[[int], None]) -> Tensor:
        """log p_i(v | what is not masked), float64 (rows, L, V)."""
        size = self.batch_size or max(len(y), 1)
        parts = zip(y.split(size), group.split(size), strict=True)
        found = [
            evaluate(self.model, [Cond()], part, self.level, rows_of(self._cond, own), count)[Cond()]
            for part, own in parts
        ]
        return torch.cat(found).double().log_softmax(-1)

    def kernel(
        self, y: Tensor, log_p: Tensor, x: Tensor, slope: Tensor | None, origin: Tensor, group: Tensor
    ) -> Kernel | Constrained | _Near:
        """q(. | x, S)."""
        if slope is not None:
            log_p = log_p + slope.double() / (2 * self.alpha)
        down = Move(self.level, 0.0)
        if self.max_edits is not None:
            return _Near.of(self.model.process, y, log_p, down, self.language, origin, self.max_edits, group)
        if not self.guides:
            return self.model.process.kernel(y, (log_p,), down)
        return constrained(self.model.process, y, log_p, down, self.language, group, False)

    def holds(self, x: Tensor, group: Tensor) -> Tensor:
        """Whether each sample satisfies the constraints, bool (rows,)."""
        allowed = self.language.allowed
        f = one_hot(x, self.V) * (allowed[group] if len(allowed) > 1 else allowed)
        return self.language.backward(f.double())[0].isfinite()

    def sloped(self, ask: Scorer, reward: Any, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """Rewards (rows,), and their gradients at one-hot rows (rows, L, V)."""
        size = self.batch_size or len(x)
        found = [self._sloped(ask, reward, *v) for v in zip(x.split(size), group.split(size), strict=True)]
        rewards, slope = (torch.cat(v) for v in zip(*found, strict=True))
        return rewards, slope

    def _sloped(self, ask: Scorer, reward: Any, x: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            hot = one_hot(x, self.V).to(self.model.dtype).requires_grad_()
            rewards = ask(reward, hot, group)
            if not rewards.requires_grad:
                raise RewardError(
                    f"no gradient of reward {as_reward(reward).name!r} reaches one-hot rows (rows, length, V): give "
                    "gradient=False, which proposes by the model alone"
                )
            (slope,) = torch.autograd.grad(rewards.nan_to_num(0.0).sum(), hot)
        return rewards.detach(), slope.nan_to_num(0.0)


@dataclass(frozen=True)
class _Near:
    """The kernel within so many edits of where each sample started: letters are counted from the one that was there, so
    that one automaton of differences from zero serves all rows."""

    kernel: Constrained
    origin: Tensor
    V: int

    @staticmethod
    def of(
        process: Any,
        y: Tensor,
        log_p: Tensor,
        move: Move,
        language: Language,
        origin: Tensor,
        edits: int,
        group: Tensor,
    ) -> _Near:
        V, rows = process.V, torch.arange(len(y), device=y.device)
        shift = (torch.arange(V, device=y.device) + origin[..., None]) % V
        allowed = language.allowed[group if len(language.allowed) > 1 else group * 0].gather(-1, shift)
        within = replace(near(origin[0] * 0, edits, V), allowed=allowed)
        own = torch.where(y == V, V, (y - origin) % V)
        return _Near(constrained(process, own, log_p.gather(-1, shift), move, within, rows, False), origin, V)

    def push(self, noise: Tensor) -> Tensor:
        return (self.kernel.push(noise) + self.origin) % self.V

    def log_prob(self, x: Tensor) -> Tensor:
        return self.kernel.log_prob((x - self.origin) % self.V)

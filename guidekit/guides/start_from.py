r"""Starting from given samples, noised part of the way (SDEdit, Meng et al., 2021, https://arxiv.org/abs/2108.01073).

    x_t ~ q(x_t | x_0),     t = level, or the first of the times that are given

Gaussian: x_t = alpha_t x_0 + sigma_t z. Tokens: each is noised with probability t. Of an ordered masked model whose
texts have an end, the last share t of each text is masked with all behind it, so padding does not count, and the model
writes it anew given what is left; as the length of a text decides how much is left, samples of p then do not stay
exactly at p. Refinement, evolution and editing begin like this.

A run of so many steps makes those of them that lie below the level, as the `strength` of image editing does; times that
begin below pure noise, like steps=[.5, .4, .3, .2, .1, 0.], are taken as they are. A run whose times leave it far above
its level would forget its samples, and is an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.card import Card, Paper
from ..engine.guide import Guide
from ..engine.tree import Tree
from ..engine.view import Step, View
from ..models.base import Model
from ..solvers import Move, starting_at
from .shared.training_free import TrainingFree

USUAL = 0.5  # level of a run that would otherwise begin in pure noise
NEAR = 0.1  # how far above its level a run may begin, where its times have none at the level


@dataclass(frozen=True, eq=False)
class StartFrom(Guide):
    """Begin at these samples, noised up to the time `level`. No cost: the steps above the level are not made.

    x       samples, as `model.read` takes them, or states as the network sees them: (n*groups, *shape), or one for all
            rows. A tensor of the shape of states is one
    level   time in (0, 1] at which the run begins: the larger, the less of x is left. None is 0.5 where the times
            would begin in pure noise, and otherwise the first of the times

    Where more rows live at the start than there are samples (best-of-N, beams), they take turns. `result.memos[place]`
    says from which of the samples each row descends.
    """

    x: Any
    level: float | None = None

    sees_prediction = False

    card = Card(
        "starts from given samples, noised part of the way",
        section="Starts, noise and resampling",
        exact="p, if the given samples follow p",
        changes="start",
        paper=Paper(
            "meng2021sdedit",
            "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and "
            "Ermon, Stefano",
            "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
            2021,
            "2108.01073",
        ),
        example="gk.StartFrom(point)",
    )

    def __post_init__(self) -> None:
        number = isinstance(self.level, (int, float)) and not isinstance(self.level, bool)
        if self.level is not None and not (number and 0 < self.level <= 1):
            raise ValueError(f"StartFrom(level={self.level!r}): a time in (0, 1], where 1 is pure noise, or None")

    def clashes(self, other: Guide, after: bool) -> str | None:
        if isinstance(other, StartFrom):
            return "a run starts once; give one of them all samples"
        if not after and isinstance(other, TrainingFree):
            return f"{type(other).__name__} makes rows of the steps that are left out: put StartFrom before it"
        return None

    def bind(self, model: Model) -> Guide:
        if isinstance(self.x, Tensor) and not model.decodes:
            return self  # states of any model whose samples are states
        try:
            x = model.as_states(self.x)
        except ValueError as error:
            raise ValueError(f"StartFrom(x=...): {error}") from error
        return self if x is self.x else self.having(x=x)

    def beside(self, guides: Sequence[Guide], model: Model) -> Guide:
        others = [guide for guide in guides if guide.has("admits")]
        if not others or model.shape not in (tuple(self.x.shape), tuple(self.x.shape[1:])):
            return self
        x = self.x.view(-1, *model.shape)
        for guide in others:
            x, fine = guide.admits(model, x)
            if not bool(fine.all()):
                rows = ", ".join(map(str, (~fine).nonzero()[:, 0].tolist()))
                raise ValueError(
                    f"StartFrom(x=...): sample {rows} (counted from 0) does not hold what {type(guide).__name__} "
                    "keeps, or the model cannot write it with that at its beginning: leave it out, or keep less"
                )
        return self.having(x=x.view(self.x.shape))

    def check(self, model: Model, steps: int) -> None:
        given, shape = tuple(self.x.shape), model.shape
        if given != shape and (given[1:] != shape or not len(self.x)):
            raise ValueError(f"StartFrom(x of shape {given}): samples have shape {shape}, one or one for each row")
        if not bool(self.x.isfinite().all()):
            raise ValueError("StartFrom(x): it has NaN or infinity")

    def regrouped(self, model: Model, groups: Sequence[int], of: int) -> Guide:
        if not isinstance(self.x, Tensor):
            return self.bind(model).regrouped(model, groups, of)
        if self.x.shape == model.shape or len(self.x) == 1 or len(self.x) % of:  # one for all, or refused by `begin`
            return self
        return self.having(x=self.x.unflatten(0, (of, -1))[list(groups)].flatten(0, 1))

    def moves(self, model: Model, moves: list[Move]) -> list[Move]:
        level = self.level
        if level is None:
            level = USUAL if self._apart(model) or (moves and moves[0].t >= model.process.t_max) else 1.0
        level = model.process.begins(self.x, level)
        downs = [i for i, move in enumerate(moves) if move.s < move.t]  # the corrections of Heun belong to a step
        below = next((i for i in downs if moves[i].t <= level + 1e-6), downs[-1] if downs else 0)
        if moves:
            self._check_begins(moves[below].t, level)
        return starting_at(moves, below) if below else moves

    def begin(self, view: View, noise: Tensor) -> Tensor:
        own = self.x.to(view.x).view(-1, *view.model.shape)
        row = self._row(len(own), view.group, view.slot, view.step)
        if self._apart(view.model):
            level = USUAL if self.level is None else self.level
            self._check_begins(view.step.t, view.model.process.begins(own, level))
            return view.model.process.noised(own[row], noise, level)
        self._check_begins(view.step.t, view.model.process.t_max - NEAR - 1e-6 if self.level is None else self.level)
        return view.model.process.noised(own[row], noise, view.step.t)

    def _apart(self, model: Model) -> bool:
        """Whether the level of noise and the time at which the run begins are two numbers."""
        return model.process.begins(self.x.view(-1, *model.shape), USUAL) != USUAL

    def log_weight(self, view: View, memo: Tree) -> tuple[float, Tree]:
        count = 1 if self.x.shape == view.model.shape else len(self.x)
        return 0.0, self._row(count, view.group, view.slot, view.step) if memo is None else memo

    def _check_begins(self, t: float, level: float) -> None:
        """The run begins near its level, whatever its times are and whatever other guides make of them."""
        if t > level + NEAR:
            raise ValueError(
                f"StartFrom(level={self.level}): the run would begin at t={t:.3g}, above the level, and forget most of "
                f"its samples, as it has no time between {level:.3g} and 0. Take more steps, or times that begin at "
                f"the level, like steps=[{level:.3g}, ..., 0.0]"
            )

    def _row(self, count: int, group: Tensor, slot: Tensor, step: Step) -> Tensor:
        """The sample, of so many, from which the row of this address starts."""
        groups = len(step.keys)
        if count == 1:
            return slot * 0
        if count % groups or step.n % (count // groups):
            raise ValueError(
                f"StartFrom has {count} samples for {groups} conditions of {step.n} rows; give one for each row, or "
                "one for all"
            )
        return group * (count // groups) + slot % (count // groups)


def from_level(model: Model, x: Tensor, level: float, steps: int) -> tuple[StartFrom, list[float]]:
    """The guide and the times of a run that begins at these states, noised up to a level: of so many steps, or of as
    many as a model that draws one token at a time needs."""
    begins = model.process.begins(x, level)
    if getattr(model.process, "alone", False):
        steps = max(steps, math.ceil(model.shape[0] * begins - 1e-9))
    times = [begins * (1 - i / steps) for i in range(steps)] + [0.0]
    return StartFrom(x, None if begins == level else level), times

"""What the guides of a diffusers guider are shown: predictions, and nothing else of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ...engine.guide import Guide
from ...engine.seats import acting, seated
from ...engine.tilts import tilted
from ...engine.view import Step, View
from ...models.base import Encoded, Model
from ...models.evaluations import Cond
from ...process import Gaussian
from .hook import serves

_AWAY = {
    "it chooses among particles": ("plan", "select"),
    "it weighs particles, or remembers what was before": ("weigh", "log_weight"),
    "it chooses the noise": ("noise",),
    "it acts before the first step": ("begin",),
    "it changes finished samples": ("paste",),
    "it changes the conditions": ("condition",),
    "it changes the steps": ("moves",),
}


class NotShown(Exception):
    """A guide reads what a guider is not shown."""


def _never(*args: Any) -> Any:
    raise NotShown("it needs noise levels, samples or rewards, which are not shown to a guider")


class Untold:
    """Stands for a move of the solver."""

    def __getattr__(self, name: str) -> Any:
        raise NotShown("it reads the move of the solver, which is not shown to a guider")


class Unseen(Tensor):
    """Stands for a tensor that is not shown."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        raise NotShown("it reads the state x_t or random numbers, which are not shown to a guider")


_UNSEEN = torch.empty(0).as_subclass(Unseen)


class Shown(Model):
    """A denoiser. An encoded condition is its place in the pairs of diffusers: 0 at the prompt, 1 at the negative one.

    out   the precision of the predictions, in which CFG is the formula of diffusers to the last bit
    """

    def __init__(self, net: Any):
        super().__init__(net, Gaussian(cast(Any, _never)), (), decode=_never, null=1, device="cpu")
        self.out = torch.float64

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        raise NotShown("it evaluates the network once more at other states")

    def encode(self, cond: Any) -> Encoded:
        raise NotShown("it needs the network at another condition than the prompt and the negative prompt")

    def guided(self, x: Tensor, t: float, cond: Tensor, null: Tensor, scale: float) -> Tensor:
        if scale == 1:
            return super().guided(x, t, cond, null, scale)
        c, u = cond.to(self.out), null.to(self.out)
        return (u + scale * (c - u)).to(cond.dtype) - cond

    def place(self, need: Cond) -> int:
        """Where in the pairs the condition of an evaluation is."""
        return int(need.cond(self, torch.tensor([0])))


def step_of(index: int, total: int, t: float) -> Step:
    """A point of the grid, without random numbers and moves."""
    return Step(index, total, t, 1, 1, _UNSEEN, move=cast(Any, Untold()), fraction=index / total)


def evaluations(guides: tuple[Guide, ...]) -> tuple[Cond, ...]:
    """What they need, that at the prompt first."""
    return tuple(dict.fromkeys([Cond(), *(need for guide in guides for need in guide.needs)]))


def combined(guides: tuple[Guide, ...], model: Shown, step: Step, evals: dict[Cond, Tensor]) -> Tensor:
    """The prediction with what the guides add and finish, by the engine."""
    view = View(model, step, _UNSEEN, None, _UNSEEN, _UNSEEN, evals, evals[Cond()], cast(Any, _never))
    view, _ = tilted(view, acting(seated(guides), step), (None,) * len(guides), steered=False)
    return cast(Tensor, view.prediction)


def refused(guide: Guide, timed: bool) -> str | None:
    """Why a guide cannot be part of a guider, and what takes it; None if it can."""
    why = _why(guide, timed)
    if why is None:
        return None
    hook = ", or step_hook(pipe, guides=[...])," if serves(guide) else ""
    return f"guider([{type(guide).__name__}]): {why}; gk.sample with gk.from_diffusers(pipe){hook} takes it"


def _why(guide: Guide, timed: bool) -> str | None:
    if not isinstance(guide, Guide):
        raise TypeError(f"guider([{guide!r}]): a guide is needed, like gk.CFG(5.0)")
    if guide.steer:
        return "with steer=True weights correct for it, and a guider has none"
    if guide.grad is True:
        return "it takes gradients through the network"
    away = (why for why, hooks in _AWAY.items() if any(map(guide.has, hooks)))
    return next(away, None) or _tried(guide, timed)


def _tried(guide: Guide, timed: bool) -> str | None:
    model = Shown(len)
    try:
        if any(isinstance(v, Model) for v in vars(guide).values()) or any(
            need.model(model) is not model for need in guide.needs
        ):
            return "it needs another model"
        if not _alike(guide, model):
            return "its formula depends on what the network predicts (noise, velocity), which a guider is not told"
    except NotShown as error:
        return str(error)
    except Exception as error:
        return f"it could not be tried out ({error!r})"
    if not timed and _functions(guide):
        return "it has a function of t, for which guider(..., scheduler=pipe.scheduler) is needed"
    return None


def _functions(guide: Guide) -> bool:
    values = [v for value in vars(guide).values() for v in (value if isinstance(value, (list, tuple)) else [value])]
    return any(callable(v) for v in values)


def _alike(guide: Guide, model: Shown) -> bool:
    """Whether F(a e + b) = a F(e) + b, at some steps of a run of ten in which it always acts."""
    guide = replace(guide, start=0.0, stop=1.0)
    random, needs = torch.Generator().manual_seed(0), evaluations((guide,))
    for need in needs:
        model.place(need)  # raises where it is at another condition
    for step in (step_of(i, 10, 1 - i / 10) for i in (0, 4, 9)):
        b, *e = torch.randn(len(needs) + 1, 2, 4, 8, 8, generator=random, dtype=torch.float64, device="cpu")
        plain = combined((guide,), model, step, dict(zip(needs, e, strict=True)))
        other = combined((guide,), model, step, {need: b - 1.7 * v for need, v in zip(needs, e, strict=True)})
        if not torch.allclose(other, b - 1.7 * plain, rtol=1e-9, atol=1e-9):
            return False
    return True

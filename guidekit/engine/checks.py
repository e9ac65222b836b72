"""What can be wrong with a call, found before the network is called."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from rewards import ByGroup, as_reward

from .. import random
from ..errors import CollapseWarning, RewardError
from ..models.base import Condition, Model
from ..models.evaluations import Cond
from ..solvers import Move, Solver
from .guide import Guide, Scale
from .islands import Islands
from .result import Result
from .view import Step
from .world import Alone


def check_call(model: Any, n: int, solver: Any, batch_size: int | None, guides: Any, *rewards: Any) -> None:
    """The model and the solver are such, and the counts count."""
    if not isinstance(model, Model):
        raise TypeError(
            f"a base model is needed, not {type(model).__name__}; wrap a network in gk.GaussianModel, "
            "gk.MaskedModel or gk.UniformModel"
        )
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(
            f"solver={solver!r}: an instance is needed, like gk.solvers.DDPM() or gk.solvers.DPMpp(order=2)"
        )
    if isinstance(guides, (str, Guide)) or not isinstance(guides, Iterable):
        what = "" if isinstance(guides, Guide) else " and this is not a Guide"
        raise TypeError(f"guides={guides!r}: a list of guides is needed, like [gk.CFG(3.0)]{what}")
    for reward in rewards:
        if reward is not None:
            as_reward(reward)
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: the number of samples per condition is an int of at least 1")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: the most rows in one forward, at least 1, or None")


def check_compile(how: Any, model: Model) -> None:
    """There is a network to compile, and a backend that does it."""
    known = torch.compiler.list_backends(exclude_tags=()) if isinstance(how, str) else ()
    if not (isinstance(how, bool) or callable(how) or how in known):
        raise ValueError(
            f"compile={how!r}: True, or a backend of torch.compile, one of {', '.join(known)} or a function"
        )
    if how and not model.compiles:
        raise ValueError(f"compile={how!r}: {type(model).__name__} has no network to compile; leave compile out")


def conditions(model: Model, cond: Any) -> list[Condition]:
    """The conditions, one for each group."""
    listed = cond if isinstance(cond, list) else [cond]
    if not listed:
        raise ValueError("cond=[]: a list of conditions has one entry per group")
    if model.null is None and 0 < sum(c is None for c in listed) < len(listed):
        raise ValueError("cond has None beside conditions, but the model has no null condition: build it with null=...")
    return listed


def keys(seed: int | Sequence[int], groups: int, device: torch.device) -> Tensor:
    """The groups' keys. With one seed every group has the same noise, so that it equals a run of its own."""
    seeds = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed] * groups
    if len(seeds) != groups or not all(isinstance(s, Integral) and not isinstance(s, bool) for s in seeds):
        raise ValueError(f"seed={seed!r}: an int, or one int for each of the {groups} groups")
    return random.key([int(s) for s in seeds], device)


def bound(guides: Iterable[Any], model: Model) -> tuple[Guide, ...]:
    """The guides as they are in runs of this model, whose process they all serve."""
    listed = tuple(guides)
    for guide in listed:
        if not isinstance(guide, Guide):
            raise TypeError(f"guides holds {guide!r}, which is not a Guide; a list like [gk.CFG(3.)] is needed")
        guide.card.refuse(type(guide).__name__, model.process)
    found = tuple(guide.bind(model) for guide in listed)
    return tuple(_there(guide.beside(found, model), model.device) for guide in found)


def _there(guide: Guide, device: torch.device) -> Guide:
    """The guide with its tensors on the device of the model, to which every step would have to copy them."""
    far = {k: v for k, v in vars(guide).items() if isinstance(v, Tensor) and v.device != device}
    return guide.having(**{k: v.to(device) for k, v in far.items()})


def check_guides(guides: Sequence[Guide], model: Model, solver: Solver | None, steps: int) -> None:
    """Every guide serves this model's process and works with this model and solver."""
    for guide in guides:
        name = type(guide).__name__
        _check_scales(guide)
        if not 0 <= guide.start <= guide.stop <= 1:
            raise ValueError(f"{name}(start={guide.start}, stop={guide.stop}): fractions with 0 <= start <= stop <= 1")
        if guide.steer and not guide.tilts:
            raise ValueError(f"{name}(steer=True): it has no tilt that the weights could correct for")
        if guide.stochastic and solver is not None and not solver.stochastic:
            raise ValueError(
                f"{name} weights, branches or resamples particles, and {solver!r} is deterministic: copies would stay "
                f"equal and have no log-probability. {solver.advice}{guide.advice and f'. {guide.advice}'}"
            )
        if guide.steer and solver is not None and solver.unsteerable:
            raise ValueError(
                f"{name}(steer=True) corrects for its proposal by log p/q, and {solver!r} has none: "
                f"{solver.unsteerable}. Take Ancestral() or FirstHitting(), or steer=False"
            )
        if guide.isotropic and solver is not None and solver.spreads:
            raise ValueError(
                f"{name} takes the noise of a move to have one variance, and the network says one for each number to "
                f"{solver!r}: take solver=gk.solvers.DDPM()"
            )
        for need in (Cond(), *guide.needs):
            need.check(model)
        if guide.judge is not None:
            _check_reward(guide.judge, model, guide.grad is not False)
        guide.check(model, steps)


def check_together(guides: Sequence[Guide], steps: Sequence[Step]) -> None:
    """No guide makes another one idle or wrong."""
    for i, first in enumerate(guides):
        for second in guides[i + 1 :]:
            why = first.clashes(second, after=True) or second.clashes(first, after=False)
            if why is not None:
                raise ValueError(f"{type(first).__name__} and {type(second).__name__} in one list: {why}")
    choosers = [g for g in guides if g.has("select") and any(g.plan(1, step)[1] > 1 for step in steps[:-1])]
    if len(choosers) > 1:
        raise ValueError(
            f"{' and '.join(type(g).__name__ for g in choosers)} each draw children and choose among them: the first "
            "would leave one child to the others, at their full cost. Take one of them, with more children"
        )


def _check_reward(reward: Any, model: Model, gradient: bool) -> None:
    """Rewards that can tell before the first call whether they fit to a model have a method `fits(model, gradient)`."""
    own = as_reward(reward)
    for part in own.rewards if isinstance(own, ByGroup) else own.inside():
        _check_reward(part, model, gradient)
    fits = getattr(own, "fits", None)
    if fits is not None:
        fits(model, gradient)


def check_islands(islands: Any, steps: Sequence[Step]) -> None:
    """The particles of every step can be divided among the islands."""
    if not isinstance(islands, Islands):
        raise TypeError(f"islands={islands!r}: gk.Islands(count, every) or None is needed")
    odd = [step.n for step in steps if step.n % islands.count]
    if odd:
        raise ValueError(
            f"{islands}: {odd[0]} particles of each condition live at some step, which {islands.count} islands cannot "
            f"share evenly; give an n that {islands.count} divides"
        )


def check_world(world: Alone, groups: int, steps: Sequence[Step]) -> None:
    """Every process has particles at every step."""
    fewest = groups * min(step.n for step in steps)
    if fewest < world.size:
        raise ValueError(
            f"world= has {world.size} processes, and {fewest} particles live at some step: at least one for each "
            "process is needed; give a larger n, or fewer processes"
        )


def _check_scales(guide: Guide) -> None:
    """What is declared as a `Scale` is a number or a function of t; some take one for each condition."""
    for field in fields(guide):
        value: Any = getattr(guide, field.name, 0.0)
        several = field.type == "Scale | Sequence[Scale]" and isinstance(value, (list, tuple))
        numbers = (
            callable(v) or (isinstance(v, Real) and not isinstance(v, bool)) for v in (value if several else [value])
        )
        if field.type in ("Scale", Scale, "Scale | Sequence[Scale]") and not all(numbers):
            name = type(guide).__name__
            raise TypeError(
                f"{name}({field.name}={value!r}): a number is needed, or a function of t like lambda t: 3 * t"
            )


def check_result(result: Result, n: int, judge: Any, branched: bool) -> None:
    """Errors and warnings about the samples as a whole: an error where nothing is left of any condition."""
    lost = [] if result.rewards is None else _groups(result, result.rewards.isnan())
    weightless = sorted({*_groups(result, result.log_weights == -torch.inf)} - {*lost})
    told = []
    if lost:
        name = "?" if judge is None else as_reward(judge).name
        told.append(f"reward {name!r} scored none of the {n} samples of {_named(lost)}")
    if weightless:
        told.append(f"all {n} particles of {_named(weightless)} have weight zero")
    if len(lost) + len(weightless) == result.groups:
        raise RewardError("; ".join(told))
    for text in told:
        warnings.warn(f"{text}; other conditions are not affected", stacklevel=6)
    single = 0 if result.rewards is None else int(result.rewards.isnan().sum()) - n * len(lost)
    if single:
        warnings.warn(f"{single} of {len(result)} samples could not be scored; their reward is NaN", stacklevel=6)
    if n > 4:
        _warn_of_collapse(result, n, branched, sorted({*range(result.groups)} - {*lost, *weightless}))


def _groups(result: Result, marked: Tensor) -> list[int]:
    """The groups of which every row is marked."""
    spared = torch.zeros(result.groups, dtype=torch.bool, device=marked.device)
    spared[result.group[~marked]] = True
    return (~spared).nonzero()[:, 0].tolist()


def _named(groups: Sequence[int]) -> str:
    return f"group{'' if len(groups) == 1 else 's'} {', '.join(map(str, groups))}"


def _warn_of_collapse(result: Result, n: int, branched: bool, groups: list[int]) -> None:
    """Warn where few particles carry the samples of these groups or their weighted means.

    A small effective sample size does harm in two places: where particles are resampled, since the others are lost, and
    at the end, where means are taken under the weights. In between weights may still even out. Where every particle
    keeps one of its own children (SVDD), its samples have been steered by that choice, and weights that differ at the
    end are no sign of failure: the smaller alpha, the more so.
    """
    harmful = result.trace["resampled"].clone()
    harmful[-1] |= not branched
    low, step = result.trace["ess"].masked_fill(~harmful, torch.inf)[:, groups].amin(-1).min(0)
    if low < max(1.5, 0.01 * n):
        left = int(result.trace["distinct"][-1, groups].amin())
        warnings.warn(
            f"weighted means and log_z are not reliable: the effective sample size fell to {low:.1f} of {n} at step "
            f"{int(step) + 1} of {len(result.trace)}, and the samples descend from {left} of the starting particles. "
            "Take more particles or a larger alpha, or weigh earlier and in more steps (tempering)",
            CollapseWarning,
            stacklevel=7,
        )


def check_noise(noise: Any, model: Model, rows: int, moves: Sequence[Move]) -> None:
    """The starting noise (rows, *shape), or that of the whole chain (moves + 1, rows, *shape); where the first move
    takes a second part of the starting noise, also (2, rows, *shape)."""
    if noise is None:
        return
    shape = model.process.noise_shape(model.shape)
    dtype = model.process.noise(random.key([0]), shape, model.dtype).dtype
    counts = {len(moves) + 1, 2} if any(moves[0].b[1:]) else {len(moves) + 1}
    shapes = {(rows, *shape), *((count, rows, *shape) for count in counts)}
    fits = isinstance(noise, Tensor) and tuple(noise.shape) in shapes
    if not fits or noise.dtype != dtype or noise.device.type != model.device.type:
        given = f"{tuple(noise.shape)}, {noise.dtype} on {noise.device}" if isinstance(noise, Tensor) else repr(noise)
        raise ValueError(
            f"noise is {given}; needed is {(rows, *shape)} for the start, or {(len(moves) + 1, rows, *shape)} for the "
            f"whole chain, {dtype} on {model.device}"
        )

"""Steering inside a pipeline's own call, by what its scheduler does in a step.

    with step_hook(pipe, guides=[gk.FKSteering(reward, alpha=0.1)]) as hook:
        images = pipe("a cat", num_images_per_prompt=8).images
    hook.result.weights, hook.result.log_z

The pipeline encodes, guides and decodes as always. Its network is called by it alone, so guides that need the network
elsewhere (children, gradients through it, perturbed attention) are for `gk.from_diffusers`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...engine.guide import Guide
from ...engine.population import Population
from ...engine.result import Result
from ...engine.run import Run
from ...errors import NetworkError
from ...models.base import Encoded
from .build import from_diffusers
from .grids import Grids
from .model import DiffusersModel

_ELSEWHERE = ("plan", "begin", "condition", "noise", "paste")


class _Live(DiffusersModel):
    """The pipeline while it runs: its prediction is the one that it has just made."""

    prediction: Tensor | None = None

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        if self.prediction is None or len(x) != len(self.prediction):
            raise NetworkError(
                "a guide asks for the network at other states than the pipeline's; use gk.from_diffusers"
            )
        return self.prediction

    def predicted(self, x: Tensor, t: float, cond: Encoded) -> tuple[Tensor, None]:
        return self(x, t, cond), None

    def encode_all(self, conds: Any) -> Encoded:
        return None


class Hook:
    """What goes on inside one call of the pipeline; `result` is there when it is over."""

    def __init__(self, model: DiffusersModel, guides: tuple[Guide, ...], reward: Any, groups: int, seed: int):
        self.model, self.guides, self.reward, self.groups, self.seed = model, guides, reward, groups, seed
        self.kind = type(model.pipe.scheduler)
        self.result: Result | None = None
        self.run: Run | None = None
        self.pop: Population | None = None
        self.index = 0

    def step(self, scheduler: Any, output: Tensor, t: Any, x: Tensor, generator: Any = None, **options: Any) -> Any:
        """Instead of scheduler.step: look, select and move."""
        as_tuple = options.pop("return_dict", True) is False
        if self.index == 0:
            self._begin(scheduler, x, options)
        run, pop, i = self.run, self.pop, self.index
        assert run is not None and pop is not None
        pop = replace(pop, x=x.to(run.model.dtype))
        self.live.prediction = self.live.process.clean_of(output, pop.x, run.moves[i].t)
        pop = run.look(pop, i)
        pop = run.select(pop, i) if i else pop
        self._draw(i, x, generator)
        pop = run.move(run.branch(pop, i), i)
        self._advance(scheduler, t)
        self.index, self.pop = i + 1, pop
        if self.index == len(run.moves):
            pop = run.select(run.look(pop, self.index), self.index)
            self.result, self.index = run.result(pop), 0
        x_s = pop.x.to(x.dtype)
        return (x_s,) if as_tuple else SimpleNamespace(prev_sample=x_s)

    def _begin(self, scheduler: Any, x: Tensor, options: dict[str, Any]) -> None:
        """The run for this batch and these timesteps."""
        model = self.model
        if len(x) % self.groups:
            raise ValueError(
                f"{len(x)} pictures are not {self.groups} groups of one size; say groups= as there are prompts"
            )
        if tuple(x.shape[1:]) != model.shape:
            raise ValueError(
                f"the pipeline runs on states of shape {tuple(x.shape[1:])}, and the hook was built for {model.shape}: "
                "give step_hook the same height and width"
            )
        plain = copy.copy(scheduler)
        plain.__class__ = self.kind
        grids = Grids(plain, lambda scheduler, steps: None, options)  # its timesteps are set
        self.live = _Live(model.family, grids, model.pipe, None, None, {}, None)
        self.live._decode, grids.dtype, grids.out = model._decode, x.dtype, x.dtype
        steps = len(scheduler.timesteps)
        self.run = Run(
            self.live, len(x) // self.groups, steps=steps, guides=self.guides, cond=[None] * self.groups,
            reward=self.reward, seed=self.seed,
        )  # fmt: skip
        if len(self.run.moves) != steps:
            raise ValueError("the guides change the number of steps, which a hook cannot: use gk.from_diffusers(pipe)")
        self.pop = replace(self.run.born(), x=x)

    def _draw(self, index: int, x: Tensor, generator: Any) -> None:
        """The noise of a move is what the scheduler would draw from the pipeline's generator."""
        from diffusers.utils.torch_utils import randn_tensor

        assert self.run is not None
        kind = self.live.process.grids.stepper(len(self.run.moves)).points[index].draws
        if kind is not None:
            kind = x.dtype if kind == torch.float64 else kind
            noise = randn_tensor(x.shape, generator, x.device, kind).to(self.live.dtype)
            self.run.noise = lambda pop, index: noise

    @staticmethod
    def _advance(scheduler: Any, t: Any) -> None:
        """The pipeline's scheduler knows where the loop stands, as scale_model_input asks it."""
        if hasattr(scheduler, "_step_index"):
            if scheduler._step_index is None:
                scheduler._init_step_index(t)
            scheduler._step_index = (scheduler._step_index or 0) + 1


def serves(guide: Guide) -> bool:
    """Whether a guide does with the network's calls that the pipeline makes."""
    return not (guide.grad is True or guide.needs or any(guide.has(name) for name in _ELSEWHERE))


@contextmanager
def step_hook(
    pipe: Any,
    *,
    guides: Iterable[Guide] = (),
    reward: Any = None,
    groups: int = 1,
    seed: int = 0,
    **options: Any,
) -> Iterator[Hook]:
    """While this holds, pipe(...) is steered; its scheduler is given back as it was.

    guides    those that weigh, select or shift what the pipeline predicts: FKSteering, Resample, MPGD...
    reward    scores the final samples, for the record
    groups    prompts in the call, each with num_images_per_prompt particles
    options   as for gk.from_diffusers: height, width, output, decode_batch
    """
    guides = tuple(guides)
    for guide in guides:
        if not serves(guide):
            raise ValueError(
                f"{type(guide).__name__} needs the network at other states than the pipeline's, or chooses the noise, "
                "which a hook cannot give it: use gk.sample with gk.from_diffusers(pipe)"
            )
    model = from_diffusers(pipe, **options)
    if model.process.grids.spreads:
        raise ValueError("step_hook takes no learned variance: use gk.sample with gk.from_diffusers(pipe)")
    if model.family.labels:
        raise ValueError(f"{type(pipe).__name__} doubles its rows; use gk.sample with gk.from_diffusers(pipe)")
    hook, scheduler, kind = Hook(model, guides, reward, groups, seed), pipe.scheduler, type(pipe.scheduler)

    @functools.wraps(kind.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        return hook.step(self, model_output, timestep, sample, **options)

    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step})
    try:
        yield hook
    finally:
        scheduler.__class__ = kind

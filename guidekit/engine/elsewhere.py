"""Options as other samplers call them. A call that uses such a name is an error which says what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# what to write -> the names that stand for it elsewhere
NAMES = {
    "steps=50": ("num_inference_steps", "num_steps", "n_steps", "sampling_steps"),
    "steps=[1.0, ..., 0.0], with times from 1 (noise) to 0 (data)": ("timesteps", "sigmas"),
    "n, the number of samples for each condition": ("num_images_per_prompt", "num_samples", "n_samples", "num_images"),
    "guides=[gk.CFG(scale)]": ("guidance_scale", "cfg_scale", "guidance_strength", "true_cfg_scale"),
    "guides=[gk.CFG(scale, rescale=...)]": ("guidance_rescale",),
    "guides=[...], like guides=[gk.SVDD(reward)]": ("guide", "guidance", "method"),
    "guides=[gk.StartFrom(x, level=strength)]": ("image", "init_image", "strength"),
    "cond=...": ("prompt", "prompts", "condition", "conditions", "class_labels", "labels", "encoder_hidden_states"),
    "gk.from_diffusers(pipe, negative_prompt=...), or cond={'prompt': ..., 'negative_prompt': ...}": (
        "negative_prompt",
    ),
    "seed=0, a number and not a generator": ("generator", "random_state", "rng"),
    "noise=..., the starting noise": ("latents",),
    "callbacks=[f], where each is called as f(population, step)": (
        "callback", "callback_on_step_end", "callback_steps", "callback_on_step_end_tensor_inputs",
    ),
    "solver=..., like gk.solvers.DDIM()": ("scheduler", "sampler"),
    "solver=gk.solvers.DDIM(eta)": ("eta",),
    "reward=...": ("rewards", "reward_fn", "reward_function", "objective"),
    "alpha of a guide, like gk.FKSteering(reward, alpha=0.1)": ("alpha", "temperature"),
    "a model whose network is on that device": ("device",),
    "a model with another decode": ("output_type", "decode"),
    "a model with another shape": ("height", "width", "shape", "num_frames"),
    "progress=True": ("show_progress", "verbose", "progress_bar", "tqdm"),
}  # fmt: skip


def translated(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; its TypeError about an unknown option says what to use instead."""
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        wrong = [name for name in options if name not in known]
        if wrong:
            meant = "; no option ".join(_meant(name, known) for name in wrong)
            raise TypeError(f"gk.{function.__name__} has no option {meant}")
        return function(*args, **options)

    return call


def _meant(name: str, known: Sequence[str]) -> str:
    """An unknown option, and what to use instead."""
    for here, names in NAMES.items():
        if name in names:
            return f"{name!r}: use {here}"
    close = get_close_matches(name, known, 1, 0.5)
    return f"{name!r}; did you mean {close[0]!r}?" if close else f"{name!r}; it has {', '.join(known)}"

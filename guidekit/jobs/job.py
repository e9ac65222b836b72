"""A config with everything that it names: model, rewards, guides, solver, search. What is wrong is told here, before
the first network call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import Reward, RewardWarning

from ..engine.guide import Guide
from ..engine.run import Run
from ..models.base import Model
from ..process import Gaussian
from ..search import Budget
from ..search.core import Search
from ..solvers import Solver
from . import names as sources
from .config import Config
from .specs import Call, ConfigError, call, options_of

_EXAMPLES: dict[str, Any] = {"molecules": ["CCO"], "dna": ["ACGT" * 50]}


@dataclass(frozen=True)
class Job:
    """A config with everything that it names. Making it calls no network."""

    config: Config
    model: Model
    domain: str | None
    parts: list[sources.Component]
    reward: Reward | None
    holdout: Reward | None
    guides: list[Guide]
    solver: Solver | None
    search: tuple[Callable[..., Any], dict[str, Any]] | None

    @property
    def row(self) -> str:
        """What the table calls it."""
        return "steered" if self.guides or self.search is not None else "unguided"

    @property
    def given(self) -> dict[str, Any]:
        """What all runs of the comparison share, for gk.sample and gk.search."""
        c = self.config
        return {
            "steps": c.steps, "cond": list(c.cond) or None, "solver": self.solver, "seed": c.seed,
            "batch_size": c.batch_size, "holdout": self.holdout,
        }  # fmt: skip


def prepare(config: Config) -> Job:
    """Everything that the config names; what is wrong with it is a ConfigError."""
    try:
        return _make(config)
    except (ValueError, TypeError, ImportError, RuntimeError, LookupError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def _make(config: Config) -> Job:
    model, domain = sources.model_of(config.model, _device(config.device))
    parts = sources.components(config.rewards)
    reward = sources.total(parts)
    guides = [sources.guide_of(text, reward) for text in config.guides]
    reward = reward or next((r for g in guides if (r := getattr(g, "reward", None)) is not None), None)
    judges = _holdout(config.holdout)
    domains = [c.domain for c in (*parts, *judges) if c.domain is not None]
    for component in (*parts, *judges):
        if None not in (component.domain, config.domain or domain) and component.domain != (config.domain or domain):
            raise ConfigError(
                f"the reward {component.name!r} scores {component.domain}, and the model {config.model!r} makes "
                f"{config.domain or domain}"
            )
    job = Job(
        config, model, config.domain or domain or (domains[0] if domains else None), parts, reward,
        judges[0].raw if judges else None, guides, None if config.solver is None else sources.solver_of(config.solver),
        _search(config, reward),
    )  # fmt: skip
    _check(job)
    for component in (*parts, *judges):
        _try(component, model)
    return job


def _device(name: str | None) -> str:
    there = torch.cuda.is_available()
    if name is not None and name.startswith("cuda") and not there:
        raise ConfigError(f"device = {name!r}: torch sees no GPU here; take cpu")
    try:
        return str(torch.device(name or ("cuda" if there else "cpu")))
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: cpu, cuda or cuda:1 is needed") from error


def _holdout(text: str | None) -> list[sources.Component]:
    if text is None:
        return []
    found = sources.components([text])
    if found[0].weight != 1:
        raise ConfigError(f"holdout = {text!r}: it takes no part in the run, and so it has no weight")
    return found


def _search(config: Config, reward: Reward | None) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    if config.search is None:
        return None
    if reward is None:
        raise ConfigError("a search needs a reward: name one")
    make, options = sources.search_of(config.search)
    if config.budget is None:
        return make, options
    return make, options | {"budget": call(Budget, Call("budget", (), options_of(config.budget)))}


def _check(job: Job) -> None:
    """The checks of the engine, which come before the first network call."""
    if job.search is not None:
        make, options = job.search
        given: Any = job.given | {k: v for k, v in options.items() if k == "over"} | {"guides": job.guides}
        Search(job.model, job.config.n, job.reward, given, make.__name__, {})
    else:
        Run(job.model, job.config.n, **job.given, guides=job.guides, reward=job.reward)
    if job.config.domain is not None:
        text = isinstance(job.model.decode(_state(job.model)), list)
        if (job.domain in ("molecules", "dna")) != text and job.domain != "other":
            raise ConfigError(f"domain = {job.domain!r}: samples of the model are {'texts' if text else 'tensors'}")


def _state(model: Model) -> Tensor:
    """One state of zeros, or of the first token."""
    dtype = model.dtype if isinstance(model.process, Gaussian) else torch.long
    return torch.zeros(1, *model.shape, dtype=dtype, device=model.device)


def _try(component: sources.Component, model: Model) -> None:
    """Score one sample, so that a package that is missing is told of before the run. Rewards of one's own are not."""
    if not component.own or component.domain is None:
        return
    example = _EXAMPLES.get(component.domain)
    if example is None:
        example = model.decode(_state(model))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RewardWarning)
        component.raw(example)

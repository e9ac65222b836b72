"""A config with the objects that it names: model, rewards, guides, solver, search. Anything wrong with them raises an
error here, before the first network call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import Reward, RewardWarning

from ..engine.guide import Guide
from ..engine.islands import Islands
from ..engine.run import Run
from ..guides.shared.constrained import Within
from ..guides.start_from import StartFrom
from ..models.base import Model
from ..models.evaluations import Null
from ..process import Gaussian
from ..search import Budget
from ..search.core import Search
from ..solvers import Solver
from . import inputs, measuring, names
from .config import Config, is_picture
from .ranks import device
from .specs import Call, ConfigError, call, parse_options

_EXAMPLES: dict[str, Any] = {"molecules": ["CCO"], "dna": ["ACGT" * 50]}


@dataclass(frozen=True)
class Job:
    """A config with the objects that it names. No network is called to make it."""

    config: Config
    model: Model
    domain: str | None
    parts: list[names.Component]
    reward: Reward | None
    holdout: Reward | None
    guides: list[Guide]
    solver: Solver | None
    search: tuple[Callable[..., Any], dict[str, Any]] | None
    measured: measuring.Measured | None = None

    @property
    def cond(self) -> list[Any]:
        """The condition of each group; without any, there is one group without a condition, or one a measurement."""
        given = list(self.config.cond)
        return given or [None] if self.measured is None else self.measured.conditions(given)

    @property
    def labels(self) -> list[Any]:
        """What each group is called: its condition, or its measurement."""
        return self.cond if self.measured is None else list(self.measured.names)

    @property
    def method(self) -> list[str]:
        """The guide that takes the measurements, as it was given or chosen."""
        return [] if self.measured is None else [self.config.method or type(self.guides[-1]).__name__]

    @property
    def row(self) -> str:
        """The name of the run in the table."""
        return "steered" if self.guides or self.search is not None else "unguided"

    @property
    def kept(self) -> list[Guide]:
        """The guides that the runs for comparison share: those that only change the prediction and need no reward. If
        the run has no other guides, it is compared with the model alone."""
        kept = [guide for guide in self.guides if _only_bends(guide)]
        return kept if self.search is not None or len(kept) < len(self.guides) else []

    @property
    def base_row(self) -> str:
        """The name in the table of the run with which this one is compared."""
        kinds = list(dict.fromkeys(type(guide).__name__ for guide in self.kept))
        return f"{' and '.join(', '.join(kinds).rsplit(', ', 1))} only" if kinds else "unguided"

    @property
    def remarks(self) -> list[str]:
        """Remarks that the user should see before the run starts."""
        idle = [] if self.config.cond else [g for g in self.guides if tuple(g.needs) == (Null(),) and not g.steer]
        return [
            f"{type(guide).__name__} compares the model at its condition with the model without one, and the run has "
            "no condition: both are the same, so it costs a network evaluation more and changes nothing. Give a "
            "condition with -c (cond=...)"
            for guide in idle
        ]

    @property
    def given(self) -> dict[str, Any]:
        """The options that all runs of the comparison share, for gk.sample and gk.search."""
        c = self.config
        return {
            "steps": c.steps, "cond": self.cond, "solver": self.solver, "seed": c.seed,
            "batch_size": c.batch_size, "holdout": self.holdout, "compile": c.compile,
        }  # fmt: skip

    @property
    def islands(self) -> Islands | None:
        """The islands of the population."""
        c = self.config
        every = {} if c.exchange_every is None else {"every": c.exchange_every}
        return None if c.islands is None else Islands(c.islands, **every)


def _only_bends(guide: Guide) -> bool:
    """Whether a guide changes only predictions, conditions or starts, without a reward, weights or selection; or is a
    constraint."""
    selects = any(map(guide.has, ("plan", "noise", "weigh", "select")))
    return isinstance(guide, Within) or (
        guide.judge is None and not (guide.steer or selects or "weights" in guide.card.changes)
    )


def prepare(config: Config) -> Job:
    """Make all objects that the config names; anything wrong with them raises a ConfigError."""
    try:
        return _make(config)
    except (ValueError, TypeError, ImportError, RuntimeError, LookupError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


def _make(config: Config) -> Job:
    model, domain = names.make_model(config.model, find_device(config.device))
    parts = names.make_components(config.rewards)
    reward = names.total(parts)
    guides = [names.make_guide(text, reward) for text in config.guides]
    reward = reward or next((r for g in guides if (r := getattr(g, "reward", None)) is not None), None)
    measured = None if config.measure is None else measuring.read(config, model)
    if measured is not None:
        guides, reward = [*guides, measuring.make_method(config.method, measured, model)], measured.reward
    judges = _make_holdout(config.holdout)
    domain = config.domain or domain
    if config.keep is not None:
        guides = [inputs.kept(config, domain, model), *guides]
    if config.start is not None and (config.level is not None or not is_picture(config.keep or "")):
        x = inputs.starts(Path(config.start), domain, model, config.n, max(1, len(config.cond)))
        guides = [StartFrom(x, config.level), *guides]
    for component in (*parts, *judges):
        check_domain(component, domain, config.model)
    domains = [c.domain for c in (*parts, *judges) if c.domain is not None]
    job = Job(
        config, model, domain or (domains[0] if domains else None), parts, reward, judges[0].raw if judges else None,
        guides, None if config.solver is None else names.make_solver(config.solver), _make_search(config, reward),
        measured,
    )  # fmt: skip
    _check(job)
    for component in (*parts, *judges):
        try_once(component, model)
    return job


def find_device(name: str | None) -> str:
    there = torch.cuda.is_available()
    if name is not None and name.startswith("cuda") and not there:
        raise ConfigError(f"device {name!r}: torch finds no GPU on this machine; take cpu")
    try:
        return str(torch.device(name or device()))
    except RuntimeError as error:
        raise ConfigError(f"device must be cpu, cuda or cuda:1, not {name!r}") from error


def _make_holdout(text: str | None) -> list[names.Component]:
    if text is None:
        return []
    found = names.make_components([text])
    if found[0].weight != 1:
        raise ConfigError(f"holdout {text!r}: it takes no part in the run, so it has no weight")
    return found


def _make_search(config: Config, reward: Reward | None) -> tuple[Callable[..., Any], dict[str, Any]] | None:
    if config.search is None:
        return None
    if reward is None:
        raise ConfigError("a search needs a reward: give one with --reward (rewards=...)")
    make, options = names.make_search(config.search)
    if config.budget is None:
        return make, options
    return make, options | {"budget": call(Budget, Call("budget", (), parse_options(config.budget)))}


def _check(job: Job) -> None:
    """Run the checks of the engine, before the first network call."""
    if job.search is not None:
        make, options = job.search
        given: Any = job.given | {k: v for k, v in options.items() if k == "over"} | {"guides": job.guides}
        Search(job.model, job.config.n, job.reward, given, make.__name__, {})
    else:
        Run(job.model, job.config.n, **job.given, guides=job.guides, reward=job.reward, islands=job.islands)
    if job.config.domain is not None:
        text = isinstance(job.model.decode(_empty_state(job.model)), list)
        if (job.domain in ("molecules", "dna")) != text and job.domain != "other":
            raise ConfigError(f"domain {job.domain!r}: samples of the model are {'texts' if text else 'tensors'}")


def _empty_state(model: Model) -> Tensor:
    """One state of zeros, or of the first token."""
    dtype = model.dtype if isinstance(model.process, Gaussian) else torch.long
    return torch.zeros(1, *model.shape, dtype=dtype, device=model.device)


def check_domain(component: names.Component, domain: str | None, model: str) -> None:
    """Raise where a reward scores samples of another kind than the model makes."""
    if None not in (component.domain, domain) and component.domain != domain:
        raise ConfigError(
            f"the reward {component.name!r} scores {component.domain}, and the model {model!r} makes {domain}"
        )


def try_once(component: names.Component, model: Model) -> None:
    """Score one sample, so that a missing package is noticed before the run. The user's own rewards are not tried."""
    if not component.own or component.domain is None:
        return
    example = _EXAMPLES.get(component.domain)
    if example is None:
        example = model.decode(_empty_state(model))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RewardWarning)
        component.raw(example)

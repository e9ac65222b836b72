r"""gk.tune: choose the strengths of a guide by a beam search on a small budget, as for TFG (Ye et al., 2024,
https://arxiv.org/abs/2409.15761).

Starting from the first setting, a sweep takes each setting of the beam and raises one of its strengths, a number by a
factor of 2 and a list of values to the next one. New settings are run, and the best `beam` settings so far continue. It
ends after `sweeps` sweeps, or when one does not change the beam. The authors start at (rho, mu, sigma) = (.5, .5, .01),
with a beam of 3 and 8 sweeps. Their code raises sigma by a factor of 10, where here one `factor` serves all numbers:
give a list of values, like [.001, .01, .1, 1.], for a strength that should grow otherwise.

All settings are run from the same noise, so they differ by the strengths alone. The best of many noisy measurements is
biased upwards: measure the chosen setting again, with another seed and more samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rewards import Reward

from .. import random
from ..engine.describe import describe, difference
from ..engine.result import Result
from ..engine.sample import sample
from ..engine.whole import whole
from ..engine.world import Alone, world_of
from ..errors import CheckpointError, NetworkError, RewardError
from ..guides import Guide
from ..models import Model
from ..models.networks import lent, networks_in
from ..solvers import Solver

Levels = tuple[int, ...]  # how often each strength has been raised
_MEASURED = ("metric", "error", "scored", "network_rows", "reward_calls", "seconds", "failed")


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    best     the settings with the highest metric
    guides   the list for gk.sample: the further guides, and the tuned one at these settings
    table    one dict per setting tried, in order: the settings, metric, error (its standard error), scored (the
             number of samples that were scored), network_rows, reward_calls, seconds, and failed (why there is no
             metric, or None)
    """

    best: dict[str, Any]
    guides: list[Guide]
    table: list[dict[str, Any]] = field(repr=False)

    def to_frame(self):
        """The table as a pandas DataFrame, best first."""
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame() needs pandas: pip install 'guidekit[report]'") from error
        return pandas.DataFrame(self.table).sort_values("metric", ascending=False, na_position="last")


def tune(
    guide: Guide | Callable[..., Guide | Iterable[Guide]],
    model: Model,
    metric: Reward | Callable[[Result], Any],
    space: Mapping[str, float | Sequence[Any]],
    *,
    n: int = 64,
    beam: int = 3,
    sweeps: int = 8,
    factor: float = 2.0,
    repeats: int = 1,
    steps: int | Sequence[float] = 50,
    guides: Iterable[Guide] = (),
    cond: Any = None,
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    world: Any = None,
) -> Tuned:
    """Search for the strengths of a guide that maximise a metric.

    guide        a guide, whose fields with these names are replaced; or a function of them that returns one, or a list
    metric       a Reward of the samples, or a function of the Result that returns one number, or one per sample. Means
                 use the weights of the samples; functions of samples become rewards by `rewards.as_reward`
    space        for each strength, the number to start from, or a list of values in their order
    n            samples per condition and setting
    beam         number of settings that continue after a sweep
    factor       by which numbers are raised
    repeats      runs of each setting, with different seeds; a metric of one number has no error without them
    guides       further guides, which come before it in the list
    checkpoint   a JSON file to which every row is added, and from which the same call resumes
    world        as in `gk.sample`: several processes share the samples of every run; each computes the metric of all of
                 them, and the first writes the checkpoint

    The other arguments are those of gk.sample. A setting for which the network or reward fails has no metric and comes
    last.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.5, 0.5], [-2.0, 2.0], [0.5, 0.5])
    >>> near = lambda result: -(result.x[:, 0] - 1).abs()
    >>> make = lambda scale: gk.SVDD(lambda x: -(x[:, 0] - 1).abs(), alpha=1 / scale)
    >>> tune(make, base, near, {"scale": 0.5}, n=16, sweeps=3, steps=8).best["scale"]
    4.0
    """
    for name, value in (("n", n), ("beam", beam), ("sweeps", sweeps), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"tune({name}={value!r}): an int of at least 1 is needed")
    run = {"steps": steps, "cond": cond, "solver": solver, "batch_size": batch_size}
    ranks = world_of(world, model.device)
    search = _Search(guide, model, metric, dict(space), factor, n, repeats, tuple(guides), seed, run, ranks)
    ranks.agree(search._described())
    known = ranks.first(lambda: search.opened(None if checkpoint is None else Path(checkpoint)))
    ranks.agree(("settings in the checkpoint", list(known)))
    rows: dict[Levels, dict[str, Any]] = {}
    kept: list[Levels] = [(0,) * len(search.space)]
    with tqdm(disable=not progress or ranks.rank > 0, desc="tune", unit=" settings") as bar:
        for sweep in range(sweeps + 1):
            for levels in [moved for at in kept for moved in search.moves(at)] if sweep else kept:
                if levels not in rows:
                    rows[levels] = known[levels] if levels in known else search.measured(levels)
                    with ranks.together():
                        if ranks.rank == 0:
                            search.save(known | rows)
                    bar.update()
            before, kept = kept, sorted(rows, key=lambda levels: _rank(rows[levels]))[:beam]
            if sweep and kept == before:
                break
    if math.isnan(rows[kept[0]]["metric"]):
        raise RewardError(f"no setting has a metric; the first failed with: {rows[kept[0]]['failed']}")
    best = search.settings(kept[0])
    return Tuned(best, search.made(best), [search.settings(levels) | row for levels, row in rows.items()])


def _rank(row: dict[str, Any]) -> float:
    return math.inf if math.isnan(row["metric"]) else -row["metric"]


@dataclass
class _Search:
    guide: Any
    model: Model
    metric: Any
    space: dict[str, Any]
    factor: float
    n: int
    repeats: int
    guides: tuple[Guide, ...]
    seed: int
    run: dict[str, Any]
    world: Alone
    file: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.guide) and not isinstance(self.guide, Guide):
            raise TypeError(f"tune takes a guide or a function that makes one, not {type(self.guide).__name__}")
        if not callable(self.metric):
            raise TypeError(f"metric={self.metric!r}: a Reward, or a function of a Result, is needed")
        if not self.space or set(self.space) & set(_MEASURED):
            raise ValueError(f'space={self.space}: strengths and where each begins, like {{"rho": 0.5, "mu": 0.5}}')
        for name, value in self.space.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
            if not number and (isinstance(value, str) or not isinstance(value, Sequence) or not value):
                raise ValueError(f"space[{name!r}] = {value!r}: a positive number to begin with, or a list of values")
        if not self.factor > 1:
            raise ValueError(f"tune(factor={self.factor}): numbers grow, by a factor above 1")
        self.made(self.settings((0,) * len(self.space)))

    def settings(self, levels: Levels) -> dict[str, Any]:
        """The strengths at these levels."""
        pairs = zip(self.space.items(), levels, strict=True)
        return {k: v[i] if isinstance(v, Sequence) else v * self.factor**i if i else v for (k, v), i in pairs}

    def moves(self, levels: Levels) -> list[Levels]:
        """These levels with one of them raised."""
        ends = [len(v) - 1 if isinstance(v, Sequence) else math.inf for v in self.space.values()]
        return [(*levels[:i], v + 1, *levels[i + 1 :]) for i, v in enumerate(levels) if v < ends[i]]

    def made(self, settings: dict[str, Any]) -> list[Guide]:
        """All guides at these settings."""
        if not isinstance(self.guide, Guide):
            made = self.guide(**settings)
            return [*self.guides, *([made] if isinstance(made, Guide) else made)]
        names = [f.name for f in fields(self.guide)]
        if not set(settings) <= set(names):
            raise ValueError(f"{type(self.guide).__name__} has {', '.join(names)}; space has {', '.join(settings)}")
        return [*self.guides, replace(self.guide, **settings)]

    def measured(self, levels: Levels) -> dict[str, Any]:
        """Run the guides at these levels and measure them."""
        row = dict.fromkeys(_MEASURED, 0) | {"metric": math.nan, "error": math.nan, "failed": None}
        parts = []
        try:
            for repeat in range(self.repeats):
                result = self._sampled(levels, repeat)
                for name in ("network_rows", "reward_calls", "seconds"):
                    row[name] += getattr(result.cost, name)
                with self.world.together():
                    parts.append(self._scored(result))
        except (NetworkError, RewardError) as error:
            return row | {"failed": str(error)}
        value, weight = (torch.cat(v) for v in zip(*parts, strict=True))
        known = value.isfinite()
        value, weight, count = value[known], weight[known] / weight[known].sum(), int(known.sum())
        row |= {"scored": count, "failed": None if count else "the metric scored no sample"}
        mean = (weight * value).sum()
        spread = (weight * (value - mean)).square().sum() * count / (count - 1) if count > 1 else torch.tensor(math.nan)
        return row | ({"metric": float(mean), "error": float(spread.sqrt())} if count else {})

    def _sampled(self, levels: Levels, repeat: int) -> Result:
        cond = self.run["cond"]
        key = random.fold(random.fold(random.key(self.seed), "tune"), repeat)
        seeds = [int(random.fold(key, g)) for g in range(len(cond) if isinstance(cond, list) else 1)]
        guides = self.made(self.settings(levels))
        return sample(self.model, self.n, guides=guides, seed=seeds, world=self.world, **self.run)

    def _scored(self, result: Result) -> tuple[Tensor, Tensor]:
        """Values of the metric with their weights: one per sample, or a single one."""
        if isinstance(self.metric, Reward):
            with lent(networks_in(self.metric)):
                found = self.metric(result.samples)
        else:
            try:
                found = self.metric(result)
            except (TypeError, AttributeError) as error:
                raise TypeError(
                    f"metric(result) raised {type(error).__name__}: {error}; a metric that is no Reward takes a "
                    "Result. A function f of samples is given as rewards.as_reward(f)"
                ) from error
        value = (
            (found.detach() if isinstance(found, Tensor) else torch.as_tensor(found, dtype=torch.float64))
            .double()
            .cpu()
        )
        if value.dim() == 0:
            return value[None], torch.ones(1, dtype=torch.float64)
        if value.shape != (len(result),):
            raise ValueError(
                f"the metric returned {tuple(value.shape)} for {len(result)} samples: one number, or one each"
            )
        return value, result.weights.cpu()

    def opened(self, file: Path | None) -> dict[Levels, dict[str, Any]]:
        """The rows already in the file of this search."""
        self.file, self.config = file, {} if file is None else self._described()
        if file is None or not file.exists():
            return {}
        try:
            text = json.loads(file.read_text(encoding="utf-8"))
            config, rows = text["config"], {tuple(levels): row for levels, row in text["rows"]}
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{file} is not what tune saved, or is truncated: {error}") from error
        other = difference(config, self.config)
        if other:
            was, now = (f"{v!r:.80}" for v in other[1:])
            raise CheckpointError(f"{file} is of another search: {other[0]} was {was} and is {now} now")
        return rows

    def save(self, rows: dict[Levels, dict[str, Any]]) -> None:
        """Save atomically: written next to the file and moved over it."""
        if self.file is not None:
            with whole(self.file) as part:
                part.write_text(json.dumps({"config": self.config, "rows": list(rows.items())}), encoding="utf-8")

    def _described(self) -> dict[str, Any]:
        """The arguments that determine the result."""
        run = {k: v for k, v in self.run.items() if k != "batch_size"}
        left = ("file", "config", "run", "world")
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left} | run
        return json.loads(json.dumps({k: describe(v) for k, v in given.items()}))

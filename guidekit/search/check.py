"""gk.check: whether a model, and guides with it, keep the laws that samplers rely on.

    law         what is tested
    input       predictions are finite, and x and the condition are left as they are
    repeats     the same call gives the same prediction
    rows        a row does not depend on the others of its batch
    null        the null condition and the conditions differ
    schedule    predictions are those of the process: a denoising test on data (`guidekit.search.denoising`)
    coverage    data, or simulated samples, are as likely as the model's own draws from half-way, by SBC and TARP
    gradient    autograd agrees with differences; of rewards that have gradients, too
    cost        no more rows reach the networks than are counted
    seed, batch_size, acts      of runs with the guides: they repeat, may be split, and differ from those without

Models that break a law give samples all the same, of another distribution.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.base import needs

from ..engine.guide import Guide
from ..engine.sample import sample
from ..engine.whole import whole
from ..errors import NetworkError, is_count
from ..models.base import Model
from ..models.networks import lent
from . import denoising, laws
from .laws import FAILS, Finding, Probe

LEAST, SIMULATED = 8, 64  # states at which laws are tested, and samples that stand for data


@dataclass(frozen=True)
class Check:
    """What `check` found: one row for each law. Printed, it is a table."""

    findings: tuple[Finding, ...]

    @property
    def table(self) -> list[dict[str, str]]:
        return [row._asdict() for row in self.findings]

    @property
    def failed(self) -> list[str]:
        """The laws that do not hold."""
        return [row.law for row in self.findings if row.verdict == FAILS]

    @property
    def passed(self) -> bool:
        """Whether no law fails. What was not tested does not count."""
        return not self.failed

    def __str__(self) -> str:
        rows = [("law", "verdict", "found"), *self.findings]
        return "\n".join(f"{law:<12}{verdict:<12}{found}" for law, verdict, found in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.findings)
        head = "<tr><th>law</th><th>verdict</th><th>found</th></tr>"
        return f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"

    def save(self, folder: str | Path) -> Path:
        """Write check.json into an output folder, whose report shows it."""
        file = Path(folder) / "check.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            part.write_text(json.dumps(self.table, indent=1), encoding="utf-8")
        return file

    def to_frame(self):
        """The table as a pandas DataFrame."""
        return needs("pandas", "report", "to_frame()").DataFrame(self.table)


def check(
    model: Model,
    *guides: Guide,
    data: Any = None,
    cond: Any = None,
    draws: int = 0,
    steps: int = 10,
    n: int = 8,
    seed: int = 0,
) -> Check:
    """Test a model of your own, and guides with it, before you trust what they sample.

    data    samples that the model was trained on or has never seen, as `model.read` takes them, or states: at least 8,
            better some hundreds. Without them predictions cannot be compared with anything but themselves
    cond    a condition, or a list of conditions, which the data have in turn
    draws   draws for each of the data, or without data for each of 64 samples that are simulated, for the test of
            coverage. It costs as many rows as there are draws, times `steps`; 0 leaves it out
    steps   of the runs that are made
    n       samples of these runs, for guides that were made for so many

    Other laws cost some dozens of rows, and runs cost as they do: one with the guides, and with any guides four more.

    >>> import guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [-1.0, 1.0], [0.4, 0.2], labels=[0, 1])
    >>> found = gk.check(base, data=base.exact_sample(400), seed=1)
    >>> found.passed, [row["law"] for row in found.table if row["verdict"] == "not tested"]
    (True, ['null', 'coverage', 'cost'])
    >>> wrong = gk.GaussianModel(lambda x, t, cond: base(x, float(t[0]), None), (1,), predicts="noise")
    >>> gk.check(wrong, data=base.exact_sample(400)).failed
    ['schedule']
    """
    _check(model, guides, draws, steps, n)
    conds = [] if cond is None else list(cond) if isinstance(cond, (list, tuple)) else [cond]
    if getattr(model.process, "alone", False):
        steps = max(steps, *model.shape)  # one token at a time
    with torch.inference_mode(False), torch.no_grad(), model.lent(), lent(model.modules()):
        try:
            clean = _states(model, data, conds, steps, seed, SIMULATED if draws else LEAST)
        except NetworkError as error:
            return Check((Finding("input", FAILS, str(error)),))
        probe = Probe(model, guides, clean, conds, data is not None, steps, seed, draws, n)
        first = laws.answers(probe)
        return Check((first, *(() if first.verdict == FAILS else _others(probe))))


def _others(probe: Probe) -> list[Finding]:
    """The laws of a model that answers."""
    single = (laws.repeats, laws.rows, laws.conditions, denoising.schedule, denoising.coverage, laws.gradient)
    return [*(law(probe) for law in single), *laws.rewarded(probe), laws.cost(probe), *laws.guided(probe)]


def _states(model: Model, data: Any, conds: Sequence[Any], steps: int, seed: int, few: int) -> torch.Tensor:
    """The states of the data, or those of a few samples, which have the conditions in turn as data do."""
    if data is None:
        return _simulated(model, conds, steps, seed, few)
    states = model.as_states(data)
    if len(states) < LEAST:
        raise ValueError(f"check(data of {len(states)} samples): at least {LEAST} are needed, and better some hundreds")
    return states.to(model.device)


def _simulated(model: Model, conds: Sequence[Any], steps: int, seed: int, few: int) -> torch.Tensor:
    groups = max(1, len(conds))
    each = -(-few // groups)
    x = sample(model, each, steps=steps, cond=list(conds) or None, seed=seed).x
    return x.unflatten(0, (groups, each)).transpose(0, 1).flatten(0, 1)


def _check(model: Any, guides: Sequence[Any], draws: Any, steps: Any, n: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"check takes a base model, like gk.GaussianModel(net, ...), not {type(model).__name__}")
    strange = [g for g in guides if not isinstance(g, Guide)]
    if strange:
        raise TypeError(f"check(model, *guides): {strange[0]!r} is no guide; give them one by one, not as a list")
    if not is_count(draws, 0) or not is_count(steps, 1) or not is_count(n, 1):
        raise ValueError(
            f"check(draws={draws!r}, steps={steps!r}, n={n!r}): ints are needed, draws at least 0 and the others 1"
        )

r"""gk.coverage: whether posterior samples are as uncertain as they should be.

For x* from the prior, y from its measurement and draws x_1, ..., x_L from p(x | y), x* is one more draw from the same
distribution. So of any function f of a sample (and of y) the rank of f(x*) among f(x_1), ..., f(x_L) is uniform,

    u = (sum_j 1[f(x_j) < f(x*)] + v)/(L + 1) ~ U(0, 1),        v ~ U(0, 1) for the place of x* itself,

which is simulation-based calibration, SBC (Talts et al., 2018, https://arxiv.org/abs/1804.06788). With f the distance
to a random point r that knows nothing of x*, it is the coverage of balls around r, TARP (Lemos et al., 2023,
https://arxiv.org/abs/2302.03026), which no posterior but the right one passes for all r. Weighted draws count L times
their weight. Samples that are too narrow give ranks at both ends; a Kolmogorov-Smirnov test says whether they may be
uniform.

The likelihood of the draws is the most sensitive of the usual statistics where the width is wrong, in either direction;
balls around random points hardly notice a posterior that is too wide.

Draws of one population of particles depend on each other, so few particles that were resampled often look narrower than
the posterior, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.stats import kstest
from torch import Tensor

from rewards import ByGroup, as_reward
from rewards.base import needs

from .. import random
from ..engine.guide import Guide
from ..engine.result import Result
from ..engine.sample import sample
from ..errors import is_count
from ..measurements import Measurement
from ..models import Model
from ..solvers import Solver

DIRECTIONS = 4
LEVELS = (0.5, 0.9)


@dataclass(frozen=True)
class Coverage:
    """What `coverage` found.

    ranks   for each statistic, u of every simulated measurement, float64 (n,): uniform if the posterior is right
    result  the posterior samples, one group for each measurement

    `table` has a row for each statistic: the p-value of uniform ranks; bias, the mean of u - 1/2; and the share of
    measurements of which x* lies in the central 50 % and 90 % of the draws (of TARP, in the balls that hold as many).
    """

    ranks: dict[str, Tensor]
    result: Result = field(repr=False)

    @property
    def table(self) -> list[dict[str, Any]]:
        return [_row(name, u) for name, u in self.ranks.items()]

    @property
    def p(self) -> float:
        """The p-value of all statistics together: the smallest one times their number (Bonferroni)."""
        return min(1.0, len(self.ranks) * min(row["p"] for row in self.table))

    def to_frame(self):
        """The table as a pandas DataFrame."""
        return needs("pandas", "report", "to_frame()").DataFrame(self.table)

    def plot(self, axes: Any = None) -> Any:
        """The share of ranks below each level, on matplotlib axes: a diagonal if the posterior is right. The grey band
        holds 95 % of the values at each level, if it is."""
        axes = needs("matplotlib.pyplot", "report", "coverage.plot()").gca() if axes is None else axes
        level = torch.linspace(0, 1, 101)
        band = 1.96 * (level * (1 - level) / len(next(iter(self.ranks.values())))).sqrt()
        axes.fill_between(level, level - band, level + band, color="0.9")
        for name, u in self.ranks.items():
            axes.plot(level, (u[:, None] < level).double().mean(0), label=name)
        axes.set(xlabel="level", ylabel="share of ranks below it", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
        return axes


def coverage(
    model: Model,
    measurement: Measurement,
    guides: Callable[[Any], Sequence[Guide]],
    n: int = 200,
    *,
    draws: int = 100,
    statistics: Mapping[str, Callable[[Any], Any]] | None = None,
    truth: Any = None,
    steps: int | Sequence[float] = 50,
    cond: Any = None,
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Coverage:
    """Test a posterior sampler on measurements that are simulated: n samples of the model are measured, and each is
    compared with draws from what the guides take for its posterior.

    measurement  says the operator and the noise; its y is not used
    guides       a function of the measurements (a `rewards.ByGroup` with one for each simulation) that returns the list
                 of guides
    n            simulated measurements: the power of the tests grows with them
    draws        posterior samples for each of them
    statistics   functions of samples by name; None: log p(y | x) and four random directions of the sample
    truth        samples to measure instead of those of the model, (n, ...): then the model's own errors show, too

    Samples are tensors. The other arguments are those of gk.sample. NFE: 2 n for the truth and the reference points of
    TARP, and n times those of a run of `draws` particles.

    >>> import torch, guidekit as gk
    >>> base = gk.analytic.GaussianMixture([0.7, 0.3], [[-1.0, 0.5], [1.0, 0.0]], [0.5, 0.3])
    >>> measured = gk.Measurement(torch.tensor([[1.0, 0.5]]), torch.zeros(1), noise=0.3)
    >>> exact = lambda m: [gk.TDS(m, 1.0, value=gk.values.Likelihood(m))]
    >>> gk.coverage(base, measured, exact, 60, draws=60, steps=20).p > 0.01
    True
    """
    _check(measurement, guides, n, draws)
    shared = {"steps": steps, "solver": solver, "batch_size": batch_size}
    prior = sample(model, 2 * n, cond=cond, seed=seed, **shared).samples
    if not isinstance(prior, Tensor):
        raise TypeError(f"coverage compares samples that are tensors, and this model makes {type(prior).__name__}")
    truth = prior[:n] if truth is None else torch.as_tensor(truth).to(prior)
    if truth.shape != prior[:n].shape:
        raise ValueError(f"coverage(truth of shape {tuple(truth.shape)}): samples {tuple(prior[:n].shape)} are needed")
    each = ByGroup([measurement.of(y) for y in measurement.simulate(truth, seed)])
    result = sample(
        model, draws, cond=[cond] * n, seed=[seed + 1 + i for i in range(n)], guides=guides(each), **shared
    )  # fmt: skip
    functions = _usual(each, prior) if statistics is None else dict(statistics)
    found = {name: (_scored(f, truth), _scored(f, result.samples)) for name, f in functions.items()}
    found["TARP"] = _distance(truth, prior[n:]), _distance(result.samples, prior[n:].repeat_interleave(draws, 0))
    keys = random.fold(random.fold(random.key(seed), "coverage"), torch.arange(n))
    weights = result.weights.view(n, draws).cpu()
    ranks = {
        name: ranked(a.cpu(), b.view(n, draws).cpu(), weights, random.uniform(random.fold(keys, name)))
        for name, (a, b) in found.items()
    }
    return Coverage(ranks, result)


def _check(measurement: Any, guides: Any, n: Any, draws: Any) -> None:
    if not isinstance(measurement, Measurement):
        raise TypeError(f"coverage(measurement=...) takes a gk.Measurement, not {type(measurement).__name__}")
    if measurement.exact:
        raise ValueError(
            "coverage needs a measurement with noise: without it there is no density p(y | x) to be right about"
        )
    if not callable(guides):
        raise TypeError(
            "coverage(guides=...) takes a function of the measurements, like lambda m: [gk.PiGDM(m)]: every "
            "simulation has "
            "a y of its own"
        )
    for name, value in (("n", n), ("draws", draws)):
        if not is_count(value, 2):
            raise ValueError(f"coverage({name}={value!r}): an int of at least 2 is needed")


def _usual(each: ByGroup, prior: Tensor) -> dict[str, Callable[[Any], Any]]:
    """The likelihood, and random directions."""
    keys = random.fold(random.key(0, prior.device), torch.arange(DIRECTIONS))
    ways = random.normal(random.fold(keys, "directions"), (prior[0].numel(),), prior.dtype)
    along = {f"direction {i + 1}": lambda x, way=way: x.flatten(1) @ way for i, way in enumerate(ways)}
    return {"log p(y | x)": each, **along}


def _scored(function: Callable[[Any], Any], samples: Tensor) -> Tensor:
    return as_reward(function)(samples).double()


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).double().flatten(1).norm(dim=1)


def ranked(truth: Tensor, drawn: Tensor, weights: Tensor, v: Tensor) -> Tensor:
    """u; equal values are put in random order."""
    L = drawn.shape[1]
    below, equal = (L * (weights * which).sum(1) for which in (drawn < truth[:, None], drawn == truth[:, None]))
    return (below + v * (1 + equal)) / (L + 1)


def _row(name: str, u: Tensor) -> dict[str, Any]:
    """A line of the table."""
    inside = {level: (u < level) if name == "TARP" else (u - 0.5).abs() < level / 2 for level in LEVELS}
    shares = {f"within {100 * level:.0f} %": float(v.double().mean()) for level, v in inside.items()}
    return {"statistic": name, "p": float(kstest(u.numpy(), "uniform").pvalue), "bias": float(u.mean() - 0.5), **shares}

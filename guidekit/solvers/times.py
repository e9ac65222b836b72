r"""Time grids: where the steps of a run lie. A grid maps a schedule and a number of steps to steps + 1 times, from
t_max down to 0.

    uniform    t_i = t_max (1 - i/N)
    cosine     t_i = t_max cos(pi i / 2N): dense near noise, so that few masked tokens are unmasked in the first steps
    log_snr    log(alpha/sigma) evenly spaced (Lu et al., 2022), then a last step to 0
    karras     (sigma/alpha)^(1/rho) evenly spaced, rho = 7 (Karras et al., 2022), then a last step to 0
    arctan     arctan(sigma/alpha) evenly spaced, then a last step to 0: best for the KL divergence where data are one
               Gaussian (Sabour et al., 2024, https://arxiv.org/abs/2404.14507, theorem 3.1), "KL optimal" elsewhere
    beta       quantiles of Beta(0.6, 0.6): dense at both ends (Lee et al., 2024, https://arxiv.org/abs/2407.12173)
    quadratic  t_i = t_max (1 - i/N)^2: dense near data, as in DDIM

`shifted(scale)` makes the grid of Stable Diffusion 3 and Flux. The grids log_snr, karras and arctan need a schedule.
If sigma/alpha is infinite at the start they begin at 200 instead, and if it is zero at the end they space the levels
down to 0.002. `restart` makes times that go up again, for any process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from .schedules import Schedule

Grid = Callable[["Schedule | None", int, float], Sequence[float]]
_LOW, _HIGH = 0.002, 200.0


def uniform(schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    """Evenly spaced times: the default."""
    return [t_max * (1 - i / steps) for i in range(steps)] + [0.0]


def cosine(schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    """Times that are dense near noise, for any process."""
    return [t_max * math.cos(math.pi * i / (2 * steps)) for i in range(steps)] + [0.0]


def log_snr(schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    """Times evenly spaced in the logarithm of the signal-to-noise ratio; it suits second-order solvers."""
    return _spaced(schedule, steps, t_max, "log_snr", lambda low, high, u: high ** (1 - u) * low**u)


def karras(schedule: Schedule | None, steps: int, t_max: float = 1.0, rho: float = 7.0) -> list[float]:
    """The noise levels of EDM: evenly spaced in (sigma/alpha)^(1/rho)."""

    def between(low: float, high: float, u: Tensor) -> Tensor:
        return (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho

    return _spaced(schedule, steps, t_max, "karras", between)


def levels(schedule: Schedule, count: int, t_max: float = 1.0) -> tuple[list[float], float]:
    """count + 1 times, upwards, between which log(sigma/alpha) rises evenly from its end to its start in `log_snr`, and
    by how much."""
    low, high = _limits(schedule, t_max)
    ratios = torch.logspace(math.log10(low), math.log10(high), count + 1, dtype=torch.float64)
    return _inverse(schedule, ratios, t_max).tolist(), math.log(high / low) / count


def arctan(schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    """Times evenly spaced in the angle of noise and signal; on a cosine schedule these are even times."""

    def between(low: float, high: float, u: Tensor) -> Tensor:
        return torch.tan((1 - u) * math.atan(high) + u * math.atan(low))

    return _spaced(schedule, steps, t_max, "arctan", between)


def beta(schedule: Schedule | None, steps: int, t_max: float = 1.0, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Times at quantiles of the Beta(a, b) distribution, for any process; below 1 they are dense at the ends."""
    from scipy.special import betaincinv

    return [t_max * float(betaincinv(a, b, 1 - i / steps)) for i in range(steps)] + [0.0]


def quadratic(schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    """Times that are dense near data, for any process."""
    return [t_max * (1 - i / steps) ** 2 for i in range(steps)] + [0.0]


def shifted(scale: float) -> Grid:
    """A grid of even times moved towards noise, t -> scale t/(1 + (scale - 1) t): what flow models of large images are
    sampled on, with scale 3 (Esser et al., 2024, https://arxiv.org/abs/2403.03206).

    >>> [round(t, 3) for t in shifted(3.0)(None, 4, 1.0)]
    [1.0, 0.9, 0.75, 0.5, 0.0]
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"shifted({scale}): the scale is a positive number; 1 leaves even times as they are")
    return partial(_shifted, scale)


def _shifted(scale: float, schedule: Schedule | None, steps: int, t_max: float = 1.0) -> list[float]:
    even = [1 - i / steps for i in range(steps)]
    return [t_max * scale * t / (1 + (scale - 1) * t) for t in even] + [0.0]


def restart(
    steps: int, low: float = 0.1, high: float = 0.4, count: int = 2, inner: int | None = None, t_max: float = 1.0
) -> list[float]:
    """Times that go up again, for `steps=`: Restart sampling (Xu et al., 2023, https://arxiv.org/abs/2306.14878).

    They go from t_max to low, then `count` times back up to high by noising and down again in `inner` steps, then from
    low to 0. The noise makes a deterministic solver forget the errors it made above `low`, for a few more steps.

    >>> restart(4, low=0.25, high=0.5, count=1, inner=2)
    [1.0, 0.75, 0.5, 0.25, 0.5, 0.375, 0.25, 0.0]
    """
    if not 0 < low < high < t_max or steps < 2 or count < 0 or (inner is not None and inner < 1):
        raise ValueError(
            f"restart(steps={steps}, low={low}, high={high}, count={count}, inner={inner}): at least 2 steps, and "
            f"0 < low < high < {t_max}"
        )
    before = min(max(round(steps * (t_max - low) / t_max), 1), steps - 1)
    inner = max(round(before * (high - low) / (t_max - low)), 1) if inner is None else inner
    down, again, rest = (_even(*v) for v in ((t_max, low, before), (high, low, inner), (low, 0.0, steps - before)))
    return down + count * again + rest[1:]


def _even(first: float, last: float, steps: int) -> list[float]:
    return [first + (last - first) * i / steps for i in range(steps)] + [last]


GRIDS: dict[str, Grid] = {
    "uniform": uniform, "cosine": cosine, "log_snr": log_snr, "karras": karras, "arctan": arctan, "beta": beta,
    "quadratic": quadratic,
}  # fmt: skip


def _spaced(schedule: Schedule | None, steps: int, t_max: float, name: str, between: Callable) -> list[float]:
    """t_max, then the times at which sigma/alpha takes the values that `between` returns, then 0."""
    if schedule is None:
        raise ValueError(f"the time grid {name!r} needs a noise schedule; for tokens take 'uniform' or 'cosine'")
    low, high = _limits(schedule, t_max)
    u = torch.linspace(0, 1, max(steps, 2), dtype=torch.float64)[:steps]
    inner = _inverse(schedule, between(low, high, u), t_max)
    return [t_max, *inner.tolist()[1:], 0.0]


def _limits(schedule: Schedule, t_max: float) -> tuple[float, float]:
    """The values of sigma/alpha at the end and at the start of a grid."""
    low, high = _ratio(schedule, torch.tensor([1e-14, t_max], dtype=torch.float64)).tolist()
    return (low if low > 1e-6 else _LOW), (high if math.isfinite(high) else _HIGH)


def _ratio(schedule: Schedule, t: Tensor) -> Tensor:
    alpha, sigma = schedule(t)
    return sigma / alpha


def time_of(schedule: Schedule, ratio: float, t_max: float = 1.0) -> float:
    """The time at which sigma/alpha = ratio, at most t_max."""
    return float(_inverse(schedule, torch.tensor([ratio], dtype=torch.float64), t_max))


def _inverse(schedule: Schedule, ratio: Tensor, t_max: float) -> Tensor:
    """The times at which sigma/alpha = ratio, by bisection (the ratio rises in t)."""
    low, high = torch.full_like(ratio, 1e-9), torch.full_like(ratio, t_max)
    for _ in range(80):
        middle = (low + high) / 2
        below = _ratio(schedule, middle) < ratio
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def make(steps: int | Sequence[float], times: str | Grid, schedule: Schedule | None, t_max: float) -> list[float]:
    """The grid of a run: `steps` is a number of steps, or the times themselves (which may go up again)."""
    if isinstance(steps, (Tensor, np.ndarray)):
        steps = steps.tolist()
    steps = int(steps) if isinstance(steps, np.integer) else steps
    if isinstance(steps, (bool, str)) or not isinstance(steps, (int, Sequence)):
        raise TypeError(f"steps is a number of steps or a sequence of times, not {steps!r}")
    if not isinstance(steps, int):
        return _checked(steps, t_max)
    if steps < 1:
        raise ValueError(f"steps={steps}: at least one step is needed")
    if isinstance(times, str) and times not in GRIDS:
        raise ValueError(f"times={times!r}: there is {', '.join(GRIDS)}, or a function (schedule, steps, t_max)")
    return _checked((GRIDS[times] if isinstance(times, str) else times)(schedule, steps, t_max), t_max)


def _checked(times: Sequence[float], t_max: float) -> list[float]:
    grid = [t_max if 0 < t - t_max < 1e-6 else float(t) for t in times]  # float32 times are rounded
    if len(grid) < 2 or grid[-1] != 0 or grid[0] == 0 or not all(0 <= t <= 1 for t in grid):
        raise ValueError(f"times start above 0, stay within [0, 1] and end at 0; given {grid}")
    if any(t == s for t, s in pairwise(grid)):
        raise ValueError(f"neighbouring times must differ; given {grid}")
    if max(grid) > t_max:
        raise ValueError(
            f"times go up to {max(grid)}, but where alpha vanishes a prediction of noise or score says nothing of the "
            f"data: start at {t_max}"
        )
    return grid

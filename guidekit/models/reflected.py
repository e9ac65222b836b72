"""Models of samples in an interval, whose noise is reflected at its ends; see `guidekit.process.reflected`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..process.reflected import Reflected, check_reflected
from ..solvers.schedules import EDM, Schedule
from .gaussian import GaussianModel


class ReflectedModel(GaussianModel):
    """`net(x, t, cond) -> tensor like x` as a reflected diffusion model of numbers in [low, high].

    schedule   of exploding variance: EDM(...) or VE(...)
    predicts   "score" for networks of reflected diffusion: the gradient of the log-density of the reflected x_t

    Other arguments are those of `GaussianModel`. Solvers, weights and guides of Gaussian processes serve it, and
    samples lie in the interval whatever guides do.

    >>> import torch, guidekit as gk
    >>> model = gk.ReflectedModel(lambda x, t, cond: torch.zeros_like(x), (2,), 0.0, 1.0)  # the score of uniform data
    >>> x = gk.sample(model, 100, steps=5).x
    >>> bool((x >= 0).all() and (x <= 1).all())
    True
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        shape: Sequence[int],
        low: float = -1.0,
        high: float = 1.0,
        schedule: Schedule | None = None,
        predicts: str = "score",
        *args: Any,
        **options: Any,
    ):
        schedule = EDM(sigma_max=5.0 * (high - low)) if schedule is None else schedule
        check_reflected(schedule, low, high)
        super().__init__(net, shape, schedule, predicts, *args, **options)
        self.process = Reflected(schedule, low=low, high=high)

    def log_prob(self, samples: Any, cond: Any = None, **settings: Any) -> Any:
        raise ValueError("log_prob is not there for reflected models: the law in which their flow begins is uniform")

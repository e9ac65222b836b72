"""Models of stochastic interpolants, from one data set to another; see `guidekit.process.interpolant`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..process.interpolant import Interpolant
from ..solvers import DDIM, DDPM
from .base import Encoded, Model

PREDICTS = ("clean", "velocity")


class InterpolantModel(Model):
    """`net(x, t, cond) -> (rows, 2, *shape)` as a base model that turns samples of one data set into those of another.

    strength   of the noise in the middle, gamma = strength sqrt(t (1 - t)), as in training
    epsilon    of the stochastic equation by which samples move; 0 is the flow, which has no weights
    predicts   "velocity": the fields are E[dx/dt | x_t], with t from 0 at the samples that are made to 1, and
               E[z | x_t]; "clean": E[x_0 | x_t] and E[z | x_t]

    A run begins with samples y of the other data set, `guides=[gk.StartFrom(y, level=1.0)]`. Other arguments are those
    of `GaussianModel`.

    >>> import torch, guidekit as gk
    >>> net = lambda x, t, cond: torch.stack([x.sign(), 0 * x], 1)  # E[x_0 | x_t], and of z
    >>> model = gk.InterpolantModel(net, (1,), predicts="clean")
    >>> start = gk.StartFrom(torch.tensor([[0.3], [-2.0]]), level=1.0)
    >>> gk.sample(model, 2, steps=9, guides=[start], solver=gk.solvers.DDIM()).x
    tensor([[ 1.],
            [-1.]])
    """

    process: Interpolant

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        shape: Sequence[int],
        strength: float = math.sqrt(2.0),
        epsilon: float = 0.5,
        predicts: str = "velocity",
        decode: Callable[[Tensor], Any] | None = None,
        encode_cond: Callable[[Any], Any] | None = None,
        null: Any = None,
        **options: Any,
    ):
        if not (0 < strength < math.inf and 0 <= epsilon < math.inf):
            raise ValueError(f"strength={strength}, epsilon={epsilon}: a positive number, and one of at least 0")
        if predicts not in PREDICTS:
            raise ValueError(f"predicts={predicts!r}: there is {' and '.join(map(repr, PREDICTS))}")
        self.predicts = predicts
        super().__init__(net, Interpolant(strength, epsilon), shape, decode, encode_cond, null, **options)
        self.solver = DDPM() if epsilon > 0 else DDIM()

    def state(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ValueError("it has NaN or infinity")
        return x.to(self.device, self.dtype)

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        if t == 1 and not bool(x.isfinite().all()):
            raise ValueError(
                "a run of an interpolant begins with samples y of its other data set: give guides=[gk.StartFrom(y, "
                "level=1.0)]"
            )
        out = self._forward(x, t, cond, (2, *self.shape))
        if self.predicts == "clean":
            return out.clone()
        velocity, z = out.unbind(1)
        process = self.process  # dx/dt = x_1 - x_0 + gamma' z, and x_t = (1 - t) x_0 + t x_1 + gamma z
        drift = velocity - _slope(process.strength, t) * z
        return torch.stack([x - process.gamma(t) * z - t * drift, z], 1)


def _slope(strength: float, t: float) -> float:
    """gamma'; at the ends, where it is infinite and E[z | x_t] vanishes, 0."""
    return strength * (1 - 2 * t) / (2 * math.sqrt(t * (1 - t))) if 0 < t < 1 else 0.0

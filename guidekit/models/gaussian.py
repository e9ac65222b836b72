r"""A Gaussian base model around any network.

The network's output is converted to the clean mean d = E[x_0 | x_t] (alpha, sigma at t, x_t = alpha x_0 + sigma z):

    clean      d = out
    noise      d = (x_t - sigma out) / alpha
    score      d = (x_t + sigma^2 out) / alpha
    velocity   d = (alpha x_t - sigma out) / (alpha^2 + sigma^2),   out = alpha z - sigma x_0
    flow       d = (x_t - sigma out) / (alpha + sigma),             out = z - x_0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..process import Gaussian
from ..solvers.schedules import Cosine, Schedule
from .base import Encoded, Mixed, Model

# (coefficient of x_t, coefficient of the network's output) in d, as functions of alpha and sigma
PARAMETERISATIONS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "clean": lambda a, s: (0.0, 1.0),
    "noise": lambda a, s: (1 / a, -s / a),
    "score": lambda a, s: (1 / a, s**2 / a),
    "velocity": lambda a, s: (a / (a**2 + s**2), -s / (a**2 + s**2)),
    "flow": lambda a, s: (1 / (a + s), -s / (a + s)),
}

# what diffusers calls them
ALIASES = {"epsilon": "noise", "v_prediction": "velocity", "sample": "clean", "flow_prediction": "flow"}


class GaussianModel(Model):
    """`net(x, t, cond) -> tensor like x` as a base model.

    net           any callable. t is a float tensor with one entry per row, in [0, 1], where t = 1 is noise; cond is a
                  tensor (or dict of tensors) with one entry per row, or None if neither cond nor null is given
    shape         shape of one sample, without the row axis
    schedule      alpha(t), sigma(t); see `guidekit.schedules`
    predicts      "clean" | "noise" | "velocity" | "score" | "flow"; the names of diffusers are understood too:
                  "sample", "epsilon", "v_prediction" and "flow_prediction"
    decode        final states (rows, *shape) -> samples; the default returns the tensor
    encode_cond   the user's condition -> tensor (or dict), without a row axis
    null          the encoded "no condition", for guides that need it, such as CFG
    read          samples -> states, the inverse of decode, so that runs can start from samples (`Model.read`). It
                  raises ValueError where a sample cannot be read

    Noise and score say nothing about x_0 at alpha = 0, so their runs start at t = 0.999 on schedules that reach it. A
    network in half precision gets x in half precision; the state and t stay float32.

    >>> import torch, guidekit as gk
    >>> model = gk.GaussianModel(lambda x, t, cond: torch.zeros_like(x), shape=(2,), predicts="clean")
    >>> gk.sample(model, 3, steps=4).x
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.]])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        shape: Sequence[int],
        schedule: Schedule | None = None,
        predicts: str = "noise",
        decode: Callable[[Tensor], Any] | None = None,
        encode_cond: Callable[[Any], Any] | None = None,
        null: Any = None,
        *,
        read: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        predicts = ALIASES.get(predicts, predicts)
        if predicts not in PARAMETERISATIONS:
            known = f"{', '.join(PARAMETERISATIONS)}, or as in diffusers {', '.join(ALIASES)}"
            raise ValueError(f"predicts={predicts!r}: there is {known}")
        schedule = Cosine() if schedule is None else schedule
        if isinstance(schedule, type) or not callable(schedule):
            raise TypeError(f"schedule={schedule!r}: an instance is needed, like gk.schedules.Cosine()")
        self.predicts = predicts
        blind = predicts in ("noise", "score") and float(schedule(torch.tensor(1.0, dtype=torch.float64))[0]) < 1e-3
        process = Gaussian(schedule, t_max=0.999 if blind else 1.0)
        super().__init__(net, process, shape, decode, encode_cond, null, dtype, device, read)

    def facts(self) -> list[str]:
        process: Any = self.process
        return [f"shape={self.shape}", f"predicts={self.predicts!r}", f"schedule={process.schedule!r}"]

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self._clean(x, t, self._forward(x, t, cond, self.shape))

    def mixed(self, x: Tensor, times: Mixed, cond: Encoded) -> Tensor:
        return self.read_out(x, times, self._forward(x, times, cond, self.shape))

    def read_out(self, x: Tensor, times: Mixed, out: Tensor) -> Tensor:
        """The clean means, from what the network says of rows at several times."""
        return torch.cat([self._clean(x[rows], t, out[rows]) for t, rows in times.parts()])

    def _clean(self, x: Tensor, t: float, out: Tensor) -> Tensor:
        """The clean mean, from what the network says at one time."""
        a, b = PARAMETERISATIONS[self.predicts](*self.process.scales(t))
        if a == 0 and b == 1:
            return out.clone()  # the network may use its buffer again
        return (x * a).add_(out, alpha=b) if not out.requires_grad else x * a + out * b

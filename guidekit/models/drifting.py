"""Gaussian models whose noise drifts towards another sample, as in restoration; see `guidekit.solvers.drifts`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..solvers.drifts import Drift
from .base import Encoded, Mixed
from .gaussian import GaussianModel


class DriftingModel(GaussianModel):
    """`net(x, t, cond) -> tensor like x` as a base model of x_t = alpha x_0 + b y + sigma z.

    law       the drift: `gk.drifts.Residual()`, `MeanReverting()`, `Resfusion()`, `OUVE()`, or a schedule with b(t)
    toward    the encoded condition of all rows -> y (rows, *shape); None takes the condition itself, or its entry "y".
              Guidance without a condition keeps the entry "y"

    The network sees x_t, and predicts x_0, noise z or the score as in `GaussianModel`, whose other arguments this has.
    A run moves u = x_t - b y, which is x_0 at its end. A network that predicts the residual y - x_0 predicts "clean" as
    y minus its output.

    >>> import torch, guidekit as gk
    >>> model = gk.DriftingModel(lambda x, t, y: y + 1, (2,), gk.drifts.Residual(), "clean")
    >>> gk.sample(model, 1, steps=4, cond=torch.tensor([1.0, 2.0])).x
    tensor([[2., 3.]])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        shape: Sequence[int],
        law: Drift,
        *args: Any,
        toward: Callable[[Encoded], Tensor] | None = None,
        **options: Any,
    ):
        if not isinstance(law, Drift) or isinstance(law, type):
            raise TypeError(f"law={law!r}: a schedule with a drift b(t) is needed, like gk.drifts.Residual()")
        self.law, self.toward = law, _own if toward is None else toward
        super().__init__(net, shape, law, *args, **options)

    def nulled(self, cond: Encoded) -> Encoded:
        null = super().nulled(cond)
        return null | {"y": cond["y"]} if isinstance(null, dict) and "y" in cond else null

    def _forward(self, x: Tensor, t: float | Mixed, cond: Encoded, shape: tuple[int, ...]) -> Tensor:
        y = self.toward(cond)
        if tuple(y.shape) != (len(x), *shape):
            raise ValueError(
                f"the sample y that the noise drifts to has shape {tuple(y.shape)}; {(len(x), *shape)} is needed: one "
                "for each row, of the shape of a sample"
            )
        times = t if isinstance(t, Mixed) else Mixed(((t, len(x)),))
        seen = [x[rows] + self._share(s) * y[rows].to(x) for s, rows in times.parts()]
        return super()._forward(torch.cat(seen), t, cond, shape)

    def _share(self, t: float) -> float:
        return float(self.law.b(torch.tensor(t, dtype=torch.float64)))


def _own(cond: Encoded) -> Tensor:
    """y in the condition."""
    y = cond.get("y") if isinstance(cond, dict) else cond
    if not isinstance(y, Tensor):
        raise ValueError('a drifting model needs the sample y as its condition, cond=y, or as the entry "y" of one')
    return y

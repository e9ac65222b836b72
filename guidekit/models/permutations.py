"""Base models of orders, whose noise is shuffling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..process import Riffle
from .base import Encoded, Model


class RiffleModel(Model):
    """`net(x, t, cond) -> scores (rows, length)` as a base model of permutations.

    x (rows, length) has the items in their order at t, and the scores are those of the items at their places: the
    larger, the earlier an item comes in the next order. See `guidekit.process.riffle`; t, cond, decode, encode_cond,
    null and read are as in `GaussianModel`.

    length     the number of items
    shuffles   riffle shuffles from t = 0 to 1; runs take a number of steps that divides them

    >>> import torch, guidekit as gk
    >>> model = gk.RiffleModel(lambda x, t, cond: -x.float(), length=4, shuffles=6)
    >>> gk.sample(model, 2, steps=6).x.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        net: Callable[[Tensor, Tensor, Any], Tensor],
        length: int,
        shuffles: int,
        decode: Callable[[Tensor], Any] | None = None,
        encode_cond: Callable[[Any], Any] | None = None,
        null: Any = None,
        *,
        read: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if length < 1 or shuffles < 1:
            raise ValueError(f"length={length}, shuffles={shuffles}: at least one item and one shuffle are needed")
        self.length, self.shuffles = length, shuffles
        super().__init__(net, Riffle(shuffles), (length,), decode, encode_cond, null, dtype, device, read)

    def facts(self) -> list[str]:
        return [f"length={self.length}", f"shuffles={self.shuffles}"]

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        return self._forward(x, t, cond, (self.length,))

    def state(self, x: Tensor) -> Tensor:
        x = super().state(x)
        if not bool((x.sort(1).values == torch.arange(self.length, device=x.device)).all()):
            raise ValueError(f"it is no order of the items 0 to {self.length - 1}")
        return x

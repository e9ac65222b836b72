r"""Structured noise: measurements y = A(x) + n + noise z whose n has a diffusion model of its own, like haze or hum
(Stevens et al., 2023, https://arxiv.org/abs/2302.05290).

The signal x and the noise n are independent before the measurement, so that the model of the pair v = (x, n) has

    E[v_0 | v_t] = (E[x_0 | x_t], E[n_0 | n_t]),

and y is a measurement of v_0 by [A, 1]. The first part of samples of p(v | y) are samples of p(x | y): exactly, for a
guide that is exact.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import Condition, Encoded, Model, map_cond
from ..process import Gaussian as GaussianProcess
from .measurement import Measurement, affine
from .noise import Noise
from .operators import Linear, as_operator


class Structured(Model):
    """A model of the signal and a model of the noise as one model of both, side by side in one state (rows, numbers).

    signal   a Gaussian base model; the run's condition is its
    noise    a Gaussian base model with the same schedule, whose samples have the shape of what is measured
    cond     the condition of the noise

    `measurement` makes the measurement that a run of this model takes, and `split` the parts of its samples. A network
    row is a call of both networks.

    >>> import torch, guidekit as gk
    >>> signal, hum = (gk.analytic.GaussianMixture([1.0], [[0.0]], [std]) for std in (1.0, 2.0))
    >>> both = gk.measurements.Structured(signal, hum)
    >>> seen = both.measurement(torch.ones(1, 1), torch.tensor([2.0]), noise=0.1)
    >>> x, n = both.split(gk.sample(both, 2000, steps=40, guides=[gk.TMPD(seen)]).x)
    >>> bool((x.mean() - 2 / 5).abs() < 0.1), bool((n.mean() - 8 / 5).abs() < 0.1)  # variances 1 and 4 share y = 2
    (True, True)
    """

    def __init__(self, signal: Model, noise: Model, cond: Condition = None):
        for name, model in (("signal", signal), ("noise", noise)):
            if not isinstance(model, Model) or not isinstance(model.process, GaussianProcess):
                raise TypeError(f"Structured({name}=...) takes a Gaussian base model, not {type(model).__name__}")
        a, b = signal.process, noise.process
        assert isinstance(a, GaussianProcess) and isinstance(b, GaussianProcess)
        if a != b or (signal.dtype, signal.device) != (noise.dtype, noise.device):
            raise ValueError(
                f"Structured needs two models of one schedule, dtype and device; given {signal!r} and {noise!r}"
            )
        self.signal, self.other, self.told = signal, noise, noise.encode(cond)
        self.size = _count(signal)
        super().__init__(
            signal.net, replace(a, t_max=min(a.t_max, b.t_max)), (self.size + _count(noise),), None,
            signal.encode if signal.encodes else None, signal.null, signal.dtype, signal.device,
        )  # fmt: skip

    def __call__(self, x: Tensor, t: float, cond: Encoded) -> Tensor:
        u, n = self.states(x)
        told = None if self.told is None else map_cond(lambda v, _: v.expand(len(x), *v.shape), self.told, self.told)
        return torch.cat([self.signal(u, t, cond).flatten(1), self.other(n, t, told).flatten(1)], 1)

    def encode(self, cond: Condition) -> Encoded:
        return self.signal.encode(cond)

    def modules(self) -> list[nn.Module]:
        return list(dict.fromkeys([*self.signal.modules(), *self.other.modules()]))

    def lent(self) -> AbstractContextManager:
        both = ExitStack()
        both.enter_context(self.signal.lent())
        both.enter_context(self.other.lent())
        return both

    def states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the signal and of the noise."""
        return x[:, : self.size].unflatten(1, self.signal.shape), x[:, self.size :].unflatten(1, self.other.shape)

    def split(self, x: Tensor) -> tuple[Any, Any]:
        """The samples of the signal and of the noise, given those of this model."""
        u, n = self.states(x)
        return self.signal.decode(u), self.other.decode(n)

    def measurement(self, operator: Any, y: Any, noise: float | Noise = 0.05) -> Measurement:
        """y = operator(signal) + structured noise + noise z. It is linear where the operator is, and where both models
        decode states by a factor and an offset."""
        operator, y = as_operator(operator), torch.as_tensor(y)
        with torch.no_grad():
            first, second = affine(self.signal), affine(self.other)
        self._fits(operator, y)
        if not isinstance(operator, Linear) or first is None or second is None:
            return Measurement(lambda v: _sum(operator, *self.split(v)), y, noise)
        (scale, offset), (gain, level) = first, second
        constant = torch.full((1, *self.signal.shape), offset, dtype=self.dtype, device=self.device)
        total = Sum(operator, scale, gain, self)
        seen = y.to(constant) - operator.A(constant)[0] - level
        where = operator.measured
        return Measurement(total, seen if where is None else torch.where(where.to(seen.device), seen, 0.0), noise)

    def _fits(self, operator: Any, y: Tensor) -> None:
        """Raise unless y and the noise have the shape of what is measured."""
        x, n = self.split(torch.zeros(1, *self.shape, dtype=self.dtype, device=self.device))
        u = operator(x)
        if u.shape != n.shape or u.shape[1:] != y.shape:
            raise ValueError(
                f"Structured: the operator makes {tuple(u.shape[1:])} of a signal, the noise has the shape "
                f"{tuple(n.shape[1:])}, and y {tuple(y.shape)}; one shape is needed"
            )


class Sum(Linear):
    """(x, n) -> scale A x + gain n, where it is measured."""

    def __init__(self, operator: Linear, scale: float, gain: float, pair: Structured):
        self.operator, self.scale, self.gain, self.pair = operator, scale, gain, pair
        self.measured = operator.measured

    def A(self, x: Tensor) -> Tensor:
        u, n = self.pair.states(x)
        return self.scale * self.operator.A(u) + self._seen(self.gain * n)

    def adjoint(self, y: Tensor) -> Tensor:
        y = self._seen(y)
        return torch.cat([self.scale * self.operator.adjoint(y).flatten(1), self.gain * y.flatten(1)], 1)

    def _seen(self, y: Tensor) -> Tensor:
        return y if self.measured is None else y * self.measured.to(y.device)


def _sum(operator: Any, x: Any, n: Tensor) -> Tensor:
    return operator(x) + n


def _count(model: Model) -> int:
    return int(torch.Size(model.shape).numel())

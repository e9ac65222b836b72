r"""Transforms of scores, with the names and formulas of REINVENT (Loeffler et al., 2024,
https://doi.org/10.1186/s13321-024-00812-5). They keep NaN, let gradients through, and map to [0, 1] unless stated
otherwise. Use them as `reward.transformed(Sigmoid(0.3, 0.8))`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_LN10 = math.log(10)


@dataclass(frozen=True)
class Sigmoid:
    """Rises from 0 to 1 between low and high; a larger k makes it steeper.

    1/(1 + 10^(-10 k (x - (low + high)/2)/(high - low))), which is 1/2 in the middle.

    >>> Sigmoid(0.0, 1.0, k=0.5)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0032, 0.5000, 0.9968])
    """

    low: float
    high: float
    k: float = 0.25

    def __post_init__(self) -> None:
        _check_ends(self)

    def __call__(self, x: Tensor) -> Tensor:
        return (10 * _LN10 * self.k * (x - (self.low + self.high) / 2) / (self.high - self.low)).sigmoid()


@dataclass(frozen=True)
class ReverseSigmoid:
    """1 - Sigmoid, for scores where lower is better."""

    low: float
    high: float
    k: float = 0.25

    def __post_init__(self) -> None:
        _check_ends(self)

    def __call__(self, x: Tensor) -> Tensor:
        return 1 - Sigmoid(self.low, self.high, self.k)(x)


@dataclass(frozen=True)
class DoubleSigmoid:
    """Close to 1 between low and high: 1/(1 + 10^(-se (x - low)/div)) - 1/(1 + 10^(-si (x - high)/div))."""

    low: float
    high: float
    coef_div: float = 100.0
    coef_si: float = 150.0
    coef_se: float = 150.0

    def __post_init__(self) -> None:
        _check_ends(self)
        if not self.coef_div > 0:
            raise ValueError(f"DoubleSigmoid(coef_div={self.coef_div}): a positive number is needed")

    def __call__(self, x: Tensor) -> Tensor:
        rise, fall = (
            (_LN10 * steep * (x - at) / self.coef_div).sigmoid()
            for steep, at in ((self.coef_se, self.low), (self.coef_si, self.high))
        )
        return rise - fall


@dataclass(frozen=True)
class Step:
    """1 for low <= x <= high, otherwise 0. No gradient."""

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Step({self.low}, {self.high}): low <= high is needed")

    def __call__(self, x: Tensor) -> Tensor:
        return ((x >= self.low) & (x <= self.high)).to(x)


def LeftStep(high: float) -> Step:
    """1 up to `high`, 0 above."""
    return Step(high=high)


def RightStep(low: float) -> Step:
    """1 from `low` on, 0 below."""
    return Step(low=low)


@dataclass(frozen=True)
class Clip:
    """x clipped to [low, high]; with scale=True, (x - low)/(high - low) clipped to [0, 1]."""

    low: float = 0.0
    high: float = 1.0
    scale: bool = False

    def __post_init__(self) -> None:
        _check_ends(self)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.clamp(self.low, self.high)
        return (x - self.low) / (self.high - self.low) if self.scale else x


@dataclass(frozen=True)
class ExponentialDecay:
    """exp(-k x) for x > 0, and 1 for x <= 0."""

    k: float = 1.0

    def __post_init__(self) -> None:
        if not self.k > 0:
            raise ValueError(f"ExponentialDecay(k={self.k}): a positive number is needed")

    def __call__(self, x: Tensor) -> Tensor:
        return (-self.k * x.clamp(min=0)).exp()


class ValueMapping:
    """Maps values to scores, like {0: 1.0, 1: 0.3}; other values get `otherwise`, NaN by default."""

    def __init__(self, mapping: Mapping[float, float], otherwise: float = math.nan):
        if not mapping:
            raise ValueError("ValueMapping({}): at least one value is needed")
        self.mapping, self.otherwise = {float(k): float(v) for k, v in mapping.items()}, float(otherwise)

    def __call__(self, x: Tensor) -> Tensor:
        out = torch.full_like(x, self.otherwise)
        for value, score in self.mapping.items():
            out = torch.where(x == value, score, out)
        return out


@dataclass(frozen=True)
class ZScore:
    """(x - mean)/std, with mean and standard deviation of a reference set; see `rewards.standardised`. Unbounded."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"ZScore(std={self.std}): the scores of the reference must differ")

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _check_ends(transform: Sigmoid | ReverseSigmoid | DoubleSigmoid | Clip) -> None:
    name, low, high = type(transform).__name__, transform.low, transform.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}(low={low}, high={high}): numbers with low < high are needed")

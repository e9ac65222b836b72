"""Measurements y = A(x) + noise: operators, likelihoods, and `gk.Measurement`, which puts them together as a reward."""

from .measurement import Measurement as Measurement
from .noise import Correlated as Correlated, Gaussian as Gaussian, Poisson as Poisson, Quantised as Quantised
from .operators import (
    Blur as Blur,
    Downsample as Downsample,
    Linear as Linear,
    Mask as Mask,
    Matrix as Matrix,
)
from .structured import Structured as Structured

__all__ = [
    "Blur",
    "Correlated",
    "Downsample",
    "Gaussian",
    "Linear",
    "Mask",
    "Matrix",
    "Measurement",
    "Poisson",
    "Quantised",
    "Structured",
]

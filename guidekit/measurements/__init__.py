"""Measurements y = A(x) + noise: operators, likelihoods, and `gk.Measurement`, which puts them together as a reward."""

from .measurement import Measurement as Measurement
from .noise import Gaussian as Gaussian, Poisson as Poisson, Quantised as Quantised
from .operators import (
    Blur as Blur,
    Downsample as Downsample,
    Linear as Linear,
    Mask as Mask,
    Matrix as Matrix,
)

__all__ = ["Blur", "Downsample", "Gaussian", "Linear", "Mask", "Matrix", "Measurement", "Poisson", "Quantised"]

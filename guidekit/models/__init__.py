"""Base models: a noising process with a trained network."""

from . import analytic
from .base import Model
from .drifting import DriftingModel
from .evaluations import Cond, Null
from .gaussian import GaussianModel
from .permutations import RiffleModel
from .tokens import BlackoutModel, MaskedModel, UniformModel

__all__ = [
    "BlackoutModel",
    "Cond",
    "DriftingModel",
    "GaussianModel",
    "MaskedModel",
    "Model",
    "Null",
    "RiffleModel",
    "UniformModel",
    "analytic",
]

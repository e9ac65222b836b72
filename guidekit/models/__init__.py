"""Base models: a noising process with a trained network."""

from . import analytic
from .base import Model
from .drifting import DriftingModel
from .evaluations import Cond, Null
from .gaussian import GaussianModel
from .interpolant import InterpolantModel
from .permutations import RiffleModel
from .reflected import ReflectedModel
from .retimed import Clock, Retimed, TimeShift
from .tokens import BlackoutModel, MaskedModel, UniformModel

__all__ = [
    "BlackoutModel",
    "Clock",
    "Cond",
    "DriftingModel",
    "GaussianModel",
    "InterpolantModel",
    "MaskedModel",
    "Model",
    "Null",
    "ReflectedModel",
    "Retimed",
    "RiffleModel",
    "TimeShift",
    "UniformModel",
    "analytic",
]

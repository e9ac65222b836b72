"""Base models: a noising process with a trained network."""

from . import analytic
from .base import Model
from .evaluations import Cond, Null
from .gaussian import GaussianModel
from .tokens import MaskedModel, UniformModel

__all__ = ["Cond", "GaussianModel", "MaskedModel", "Model", "Null", "UniformModel", "analytic"]

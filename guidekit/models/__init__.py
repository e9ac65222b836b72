"""Base models: a process with somebody's network."""

from .base import Cond, Model, Null
from .gaussian import GaussianModel
from .tokens import MaskedModel, UniformModel

__all__ = ["Cond", "GaussianModel", "MaskedModel", "Model", "Null", "UniformModel"]

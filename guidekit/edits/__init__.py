"""Edits of samples: the noise from which a sampler makes a given sample, so that it can be made again otherwise."""

from .invert import invert

__all__ = ["invert"]

"""Edits of samples: the noise from which a sampler makes a given sample, so that it can be made again otherwise."""

from .brush import brush as brush
from .invert import invert as invert

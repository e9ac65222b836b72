"""Guides: one published method in each file, all usable together in one list."""

from .base import Guide
from .cfg import CFG
from .fk import FKSteering
from .resample import Resample

__all__ = ["CFG", "FKSteering", "Guide", "Resample"]

"""Guides: one published method in each file, all usable together in one list."""

from .base import Guide
from .beam import BeamSearch
from .best_of_n import BestOfN
from .cfg import CFG
from .das import DAS
from .ddcm import DDCM
from .dsearch import DSearch
from .fk import FKSteering
from .fkc import FKC
from .resample import Resample
from .start import StartFrom
from .svdd import SVDD
from .tds import TDS

__all__ = [
    "CFG",
    "DAS",
    "DDCM",
    "FKC",
    "SVDD",
    "TDS",
    "BeamSearch",
    "BestOfN",
    "DSearch",
    "FKSteering",
    "Guide",
    "Resample",
    "StartFrom",
]

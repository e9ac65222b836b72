"""Guides: one published method in each file, all usable together in one list."""

from .apg import APG
from .base import Guide
from .beam import BeamSearch
from .best_of_n import BestOfN
from .cads import CADS
from .cfg import CFG
from .cfg_zero import CFGZero
from .cfgpp import CFGpp
from .das import DAS
from .ddcm import DDCM
from .dsearch import DSearch
from .fk import FKSteering
from .fkc import FKC
from .mag import MagnitudeAware
from .resample import Resample
from .start import StartFrom
from .svdd import SVDD
from .tcfg import TCFG
from .tds import TDS

__all__ = [
    "APG",
    "CADS",
    "CFG",
    "DAS",
    "DDCM",
    "FKC",
    "SVDD",
    "TCFG",
    "TDS",
    "BeamSearch",
    "BestOfN",
    "CFGZero",
    "CFGpp",
    "DSearch",
    "FKSteering",
    "Guide",
    "MagnitudeAware",
    "Resample",
    "StartFrom",
]

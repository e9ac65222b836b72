"""Guides: one published method in each file, all usable together in one list."""

from .advdiff import AdvDiff
from .apg import APG
from .autoguidance import AutoGuidance
from .base import Guide
from .beam import BeamSearch
from .best_of_n import BestOfN
from .boost_and_skip import BoostAndSkip
from .cads import CADS
from .cfg import CFG
from .cfg_zero import CFGZero
from .cfgpp import CFGpp
from .classifier import ClassifierGuidance
from .compose import Compose
from .das import DAS
from .dcbg import DCBG
from .ddcm import DDCM
from .distillation import Distillation
from .dsearch import DSearch
from .experts import At
from .fk import FKSteering
from .fkc import FKC
from .gfcg import GFCG
from .hallucination import Hallucination
from .higs import HiGS
from .mag import MagnitudeAware
from .magicmix import MagicMix
from .minority import MinorityGuidance
from .mixture import Mixture
from .pag import PAG
from .regions import Regions
from .resample import Resample
from .seg import SEG
from .self_guided import SelfGuidedMinority
from .slg import SLG
from .start import StartFrom
from .svdd import SVDD
from .switch import Switch
from .tag import TAG
from .tcfg import TCFG
from .tds import TDS
from .tfg import DPS, LGD, MPGD, TFG, UGD, FreeDoM
from .views import Views

__all__ = [
    "APG",
    "CADS",
    "CFG",
    "DAS",
    "DCBG",
    "DDCM",
    "DPS",
    "FKC",
    "GFCG",
    "LGD",
    "MPGD",
    "PAG",
    "SEG",
    "SLG",
    "SVDD",
    "TAG",
    "TCFG",
    "TDS",
    "TFG",
    "UGD",
    "AdvDiff",
    "At",
    "AutoGuidance",
    "BeamSearch",
    "BestOfN",
    "BoostAndSkip",
    "CFGZero",
    "CFGpp",
    "ClassifierGuidance",
    "Compose",
    "DSearch",
    "Distillation",
    "FKSteering",
    "FreeDoM",
    "Guide",
    "Hallucination",
    "HiGS",
    "MagicMix",
    "MagnitudeAware",
    "MinorityGuidance",
    "Mixture",
    "Regions",
    "Resample",
    "SelfGuidedMinority",
    "StartFrom",
    "Switch",
    "Views",
]

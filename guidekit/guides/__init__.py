"""Guides: one published method in each file, all usable together in one list."""

from ..engine.guide import Guide
from ..models.evaluations import At
from .advdiff import AdvDiff
from .apg import APG
from .autoguidance import AutoGuidance
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .boost_and_skip import BoostAndSkip
from .cads import CADS
from .cfg import CFG
from .cfg_zero import CFGZero
from .cfgpp import CFGpp
from .classifier_guidance import ClassifierGuidance
from .compose import Compose
from .das import DAS
from .dcbg import DCBG
from .ddcm import DDCM
from .distillation import Distillation
from .dsearch import DSearch
from .fk_steering import FKSteering
from .fkc import FKC
from .gfcg import GFCG
from .hallucination import Hallucination
from .higs import HiGS
from .magicmix import MagicMix
from .magnitude_aware import MagnitudeAware
from .minority_guidance import MinorityGuidance
from .mixture import Mixture
from .pag import PAG
from .regions import Regions
from .resample import Resample
from .seg import SEG
from .self_guided_minority import SelfGuidedMinority
from .slg import SLG
from .start_from import StartFrom
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

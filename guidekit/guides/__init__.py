"""Guides: one published method in each file, all usable together in one list."""

from .apg import APG
from .autoguidance import AutoGuidance, weakened
from .base import Guide
from .beam import BeamSearch
from .best_of_n import BestOfN
from .boost_and_skip import BoostAndSkip
from .cads import CADS
from .cfg import CFG
from .cfg_zero import CFGZero
from .cfgpp import CFGpp
from .classifier import GFCG, AdvDiff, ClassifierGuidance
from .compose import At, Compose, Mixture
from .das import DAS
from .ddcm import DDCM
from .discrete import DCBG, TAG
from .distillation import Distillation
from .dsearch import DSearch
from .fk import FKSteering
from .fkc import FKC
from .hallucination import Hallucination
from .higs import HiGS
from .mag import MagnitudeAware
from .minority import (
    FeatureDistance,
    MinorityGuidance,
    MinorityScore,
    SelfGuidedMinority,
    minority_score,
    quantile_labels,
)
from .pag import PAG
from .resample import Resample
from .seg import SEG
from .slg import SLG
from .start import StartFrom
from .svdd import SVDD
from .switch import MagicMix, Regions, Switch
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
    "FeatureDistance",
    "FreeDoM",
    "Guide",
    "Hallucination",
    "HiGS",
    "MagicMix",
    "MagnitudeAware",
    "MinorityGuidance",
    "MinorityScore",
    "Mixture",
    "Regions",
    "Resample",
    "SelfGuidedMinority",
    "StartFrom",
    "Switch",
    "Views",
    "minority_score",
    "quantile_labels",
    "weakened",
]

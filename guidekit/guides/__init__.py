"""Guides: one published method in each file, all usable together in one list.

A guide that is imported here, as `from .file import Name as Name`, is `gk.Name`, has a row in docs/guides.md and a name
on the command line.
"""

from ..engine.card import Card as Card, Paper as Paper
from ..engine.guide import Guide as Guide
from ..models.evaluations import At as At
from .adaptive_guidance import AdaptiveGuidance as AdaptiveGuidance
from .advdiff import AdvDiff as AdvDiff
from .amortised import Amortised as Amortised, Couplings as Couplings
from .apg import APG as APG
from .apg_mix import APGMix as APGMix
from .aps import APS as APS
from .autoguidance import AutoGuidance as AutoGuidance
from .beam_search import BeamSearch as BeamSearch
from .best_of_n import BestOfN as BestOfN
from .boost_and_skip import BoostAndSkip as BoostAndSkip
from .cads import CADS as CADS
from .cddb import CDDB as CDDB
from .cfg import CFG as CFG
from .cfg_zero import CFGZero as CFGZero
from .cfgpp import CFGpp as CFGpp
from .classifier_guidance import ClassifierGuidance as ClassifierGuidance
from .code import CoDe as CoDe
from .compose import Compose as Compose
from .contrastive_cfg import ContrastiveCFG as ContrastiveCFG
from .daps import DAPS as DAPS
from .das import DAS as DAS
from .dcbg import DCBG as DCBG
from .dcfg import DCFG as DCFG
from .ddcm import DDCM as DDCM
from .ddnm import DDNM as DDNM
from .ddrm import DDRM as DDRM
from .dds import DDS as DDS
from .diffpir import DiffPIR as DiffPIR
from .distillation import Distillation as Distillation
from .drift_lite import DriftLite as DriftLite
from .dsearch import DSearch as DSearch
from .dynamic_thresholding import DynamicThresholding as DynamicThresholding
from .edlm import EDLM as EDLM
from .entropic_annealing import EntropicAnnealing as EntropicAnnealing
from .epsilon_scaling import EpsilonScaling as EpsilonScaling
from .erg import ERG as ERG
from .feedback_guidance import FeedbackGuidance as FeedbackGuidance
from .fk_steering import FKSteering as FKSteering
from .fkc import FKC as FKC
from .frequency_decoupled import FrequencyDecoupled as FrequencyDecoupled
from .fresca import FreSca as FreSca
from .funnel import Funnel as Funnel
from .gaussian_start import GaussianStart as GaussianStart
from .gfcg import GFCG as GFCG
from .hallucination import Hallucination as Hallucination
from .hard_consistency import ReSample as ReSample
from .higs import HiGS as HiGS
from .icg import ICG as ICG
from .intersection import Intersection as Intersection
from .keep import Keep as Keep
from .magicmix import MagicMix as MagicMix
from .magnitude_aware import MagnitudeAware as MagnitudeAware
from .max_edits import MaxEdits as MaxEdits
from .minority_guidance import MinorityGuidance as MinorityGuidance
from .mixture import Mixture as Mixture
from .nag import NAG as NAG
from .pag import PAG as PAG
from .perp_neg import PerpNeg as PerpNeg
from .pigdm import PiGDM as PiGDM
from .predictor_guidance import PredictorGuidance as PredictorGuidance
from .psi_sampler import PsiSampler as PsiSampler
from .regions import Regions as Regions
from .repaint import RePaint as RePaint
from .resample import Resample as Resample
from .s2_guidance import S2Guidance as S2Guidance
from .sag import SAG as SAG
from .score_calibration import ScoreCalibration as ScoreCalibration
from .score_sde import ScoreSDE as ScoreSDE
from .seg import SEG as SEG
from .self_guided_minority import SelfGuidedMinority as SelfGuidedMinority
from .sites import Sites as Sites
from .slg import SLG as SLG
from .start_from import StartFrom as StartFrom
from .stsl import STSL as STSL
from .svdd import SVDD as SVDD
from .switch import Switch as Switch
from .tag import TAG as TAG
from .taylor_smc import TaylorSMC as TaylorSMC
from .tcfg import TCFG as TCFG
from .tds import TDS as TDS
from .temperature import Temperature as Temperature
from .tfg import DPS as DPS, LGD as LGD, MPGD as MPGD, TFG as TFG, UGD as UGD, FreeDoM as FreeDoM
from .tmpd import TMPD as TMPD
from .top_p import TopP as TopP
from .tpg import TPG as TPG
from .treg import TReg as TReg
from .tsg import TSG as TSG
from .typical import Typical as Typical
from .views import Views as Views

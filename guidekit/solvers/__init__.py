"""Solvers: coefficient tables over a time grid for Gaussian processes (see `guidekit.solvers.base`), and rules by which
tokens move (see `guidekit.solvers.token_solver`)."""

from . import drifts, schedules, times
from .accelerated import AcceleratedDDIM, AcceleratedDDPM
from .analytic_dpm import AnalyticDPM
from .ancestral import Ancestral
from .base import Move, Point, Solver, fractions, starting_at
from .bdia import BDIA
from .belm import BELM
from .blocks import Blocks
from .churn import Churn
from .confidence import Confidence, Entropy, Margin
from .conjugate import Conjugate
from .consistency import Consistency
from .cps import CPS
from .dc_solver import DCSolver, compensated
from .ddim import DDIM, DDPM
from .deis import DEIS
from .dpm_v3 import DPMv3, Statistics, statistics
from .dpmpp import DPMpp, SDEDPMpp
from .dual_fast import DualFast
from .er_sde import ERSDE
from .exp_heun import ExponentialHeun
from .first_hitting import FirstHitting
from .fit import fit
from .flow_matching import FlowMatching
from .fs_dfm import FSDFM
from .ghvb import GHVB, HeavyBall
from .heun import Euler, Heun
from .joint import Joint
from .langevin import Langevin
from .lsd import LSD
from .pndm import PNDM
from .pseudo_heun import PseudoHeun
from .rdm import RDM
from .reddit import ReDDiT
from .remdm import ReMDM
from .sa_solver import SASolver
from .saber import Saber
from .table import Table
from .tau_leaping import TauLeaping
from .ucgm import UCGM
from .unipc import UniPC
from .usf import USF, searched

__all__ = [
    "BDIA",
    "BELM",
    "CPS",
    "DDIM",
    "DDPM",
    "DEIS",
    "ERSDE",
    "FSDFM",
    "GHVB",
    "LSD",
    "PNDM",
    "RDM",
    "UCGM",
    "USF",
    "AcceleratedDDIM",
    "AcceleratedDDPM",
    "AnalyticDPM",
    "Ancestral",
    "Blocks",
    "Churn",
    "Confidence",
    "Conjugate",
    "Consistency",
    "DCSolver",
    "DPMpp",
    "DPMv3",
    "DualFast",
    "Entropy",
    "Euler",
    "ExponentialHeun",
    "FirstHitting",
    "FlowMatching",
    "HeavyBall",
    "Heun",
    "Joint",
    "Langevin",
    "Margin",
    "Move",
    "Point",
    "PseudoHeun",
    "ReDDiT",
    "ReMDM",
    "SASolver",
    "SDEDPMpp",
    "Saber",
    "Solver",
    "Statistics",
    "Table",
    "TauLeaping",
    "UniPC",
    "compensated",
    "drifts",
    "fit",
    "fractions",
    "schedules",
    "searched",
    "starting_at",
    "statistics",
    "times",
]

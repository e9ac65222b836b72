"""Solvers: coefficient tables over a time grid for Gaussian processes (see `guidekit.solvers.base`), and rules by which
tokens move (see `guidekit.solvers.token_solver`)."""

from . import drifts, schedules, times
from .ancestral import Ancestral
from .base import Move, Point, Solver, fractions, starting_at
from .belm import BELM
from .blocks import Blocks
from .churn import Churn
from .confidence import Confidence, Entropy, Margin
from .consistency import Consistency
from .cps import CPS
from .ddim import DDIM, DDPM
from .deis import DEIS
from .dpmpp import DPMpp, SDEDPMpp
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
from .reddit import ReDDiT
from .remdm import ReMDM
from .sa_solver import SASolver
from .saber import Saber
from .table import Table
from .tau_leaping import TauLeaping
from .unipc import UniPC

__all__ = [
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
    "Ancestral",
    "Blocks",
    "Churn",
    "Confidence",
    "Consistency",
    "DPMpp",
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
    "Table",
    "TauLeaping",
    "UniPC",
    "drifts",
    "fit",
    "fractions",
    "schedules",
    "starting_at",
    "times",
]

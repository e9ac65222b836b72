"""Solvers: coefficient tables over a time grid for Gaussian processes (see `guidekit.solvers.base`), and rules by which
tokens move (see `guidekit.solvers.token_solver`)."""

from . import schedules, times
from .ancestral import Ancestral
from .base import Move, Point, Solver, fractions, starting_at
from .belm import BELM
from .blocks import Blocks
from .confidence import Confidence, Entropy, Margin
from .ddim import DDIM, DDPM
from .dpmpp import DPMpp, SDEDPMpp
from .first_hitting import FirstHitting
from .flow_matching import FlowMatching
from .fs_dfm import FSDFM
from .heun import Euler, Heun
from .remdm import ReMDM
from .saber import Saber
from .tau_leaping import TauLeaping

__all__ = [
    "BELM",
    "DDIM",
    "DDPM",
    "FSDFM",
    "Ancestral",
    "Blocks",
    "Confidence",
    "DPMpp",
    "Entropy",
    "Euler",
    "FirstHitting",
    "FlowMatching",
    "Heun",
    "Margin",
    "Move",
    "Point",
    "ReMDM",
    "SDEDPMpp",
    "Saber",
    "Solver",
    "TauLeaping",
    "fractions",
    "schedules",
    "starting_at",
    "times",
]

"""Solvers for Gaussian processes: coefficient tables over a time grid (see `guidekit.solvers.base`)."""

from . import schedules, times
from .base import Move, Point, Solver, fractions, starting_at
from .ddim import DDIM, DDPM
from .dpmpp import DPMpp, SDEDPMpp
from .heun import Euler, Heun

__all__ = [
    "DDIM",
    "DDPM",
    "DPMpp",
    "Euler",
    "Heun",
    "Move",
    "Point",
    "SDEDPMpp",
    "Solver",
    "fractions",
    "schedules",
    "starting_at",
    "times",
]

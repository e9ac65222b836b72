"""guidekit: inference-time guidance and reward search for any pre-trained diffusion model.

import guidekit as gk
result = gk.sample(model, 64, guides=[gk.CFG(3.0), gk.FKSteering(reward, alpha=0.1)], cond="HepG2")
"""

from . import analytic, process, resampling, schedules, solvers, times, values
from .cite import cite
from .errors import CheckpointError, CollapseWarning, NetworkError, RewardError
from .guides import (
    APG,
    CADS,
    CFG,
    DAS,
    DDCM,
    FKC,
    SVDD,
    TCFG,
    TDS,
    BeamSearch,
    BestOfN,
    CFGpp,
    CFGZero,
    DSearch,
    FKSteering,
    Guide,
    MagnitudeAware,
    Resample,
    StartFrom,
    ddcm,
)
from .models import Cond, GaussianModel, MaskedModel, Model, Null, UniformModel
from .population import Population
from .refine import evolve, refine
from .result import Result, load_result
from .run import Run
from .sample import sample
from .view import Step, View

__version__ = "0.1.0"

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
    "CheckpointError",
    "CollapseWarning",
    "Cond",
    "DSearch",
    "FKSteering",
    "GaussianModel",
    "Guide",
    "MagnitudeAware",
    "MaskedModel",
    "Model",
    "NetworkError",
    "Null",
    "Population",
    "Resample",
    "Result",
    "RewardError",
    "Run",
    "StartFrom",
    "Step",
    "UniformModel",
    "View",
    "analytic",
    "cite",
    "ddcm",
    "evolve",
    "load_result",
    "process",
    "refine",
    "resampling",
    "sample",
    "schedules",
    "solvers",
    "times",
    "values",
]

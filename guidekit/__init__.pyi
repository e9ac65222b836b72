from . import (
    external as external,
    integrations as integrations,
    measurements as measurements,
    process as process,
    search as search,
    solvers as solvers,
    values as values,
    zoo as zoo,
)
from .edits.brush import brush as brush
from .edits.invert import invert as invert
from .engine import resampling as resampling
from .engine.islands import Islands as Islands
from .engine.join import join as join
from .engine.parallel import parallel as parallel
from .engine.population import Population as Population
from .engine.result import Result as Result, load_result as load_result
from .engine.run import Run as Run
from .engine.sample import sample as sample
from .engine.strength import Auto as Auto
from .engine.view import Step as Step, View as View
from .errors import (
    CheckpointError as CheckpointError,
    CollapseWarning as CollapseWarning,
    NetworkError as NetworkError,
    RewardError as RewardError,
)
from .external.checkpoints import from_checkpoint as from_checkpoint
from .guides import *  # noqa: F403
from .guides import ddcm as ddcm, views as views
from .guides.cite import cite as cite
from .guides.hallucination import hallucination as hallucination
from .guides.minority_guidance import (
    FeatureDistance as FeatureDistance,
    MinorityScore as MinorityScore,
    minority_score as minority_score,
    quantile_labels as quantile_labels,
)
from .integrations.diffusers import from_diffusers as from_diffusers
from .jobs.config import Config as Config
from .measurements.measurement import Measurement as Measurement
from .models import (
    BlackoutModel as BlackoutModel,
    Clock as Clock,
    Cond as Cond,
    DriftingModel as DriftingModel,
    GaussianModel as GaussianModel,
    InterpolantModel as InterpolantModel,
    MaskedModel as MaskedModel,
    Model as Model,
    Null as Null,
    ReflectedModel as ReflectedModel,
    Retimed as Retimed,
    RiffleModel as RiffleModel,
    TimeShift as TimeShift,
    UniformModel as UniformModel,
    analytic as analytic,
)
from .models.attention import attention_layers as attention_layers
from .models.stitched import Stitched as Stitched
from .models.weakened import weakened as weakened
from .search.check import Check as Check, check as check
from .search.coverage import coverage as coverage
from .search.headhunter import headhunter as headhunter
from .search.refine import evolve as evolve, refine as refine
from .search.tune import tune as tune
from .solvers import drifts as drifts, schedules as schedules, times as times

__version__: str

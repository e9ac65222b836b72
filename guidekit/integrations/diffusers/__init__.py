"""Diffusers pipelines as base models, and steering inside a pipeline's own call."""

from .build import from_diffusers
from .guider import guider
from .hook import Hook, step_hook
from .model import DiffusersModel
from .preview import Preview
from .process import Scheduler
from .tiny import tiny

__all__ = ["DiffusersModel", "Hook", "Preview", "Scheduler", "from_diffusers", "guider", "step_hook", "tiny"]
